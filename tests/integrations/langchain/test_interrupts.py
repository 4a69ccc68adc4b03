"""A graph that pauses: no error, no reservation, and a stop beside it reaches the top."""

import asyncio
from typing import Any

import pytest

pytest.importorskip("langchain")

from langchain.agents import create_agent
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt

from agentguard import Budget, BudgetExceededError, Guard, RunState, Usage
from agentguard_langchain import GuardCallbackHandler, GuardMiddleware

HI = {"messages": [("user", "hi")]}
GUARDS = pytest.mark.parametrize("guarded_by", ["handler", "middleware", "both"])
MODES = pytest.mark.parametrize("mode", ["sync", "async"])


@MODES
@GUARDS
def test_an_interrupt_is_no_error_and_holds_nothing(
    guard: Guard, model: Any, says: Any, mode: str, guarded_by: str
) -> None:
    sent: list[str] = []

    @tool
    def send_email(to: str) -> str:
        """Send."""
        if interrupt(f"send to {to}?") == "yes":
            sent.append(to)
        return "done"

    answer, wants = says
    model.script = lambda n, m: answer("", wants("send_email", "c1", to="ann")) if n == 1 else answer("done")
    options = {"send_email": {"usage": Usage(emails=1)}}
    middleware = [] if guarded_by == "handler" else [GuardMiddleware(tool_options=options)]
    handlers = [] if guarded_by == "middleware" else [GuardCallbackHandler()]
    config: Any = {"callbacks": handlers, "configurable": {"thread_id": "t"}}
    agent = create_agent(model, [send_email], middleware=middleware, checkpointer=InMemorySaver())

    def go(given: Any) -> Any:
        return asyncio.run(agent.ainvoke(given, config)) if mode == "async" else agent.invoke(given, config)

    with guard.run("agent", budget=Budget(emails=1, steps=10)) as run:
        paused = go(HI)
        assert paused["__interrupt__"][0].value == "send to ann?"
        assert run.summary().open_steps == ()
        assert run.spent["emails"] == 0
        go(Command(resume="yes"))
    assert sent == ["ann"]
    assert run.state is RunState.COMPLETED
    assert run.summary().open_steps == ()
    assert run.spent["emails"] == (0 if guarded_by == "handler" else 1)
    assert not [e for e in guard.history(run.id) if e.type == "step_failed"]
    keys = [e.key for e in guard.history(run.id) if e.type == "step_started" and e.name == "send_email"]
    assert keys == ["main/tools@2.0/send_email#1", "main/tools@2.0/send_email#2"]


@MODES
def test_a_stop_beside_an_interrupt_reaches_the_top(guard: Guard, model: Any, says: Any, mode: str) -> None:
    @tool
    def ask_human(question: str) -> str:
        """Ask."""
        return str(interrupt(question))

    answer, wants = says
    calls = [wants("ask_human", f"c{n}", question="?") for n in range(3)]
    model.script = lambda n, m: answer("", *calls)
    agent = create_agent(model, [ask_human], middleware=[GuardMiddleware()], checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "t"}}
    with (
        pytest.raises(BudgetExceededError),
        guard.run("agent", budget=Budget(calls={"ask_human": 2})) as run,
    ):
        asyncio.run(agent.ainvoke(HI, config)) if mode == "async" else agent.invoke(HI, config)
    assert run.summary().open_steps == ()
    assert run.state is RunState.FAILED
