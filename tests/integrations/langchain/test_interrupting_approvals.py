"""`approvals="interrupt"`: the graph is interrupted to ask, and the application answers by `Command(resume=...)`."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain")

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, interrupt

from agentguard import (
    ApprovalDeniedError,
    Budget,
    BudgetExceededError,
    Event,
    Guard,
    KillSwitchTriggeredError,
    RunState,
    guarded_step,
)
from agentguard.errors import DuplicateKeyError
from agentguard_langchain import GuardMiddleware, guard_tools
from tests.integrations.langchain import interrupting

HI: Any = {"messages": [("user", "hi")]}
APPROVE = {"type": "approve", "actor": "ann", "reason": "checked"}
REJECT = {"type": "reject", "actor": "bob", "message": "too much"}


class Agent:
    """An agent that asks for `refund` with 500 (and 900, side by side), and what it physically paid."""

    def __init__(
        self, model: Any, says: Any, saver: Any = None, *, both: bool = False, **options: Any
    ) -> None:
        answer, wants = says
        self.paid: list[int] = []
        self.model = model
        calls = [wants("refund", f"c{usd}", usd=usd) for usd in ((500, 900) if both else (500,))]

        def script(number: int, messages: Any) -> AIMessage:
            done = any(isinstance(message, ToolMessage) for message in messages)
            return answer("done") if done else answer("", *calls)

        model.script = script

        def refund(usd: int) -> str:
            """Pay money back."""
            self.paid.append(usd)
            return f"paid {usd}"

        given = {"tool_options": {"refund": {"approval": lambda usd: usd > 100}}} | options
        self.graph = create_agent(
            model,
            [refund],
            middleware=[GuardMiddleware(approvals="interrupt", **given)],
            checkpointer=saver or InMemorySaver(),
        )

    def go(self, given: Any, mode: str = "sync") -> Any:
        config: Any = {"configurable": {"thread_id": "t"}}
        if mode == "async":
            return asyncio.run(self.graph.ainvoke(given, config))
        return self.graph.invoke(given, config)


@pytest.fixture
def agent(model: Any, says: Any) -> Callable[..., Agent]:
    return lambda **options: Agent(model, says, **options)


def of_type(guard: Guard, run_id: str, *types: str) -> list[Event]:
    return [event for event in guard.history(run_id) if event.type in types]


def answered(guard: Guard, run_id: str) -> list[tuple[str, str, str | None]]:
    """The approvals on record: type, actor and reason."""
    found = of_type(guard, run_id, "approval_granted", "approval_denied")
    return [(event.type, event.data["actor"], event.data.get("reason")) for event in found]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_application_answers_and_the_answer_is_on_record_and_replayed(
    guard: Guard, agent: Any, mode: str
) -> None:
    def program(agent: Agent) -> str:
        asked = agent.go(HI, mode)["__interrupt__"][0].value
        assert {name: asked[name] for name in ("type", "name", "args", "tool_call_id")} == {
            "type": "tool_approval",
            "name": "refund",
            "args": {"usd": 500},
            "tool_call_id": "c500",
        }
        return str(agent.go(Command(resume=APPROVE), mode)["messages"][-1].content)

    live = agent()
    with guard.run("agent", budget=Budget(steps=10)) as run:
        assert program(live) == "done"
    assert live.paid == [500]
    assert answered(guard, run.id) == [("approval_granted", "ann", "checked")]
    asked, granted, started = [e for e in guard.history(run.id) if e.key == "main/tools@2.0/refund#1"][:3]
    assert [e.type for e in (asked, granted, started)] == [
        "approval_requested", "approval_granted", "step_started",
    ]  # fmt: skip
    assert run.state is RunState.COMPLETED
    assert guard.approvals() == []
    assert guard.verify()
    again = agent()
    with guard.replay(run.id):
        assert program(again) == "done"
    assert (again.paid, len(again.model.seen)) == ([], 2)


def test_a_rejection_is_a_denial(guard: Guard, agent: Any) -> None:
    live = agent()
    with guard.run("agent") as run:
        live.go(HI)
        with pytest.raises(ApprovalDeniedError) as denied:
            live.go(Command(resume=REJECT))
    assert (denied.value.actor, denied.value.reason) == ("bob", "too much")
    assert answered(guard, run.id) == [("approval_denied", "bob", "too much")]
    assert live.paid == []


def test_the_model_is_told_of_a_rejection_of_a_soft_tool(guard: Guard, agent: Any) -> None:
    def program(live: Agent) -> Any:
        live.go(HI)
        return live.go(Command(resume=REJECT))["messages"]

    live = agent(soft=True)
    with guard.run("agent") as run:
        *_, told, last = program(live)
    assert "an operator denied it (too much)" in told.content
    assert last.content == "done"
    with guard.replay(run.id):
        assert program(agent(soft=True))[-1].content == "done"
    assert live.paid == []


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_calls_side_by_side_are_answered_each_by_its_own_interrupt(
    guard: Guard, agent: Any, mode: str
) -> None:
    def program(live: Agent) -> str:
        asked = {each.value["args"]["usd"]: each.id for each in live.go(HI, mode)["__interrupt__"]}
        answers = {asked[500]: APPROVE, asked[900]: REJECT}
        return str(live.go(Command(resume=answers), mode)["messages"][-1].content)

    live = agent(both=True, soft=True)
    with guard.run("agent") as run:
        assert program(live) == "done"
    assert live.paid == [500]
    assert sorted(answered(guard, run.id)) == [
        ("approval_denied", "bob", "too much"),
        ("approval_granted", "ann", "checked"),
    ]
    with guard.replay(run.id):
        assert program(agent(both=True, soft=True)) == "done"


def test_a_run_for_each_turn_has_the_answer_where_the_tool_runs(guard: Guard, agent: Any) -> None:
    live = agent()
    with guard.run("asks") as first:
        live.go(HI)
    with guard.run("resumes") as second:
        live.go(Command(resume=APPROVE))
    assert first.state is RunState.COMPLETED
    assert (answered(guard, first.id), of_type(guard, first.id, "approval_requested")) == ([], [])
    assert answered(guard, second.id) == [("approval_granted", "ann", "checked")]
    assert live.paid == [500]


def test_calls_that_need_no_approval_interrupt_nothing(guard: Guard, agent: Any) -> None:
    live = agent(tool_options={"refund": {"approval": lambda usd: usd > 1000}})
    with guard.run("agent") as run:
        assert live.go(HI)["messages"][-1].content == "done"
    assert (live.paid, of_type(guard, run.id, "approval_requested")) == ([500], [])


@pytest.mark.parametrize(
    "wrong",
    [
        "yes",
        True,
        {"type": "maybe"},
        {"type": "raise", "limits": {"usd": 5}},
        {"type": "approve", "actor": 3},
    ],
)
def test_an_answer_that_is_none_lets_nothing_through_and_is_asked_for_again(
    guard: Guard, agent: Any, wrong: Any
) -> None:
    live = agent()
    with guard.run("agent") as run:
        live.go(HI)
        [asked] = live.go(Command(resume=wrong))["__interrupt__"]
        assert "must be" in asked.value["error"]
        assert live.paid == []
        live.go(Command(resume={"type": "approve"}))
    assert live.paid == [500]
    assert answered(guard, run.id) == [("approval_granted", "Command(resume)", None)]


def test_a_second_answer_finds_nothing_to_answer(guard: Guard, agent: Any) -> None:
    live = agent()
    with guard.run("agent") as run:
        live.go(HI)
        live.go(Command(resume=APPROVE))
        live.go(Command(resume=REJECT))
    assert live.paid == [500]
    assert len(answered(guard, run.id)) == 1


def test_a_kill_while_the_graph_is_interrupted_wins(guard: Guard, agent: Any) -> None:
    live = agent()
    with pytest.raises(KillSwitchTriggeredError), guard.run("agent") as run:
        live.go(HI)
        guard.kill(run=run.id, reason="wild")
        live.go(Command(resume=APPROVE))
    assert live.paid == []
    assert answered(guard, run.id) == []


# --- limits that ask ---------------------------------------------------------------------------------------

LIMIT = Budget(calls={"refund": 0}, on_limit="ask")
RAISE = {"type": "raise", "limits": {"calls": {"refund": 1}}, "actor": "ann", "reason": "once"}


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("where", ["tool", "model"])
def test_a_limit_that_asks_is_raised_by_the_application(
    guard: Guard, agent: Any, mode: str, where: str
) -> None:
    budget = LIMIT if where == "tool" else Budget(steps=0, on_limit="ask")
    answer = RAISE if where == "tool" else {**RAISE, "limits": {"steps": 9}}

    def program(live: Agent) -> str:
        asked = live.go(HI, mode)["__interrupt__"][0].value
        assert asked["type"] == "limit"
        assert asked["resource"] == ("calls:refund" if where == "tool" else "steps")
        return str(live.go(Command(resume=answer), mode)["messages"][-1].content)

    options = {"tool_options": {}}
    live = agent(**options)
    with guard.run("agent", budget=budget) as run:
        assert program(live) == "done"
    assert live.paid == [500]
    [raised] = of_type(guard, run.id, "run_budget_set")
    assert (raised.data["actor"], raised.data["reason"]) == ("ann", "once")
    assert of_type(guard, run.id, "run_paused") == [], "the graph waits, not the run"
    assert guard.verify()
    again = agent(**options)
    with guard.replay(run.id):
        assert program(again) == "done"
    assert again.paid == []


def test_a_limit_that_is_not_raised_stops_the_run(guard: Guard, agent: Any) -> None:
    def program(live: Agent) -> None:
        live.go(HI)
        live.go(Command(resume=REJECT))

    with pytest.raises(BudgetExceededError), guard.run("agent", budget=LIMIT) as run:
        program(agent(tool_options={}))
    assert run.state is RunState.FAILED
    refused = of_type(guard, run.id, "step_refused")[-1]
    assert (refused.data["actor"], refused.data["reason"]) == ("bob", "too much")
    with pytest.raises(BudgetExceededError), guard.replay(run.id):
        program(agent(tool_options={}))


@pytest.mark.parametrize(
    "limits", [None, {}, {"calls": {"refund": -1}}, {"enforce": False}, {"on_limit": "stop"}, {"step": 3}]
)
def test_limits_that_cannot_be_meant_are_asked_for_again(guard: Guard, agent: Any, limits: Any) -> None:
    live = agent(tool_options={})
    with guard.run("agent", budget=LIMIT) as run:
        live.go(HI)
        [asked] = live.go(Command(resume={"type": "raise", "limits": limits}))["__interrupt__"]
        assert "limits" in asked.value["error"]
        assert of_type(guard, run.id, "run_budget_set") == []
        live.go(Command(resume=RAISE))
    assert live.paid == [500]


def test_a_raise_that_is_not_enough_is_asked_for_again(guard: Guard, agent: Any) -> None:
    live = agent(tool_options={})
    with guard.run("agent", budget=LIMIT) as run:
        live.go(HI)
        found = live.go(Command(resume={"type": "raise", "limits": {"steps": 9}}))
        assert found["__interrupt__"][0].value["resource"] == "calls:refund"
        assert live.paid == []
        live.go(Command(resume=RAISE))
    assert live.paid == [500]
    assert guard.summary(run.id).budget == Budget(calls={"refund": 1}, steps=9, on_limit="ask")


# --- where it cannot work ----------------------------------------------------------------------------------


def test_a_graph_without_a_checkpointer_is_refused_before_the_model_is_asked(
    guard: Guard, model: Any
) -> None:
    agent = create_agent(model, [], middleware=[GuardMiddleware(approvals="interrupt")])
    with (
        guard.run("agent"),
        pytest.raises(ValueError, match="needs a graph that can be resumed: .*checkpointer="),
    ):
        agent.invoke(HI)
    assert model.seen == []


def test_options_that_cannot_be_meant_are_named() -> None:
    with pytest.raises(ValueError, match="approvals must be 'operator' or 'interrupt', not 'graph'"):
        GuardMiddleware(approvals="graph")  # type: ignore[arg-type]
    options = {"refund": {"approval": True, "approval_timeout": 5}}
    for make in (lambda **o: GuardMiddleware(**o), lambda **o: guard_tools([], **o)):
        with pytest.raises(ValueError, match="refund: approval_timeout does not go with"):
            make(approvals="interrupt", tool_options=options)


# --- graphs of one's own -----------------------------------------------------------------------------------


def test_a_guarded_tool_in_a_graph_of_ones_own_asks_too(guard: Guard, says: Any) -> None:
    answer, wants = says
    paid: list[int] = []

    def refund(usd: int) -> str:
        """Pay money back."""
        paid.append(usd)
        return "paid"

    tools = guard_tools([refund], tool_options={"refund": {"approval": True}}, approvals="interrupt")
    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "tools")
    compiled = graph.compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "t"}}
    with guard.run("agent") as run:
        asked = compiled.invoke({"messages": [answer("", wants("refund", "c1", usd=5))]}, config)
        assert asked["__interrupt__"][0].value["args"] == {"usd": 5}
        compiled.invoke(Command(resume=APPROVE), config)
    assert paid == [5]
    assert answered(guard, run.id) == [("approval_granted", "ann", "checked")]


@pytest.mark.parametrize("key", [None, "the-mail"])
def test_a_step_before_the_interrupt_of_its_node_is_a_new_step_and_one_with_a_key_is_not_repeated(
    guard: Guard, key: str | None
) -> None:
    sent: list[str] = []

    @guarded_step(key=key)
    def mail(to: str) -> None:
        sent.append(to)

    def node(state: MessagesState) -> dict[str, Any]:
        mail("ann")
        return {"messages": [("ai", interrupt("sure?"))]}

    graph = StateGraph(MessagesState)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    compiled = graph.compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "t"}}
    with guard.run("agent") as run:
        compiled.invoke(HI, config)
        if key is None:
            compiled.invoke(Command(resume="yes"), config)
        else:
            with pytest.raises(DuplicateKeyError, match="the-mail"):
                compiled.invoke(Command(resume="yes"), config)
    assert sent == (["ann", "ann"] if key is None else ["ann"])
    assert run.spent.steps == len(sent)


# --- recovery ----------------------------------------------------------------------------------------------


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[Any]:
    with closing(sqlite3.connect(tmp_path / "graph.db", check_same_thread=False)) as connection:
        yield SqliteSaver(connection)


@pytest.mark.parametrize("dies", ["interrupted", "in the tool"])
def test_a_recovery_goes_on_from_the_checkpoint_with_the_answer(
    home: Path, tmp_path: Path, saver: Any, dies: str
) -> None:
    command = [sys.executable, str(interrupting.__file__), str(tmp_path / "graph.db"), dies]
    assert subprocess.run(command, timeout=200, check=False).returncode == 9
    program = interrupting.Program(saver)
    with Guard.open(telemetry=False) as guard:
        with guard.recover("r") as run:
            found = program.go(None if dies == "in the tool" else Command(resume=APPROVE))
            if "__interrupt__" in found:  # the answer had not reached the checkpoint: it is asked for again
                found = program.go(Command(resume={**APPROVE, "actor": "eve"}))
            assert found["messages"][-1].content == "done"
        assert run.state is RunState.COMPLETED
        assert program.paid == [500]
        assert answered(guard, "r") == [("approval_granted", "ann", "checked")]
        assert guard.verify()
