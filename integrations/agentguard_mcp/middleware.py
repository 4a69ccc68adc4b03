"""The middleware that makes every tool call of an MCP server a guarded step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerMiddleware, ServerRequestContext

from agentguard import AgentGuardError, NoActiveRunError, Run, current_run
from agentguard_mcp import _mapping as m
from agentguard_mcp.errors import GuardError

_log = logging.getLogger("agentguard")
#: How many unknown names of tools are asked for.
_NAMES = 1000
#: How many pages of `tools/list` are read for hints.
_PAGES = 100


class GuardMiddleware(ServerMiddleware[Any]):
    """Every `tools/call` of a server is a guarded step; what stops it becomes a protocol error.

    A server cannot stop the agent at its other end, only refuse its calls.  A tool's `readOnlyHint`
    and `idempotentHint` say what a repeat of it would do (`effect`).

    Args:
        run: the run that pays, or a function that chooses it for a request, such as `SessionRuns`; by
            default the run that the server is started in.
        tool_options: options of `guarded_step` by tool name: `{"send_email": {"usage": Usage(emails=1)}}`.

    Example:
        >>> from agentguard_mcp import GuardMiddleware
        >>> from mcp.server.mcpserver import MCPServer
        >>> server = MCPServer("calculator", middleware=[GuardMiddleware()])
    """

    def __init__(
        self,
        run: Run | Callable[[ServerRequestContext[Any, Any]], Run] | None = None,
        *,
        tool_options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._run = run
        self._tool_options = tool_options or {}
        self._effects: dict[str, m.Effect] = {}
        #: Tools that the server was asked about, whether it listed them or not.
        self._asked: set[str] = set()

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Guard the request, if it is a tool call."""
        call = m.tool_call(ctx.params) if ctx.method == "tools/call" else None
        if call is None or ctx.request_id is None:
            return await call_next(ctx)
        if self._is_new(call.name):
            await self._read_hints(ctx, call_next)
        try:
            return await self._step(ctx, call, call_next)
        except AgentGuardError as error:
            raise GuardError(error) from error

    async def _step(
        self, ctx: ServerRequestContext[Any, Any], call: m.ToolCall, call_next: CallNext
    ) -> HandlerResult:
        run = self._run_of(ctx)

        async def tool(**arguments: Any) -> Any:
            return await call_next(ctx)

        options: dict[str, Any] = {
            "kind": "tool",
            "effect": self._effects.get(call.name, "once"),
            "attributes": {"gen_ai.tool.name": call.name},
            **self._tool_options.get(call.name, {}),
        }
        branch = m.branch_name(ctx.request_id)
        result: HandlerResult = await run.apply(
            m.step_name(call.name), tool, (), call.arguments, branch=branch, **options
        )
        # What the tool ran into may have been a stop, which the server has made an error text of.
        run.check()
        return result

    def _run_of(self, ctx: ServerRequestContext[Any, Any]) -> Run:
        choice = self._run
        run = choice if isinstance(choice, Run) else choice(ctx) if choice is not None else current_run()
        if run is None:
            raise NoActiveRunError(
                "the server is guarded and no run is active: start it inside `with guard.run(...)`, or give "
                "GuardMiddleware(run) or GuardMiddleware(SessionRuns(guard))"
            )
        return run

    def _is_new(self, tool: str) -> bool:
        """Whether to ask for the hints of a tool: once, and not for ever, since clients choose the names."""
        if tool in self._effects or tool in self._asked or len(self._asked) >= _NAMES:
            return False
        self._asked.add(tool)
        return True

    async def _read_hints(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> None:
        """Ask the server for its tools.  One that does not say, or fails, may have tools all the same."""
        params: dict[str, Any] = m.listing_params(ctx.params)
        for _ in range(_PAGES):
            try:
                listed: Any = await call_next(replace(ctx, method="tools/list", params=params))
            except Exception:  # noqa: BLE001 - whatever it was, the call itself may be served
                _log.debug("the tools could not be listed: no hints are known", exc_info=True)
                return
            if not isinstance(listed, Mapping):
                return
            self._effects |= m.effects(listed.get("tools") or ())
            if not isinstance(cursor := listed.get("nextCursor"), str):
                return
            params = {**params, "cursor": cursor}
