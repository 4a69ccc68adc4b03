"""An agent guarded by the middleware runs again on its log, without a model and without a tool."""

import asyncio
import operator
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, TypedDict

import pytest

pytest.importorskip("langchain")

from langchain.agents import create_agent
from langchain.agents.middleware import ModelResponse
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphInterrupt
from langgraph.graph import START, StateGraph
from langgraph.types import Command, Interrupt, Send, interrupt
from pydantic import BaseModel

from agentguard import Budget, BudgetExceededError, Guard, ReplayDivergenceError, guarded_step
from agentguard.values import NotExactError
from agentguard_langchain import GuardCallbackHandler, GuardMiddleware
from agentguard_langchain._codec import CODEC, Paused

HI = {"messages": [("user", "hi")]}
MODES = pytest.mark.parametrize("mode", ["sync", "async"])


class Weather(BaseModel):
    city: str
    degrees: int


@pytest.mark.parametrize(
    "value",
    [
        AIMessage(
            "hi",
            id="m1",
            tool_calls=[{"name": "f", "args": {"x": [1, None, {"y": 2.5}]}, "id": "c1", "type": "tool_call"}],
            usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
            response_metadata={"model_name": "x"},
        ),
        ToolMessage("4", tool_call_id="c1", name="add", status="error", artifact={"rows": [1, 2]}),
        ModelResponse([AIMessage("a")], None),
        ModelResponse([AIMessage("a"), ToolMessage("b", tool_call_id="c")], Weather(city="Bonn", degrees=9)),
        Command(update={"messages": [ToolMessage("b", tool_call_id="c")], "n": 1}, goto="next"),
        Command(goto=[Send("worker", {"n": 1})], graph=Command.PARENT),
        [ToolMessage("b", tool_call_id="c"), Command(update={"n": (1, "two")})],
        {"$langchain": "mine", "n": 1},
        "text",
        None,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_calls_give_comes_back_as_it_was(value: Any) -> None:
    assert CODEC.decode(CODEC.encode(value)) == value


def test_a_pause_comes_back_as_it_was() -> None:
    found = CODEC.decode(CODEC.encode(Paused(GraphInterrupt([Interrupt(value={"ok?": 1}, id="i1")]))))
    assert isinstance(found, Paused)
    assert found.signal.args[0] == [Interrupt(value={"ok?": 1}, id="i1")]


@pytest.mark.parametrize(
    "artifact",
    [
        (1, 2.5),
        {"at": datetime(2026, 1, 2, tzinfo=UTC)},
        PurePosixPath("a/b"),
        {1: {2, 3}},
        b"\xff",
        float("nan"),
    ],
    ids=repr,
)
def test_an_artifact_of_a_tool_comes_back_with_its_type(artifact: Any) -> None:
    found = CODEC.decode(CODEC.encode(ToolMessage("x", tool_call_id="c", artifact=artifact)))
    assert (type(found.artifact), repr(found.artifact)) == (type(artifact), repr(artifact))


class Plan(BaseModel):
    """A structured answer: what was not set is not what was set to None."""

    goal: str
    due: datetime | None = None


def test_a_structured_answer_comes_back_with_the_fields_that_were_set() -> None:
    answer = ModelResponse([AIMessage("x")], Plan(goal="g"))
    found = CODEC.decode(CODEC.encode(answer)).structured_response
    assert found.model_dump(exclude_unset=True) == {"goal": "g"}


@pytest.mark.parametrize("value", [object(), ToolMessage("x", tool_call_id="c", artifact=object())])
def test_what_would_not_come_back_says_so(value: Any) -> None:
    with pytest.raises(NotExactError, match="object does not come back"):
        CODEC.encode(value)


def agent_of(model: Any, says: Any, *, mode: str, **options: Any) -> tuple[Any, list[str]]:
    """An agent whose tool has a sub-agent, and a list of what its tools did."""
    answer, wants = says
    did: list[str] = []

    @tool
    def search(query: str) -> str:
        """Search."""
        did.append(query)
        return f"found {query}"

    def inner_script(number: int, messages: Any) -> Any:
        return (
            answer("", wants("search", f"s{number}", query="deep")) if len(messages) == 1 else answer("deep")
        )

    helper_model = type(model)(seen=[], settings=[], script=inner_script)
    helper = create_agent(helper_model, [search], middleware=[GuardMiddleware()])

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

    def script(number: int, messages: Any) -> Any:
        rounds = sum(m.type == "ai" for m in messages)
        if rounds == 2:
            return answer("the end")
        calls = [wants("search", f"c{rounds}.{n}", query=f"q{rounds}.{n}") for n in range(3)]
        return answer("on", *calls, wants("ask", f"a{rounds}", topic="deep"))

    model.script = script
    return create_agent(model, [search, ask], middleware=[GuardMiddleware(**options)]), did


def go(agent: Any, mode: str, config: Any = None) -> Any:
    return asyncio.run(agent.ainvoke(HI, config)) if mode == "async" else agent.invoke(HI, config)


@MODES
@pytest.mark.parametrize("handler", [False, True], ids=["middleware", "both"])
def test_an_agent_with_parallel_tools_and_a_sub_agent_replays(
    guard: Guard, model: Any, says: Any, mode: str, handler: bool
) -> None:
    config: Any = {"callbacks": [GuardCallbackHandler()] if handler else []}
    agent, did = agent_of(model, says, mode=mode)
    with guard.run("agent", budget=Budget(tokens=100_000)) as run:
        live = go(agent, mode, config)
    calls, done = len(model.seen), len(did)
    with guard.replay(run.id):
        again = go(agent, mode, config)
    assert (len(model.seen), len(did)) == (calls, done)
    assert [(m.type, m.content) for m in again["messages"]] == [(m.type, m.content) for m in live["messages"]]


@MODES
def test_a_stop_is_replayed_where_it_was(guard: Guard, model: Any, says: Any, mode: str) -> None:
    agent, did = agent_of(model, says, mode=mode)
    with pytest.raises(BudgetExceededError), guard.run("agent", budget=Budget(calls={"search": 5})) as run:
        go(agent, mode)
    done = len(did)
    with pytest.raises(BudgetExceededError, match="calls:search"), guard.replay(run.id):
        go(agent, mode)
    assert len(did) == done


def test_a_soft_landing_is_replayed(guard: Guard, model: Any, says: Any) -> None:
    agent, _ = agent_of(model, says, mode="sync", wrap_up=True)
    with guard.run("agent", budget=Budget(steps=20)) as run:
        go(agent, "sync")
    assert any("final answer" in str(m.content) for m in model.seen[-1])
    calls = len(model.seen)
    with guard.replay(run.id):
        go(agent, "sync")
    assert len(model.seen) == calls


@MODES
def test_soft_refusals_of_parallel_calls_are_replayed_as_they_were(
    guard: Guard, model: Any, search: Any, says: Any, mode: str
) -> None:
    answer, wants = says
    calls = [wants("search", f"c{n}", query=f"q{n}") for n in range(6)]
    model.script = lambda n, messages: answer("", *calls) if len(messages) == 1 else answer("done")
    agent = create_agent(model, [search[0]], middleware=[GuardMiddleware(soft=True, wrap_up=True)])
    with guard.run("agent", budget=Budget(calls={"search": 2})) as run:
        live = go(agent, mode)
    assert len(search[1]) == 2
    with guard.replay(run.id):
        again = go(agent, mode)
    assert len(search[1]) == 2
    told = [[m.status for m in r["messages"] if m.type == "tool"] for r in (live, again)]
    assert told[0] == told[1]


def test_another_program_is_told_apart(guard: Guard, model: Any, says: Any) -> None:
    agent, _ = agent_of(model, says, mode="sync")
    with guard.run("agent") as run:
        go(agent, "sync")
    with pytest.raises(ReplayDivergenceError) as different, guard.replay(run.id):
        agent.invoke({"messages": [("user", "something else")]})
    assert (different.value.kind, different.value.key) == ("arguments", "main/model@1/chat scripted#1")


def test_what_only_a_handler_saw_is_not_replayed(guard: Guard, model: Any) -> None:
    config: Any = {"callbacks": [GuardCallbackHandler()]}
    with guard.run("ask") as run:
        model.invoke("hi", config)
    with pytest.raises(ReplayDivergenceError) as different, guard.replay(run.id):
        model.invoke("hi", config)
    assert different.value.kind == "not_replayable"
    assert len(model.seen) == 1


@MODES
def test_an_interrupt_and_its_answer_are_replayed(guard: Guard, model: Any, says: Any, mode: str) -> None:
    asked: list[str] = []

    @tool
    def confirm(question: str) -> str:
        """Ask a human."""
        asked.append(question)
        return str(interrupt(question))

    answer, wants = says
    model.script = lambda n, messages: (
        answer("", wants("confirm", "c1", question="really?")) if len(messages) == 1 else answer("done")
    )

    def conversation() -> Any:
        agent = create_agent(model, [confirm], middleware=[GuardMiddleware()], checkpointer=InMemorySaver())
        config: Any = {"configurable": {"thread_id": "t"}}

        def turn(given: Any) -> Any:
            return (
                asyncio.run(agent.ainvoke(given, config)) if mode == "async" else agent.invoke(given, config)
            )

        assert turn(HI)["__interrupt__"][0].value == "really?"
        return turn(Command(resume="yes"))["messages"][-2].content

    with guard.run("agent") as run:
        assert conversation() == "yes"
    assert len(asked) == 2
    calls = len(model.seen)
    with guard.replay(run.id):
        assert conversation() == "yes"
    assert (len(asked), len(model.seen)) == (2, calls)


def test_equal_runs_do_not_differ(guard: Guard, model: Any, says: Any) -> None:
    """LangChain gives messages new ids in each run; they are not compared."""
    answer, wants = says

    @tool
    def search(query: str) -> str:
        """Search."""
        return f"found {query}"

    def script(number: int, messages: Any) -> Any:
        calls = [wants("search", f"c{len(messages)}.{n}", query=f"q{n}") for n in range(2)]
        return answer("on", *calls) if len(messages) < 4 else answer("done")

    model.script = script
    agent = create_agent(model, [search], middleware=[GuardMiddleware()])
    runs = []
    for _ in range(2):
        with guard.run("agent") as run:
            agent.invoke({"messages": [HumanMessage("hi")]})
        runs.append(run.id)
    keys = [{e.key for e in guard.history(r) if e.type == "step_started"} for r in runs]
    assert keys[0] == keys[1]
    assert not guard.diff(*runs)


# --- guarded steps of one's own, in the threads of LangChain and LangGraph ----------------------


@guarded_step
def priced(item: int) -> int:
    PRICED.append(item)
    return item * 10


PRICED: list[int] = []


class Items(TypedDict):
    items: list[int]
    prices: Annotated[list[int], operator.add]


def by_batch(price: Callable[[int], int]) -> Any:
    return RunnableLambda(price).batch([1, 2, 3])


def by_parallel(price: Callable[[int], int]) -> Any:
    return RunnableParallel({str(item): lambda _, item=item: price(item) for item in (1, 2, 3)}).invoke(0)


def by_nodes(price: Callable[[int], int]) -> Any:
    builder = StateGraph(Items)
    builder.add_node("price", lambda state: {"prices": [price(state["item"])]})
    builder.add_conditional_edges(START, lambda state: [Send("price", {"item": n}) for n in state["items"]])
    return builder.compile().invoke({"items": [1, 2, 3], "prices": []})["prices"]


@pytest.mark.parametrize("program", [by_batch, by_parallel, by_nodes])
def test_steps_in_threads_are_replayed_whichever_thread_comes_first(
    guard: Guard, program: Callable[[Callable[[int], int]], Any]
) -> None:
    def in_order(*order: int) -> Any:
        """Let each thread make its two calls when it is its turn."""
        left, turn = list(order), threading.Condition()

        def price(item: int) -> int:
            with turn:
                assert turn.wait_for(lambda: left[0] == item, 60)
                value = priced(priced(item) + 1)
                left.pop(0)
                turn.notify_all()
                return value

        return program(price)

    PRICED.clear()
    with guard.run("prices") as run:
        live = in_order(1, 2, 3)
    assert PRICED == [1, 11, 2, 21, 3, 31]
    PRICED.clear()
    with guard.replay(run.id):
        assert in_order(3, 1, 2) == live
    assert PRICED == []
