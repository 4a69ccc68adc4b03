"""Agents of `create_agent` and graphs: three calls and no more, whatever is around the guard."""

import asyncio
import contextlib
import operator
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

import pytest

pytest.importorskip("langchain")

from langchain.agents import create_agent
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import RetryPolicy, Send

from agentguard import Budget, BudgetExceededError, Guard, KillSwitchTriggeredError, Run, RunState
from agentguard_langchain import GuardCallbackHandler, GuardMiddleware

HI = {"messages": [("user", "hi")]}
GUARDS = pytest.mark.parametrize("guarded_by", ["handler", "middleware", "both"])
BESIDE = pytest.mark.parametrize("beside", ["alone", "inline", "not inline"])
MODES = pytest.mark.parametrize("mode", ["sync", "async"])


class Setup:
    """The guard as handler, as middleware or as both, beside somebody else's handlers."""

    def __init__(self, guarded_by: str, beside: list[Any], **options: Any) -> None:
        self.middleware = [] if guarded_by == "handler" else [GuardMiddleware(**options)]
        handlers = [] if guarded_by == "middleware" else [GuardCallbackHandler()]
        self.config: Any = {"callbacks": [*handlers, *beside], "recursion_limit": 100}


@pytest.fixture
def setup(guarded_by: str, others: Any) -> Setup:
    return Setup(guarded_by, others)


def drive(mode: str, graph: Any, state: Any, config: Any, tries: int = 20) -> None:
    """As a program that survives everything."""

    async def driven() -> None:
        for _ in range(tries):
            with contextlib.suppress(Exception):
                await graph.ainvoke(state, config)
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*rest, return_exceptions=True)

    if mode == "async":
        return asyncio.run(driven())
    for _ in range(tries):
        with contextlib.suppress(Exception):
            graph.invoke(state, config)
    return None


def check_failed(guard: Guard, run: Run) -> None:
    termination = guard.summary(run.id).termination
    assert termination is not None
    assert termination["type"] == "BudgetExceededError"
    assert run.state is RunState.FAILED
    assert run.summary().open_steps == ()
    assert guard.verify(run.id)


def check_killed(guard: Guard, run: Run) -> None:
    termination = guard.summary(run.id).termination
    assert termination is not None
    assert termination["type"] == "KillSwitchTriggeredError"
    assert run.state is RunState.KILLED
    assert run.summary().open_steps == ()
    assert guard.verify(run.id)


def looping(conftest: Any, tools: int) -> Callable[..., Any]:
    """A script that asks for tools for ever."""
    answer, wants = conftest

    def script(number: int, messages: Any) -> Any:
        calls = [wants("search", f"c{number}.{i}", query=f"q{number}.{i}") for i in range(tools)]
        return answer("thinking", *calls)

    return script


@MODES
@GUARDS
@BESIDE
@pytest.mark.parametrize("tools", [1, 3], ids=["one tool", "parallel tools"])
def test_an_agent_makes_three_model_calls(
    guard: Guard, model: Any, search: Any, says: Any, setup: Setup, mode: str, tools: int
) -> None:
    model.script = looping(says, tools)
    agent = create_agent(model, [search[0]], middleware=setup.middleware)
    with (
        pytest.raises(BudgetExceededError),
        guard.run("agent", budget=Budget(calls={"kind:llm": 3})) as run,
    ):
        drive(mode, agent, HI, setup.config)
    assert len(model.seen) == 3
    assert len(search[1]) == 3 * tools
    check_failed(guard, run)


@MODES
@GUARDS
@BESIDE
def test_an_agent_makes_three_tool_calls(
    guard: Guard, model: Any, search: Any, says: Any, setup: Setup, mode: str
) -> None:
    model.script = looping(says, 1)
    agent = create_agent(model, [search[0]], middleware=setup.middleware)
    with (
        pytest.raises(BudgetExceededError),
        guard.run("agent", budget=Budget(calls={"search": 3})) as run,
    ):
        drive(mode, agent, HI, setup.config)
    assert len(search[1]) == 3
    check_failed(guard, run)


