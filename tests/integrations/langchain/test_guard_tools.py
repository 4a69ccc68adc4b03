"""Tools that are guarded by themselves."""

import asyncio
import contextlib
from typing import Annotated, Any

import pytest

pytest.importorskip("langchain")

from langchain.agents import create_agent
from langchain_core.tools import BaseTool, StructuredTool, ToolException, tool
from langgraph.prebuilt import InjectedState

from agentguard import Budget, BudgetExceededError, Guard, NoActiveRunError, Usage
from agentguard_langchain import GuardCallbackHandler, GuardMiddleware, guard_tools

HI = {"messages": [("user", "hi")]}


class Counting(BaseTool):
    """A tool that is a class of its own."""

    name: str = "count"
    description: str = "Count."
    calls: list[int] = []

    def _run(self, up_to: int) -> int:
        self.calls.append(up_to)
        return up_to

    async def _arun(self, up_to: int) -> int:
        self.calls.append(up_to)
        return up_to


def by_function(calls: list[Any]) -> Any:
    def count(up_to: int) -> int:
        """Count."""
        calls.append(up_to)
        return up_to

    return count


def by_coroutine(calls: list[Any]) -> Any:
    @tool
    async def count(up_to: int) -> int:
        """Count."""
        calls.append(up_to)
        return up_to

    return count


def by_decorator(calls: list[Any]) -> Any:
    return tool(by_function(calls))


def by_class(calls: list[Any]) -> Any:
    one = Counting()
    one.calls = calls
    return one


@pytest.mark.parametrize(
    "made", [by_function, by_decorator, by_class, by_coroutine], ids=lambda m: m.__name__
)
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("handled", [False, True], ids=["", "handle_tool_error"])
def test_three_calls_are_made(guard: Guard, made: Any, mode: str, handled: bool) -> None:
    if made is by_coroutine and mode == "sync":
        return
    calls: list[Any] = []
    [guarded] = guard_tools([made(calls)])
    guarded.handle_tool_error = handled
    with pytest.raises(BudgetExceededError), guard.run("count", budget=Budget(calls={"count": 3})) as run:
        for n in range(20):
            with contextlib.suppress(Exception):
                call = {"name": "count", "args": {"up_to": n}, "id": f"c{n}", "type": "tool_call"}
                answer = asyncio.run(guarded.ainvoke(call)) if mode == "async" else guarded.invoke(call)
                assert answer.tool_call_id == f"c{n}"
    assert calls == [0, 1, 2]
    assert run.spent.steps == 3
    keys = [e.key for e in guard.history(run.id) if e.type == "step_started"]
    assert keys == ["main/count#1", "main/count#2", "main/count#3"]


def test_the_tool_given_stays_as_it_was_and_the_copy_looks_like_it() -> None:
    bare = by_decorator([])
    [guarded] = guard_tools([bare])
    assert type(bare) is StructuredTool
    assert isinstance(guarded, StructuredTool)
    assert (guarded.name, guarded.description, guarded.args) == (bare.name, bare.description, bare.args)
    assert bare.invoke({"up_to": 1}) == 1
    with pytest.raises(NoActiveRunError, match="count is guarded"):
        guarded.invoke({"up_to": 1})
    [allowed] = guard_tools([bare], outside="allow")
    assert allowed.invoke({"up_to": 1}) == 1


def test_a_providers_tools_stay_as_they_are() -> None:
    web = {"type": "web_search"}
    assert guard_tools([web]) == [web]


def test_options_are_those_of_a_guarded_step(guard: Guard) -> None:
    options = {"count": {"usage": Usage(numbers=2), "name": "counting"}}
    [guarded] = guard_tools([by_function([])], tool_options=options)
    with guard.run("count") as run:
        guarded.invoke({"up_to": 4})
    assert run.spent["numbers"] == 2
    with pytest.raises(TypeError, match="count"):
        guard_tools([], tool_options={"count": {"usges": 1}})


def test_a_tool_that_fails_softly_has_completed(guard: Guard) -> None:
    @tool
    def fail() -> str:
        """Fail."""
        raise ToolException("not today")

    fail.handle_tool_error = True
    [guarded] = guard_tools([fail])
    with guard.run("fail") as run:
        assert guarded.invoke({}) == "not today"
    kinds = [e.type for e in guard.history(run.id) if e.key]
    assert kinds == ["step_started", "step_completed"]


@pytest.mark.parametrize("middleware", [False, True], ids=["", "middleware"])
@pytest.mark.parametrize("handler", [False, True], ids=["", "handler"])
def test_with_everything_together_a_call_counts_once(
    guard: Guard, model: Any, search: Any, says: Any, middleware: bool, handler: bool
) -> None:
    answer, wants = says

    @tool
    def peek(state: Annotated[dict[str, Any], InjectedState]) -> str:
        """Look at the state."""
        return str(len(state["messages"]))

    model.script = lambda n, m: (
        answer("", wants("search", "c1", query="q"), wants("peek", "c2")) if n == 1 else answer("done")
    )
    agent = create_agent(
        model, guard_tools([search[0], peek]), middleware=[GuardMiddleware()] if middleware else []
    )
    with guard.run("agent") as run:
        result = agent.invoke(HI, {"callbacks": [GuardCallbackHandler()] if handler else []})
    assert run.spent.steps == (4 if middleware or handler else 2)
    assert [m.content for m in result["messages"] if m.type == "tool"] == ["found q", "2"]
    assert {e.name for e in guard.history(run.id) if e.key} >= {"search", "peek"}
