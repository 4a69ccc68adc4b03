"""Approvals, and limits that ask, as `interrupt(...)` of a graph: the application's own UI answers.

A graph that is resumed runs the node again from its top, and then `interrupt` returns the answer.  So a call
that needs an approval asks before anything of it is on record, and its first event says who decided what.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from langgraph.config import get_config
from langgraph.types import interrupt

from agentguard import Budget, Run
from agentguard.errors import LimitAskedError
from agentguard.steps.decision import Decision
from agentguard_langchain._checkpoints import has_checkpointer

if TYPE_CHECKING:
    from agentguard_langchain._steps import Carried
    from agentguard_langchain._tool_call import ToolCall, ToolOptions

#: Who answers: an operator, while the call waits; or the graph's application, while the graph is interrupted.
Approvals = Literal["operator", "interrupt"]
#: Who decided, where the answer does not say.
UNNAMED = "Command(resume)"
#: What a user may not change by an answer.
_RULES = ("enforce", "on_limit", "ask_timeout", "warn_at")


def checked_approvals(approvals: str, tools: ToolOptions) -> bool:
    """Return whether the graph is interrupted to ask.

    Raises:
        ValueError: it is something else, or a tool's approval is to time out, which no graph does.
    """
    if approvals not in ("operator", "interrupt"):
        raise ValueError(f"approvals must be 'operator' or 'interrupt', not {approvals!r}")
    interrupts = approvals == "interrupt"
    timed = tools.with_option("approval_timeout") if interrupts else None
    if timed is not None:
        raise ValueError(
            f"{timed}: approval_timeout does not go with approvals='interrupt': an interrupted graph waits "
            "until its application resumes it; leave one of them out"
        )
    return interrupts


def check_graph(name: str) -> None:
    """Refuse a call of a graph that could not be resumed.

    Raises:
        ValueError: the graph has no checkpointer, or the call is not made in a graph.
    """
    try:
        config: Mapping[str, Any] = get_config()
    except RuntimeError:
        config = {}
    if not has_checkpointer(config):
        raise ValueError(
            f"{name}: approvals='interrupt' needs a graph that can be resumed: compile it, or create the "
            "agent, with checkpointer=..., and call it with config={'configurable': {'thread_id': ...}}"
        )


def ask_approval(call: ToolCall) -> None:
    """Have the graph ask for the approval that a tool call needs; the answer goes with the call.

    Raises:
        GraphInterrupt: it is asked for now.
    """
    needed = call.options.pop("approval", None)
    if callable(needed):
        needed = needed(**call.arguments)
    if not needed:
        return
    asked = call.request.tool_call
    value = {
        "type": "tool_approval",
        "run_id": call.run.id,
        "tool_call_id": asked["id"],
        "name": asked["name"],
        "args": dict(call.arguments),
        "description": f"{asked['name']} needs an approval",
    }
    call.options["approval"] = _decision(_answer(value, _no_approval))


def apply(call: Carried, body: Any, args: Any, kwargs: Any, options: dict[str, Any], *, asks: bool) -> Any:
    """Make a call as a step; with `asks`, a limit that asks interrupts the graph."""
    if not asks:
        return call.run.apply(call.name, body, args, kwargs, **options)
    who: Any = "caller"
    while True:
        try:
            return call.run.apply(call.name, body, args, kwargs, **options, asks=who)
        except LimitAskedError as asked:
            who = _ask_limit(call.run, asked)


async def apply_async(
    call: Carried, body: Any, args: Any, kwargs: Any, options: dict[str, Any], *, asks: bool
) -> Any:
    """The same."""
    if not asks:
        return await call.run.apply(call.name, body, args, kwargs, **options)
    who: Any = "caller"
    while True:
        try:
            return await call.run.apply(call.name, body, args, kwargs, **options, asks=who)
        except LimitAskedError as asked:
            who = _ask_limit(call.run, asked)


def _ask_limit(run: Run, asked: LimitAskedError) -> Literal["caller"] | Decision:
    """Have the graph ask for a higher limit, and set it; or return the refusal."""
    value = {"type": "limit", "description": str(asked), **asked.facts()}
    answer = _answer(value, _no_limits)
    said = _decision(answer)
    if not said.granted:
        return said
    run.set_budget(answer["limits"], actor=said.actor, reason=said.reason)
    return "caller"


def _answer(value: dict[str, Any], problem_of: Callable[[Any], str | None]) -> Any:
    """Return the answer to a question; one that is none is asked for again, and the question says why."""
    while True:
        answer = interrupt(value)
        problem = problem_of(answer)
        if problem is None:
            return answer
        value = {**value, "error": problem}


def _decision(answer: Mapping[str, Any]) -> Decision:
    reason = answer.get("reason") or answer.get("message")
    return Decision(answer["type"] != "reject", answer.get("actor") or UNNAMED, reason)


def _no_approval(answer: Any) -> str | None:
    return _no_answer(answer, "approve")


def _no_limits(answer: Any) -> str | None:
    problem = _no_answer(answer, "raise")
    if problem is not None or answer["type"] == "reject":
        return problem
    limits = answer.get("limits")
    if not isinstance(limits, Mapping) or not limits:
        return "limits must be the new limits by name, as {'usd': '5.00'}"
    rules = [name for name in limits if name in _RULES]
    if rules:
        return f"limits cannot change {rules[0]}"
    try:
        Budget().replace(**limits)
    except (TypeError, ValueError) as error:
        return f"limits: {error}"
    return None


def _no_answer(answer: Any, yes: str) -> str | None:
    kind = answer.get("type") if isinstance(answer, Mapping) else None
    if kind not in (yes, "reject"):
        return (
            f"the answer must be {{'type': {yes!r}}} or {{'type': 'reject'}}, with 'actor' and 'reason' if "
            f"they are known, not {answer!r}"
        )
    for name in ("actor", "reason", "message"):
        if answer.get(name) is not None and not isinstance(answer[name], str):
            return f"{name} must be text, not {answer[name]!r}"
    return None