@MODES
@GUARDS
@BESIDE
def test_twenty_parallel_tool_calls_are_three(
    guard: Guard, model: Any, search: Any, says: Any, setup: Setup, mode: str
) -> None:
    model.script = looping(says, 20)
    agent = create_agent(model, [search[0]], middleware=setup.middleware)
    with (
        pytest.raises(BudgetExceededError),
        guard.run("agent", budget=Budget(calls={"search": 3})) as run,
    ):
        drive(mode, agent, HI, setup.config)
    assert len(search[1]) == 3
    check_failed(guard, run)


@MODES
@pytest.mark.parametrize("guarded_by", ["middleware", "both"])
def test_twenty_parallel_tool_calls_in_a_scope_are_three(
    guard: Guard, model: Any, search: Any, says: Any, mode: str, guarded_by: str
) -> None:
    model.script = looping(says, 20)
    setup = Setup(guarded_by, [])
    agent = create_agent(model, [search[0]], middleware=setup.middleware)
    with guard.run("agent") as run:
        with pytest.raises(BudgetExceededError), run.scope("part", Budget(calls={"search": 3})):
            drive(mode, agent, HI, setup.config, tries=3)
        model.invoke("after it", setup.config)
    assert len(search[1]) == 3
    assert run.state is RunState.COMPLETED
    assert run.summary().open_steps == ()


@MODES
@GUARDS
@BESIDE
def test_a_kill_at_the_second_model_call_ends_the_agent(
    guard: Guard, model: Any, search: Any, says: Any, setup: Setup, mode: str
) -> None:
    model.script = looping(says, 2)
    agent = create_agent(model, [search[0]], middleware=setup.middleware)
    with pytest.raises(KillSwitchTriggeredError, match="enough"), guard.run("agent") as run:
        model.during = lambda number: number == 2 and run.kill("enough")
        drive(mode, agent, HI, setup.config)
    assert len(model.seen) == 2
    check_killed(guard, run)


def tries(call: Callable[[], Any]) -> None:
    """Twenty of them, as a program that survives everything."""
    for _ in range(20):
        with contextlib.suppress(Exception):
            call()


async def atries(call: Callable[[], Any]) -> None:
    for _ in range(20):
        with contextlib.suppress(Exception):
            await call()
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*rest, return_exceptions=True)


async def exhaust(stream: Any) -> None:
    async for _ in stream:
        pass


def stream(agent: Any, config: Any) -> None:
    tries(lambda: list(agent.stream(HI, config)))


def stream_messages(agent: Any, config: Any) -> None:
    tries(lambda: list(agent.stream(HI, config, stream_mode="messages")))


def batch(agent: Any, config: Any) -> None:
    tries(lambda: agent.batch([HI] * 3, config))


def batch_exceptions(agent: Any, config: Any) -> None:
    tries(lambda: agent.batch([HI] * 3, config, return_exceptions=True))


def with_retry(agent: Any, config: Any) -> None:
    retried = agent.with_retry(stop_after_attempt=5, wait_exponential_jitter=False)
    tries(lambda: retried.invoke(HI, config))


def with_fallbacks(agent: Any, config: Any) -> None:
    fallen = agent.with_fallbacks([agent, agent])
    tries(lambda: fallen.invoke(HI, config))


async def astream(agent: Any, config: Any) -> None:
    await atries(lambda: exhaust(agent.astream(HI, config)))


async def astream_messages(agent: Any, config: Any) -> None:
    await atries(lambda: exhaust(agent.astream(HI, config, stream_mode="messages")))


async def astream_events(agent: Any, config: Any) -> None:
    await atries(lambda: exhaust(agent.astream_events(HI, config, version="v2")))


async def abatch(agent: Any, config: Any) -> None:
    await atries(lambda: agent.abatch([HI] * 3, config))


async def abatch_exceptions(agent: Any, config: Any) -> None:
    await atries(lambda: agent.abatch([HI] * 3, config, return_exceptions=True))


WAYS = pytest.mark.parametrize(
    "way",
    [
        stream,
        stream_messages,
        batch,
        batch_exceptions,
        with_retry,
        with_fallbacks,
        astream,
        astream_messages,
        astream_events,
        abatch,
        abatch_exceptions,
    ],
    ids=lambda way: way.__name__,
)


