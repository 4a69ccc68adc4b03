"""What holds in every framework alike: one suite, a driver for each."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import trio
from agents import Agent as OpenAIAgent
from agents import RunConfig, Runner, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call
from langchain.agents import create_agent
from langchain_core.language_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage
from mcp import types
from mcp.client.client import Client
from mcp.server.lowlevel import Server
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.test import TestModel

import agentguard_langchain as lc
import agentguard_mcp as mcp_guard
import agentguard_openai_agents as oa
import agentguard_pydantic_ai as pa
from agentguard import Budget, BudgetExceededError, Guard, KillSwitchTriggeredError, Usage

Body = Callable[[int], Awaitable[str]]


@pytest.fixture
def guard() -> Iterator[Guard]:
    with Guard.in_memory() as guard:
        yield guard


# --- drivers: one answer that asks for four tool calls side by side --------------------------------------


async def by_langchain(send_body: Body) -> Any:
    class Model(FakeMessagesListChatModel):
        def bind_tools(self, tools: Any, **options: Any) -> Any:
            return self

    async def send(n: int) -> str:
        """Send."""
        return await send_body(n)

    calls = [{"name": "send", "args": {"n": n}, "id": f"c{n}"} for n in range(4)]
    model = Model(responses=[AIMessage("", tool_calls=calls), AIMessage("done")])
    agent = create_agent(model, [send], middleware=[lc.GuardMiddleware()])
    return await agent.ainvoke({"messages": [("user", "go")]})


async def by_openai_agents(send_body: Body) -> Any:
    @function_tool(name_override="send")
    async def send(n: int) -> str:
        return await send_body(n)

    calls = [function_call("send", {"n": n}, call_id=f"c{n}") for n in range(4)]
    model = ScriptedModel([calls, [assistant_message("done")]])
    agent = oa.guard_agent(OpenAIAgent(name="a", model=model, tools=[send]))
    return await Runner.run(agent, "go", hooks=oa.GuardHooks(), run_config=RunConfig(tracing_disabled=True))


async def by_pydantic_ai(send_body: Body) -> Any:
    def answer(messages: Any, info: Any) -> ModelResponse:
        if len(messages) > 1:
            return ModelResponse(parts=[TextPart("done")])
        return ModelResponse(parts=[ToolCallPart("send", {"n": n}, f"c{n}") for n in range(4)])

    agent = PydanticAgent(FunctionModel(answer), capabilities=[pa.GuardCapability()])

    @agent.tool_plain(name="send")
    async def send(n: int) -> str:
        return await send_body(n)

    return await agent.run("go")


async def by_mcp(send_body: Body) -> Any:
    async def call(ctx: Any, params: Any) -> types.CallToolResult:
        text = await send_body(params.arguments["n"])
        return types.CallToolResult(content=[types.TextContent(text=text)])

    server: Server[Any] = Server("mail", on_call_tool=call)
    server.middleware.append(mcp_guard.GuardMiddleware())
    async with Client(server) as client:
        asked = [client.call_tool("send", {"n": n}) for n in range(4)]
        return await asyncio.gather(*asked, return_exceptions=True)


EVERY = [by_langchain, by_openai_agents, by_pydantic_ai, by_mcp]
every = pytest.mark.parametrize("drive", EVERY, ids=lambda drive: drive.__name__.removeprefix("by_"))


# --- calls side by side ----------------------------------------------------------------------------------


@every
def test_of_four_calls_where_three_have_room_three_finish(guard: Guard, drive: Any) -> None:
    begun, finished = [], []

    async def send(n: int) -> str:
        begun.append(n)
        while run.stop is None:
            await asyncio.sleep(0.001)
        for _ in range(20):  # what else cancels it has time to do so
            await asyncio.sleep(0)
        finished.append(n)
        return f"sent {n}"

    async def main() -> None:
        with suppress(BudgetExceededError):
            await drive(send)
        async with asyncio.timeout(60):
            while run.summary().open_steps:
                await asyncio.sleep(0.001)

    with pytest.raises(BudgetExceededError), guard.run("r", budget=Budget(calls={"send": 3})) as run:
        asyncio.run(main())
    assert len(finished) == len(begun) == 3
    outcomes = [event.type for event in guard.history(run.id) if event.name == "send"]
    assert outcomes.count("step_completed") == 3


@every
def test_a_kill_cancels_all_calls_side_by_side(guard: Guard, drive: Any) -> None:
    begun, finished = [], []

    async def send(n: int) -> str:
        begun.append(n)
        if len(begun) == 4:
            guard.kill(run=run.id, reason="stop")
        await asyncio.sleep(3600)
        finished.append(n)
        return "never"

    with pytest.raises(KillSwitchTriggeredError), guard.run("r") as run:
        asyncio.run(drive(send))
    assert len(begun) == 4
    assert finished == []
    assert run.summary().open_steps == ()


@every
def test_a_callers_own_cancellation_cancels_the_calls(guard: Guard, drive: Any) -> None:
    begun, cancelled = asyncio.Event(), []

    async def send(n: int) -> str:
        begun.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.append(n)
            raise
        return "never"

    async def main() -> None:
        task = asyncio.create_task(drive(send))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with guard.run("r") as run:
        asyncio.run(main())
    assert cancelled
    assert run.summary().open_steps == ()


# --- other event loops -----------------------------------------------------------------------------------


# Frameworks that need asyncio leave their own coroutines behind when they fail under trio.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize(
    "drive", [by_langchain, by_pydantic_ai, by_openai_agents], ids=lambda drive: drive.__name__
)
def test_under_trio_nothing_is_called_and_no_step_is_on_record(guard: Guard, drive: Any) -> None:
    ran = []

    async def send(n: int) -> str:
        ran.append(n)
        return "sent"

    with guard.run("r") as run:
        with pytest.raises(BaseException):  # noqa: B017, PT011 - some frameworks need asyncio themselves
            trio.run(drive, send)
        gc.collect()  # what they left, while its warnings are ignored
        assert not [event for event in guard.history(run.id) if event.type.startswith("step_")]
    assert ran == []


# --- copies ----------------------------------------------------------------------------------------------


def add(a: int, b: int) -> int:
    """Add."""
    return a + b


def objects() -> dict[str, Callable[[], Any]]:
    return {
        "langchain handler": lc.GuardCallbackHandler,
        "langchain middleware": lambda: lc.GuardMiddleware(
            tool_options={"add": {"usage": Usage(sums=1)}}, soft=True, wrap_up=True
        ),
        "langchain tool": lambda: lc.guard_tools([add])[0],
        "pydantic-ai capability": pa.GuardCapability,
        "pydantic-ai model": lambda: pa.GuardedModel(TestModel()),
        "openai agent": lambda: oa.guard_agent(
            OpenAIAgent(name="a", model="gpt-5", tools=[function_tool(add)])
        ),
        "openai model": lambda: oa.GuardedModel(ScriptedModel([])),
        "openai model by name": lambda: oa.GuardedModel("gpt-5"),
        "openai provider": oa.GuardedModelProvider,
        "openai hooks": oa.GuardHooks,
        "mcp middleware": mcp_guard.GuardMiddleware,
    }


#: Whose classes are made for one tool or agent, or which hold live clients: not sent to other processes.
NOT_PICKLED = {"langchain tool", "openai agent", "openai provider"}


@pytest.mark.parametrize("name", objects())
def test_copies_are_the_same_kind_of_thing(name: str) -> None:
    original = objects()[name]()
    ways = [copy.copy, copy.deepcopy]
    if name not in NOT_PICKLED:
        ways.append(lambda value: pickle.loads(pickle.dumps(value)))
    for way in ways:
        assert type(way(original)) is type(original)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy])
def test_a_copy_of_what_was_given_a_run_counts_in_that_run(guard: Guard, way: Any) -> None:
    with guard.run("r") as run:
        for given in (
            lc.GuardCallbackHandler(run),
            lc.GuardMiddleware(run),
            pa.GuardCapability(run),
            oa.GuardedModel(ScriptedModel([]), run),
        ):
            assert way(given).run is run


def test_a_copied_middleware_guards_as_the_original_does(guard: Guard) -> None:
    middleware = copy.deepcopy(lc.GuardMiddleware())
    agent = create_agent(FakeMessagesListChatModel(responses=[AIMessage("hi")]), [], middleware=[middleware])
    with guard.run("r") as run:
        agent.invoke({"messages": [("user", "go")]})
        agent = create_agent(
            FakeMessagesListChatModel(responses=[AIMessage("hi")]), [], middleware=[copy.deepcopy(middleware)]
        )
        agent.invoke({"messages": [("user", "go")]})
    assert run.spent.steps == 2
