"""Every tool call of an MCP server is a step; what stops it reaches the client as a protocol error."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import types
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.server import Server
from mcp.server.mcpserver import MCPServer
from mcp.shared.exceptions import MCPError

from agentguard import (
    Budget,
    BudgetExceededError,
    Guard,
    KillSwitchTriggeredError,
    NoActiveRunError,
    RunState,
    RunStopped,
    Usage,
    guarded_step,
)
from agentguard_mcp import GuardError, GuardMiddleware, SessionRuns

Use = Callable[[Client], Awaitable[Any]]


class Calculator:
    """A server, and what its tools really did."""

    def __init__(self, middleware: Any = None) -> None:
        self.ran: list[tuple[int, int]] = []
        self.at: Callable[[int], Any] = lambda _: None
        self.server = MCPServer("calculator", middleware=[middleware or GuardMiddleware()])
        self.server.tool(annotations={"readOnlyHint": True})(self.add)  # type: ignore[arg-type]
        self.server.tool(annotations={"idempotentHint": True})(self.put)  # type: ignore[arg-type]
        self.server.tool()(self.hang)
        self.server.tool()(self.mail)
        self.begun = asyncio.Event()

    def add(self, a: int, b: int) -> int:
        """Add two numbers."""
        self.ran.append((a, b))
        self.at(len(self.ran))
        return a + b

    def put(self, key: str) -> str:
        """Keep something."""
        return key

    async def hang(self) -> None:
        """Never return."""
        self.begun.set()
        self.at(0)
        await asyncio.Event().wait()

    def mail(self) -> str:
        """Send a mail."""
        send_email()
        return "sent"


@guarded_step(usage=Usage(emails=1))
def send_email() -> None: ...


@pytest.fixture(params=["auto", "legacy"])
def mode(request: pytest.FixtureRequest) -> Any:
    """With and without the handshake."""
    return request.param


def connected(calculator: Calculator, mode: Any, use: Use) -> None:
    async def main() -> None:
        async with Client(calculator.server, mode=mode) as client:
            await use(client)

    asyncio.run(main())


async def twenty_times(client: Client) -> list[MCPError]:
    """Ask twenty times, whatever comes back."""
    errors = []
    for number in range(20):
        try:
            result = await client.call_tool("add", {"a": number, "b": 1})
        except MCPError as error:
            errors.append(error)
        else:
            assert result.structured_content == {"result": number + 1}
    return errors


def test_a_budget_of_three_calls_gives_three(guard: Guard, mode: Any) -> None:
    calculator = Calculator()
    errors: list[MCPError] = []

    async def use(client: Client) -> None:
        errors.extend(await twenty_times(client))

    with (
        pytest.raises(BudgetExceededError) as stopped,
        guard.run("server", budget=Budget(calls={"add": 3})) as run,
    ):
        connected(calculator, mode, use)

    assert calculator.ran == [(0, 1), (1, 1), (2, 1)]
    assert {error.code for error in errors} == {GuardError.RUN_STOPPED}
    assert len(errors) == 17
    assert errors[0].message == str(run.stop)
    assert errors[0].data == {"type": "BudgetExceededError", **stopped.value.facts()}
    assert run.state is RunState.FAILED
    assert run.summary().open_steps == ()
    assert guard.verify(run.id)


def test_a_kill_at_the_second_call_lets_no_third_begin(guard: Guard, mode: Any) -> None:
    calculator = Calculator()
    run = guard.run("server")
    calculator.at = lambda number: run.kill("enough") if number == 2 else None
    errors: list[MCPError] = []

    async def use(client: Client) -> None:
        errors.extend(await twenty_times(client))

    with pytest.raises(KillSwitchTriggeredError), run:
        connected(calculator, mode, use)

    assert len(calculator.ran) == 2
    assert {error.code for error in errors} == {GuardError.RUN_STOPPED}
    assert errors[0].data["reason"] == "enough"
    assert run.state is RunState.KILLED
    assert run.summary().open_steps == ()


def test_a_kill_cancels_a_tool_in_flight(guard: Guard, mode: Any) -> None:
    run = guard.run("server")
    calculator = Calculator()
    calculator.at = lambda _: run.kill("enough")

    async def use(client: Client) -> None:
        with pytest.raises(MCPError, match="killed"):
            await client.call_tool("hang")

    with pytest.raises(KillSwitchTriggeredError), run:
        connected(calculator, mode, use)

    assert run.state is RunState.KILLED
    assert run.summary().open_steps == ()


def test_a_call_that_the_client_gives_up_leaves_no_reservation(guard: Guard, mode: Any) -> None:
    calculator = Calculator()

    async def use(client: Client) -> None:
        task = asyncio.ensure_future(client.call_tool("hang"))
        await calculator.begun.wait()
        task.cancel()
        await asyncio.wait([task])

    with guard.run("server") as run:
        connected(calculator, mode, use)

    assert run.state is RunState.COMPLETED
    assert run.summary().open_steps == ()
    assert run.spent.steps == 1


def test_hints_say_what_a_repeat_would_do(guard: Guard, mode: Any) -> None:
    calculator = Calculator()

    async def use(client: Client) -> None:
        await client.call_tool("add", {"a": 1, "b": 2})
        await client.call_tool("put", {"key": "k"})
        await client.call_tool("mail")

    with guard.run("server") as run:
        connected(calculator, mode, use)

    started = [e for e in guard.history(run.id) if e.type == "step_started" and e.name != "send_email"]
    assert [(e.name, e.data.get("effect", "once")) for e in started] == [
        ("add", "read"),
        ("put", "idempotent"),
        ("mail", "once"),
    ]


@pytest.mark.parametrize("lists", [True, False], ids=["in-pages", "not-at-all"])
def test_a_low_level_server_is_guarded_whatever_it_lists(guard: Guard, mode: Any, lists: bool) -> None:
    async def page(ctx: Any, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        number = int(params.cursor or 0) if params else 0
        hints = types.ToolAnnotations(read_only_hint=number == 2)
        tool = types.Tool(name=f"tool-{number}", input_schema={"type": "object"}, annotations=hints)
        return types.ListToolsResult(tools=[tool], next_cursor=str(number + 1) if number < 2 else None)

    async def call(ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        return types.CallToolResult(content=[types.TextContent(text=params.name)])

    server: Server[Any] = Server("pages", on_call_tool=call, on_list_tools=page if lists else None)
    server.middleware.append(GuardMiddleware())

    async def main() -> None:
        async with Client(server, mode=mode) as client:
            with contextlib.nullcontext() if lists else contextlib.suppress(MCPError):
                await client.call_tool("tool-2")  # and the client itself asks for the list

    with guard.run("server") as run:
        asyncio.run(main())

    (started,) = (e for e in guard.history(run.id) if e.type == "step_started")
    assert (started.name, started.data.get("effect", "once")) == ("tool-2", "read" if lists else "once")


@pytest.mark.parametrize("error", [ConnectionError("upstream is down"), PermissionError(), MCPError(1, "no")])
def test_a_server_whose_listing_fails_has_tools_all_the_same(
    guard: Guard, mode: Any, error: Exception
) -> None:
    called = []

    async def listing(ctx: Any, params: Any) -> Any:
        raise error

    async def call(ctx: Any, params: Any) -> types.CallToolResult:
        called.append(params.name)
        return types.CallToolResult(content=[types.TextContent(text="ok")])

    server: Server[Any] = Server("proxy", on_call_tool=call, on_list_tools=listing)
    server.middleware.append(GuardMiddleware())

    async def main() -> None:
        async with Client(server, mode=mode) as client:
            with contextlib.suppress(Exception):  # this client asks for the listing itself, afterwards
                await client.call_tool("look", {})

    with guard.run("server") as run:
        asyncio.run(main())
    assert called == ["look"]
    assert [
        (e.data or {}).get("effect", "once") for e in guard.history(run.id) if e.type == "step_started"
    ] == ["once"]


def test_an_unlisted_tool_is_asked_for_once_and_by_none_of_the_callers_meta(guard: Guard, mode: Any) -> None:
    async def listing(ctx: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[])

    async def call(ctx: Any, params: Any) -> types.CallToolResult:
        return types.CallToolResult(content=[types.TextContent(text="ok")])

    seen: list[tuple[str, Any, set[str]]] = []

    async def watch(ctx: Any, call_next: Any) -> Any:
        seen.append((ctx.method, ctx.request_id, set((ctx.params or {}).get("_meta") or ())))
        return await call_next(ctx)

    server: Server[Any] = Server("pages", on_call_tool=call, on_list_tools=listing)
    server.middleware[:] = [GuardMiddleware(), watch]

    async def main() -> None:
        async with Client(server, mode=mode) as client:
            for _ in range(5):
                await client.call_tool("hidden", {}, meta={"tenant": "acme", "progressToken": 7})

    with guard.run("server"):
        asyncio.run(main())
    calls = {request for method, request, _ in seen if method == "tools/call"}
    ours = [meta for method, request, meta in seen if method == "tools/list" and request in calls]
    assert len(calls) == 5
    assert len(ours) == 1  # the client asks for listings too, in requests of their own
    assert not {"tenant", "progressToken"} & ours[0]


def test_options_of_a_tool_are_those_of_a_step(guard: Guard, mode: Any) -> None:
    options = {"put": {"usage": Usage(writes=1), "effect": "once"}}
    calculator = Calculator(GuardMiddleware(tool_options=options))

    async def use(client: Client) -> None:
        await client.call_tool("put", {"key": "k"})
        with pytest.raises(MCPError, match="writes limit"):
            await client.call_tool("put", {"key": "k"})

    with pytest.raises(BudgetExceededError), guard.run("server", budget=Budget(writes=1)) as run:
        connected(calculator, mode, use)

    assert run.spent["writes"] == 1


def test_a_stop_inside_a_tool_is_no_error_text(guard: Guard, mode: Any) -> None:
    """The server makes a text of whatever a tool raises, and hides what it says."""
    calculator = Calculator()

    async def use(client: Client) -> None:
        with pytest.raises(MCPError, match="emails limit"):
            await client.call_tool("mail")

    with pytest.raises(BudgetExceededError), guard.run("server", budget=Budget(emails=0)):
        connected(calculator, mode, use)


def test_an_error_of_a_tool_is_not_the_guards(guard: Guard, mode: Any) -> None:
    calculator = Calculator()

    async def use(client: Client) -> None:
        wrong = await client.call_tool("add", {"a": "x", "b": 1})
        unknown = await asyncio.gather(client.call_tool("no such tool"), return_exceptions=True)
        assert wrong.is_error
        assert not isinstance(unknown[0], GuardError)

    with guard.run("server") as run:
        connected(calculator, mode, use)

    assert run.state is RunState.COMPLETED


def test_without_a_run_no_tool_is_called(mode: Any) -> None:
    calculator = Calculator()

    async def use(client: Client) -> None:
        with pytest.raises(MCPError, match="start it inside") as refused:
            await client.call_tool("add", {"a": 1, "b": 2})
        assert refused.value.code == GuardError.CALL_REFUSED
        assert refused.value.data == {"type": NoActiveRunError.__name__}

    connected(calculator, mode, use)

    assert calculator.ran == []


def test_a_run_may_be_given(guard: Guard, mode: Any) -> None:
    run = guard.start("server")
    calculator = Calculator(GuardMiddleware(run))

    async def use(client: Client) -> None:
        await client.call_tool("add", {"a": 1, "b": 2})

    asyncio.run(asyncio.to_thread(connected, calculator, mode, use))
    run.close()

    assert run.spent.steps == 1


def test_a_call_is_keyed_by_its_request_and_replayable(guard: Guard) -> None:
    calculator = Calculator()

    async def use(client: Client) -> None:
        await client.call_tool("add", {"a": 1, "b": 2})

    with guard.run("server") as run:
        connected(calculator, "auto", use)
    (completed,) = (e for e in guard.history(run.id) if e.type == "step_completed")

    with guard.replay(run.id):
        connected(calculator, "auto", use)

    assert completed.key == "main/request-2/add#1"
    assert "unreplayable" not in completed.data
    assert calculator.ran == [(1, 2)]


# --- one run for each session --------------------------------------------------------------------


def test_each_session_has_a_run_of_its_own(guard: Guard) -> None:
    sessions = SessionRuns(guard, "session", budget=Budget(calls={"add": 3}), tenant="acme")
    calculator = Calculator(GuardMiddleware(sessions))
    errors: list[MCPError] = []

    async def use(client: Client) -> None:
        errors.extend(await twenty_times(client))

    connected(calculator, "legacy", use)
    connected(calculator, "legacy", use)

    assert len(calculator.ran) == 6
    assert len(errors) == 34
    assert [(s.name, s.state, s.tenant) for s in guard.runs()] == [("session", RunState.FAILED, "acme")] * 2


def test_a_session_that_ends_well_completes_its_run(guard: Guard) -> None:
    calculator = Calculator(GuardMiddleware(SessionRuns(guard)))

    async def use(client: Client) -> None:
        await client.call_tool("add", {"a": 1, "b": 2})

    connected(calculator, "legacy", use)

    assert [s.state for s in guard.runs()] == [RunState.COMPLETED]


def test_a_client_without_sessions_is_refused_where_each_has_a_budget(guard: Guard) -> None:
    calculator = Calculator(GuardMiddleware(SessionRuns(guard)))

    async def use(client: Client) -> None:
        with pytest.raises(MCPError, match="a budget for each session"):
            await client.call_tool("add", {"a": 1, "b": 2})

    connected(calculator, "auto", use)

    assert calculator.ran == []
    assert guard.runs() == []


# --- over a wire ---------------------------------------------------------------------------------


def test_a_budget_of_three_calls_gives_three_over_stdio(mode: Any, home: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    server = StdioServerParameters(
        command=sys.executable,
        args=[str(Path(__file__).parent / "stdio_server.py"), str(ledger)],
        env=dict(os.environ),
    )
    errors: list[MCPError] = []

    async def main() -> None:
        async with Client(stdio_client(server), mode=mode) as client:
            errors.extend(await twenty_times(client))

    asyncio.run(main())

    assert ledger.read_text().splitlines() == ["0+1", "1+1", "2+1"]
    assert len(errors) == 17
    assert errors[0].data["type"] == "BudgetExceededError"
    with Guard.open(telemetry=False) as guard:
        assert guard.summary("server").state is RunState.FAILED
        assert guard.verify("server")


def test_a_kill_from_another_process_stops_a_server_over_stdio(home: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    server = StdioServerParameters(
        command=sys.executable,
        args=[str(Path(__file__).parent / "stdio_server.py"), str(ledger)],
        env=dict(os.environ),
    )

    async def main() -> None:
        async with Client(stdio_client(server)) as client:
            await client.call_tool("add", {"a": 1, "b": 2})
            with Guard.open(telemetry=False) as guard:
                guard.kill(run="server", reason="enough")
            with pytest.raises(MCPError, match="enough"):
                await client.call_tool("add", {"a": 1, "b": 2})

    asyncio.run(main())

    assert ledger.read_text().splitlines() == ["1+2"]
    with Guard.open(telemetry=False) as guard, contextlib.suppress(RunStopped):
        assert guard.summary("server").state is RunState.KILLED
