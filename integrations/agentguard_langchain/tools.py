"""`guard_tools`: tools that are guarded steps by themselves, wherever they are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.tools import tool as make_tool

from agentguard import Run
from agentguard_langchain import _steps
from agentguard_langchain._asking import (
    Approvals,
    apply,
    apply_async,
    ask_approval,
    check_graph,
    checked_approvals,
)
from agentguard_langchain._calls import COVER
from agentguard_langchain._hooks import WATCHING, listen
from agentguard_langchain._listening import Outside, checked_outside, refuse_outside
from agentguard_langchain._tool_call import ToolCall, ToolOptions
from agentguard_langchain._tree import TREE


def guard_tools(
    tools: Sequence[BaseTool | Callable[..., Any] | dict[str, Any]],
    *,
    tool_options: Mapping[str, Mapping[str, Any]] | None = None,
    outside: Outside = "refuse",
    approvals: Approvals = "operator",
) -> list[Any]:
    """Copies of tools that are guarded steps of the run that is active when they are called.

    For tools that are used without `GuardMiddleware` and without a handler; with them a call still counts
    once.  Functions become tools; tools of a provider, which are dicts, stay as they are.

    Args:
        tools: the tools.
        tool_options: options of `guarded_step` by tool name: `{"send_email": {"usage": Usage(emails=1)}}`.
        outside: `"refuse"` (default) or `"allow"` calls outside a run.
        approvals: `"operator"` (default), or `"interrupt"`, as in `GuardMiddleware`.

    Raises:
        TypeError, ValueError: an option is wrong; the message names it and the tool.

    Example:
        >>> from agentguard import Budget, Guard
        >>> from agentguard_langchain import guard_tools
        >>> def add(a: int, b: int) -> int:
        ...     '''Add two numbers.'''
        ...     return a + b
        >>> [guarded] = guard_tools([add])
        >>> with Guard.in_memory() as guard, guard.run("sums", budget=Budget(calls={"add": 3})) as run:
        ...     total = guarded.invoke({"a": 2, "b": 3})
        >>> total, run.spent.steps
        (5, 1)
    """
    options = ToolOptions(tool_options)
    allowed, interrupts = checked_outside(outside), checked_approvals(approvals, options)
    listen()
    return [
        tool if isinstance(tool, dict) else _guarded(tool, options, allowed=allowed, interrupts=interrupts)
        for tool in tools
    ]


def _guarded(
    tool: BaseTool | Callable[..., Any], options: ToolOptions, *, allowed: bool, interrupts: bool
) -> BaseTool:
    bare = tool if isinstance(tool, BaseTool) else make_tool(tool)
    cls: Any = type(bare)

    def run(self: BaseTool, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        def physical(_: Any) -> Any:
            return cls.run(self, tool_input, *args, **kwargs)

        call = _call(self, tool_input, kwargs, physical, options, allowed=allowed)
        if call is None:
            return physical(None)
        if interrupts:
            check_graph(call.name)
            ask_approval(call)
        with _steps.LeavingTool(call.run), _steps.Calling(call):
            result = apply(call, _steps.use, (), call.arguments, call.options, asks=interrupts)
        return _steps.unpaused(result)

    async def arun(self: BaseTool, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        async def physical(_: Any) -> Any:
            return await cls.arun(self, tool_input, *args, **kwargs)

        call = _call(self, tool_input, kwargs, physical, options, allowed=allowed)
        if call is None:
            return await physical(None)
        if interrupts:
            check_graph(call.name)
            ask_approval(call)
        with _steps.LeavingTool(call.run), _steps.Calling(call):
            result = await apply_async(
                call, _steps.use_async, (), call.arguments, call.options, asks=interrupts
            )
        return _steps.unpaused(result)

    members = {"run": run, "arun": arun, "__module__": cls.__module__, "__doc__": cls.__doc__}
    copy = bare.model_copy()
    # A subclass of its own: whatever the tool's class does in its constructor has been done.
    object.__setattr__(copy, "__class__", type(cls.__name__, (cls,), members))
    return copy


def _call(
    tool: BaseTool,
    tool_input: Any,
    kwargs: Mapping[str, Any],
    physical: Callable[[Any], Any],
    options: ToolOptions,
    *,
    allowed: bool,
) -> ToolCall | None:
    """The call as a step; None where it needs none: the middleware's already, or allowed outside."""
    parent_id = getattr(kwargs.get("callbacks"), "parent_run_id", None)
    call_id = kwargs.get("tool_call_id")
    cover = COVER.get()
    if cover is not None and cover.covers("tool", tool.name, call_id):
        return None
    run: Run | None = TREE.run_here(parent_id)
    if run is None:
        refuse_outside(tool.name, allowed=allowed)
        return None
    arguments = {"input": tool_input}
    if isinstance(tool_input, dict):
        # Not public: without what the graph injects, which is no argument of the model's.
        arguments = tool._filter_injected_args(tool_input)  # noqa: SLF001
    request = SimpleNamespace(tool_call={"name": tool.name, "args": arguments, "id": call_id})
    place = TREE.tool_place(run, parent_id, call_id, None, arguments)
    return ToolCall(
        run,
        request,
        physical,
        options={"branch": place.branch, **options.of(tool.name)},
        watch=WATCHING.get(),
    )
