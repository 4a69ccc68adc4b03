"""Keys and branches come from LangChain's own tree, and never from who arrives first."""

import asyncio
import threading
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("langchain")

from langchain.agents import create_agent
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from agentguard import Guard, guarded_step
from agentguard_langchain import GuardCallbackHandler, GuardMiddleware
from agentguard_langchain._calls import CALLS
from agentguard_langchain._tree import TREE

HI = {"messages": [("user", "hi")]}
MODES = pytest.mark.parametrize("mode", ["sync", "async"])
GUARDS = pytest.mark.parametrize("guarded_by", ["handler", "middleware", "both"])


def keys_of(guard: Guard, run_id: str) -> list[str]:
    found = [str(e.key) for e in guard.history(run_id) if e.type == "step_started"]
    assert len(set(found)) == len(found)
    return sorted(key.removeprefix("main/") for key in found)


def guards(guarded_by: str) -> tuple[list[Any], Any]:
    middleware = [] if guarded_by == "handler" else [GuardMiddleware()]
    return middleware, {"callbacks": [] if guarded_by == "middleware" else [GuardCallbackHandler()]}


class Turns:
    """Lets the calls of a test go on in an order of its own."""

    def __init__(self, order: list[str]) -> None:
        self._order = order
        self._condition = threading.Condition()

    def wait(self, name: str) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: self._order[:1] == [name], timeout=60)
            self._order.pop(0)
            self._condition.notify_all()


@GUARDS
@pytest.mark.parametrize("order", [["q0", "q1", "q2"], ["q2", "q1", "q0"]], ids=["in order", "reversed"])
def test_parallel_tools_have_the_same_keys_in_any_order(
    guard: Guard, model: Any, says: Any, guarded_by: str, order: list[str]
) -> None:
    turns = Turns(list(order))
    answer, wants = says

    @guarded_step
    def fetch(query: str) -> str:
        return query

    @tool
    def search(query: str) -> str:
        """Search."""
        turns.wait(query)
        return model.invoke("inside").content + fetch(query)

    def script(number: int, messages: Any) -> Any:
        if messages[-1].type == "human" and messages[-1].content == "hi":
            return answer("", *(wants("search", f"c{n}", query=f"q{n}") for n in range(3)))
        return answer("fine")

    model.script = script
    middleware, config = guards(guarded_by)
    agent = create_agent(model, [search], middleware=middleware)
    with guard.run("agent") as run:
        agent.invoke(HI, config)
    keys = keys_of(guard, run.id)
    if guarded_by == "handler":
        # A handler cannot place a guarded step that the tool's own code calls; the middleware does.
        keys = [key for key in keys if not key.startswith("fetch")]
        inside = ["chat scripted#1"]
    else:
        inside = ["chat scripted#1", "fetch#1"]
    tools = [f"tools@2.{n}/search#1" for n in range(3)]
    nested = [f"{one}/{key}" for one in tools for key in inside]
    assert keys == sorted(["model@1/chat scripted#1", "model@3/chat scripted#1", *tools, *nested])


@MODES
@GUARDS
def test_what_a_tool_calls_is_nested_in_its_step(
    guard: Guard, model: Any, scripted: Any, search: Any, says: Any, mode: str, guarded_by: str
) -> None:
    answer, wants = says
    middleware, config = guards(guarded_by)
    inner = scripted(
        seen=[],
        settings=[],
        script=lambda n, m: answer("", wants("search", "s", query="q")) if len(m) == 1 else answer("deep"),
    )
    helper = create_agent(inner, [search[0]], middleware=guards(guarded_by)[0])

    @tool
    async def aask(topic: str) -> str:
        """Ask."""
        return str((await helper.ainvoke({"messages": [("user", topic)]}))["messages"][-1].content)

    @tool
    def ask(topic: str) -> str:
        """Ask."""
        return str(helper.invoke({"messages": [("user", topic)]})["messages"][-1].content)

    tools = {"sync": ask, "async": aask}
    name = tools[mode].name
    model.script = lambda n, m: (
        answer("", wants(name, "a", topic="x"), wants(name, "b", topic="y")) if n == 1 else answer("done")
    )
    agent = create_agent(model, [tools[mode]], middleware=middleware)
    with guard.run("agent") as run:
        asyncio.run(agent.ainvoke(HI, config)) if mode == "async" else agent.invoke(HI, config)
    nested = ["model@1/chat scripted#1", "model@3/chat scripted#1", "tools@2.0/search#1"]
    assert keys_of(guard, run.id) == sorted(
        [
            "model@1/chat scripted#1",
            "model@3/chat scripted#1",
            *(f"tools@2.{n}/{name}#1" for n in range(2)),
            *(f"tools@2.{n}/{name}#1/{key}" for n in range(2) for key in nested),
        ]
    )
    if guarded_by != "handler":
        parents = {
            e.key: (e.data or {}).get("parent") for e in guard.history(run.id) if e.type == "step_started"
        }
        first = f"main/tools@2.0/{name}#1"
        assert parents[f"{first}/model@1/chat scripted#1"] == first