def go(way: Callable[..., Any], agent: Any, config: Any) -> None:
    if asyncio.iscoroutinefunction(way):
        asyncio.run(way(agent, config))
    else:
        way(agent, config)


@WAYS
@GUARDS
@BESIDE
def test_an_agent_makes_three_model_calls_whatever_way_it_is_run(
    guard: Guard, model: Any, search: Any, says: Any, setup: Setup, way: Callable[..., Any]
) -> None:
    model.script = looping(says, 2)
    agent = create_agent(model, [search[0]], middleware=setup.middleware)
    with (
        pytest.raises(BudgetExceededError),
        guard.run("agent", budget=Budget(calls={"kind:llm": 3})) as run,
    ):
        go(way, agent, setup.config)
    assert len(model.seen) == 3
    check_failed(guard, run)


@WAYS
@GUARDS
@BESIDE
def test_a_kill_at_the_second_model_call_is_the_end_whatever_way_an_agent_is_run(
    guard: Guard, model: Any, search: Any, says: Any, setup: Setup, way: Callable[..., Any]
) -> None:
    model.script = looping(says, 2)
    agent = create_agent(model, [search[0]], middleware=setup.middleware)
    config = setup.config
    if "batch" in way.__name__:
        # No other call may be on its way at the kill.  Streams of messages hang with it: LangGraph waits for
        # tokens in the one thread that it has for the task.
        config = {**config, "max_concurrency": 1}
    with pytest.raises(KillSwitchTriggeredError, match="enough"), guard.run("agent") as run:
        model.during = lambda number: number == 2 and run.kill("enough")
        go(way, agent, config)
    assert len(model.seen) == 2
    check_killed(guard, run)


@MODES
@GUARDS
@BESIDE
def test_a_sub_agent_in_a_tool_shares_the_budget(
    guard: Guard, scripted: Any, search: Any, says: Any, setup: Setup, mode: str, guarded_by: str
) -> None:
    agent, inner, outer = nested(scripted, search[0], says, setup, guarded_by, mode)
    with (
        pytest.raises(BudgetExceededError),
        guard.run("agent", budget=Budget(calls={"kind:llm": 3})) as run,
    ):
        drive(mode, agent, HI, setup.config)
    assert len(inner.seen) + len(outer.seen) == 3
    check_failed(guard, run)


@MODES
@GUARDS
@BESIDE
def test_a_kill_inside_a_sub_agent_is_the_end_of_both(
    guard: Guard, scripted: Any, search: Any, says: Any, setup: Setup, mode: str, guarded_by: str
) -> None:
    agent, inner, outer = nested(scripted, search[0], says, setup, guarded_by, mode)
    with pytest.raises(KillSwitchTriggeredError, match="enough"), guard.run("agent") as run:
        inner.during = lambda number: run.kill("enough")
        drive(mode, agent, HI, setup.config)
    assert (len(outer.seen), len(inner.seen), search[1]) == (1, 1, [])
    check_killed(guard, run)


def nested(
    scripted: Any, search: Any, says: Any, setup: Setup, guarded_by: str, mode: str
) -> tuple[Any, Any, Any]:
    """An agent whose tool is an agent, and the models of the inner and of the outer one."""
    inner = scripted(seen=[], settings=[], script=looping(says, 1))
    answer, wants = says
    outer = scripted(seen=[], settings=[], script=lambda n, m: answer("go", wants("ask", f"t{n}", topic="x")))
    helper = create_agent(inner, [search], middleware=setup.middleware, name="helper")

    if mode == "async":

        @tool
        async def ask(topic: str) -> str:
            """Ask the helper."""
            return str((await helper.ainvoke({"messages": [("user", topic)]}))["messages"][-1].content)

    else:

        @tool
        def ask(topic: str) -> str:
            """Ask the helper."""
            return str(helper.invoke({"messages": [("user", topic)]})["messages"][-1].content)

    agent = create_agent(outer, [ask], middleware=Setup(guarded_by, []).middleware)
    return agent, inner, outer


class State(TypedDict):
    done: Annotated[list[int], operator.add]


