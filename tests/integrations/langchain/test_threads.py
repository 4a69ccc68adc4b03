"""A budget for all runs of one LangGraph thread: its calls are charged to the account `thread:<id>`."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain")

from langchain.agents import create_agent
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt

from agentguard import Budget, BudgetExceededError, Guard, Usage
from agentguard.cost.prices import ModelPrices
from agentguard_langchain import GuardMiddleware

HI = {"messages": [("user", "hi")]}
MODES = pytest.mark.parametrize("mode", ["sync", "async"])
PRICES = ModelPrices({"scripted": {"input": 1_000, "output": 2_000}}, fallback=None)


def thread(name: str) -> Any:
    return {"configurable": {"thread_id": name}}


def go(agent: Any, mode: str, name: str = "42", given: Any = None) -> Any:
    config = thread(name)
    given = HI if given is None else given
    return asyncio.run(agent.ainvoke(given, config)) if mode == "async" else agent.invoke(given, config)


def steps(guard: Guard, name: str = "42") -> int:
    account = guard.account(f"thread:{name}")
    return 0 if account is None else account.spent.steps


@MODES
def test_a_threads_budget_holds_over_its_runs_and_restarts(
    home: Path, model: Any, says: Any, mode: str
) -> None:
    answer, _ = says
    model.script = lambda n, m: answer("done")
    agent = create_agent(model, [], middleware=[GuardMiddleware(thread_budget=Budget(steps=2))])
    for _ in range(2):
        with Guard.open(telemetry=False) as guard, guard.run("turn"):
            go(agent, mode)
    with Guard.open(telemetry=False) as guard:
        with pytest.raises(BudgetExceededError) as caught, guard.run("turn"):
            go(agent, mode)
        with guard.run("turn"):
            go(agent, mode, "43")
        assert caught.value.scope == "account:thread:42"
        assert (steps(guard), steps(guard, "43")) == (2, 1)
    assert len(model.seen) == 3


@MODES
def test_it_holds_across_an_interrupt_that_another_run_resumes(
    guard: Guard, model: Any, says: Any, mode: str
) -> None:
    @tool
    def send_email(to: str) -> str:
        """Send."""
        return f"sent: {interrupt(f'send to {to}?')}"

    answer, wants = says
    model.script = lambda n, m: answer("", wants("send_email", "c1", to="ann")) if n == 1 else answer("done")
    guarded = GuardMiddleware(
        thread_budget=Budget(emails=1, steps=9), tool_options={"send_email": {"usage": Usage(emails=1)}}
    )
    agent = create_agent(model, [send_email], middleware=[guarded], checkpointer=InMemorySaver())
    with guard.run("turn"):
        go(agent, mode)
    with guard.run("turn"):
        go(agent, mode, given=Command(resume="yes"))

    account = guard.account("thread:42")
    assert account is not None
    assert account.spent["emails"] == 1
    assert account.spent.steps == sum(
        event.usage.steps for event in guard.events() if event.type == "step_completed"
    )


@MODES
def test_money_is_priced_where_the_thread_alone_limits_it(
    guard: Guard, model: Any, says: Any, mode: str
) -> None:
    answer, _ = says
    model.script = lambda n, m: answer("done")
    guarded = GuardMiddleware(thread_budget=Budget(usd=50), prices=PRICES, max_output_tokens=100)
    agent = create_agent(model, [], middleware=[guarded])
    with guard.run("turn") as run:
        go(agent, mode)

    account = guard.account("thread:42")
    assert account is not None
    assert account.spent.usd == run.spent.usd > 0


@MODES
def test_tools_and_what_they_call_are_charged_to_it_and_a_sub_agent_too(
    guard: Guard, model: Any, says: Any, mode: str
) -> None:
    helper_model = type(model)(script=lambda n, m: says[0]("helped"))
    guarded = GuardMiddleware(thread_budget=Budget(steps=9))
    helper = create_agent(helper_model, [], middleware=[guarded])

    @tool
    async def ask_async(question: str) -> str:
        """Ask the helper."""
        return str((await helper.ainvoke(HI, thread("of the helper")))["messages"][-1].content)

    @tool
    def ask(question: str) -> str:
        """Ask the helper."""
        return str(helper.invoke(HI, thread("of the helper"))["messages"][-1].content)

    used = ask_async if mode == "async" else ask
    answer, wants = says
    model.script = lambda n, m: answer("", wants(used.name, "c1", question="?")) if n == 1 else answer("done")
    agent = create_agent(model, [used], middleware=[guarded])
    with guard.run("turn") as run:
        go(agent, mode)
    assert steps(guard) == run.spent.steps == 4
    assert steps(guard, "of the helper") == 0


def test_two_threads_of_one_run_are_charged_each(guard: Guard, model: Any, says: Any) -> None:
    answer, _ = says
    model.script = lambda n, m: answer("done")
    agent = create_agent(model, [], middleware=[GuardMiddleware(thread_budget=Budget(steps=9))])

    async def program() -> None:
        async with guard.run("server"):
            await asyncio.gather(*(agent.ainvoke(HI, thread(name)) for name in ("42", "43", "43")))

    asyncio.run(program())
    assert (steps(guard), steps(guard, "43")) == (1, 2)


def test_a_run_of_the_same_account_is_charged_once_and_one_of_another_is_refused(
    guard: Guard, model: Any, says: Any
) -> None:
    answer, _ = says
    model.script = lambda n, m: answer("done")
    agent = create_agent(model, [], middleware=[GuardMiddleware(thread_budget=Budget(steps=9))])
    with guard.run("turn", account="thread:42", account_budget=Budget(steps=5)):
        go(agent, "sync")
    assert steps(guard) == 1
    with guard.run("turn", account="user:ann", account_budget=Budget(steps=5)):
        with pytest.raises(ValueError, match="thread:42.*user:ann"):
            go(agent, "sync")
    assert len(model.seen) == 1


@MODES
def test_without_a_thread_id_the_call_is_refused_with_the_way_out(
    guard: Guard, model: Any, says: Any, mode: str
) -> None:
    agent = create_agent(model, [], middleware=[GuardMiddleware(thread_budget=Budget(steps=9))])
    with guard.run("turn"), pytest.raises(ValueError, match=r"configurable.*thread_id"):
        asyncio.run(agent.ainvoke(HI)) if mode == "async" else agent.invoke(HI)
    assert model.seen == []


@MODES
def test_a_replay_spends_nothing_of_it(guard: Guard, model: Any, says: Any, mode: str) -> None:
    answer, _ = says
    model.script = lambda n, m: answer("done")
    agent = create_agent(model, [], middleware=[GuardMiddleware(thread_budget=Budget(steps=1))])
    with guard.run("turn") as run:
        go(agent, mode)
    with guard.replay(run.id):
        go(agent, mode)
    assert steps(guard) == 1


@pytest.mark.parametrize("wrong", [Budget(), Budget(seconds=1), {"usd": 1}])
def test_a_budget_that_no_thread_can_have_is_refused_at_once(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="thread_budget"):
        GuardMiddleware(thread_budget=wrong)