@MODES
@GUARDS
def test_agents_side_by_side_are_told_apart_by_their_tasks(
    guard: Guard, model: Any, mode: str, guarded_by: str
) -> None:
    middleware, config = guards(guarded_by)
    agent = create_agent(model, [], middleware=middleware)
    other = {"messages": [("user", "ho")]}

    async def both() -> None:
        await run.gather(agent.ainvoke(HI, config), agent.ainvoke(other, config))

    with guard.run("agents") as run:
        if mode == "async":
            asyncio.run(both())
        else:
            for given in (HI, other):
                agent.invoke(given, config)
    expected = {
        "sync": ["model@1/chat scripted#1", "model@1/chat scripted#2"],
        "async": ["task#1/model@1/chat scripted#1", "task#2/model@1/chat scripted#1"],
    }
    assert keys_of(guard, run.id) == expected[mode]


@MODES
def test_calls_in_one_tool_node_have_the_index_of_their_call(
    guard: Guard, model: Any, search: Any, says: Any, mode: str
) -> None:
    answer, wants = says
    model.script = [answer("", wants("search", "a", query="x"), wants("search", "b", query="y"))]
    config: Any = {"callbacks": [GuardCallbackHandler()]}
    graph = StateGraph(MessagesState)
    graph.add_node("ask", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([search[0]]))
    graph.add_edge(START, "ask")
    graph.add_edge("ask", "tools")
    compiled = graph.compile()
    with guard.run("graph") as run:
        asyncio.run(compiled.ainvoke(HI, config)) if mode == "async" else compiled.invoke(HI, config)
    assert keys_of(guard, run.id) == [
        "ask@1/chat scripted#1",
        "tools@2.0/search#1",
        "tools@2.1/search#1",
    ]


@MODES
def test_parts_of_a_chain_have_their_names(guard: Guard, model: Any, mode: str) -> None:
    config: Any = {"callbacks": [GuardCallbackHandler()]}
    chain = RunnableParallel(joke=model, poem=RunnableLambda(lambda x: x) | model)
    with guard.run("chain") as run:
        asyncio.run(chain.ainvoke("hi", config)) if mode == "async" else chain.invoke("hi", config)
    assert keys_of(guard, run.id) == ["joke/chat scripted#1", "poem/chat scripted#1"]


def test_calls_in_threads_are_told_apart_by_what_they_are_asked(guard: Guard, model: Any) -> None:
    """LangChain's tree does not say which of a batch a call is."""
    config: Any = {"callbacks": [GuardCallbackHandler()]}
    found = []
    for asked in (["a", "b", "c"], ["c", "a", "b"]):
        with guard.run("batch") as run:
            model.batch(asked, config)
        found.append(keys_of(guard, run.id))
    assert found[0] == found[1]
    assert [key[0] for key in found[0]] == ["~"] * 3


def test_calls_in_a_row_are_numbered(guard: Guard, model: Any) -> None:
    config: Any = {"callbacks": [GuardCallbackHandler()]}
    with guard.run("loop") as run:
        for _ in range(2):
            model.invoke("hi", config)
        with run.branch("part"):
            model.invoke("hi", config)
    assert keys_of(guard, run.id) == ["chat scripted#1", "chat scripted#2", "part#1/chat scripted#1"]


def test_tasks_inside_a_node_are_told_apart(guard: Guard, model: Any) -> None:
    config: Any = {"callbacks": [GuardCallbackHandler()]}

    async def node(given: str) -> None:
        await asyncio.gather(model.ainvoke("1"), model.ainvoke("2"))
        await model.ainvoke("3")

    with guard.run("lambda") as run:
        asyncio.run(RunnableLambda(node).ainvoke("hi", config))
    assert keys_of(guard, run.id) == [
        "chat scripted#1",
        "task.1/chat scripted#1",
        "task.2/chat scripted#1",
    ]


@MODES
@GUARDS
def test_nothing_is_remembered_of_a_run_that_is_over(
    guard: Guard, model: Any, search: Any, says: Any, mode: str, guarded_by: str
) -> None:
    answer, wants = says
    model.script = lambda n, m: answer("", wants("search", "c", query="q")) if n == 1 else answer("done")
    middleware, config = guards(guarded_by)
    agent = create_agent(model, [search[0]], middleware=middleware)
    before = len(TREE._nodes), len(CALLS._open)
    with guard.run("agent"):
        asyncio.run(agent.ainvoke(HI, config)) if mode == "async" else agent.invoke(HI, config)
    assert (len(TREE._nodes), len(CALLS._open)) == before


def test_what_never_ended_is_forgotten_in_time(guard: Guard) -> None:
    """LangChain does not report every end."""
    handler = GuardCallbackHandler()
    for n in range(3000):
        if n % 1000 == 0:
            run = guard.start(f"r{n}")
        handler.on_chain_start({}, {}, run_id=uuid4())
        handler.on_chat_model_start({}, [[]], run_id=uuid4())
        if n % 1000 == 999:
            run.close()
    assert len(TREE._nodes) < 2100
    assert len(CALLS._open) < 2100
