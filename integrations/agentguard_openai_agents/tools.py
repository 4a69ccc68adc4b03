"""Function tools whose every call is a guarded step."""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING, Any

from agents.tool import FunctionTool, Tool

from agentguard.values import ExactCodec
from agentguard_openai_agents import _mapping as m
from agentguard_openai_agents._calls import active_run, calls_of
from agentguard_openai_agents.stops import sdk_stops

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agents.tool_context import ToolContext

    from agentguard import Run

_RESULTS = ExactCodec()
_BIND = "__agents_bind_function_tool__"


def guard_tools(
    tools: Iterable[Tool],
    run: Run | None = None,
    *,
    tool_options: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Tool]:
    """Copies of function tools whose every call is a guarded step; other tools as they are.

    The SDK turns what a tool raises into a text for the model.  The step lies outside of that: it
    completes with the text, and a stop is raised, not told to the model.

    Args:
        tools: the tools of an agent.
        run: the run that pays; by default the one that is active when a tool is called.
        tool_options: options of `guarded_step` by tool name.
    """
    options = tool_options or {}
    return [
        _guarded(tool, run, options.get(tool.name, {})) if isinstance(tool, FunctionTool) else tool
        for tool in tools
    ]


def is_guarded(tool: Tool) -> bool:
    """Whether calls of a tool are steps already."""
    return isinstance(tool, FunctionTool) and isinstance(tool.on_invoke_tool, _Invoker)


def _guarded(tool: FunctionTool, run: Run | None, options: Mapping[str, Any]) -> FunctionTool:
    if is_guarded(tool):
        return tool
    guarded = copy.copy(tool)
    guarded.on_invoke_tool = _Invoker(guarded.on_invoke_tool, guarded.name, run, options)
    return guarded


class _Invoker:
    """What the runner calls for a tool; shows what it wraps to whoever asks for more."""

    def __init__(self, inner: Any, name: str, run: Run | None, options: Mapping[str, Any]) -> None:
        self._inner = inner
        self._name = name
        self._run = run
        self._options = options

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":
            raise AttributeError(name)
        found = getattr(self._inner, name)
        if name == _BIND:
            # The SDK binds an invoker to each copy of its tool.
            return lambda tool: _Invoker(found(tool), self._name, self._run, self._options)
        return found

    async def __call__(self, ctx: ToolContext[Any], input: str) -> Any:
        run = active_run(self._run)
        call_id = getattr(ctx, "tool_call_id", None)

        async def tool(**arguments: Any) -> Any:
            return await run.shield(self._inner(ctx, input))

        with sdk_stops():
            result = await run.apply(
                self._name,
                tool,
                (),
                m.arguments_of(input),
                branch=calls_of(run).branch_of(call_id),
                **{
                    "kind": "tool",
                    "codec": _RESULTS,
                    "attributes": {"gen_ai.tool.name": self._name, "gen_ai.tool.call.id": call_id or ""},
                    **self._options,
                },
            )
            # What the tool ran into may have been a stop, which the SDK has made a text of.  The runner has
            # cancelled a call beside one that was refused: there the refusal is what it reports.
            if not _is_cancelled():
                run.check()
        return result


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
