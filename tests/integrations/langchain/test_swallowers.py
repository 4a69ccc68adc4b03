"""What LangChain and LangGraph catch, and that a stop is caught by none of it for good."""

import asyncio
import contextlib
from typing import Any

import pytest

pytest.importorskip("langchain")

from langchain.agents import create_agent
from langchain.agents.middleware import (
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    ToolRetryMiddleware,
)
from langchain_core.tools import ToolException, tool
from langgraph.errors import GraphBubbleUp
from langgraph.prebuilt import ToolNode

from agentguard import (
    Budget,
    BudgetExceededError,
    Guard,
    KillSwitchTriggeredError,
    RunState,
    RunStopped,
    UnknownCostError,
    guarded_step,
)
from agentguard_langchain import (
    GraphBudgetExceededError,
    GraphKillSwitchTriggeredError,
    GraphRunStopped,
    GraphUnknownCostError,
    GuardCallbackHandler,
    GuardMiddleware,
    guard_tools,
)
from agentguard_langchain.stops import graph_stop

HI = {"messages": [("user", "hi")]}
STOPS = [
    (BudgetExceededError("usd", 1, 0, 1, 1), GraphBudgetExceededError),
    (KillSwitchTriggeredError("run", "enough"), GraphKillSwitchTriggeredError),
    (UnknownCostError("chat x"), GraphUnknownCostError),
    (RunStopped("over"), GraphRunStopped),
]