def fan_out(node: Any, anode: Any, width: int, **options: Any) -> StateGraph[Any]:
    from langgraph._internal._runnable import RunnableCallable

    graph = StateGraph(State)
    graph.add_node("worker", RunnableCallable(node, anode, name="worker", trace=False), **options)
    graph.add_conditional_edges(START, lambda state: [Send("worker", {"n": n}) for n in range(width)])
    return graph


SAVED = pytest.mark.parametrize("saved", [False, True], ids=["", "checkpointer"])
RETRIED = pytest.mark.parametrize("retried", [False, True], ids=["", "RetryPolicy"])


def fanned_out(model: Any, saved: bool, retried: bool) -> Any:
    """A graph whose twenty tasks call a model, side by side."""

    def node(state: Any) -> Any:
        return {"done": [len(model.invoke(f"try {state['n']}").content)]}

    async def anode(state: Any) -> Any:
        return {"done": [len((await model.ainvoke(f"try {state['n']}")).content)]}

    policy = RetryPolicy(max_attempts=5, initial_interval=0.001, jitter=False, retry_on=Exception)
    graph = fan_out(node, anode, 20, **({"retry_policy": policy} if retried else {}))
    return graph.compile(checkpointer=InMemorySaver() if saved else None)


@MODES
@BESIDE
@SAVED
@RETRIED
@pytest.mark.parametrize("guarded_by", ["handler"])
def test_a_graph_that_fans_out_makes_three_model_calls(
    guard: Guard, model: Any, setup: Setup, mode: str, saved: bool, retried: bool
) -> None:
    config = {**setup.config, "configurable": {"thread_id": "t"}}
    with (
        pytest.raises(BudgetExceededError),
        guard.run("graph", budget=Budget(calls={"kind:llm": 3})) as run,
    ):
        drive(mode, fanned_out(model, saved, retried), {"done": []}, config)
    assert len(model.seen) == 3
    check_failed(guard, run)


@MODES
@BESIDE
@SAVED
@RETRIED
@pytest.mark.parametrize("guarded_by", ["handler"])
def test_a_kill_at_the_second_model_call_ends_a_graph_that_fans_out(
    guard: Guard, model: Any, setup: Setup, mode: str, saved: bool, retried: bool
) -> None:
    config = {**setup.config, "configurable": {"thread_id": "t"}, "max_concurrency": 1}
    with pytest.raises(KillSwitchTriggeredError, match="enough"), guard.run("graph") as run:
        model.during = lambda number: number == 2 and run.kill("enough")
        drive(mode, fanned_out(model, saved, retried), {"done": []}, config)
    assert len(model.seen) == 2
    check_killed(guard, run)


def graph_of_agents(agent: Any) -> Any:
    def node(state: Any) -> Any:
        return {"done": [len(agent.invoke(HI)["messages"])]}

    async def anode(state: Any) -> Any:
        return {"done": [len((await agent.ainvoke(HI))["messages"])]}

    return fan_out(node, anode, 20).compile()


@MODES
@GUARDS
@BESIDE
def test_a_graph_of_agents_makes_three_model_calls(
    guard: Guard, model: Any, search: Any, says: Any, setup: Setup, mode: str
) -> None:
    model.script = looping(says, 1)
    agent = create_agent(model, [search[0]], middleware=setup.middleware)
    with (
        pytest.raises(BudgetExceededError),
        guard.run("graph", budget=Budget(calls={"kind:llm": 3})) as run,
    ):
        drive(mode, graph_of_agents(agent), {"done": []}, setup.config)
    assert len(model.seen) == 3
    check_failed(guard, run)


@MODES
@GUARDS
@BESIDE
def test_a_kill_at_the_second_model_call_ends_a_graph_of_agents(
    guard: Guard, model: Any, search: Any, says: Any, setup: Setup, mode: str
) -> None:
    model.script = looping(says, 1)
    agent = create_agent(model, [search[0]], middleware=setup.middleware)
    with pytest.raises(KillSwitchTriggeredError, match="enough"), guard.run("graph") as run:
        model.during = lambda number: number == 2 and run.kill("enough")
        drive(mode, graph_of_agents(agent), {"done": []}, {**setup.config, "max_concurrency": 1})
    assert len(model.seen) == 2
    check_killed(guard, run)