@pytest.mark.parametrize(("stop", "passing"), STOPS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_stop_that_passes_is_the_same_stop_and_nothing_that_frameworks_catch(
    stop: RunStopped, passing: type[RunStopped]
) -> None:
    found = graph_stop(stop)
    assert type(found) is passing
    assert isinstance(found, type(stop))
    assert isinstance(found, GraphBubbleUp)
    assert not isinstance(found, RuntimeError | ValueError | NotImplementedError | ToolException)
    assert found.facts() == stop.facts()
    assert str(found) == str(stop)
    assert graph_stop(found) is found


def looping(says: Any) -> Any:
    answer, wants = says
    return lambda number, messages: answer("on", wants("search", f"c{number}", query=f"q{number}"))


def retry_everything() -> list[Any]:
    quick: dict[str, Any] = {"max_retries": 3, "initial_delay": 0, "jitter": False, "backoff_factor": 0}
    return [
        ModelRetryMiddleware(on_failure="continue", **quick),
        ToolRetryMiddleware(on_failure="continue", **quick),
    ]


def tool_errors() -> list[Any]:
    from langchain.agents.middleware import ToolErrorMiddleware

    return [ToolErrorMiddleware(on_error=lambda request, error: "it failed")]


AROUND = {
    "nothing": lambda model: [],
    "retries": lambda model: retry_everything(),
    "tool errors": lambda model: tool_errors(),
    "fallback": lambda model: [ModelFallbackMiddleware(model, model)],
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("guarded_by", ["handler", "middleware", "both"])
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("limited", ["kind:llm", "search"])
def test_middleware_that_catches_errors_does_not_catch_a_stop(
    guard: Guard, model: Any, search: Any, says: Any, around: str, guarded_by: str, mode: str, limited: str
) -> None:
    model.script = looping(says)
    own = [] if guarded_by == "handler" else [GuardMiddleware()]
    agent = create_agent(model, [search[0]], middleware=[*AROUND[around](model), *own])
    config: Any = {} if guarded_by == "middleware" else {"callbacks": [GuardCallbackHandler()]}
    with (
        pytest.raises(BudgetExceededError) as stopped,
        guard.run("agent", budget=Budget(calls={limited: 3})) as run,
    ):
        if mode == "sync":
            agent.invoke(HI, config)
        else:
            asyncio.run(agent.ainvoke(HI, config))
    # It left the agent as an exception, and was not only raised at the end of the run's block.
    assert isinstance(stopped.value.__cause__, GraphBudgetExceededError)
    assert len(model.seen if limited == "kind:llm" else search[1]) == 3
    assert run.state is RunState.FAILED


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("guarded_by", ["handler", "guard_tools"])
def test_a_tool_node_that_handles_errors_does_not_handle_a_stop(
    guard: Guard, search: Any, says: Any, mode: str, guarded_by: str
) -> None:
    from langgraph.graph import START, MessagesState, StateGraph

    answer, wants = says
    tools = guard_tools([search[0]]) if guarded_by == "guard_tools" else [search[0]]
    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode(tools, handle_tool_errors=True))
    graph.add_edge(START, "tools")
    compiled = graph.compile()
    asked = answer("", *(wants("search", f"c{n}", query=f"q{n}") for n in range(4)))
    config: Any = {"callbacks": [GuardCallbackHandler()]} if guarded_by == "handler" else {}
    with (
        pytest.raises(BudgetExceededError) as stopped,
        guard.run("graph", budget=Budget(calls={"search": 3})) as run,
    ):
        if mode == "sync":
            compiled.invoke({"messages": [asked]}, config)
        else:
            asyncio.run(compiled.ainvoke({"messages": [asked]}, config))
    assert isinstance(stopped.value.__cause__, GraphBudgetExceededError)
    assert len(search[1]) == 3
    assert run.summary().open_steps == ()


def test_what_returns_normally_is_raised_at_the_end_of_the_run(guard: Guard, model: Any) -> None:
    config: Any = {"callbacks": [GuardCallbackHandler()]}
    with (
        pytest.raises(BudgetExceededError) as stopped,
        guard.run("batch", budget=Budget(steps=3)) as run,
    ):
        answers = model.batch(["try"] * 5, config, return_exceptions=True)
        assert sum(isinstance(a, BudgetExceededError) for a in answers) == 2
    assert stopped.value is run.stop


def test_a_guarded_step_inside_a_tool_stops_the_agent_too(guard: Guard, model: Any, says: Any) -> None:
    """What the step raises is a plain stop, which ToolNode may catch; the next call raises again."""
    sent: list[str] = []

    @guarded_step(name="smtp")
    def smtp(to: str) -> None:
        sent.append(to)

    @tool
    def send_email(to: str) -> str:
        """Send."""
        with contextlib.suppress(Exception):
            smtp(to)
        return "sent"

    answer, wants = says
    model.script = lambda number, messages: answer("on", wants("send_email", f"c{number}", to="ann"))
    agent = create_agent(model, [send_email], middleware=[GuardMiddleware()])
    with (
        pytest.raises(BudgetExceededError, match="calls:smtp") as stopped,
        guard.run("agent", budget=Budget(calls={"smtp": 2})),
    ):
        agent.invoke(HI)
    assert isinstance(stopped.value.__cause__, GraphBudgetExceededError)
    assert sent == ["ann"] * 2


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_stop_of_a_scope_inside_a_tool_is_the_outer_agents_to_handle(
    guard: Guard, scripted: Any, says: Any, search: Any, mode: str
) -> None:
    answer, wants = says
    inner = scripted(seen=[], settings=[], script=looping(says))
    helper = create_agent(inner, [search[0]], middleware=[GuardMiddleware()])
    runs: list[Any] = []

    @tool
    def research(topic: str) -> str:
        """Research."""
        with runs[0].scope("research", Budget(calls={"kind:llm": 2})):
            return str(helper.invoke({"messages": [("user", topic)]})["messages"][-1].content)

    def script(number: int, messages: Any) -> Any:
        return answer("go", wants("research", "c1", topic="x")) if number == 1 else answer("without it")

    outer = scripted(seen=[], settings=[], script=script)
    agent = create_agent(outer, [research], middleware=[*tool_errors(), GuardMiddleware()])
    with guard.run("agent", budget=Budget(steps=50)) as run:
        runs.append(run)
        result = asyncio.run(agent.ainvoke(HI)) if mode == "async" else agent.invoke(HI)
    assert run.state is RunState.COMPLETED
    assert len(inner.seen) == 2
    assert [m.type for m in result["messages"]] == ["human", "ai", "tool", "ai"]
    assert result["messages"][2].content == "it failed"
    assert run.summary().open_steps == ()
