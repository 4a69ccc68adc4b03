"""What a program has decided by itself: `approval=Decision(...)`, and limits that ask their caller."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agentguard import (
    AgentGuardError,
    ApprovalDeniedError,
    Budget,
    BudgetExceededError,
    Guard,
    Run,
    RunState,
    Usage,
    guarded_step,
)
from agentguard.errors import LimitAskedError
from agentguard.steps.decision import Decision
from tests.kit import wait_until

YES = Decision(granted=True, actor="ann", reason="checked")
NO = Decision(granted=False, actor="bob", reason="too much")


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    known = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path / 'a.db'}"}
    return known.get(request.param) or str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def guard(url: str) -> Iterator[Guard]:
    with Guard.open(url, telemetry=False) as guard:
        yield guard


def types(guard: Guard) -> list[str]:
    return [event.type for event in guard.history("r")]


# --- approvals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_decision_is_on_record_as_an_operators_and_nobody_waits(
    guard: Guard, *, asynchronous: bool
) -> None:
    async def double(n: int) -> int:
        return n * 2

    def agent(run: Run) -> list[Any]:
        found: list[Any] = []
        for decision in (YES, NO):
            try:
                called = run.call("pay", double if asynchronous else abs, 7, approval=decision)
                found.append(asyncio.run(called) if asynchronous else called)
            except ApprovalDeniedError as denied:
                found.append((denied.actor, denied.reason))
        return found

    with guard.run("r", run_id="r") as run:
        live = agent(run)
    assert live == [14 if asynchronous else 7, ("bob", "too much")]
    assert types(guard)[2:-1] == [
        "approval_requested", "approval_granted", "step_started", "step_completed",
        "approval_requested", "approval_denied",
    ]  # fmt: skip
    granted = guard.history("r")[3]
    assert (granted.data["actor"], granted.data["reason"]) == ("ann", "checked")
    assert guard.verify()
    with guard.replay("r") as replayed:
        assert agent(replayed) == live


def test_a_decision_answers_what_was_asked_before_a_crash(guard: Guard, url: str) -> None:
    if url == "memory://":
        pytest.skip("it ends with its process")
    program = (
        "import sys; from agentguard import Guard\n"
        "with Guard.open(sys.argv[1], telemetry=False) as guard, guard.run('r', run_id='r') as run:\n"
        "    run.call('pay', abs, 7, approval=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, url])
    wait_until(guard.approvals)
    process.kill()
    process.wait()
    with guard.recover("r", take_over=True) as run:
        assert run.call("pay", abs, 7, approval=YES) == 7
    assert types(guard).count("approval_requested") == 1
    assert guard.verify()


def test_what_was_granted_first_is_not_run_once_it_was_denied(guard: Guard) -> None:
    def fail(n: int) -> int:
        raise OSError("try again")

    with guard.run("r", run_id="r") as run:
        with pytest.raises(OSError, match="try again"):
            run.call("pay", fail, 7, approval=YES, key="k")
        with pytest.raises(AgentGuardError, match=r"was granted by ann .checked. before bob denied it"):
            run.call("pay", abs, 7, approval=NO, key="k")
        with pytest.raises(ApprovalDeniedError):
            run.call("pay", abs, 8, approval=NO, key="k")  # another question
    assert types(guard).count("step_started") == 1


@pytest.mark.parametrize(
    "options",
    [
        {"approval": 3},
        {"approval": Decision(granted=True, actor="")},
        {"approval": Decision(granted=True, actor="ann", reason=3)},  # type: ignore[arg-type]
        {"asks": "nobody"},
        {"asks": YES},
    ],
)
def test_a_decision_that_cannot_be_meant_is_named(options: dict[str, Any]) -> None:
    with Guard.in_memory(telemetry=False) as guard, guard.run("r") as run:
        with pytest.raises((TypeError, ValueError), match="approval|actor|reason|asks"):
            run.call("pay", abs, 7, **options)
        assert run.spent.steps == 0


# --- limits ------------------------------------------------------------------------------------------------


@guarded_step(usage=Usage(usd="0.40"), asks="caller")
def pay(n: int) -> int:
    return n


@guarded_step(usage=Usage(usd="0.40"), asks="caller")
async def apay(n: int) -> int:
    return n


@guarded_step(usage=Usage(usd="0.40"), asks="caller")
def pays(n: int) -> Iterator[int]:
    yield n


WAYS: dict[str, Callable[[int], int]] = {
    "function": pay,
    "coroutine": lambda n: asyncio.run(apay(n)),  # type: ignore[arg-type]
    "generator": lambda n: list(pays(n))[0],
}


@pytest.mark.parametrize("way", WAYS)
def test_the_caller_is_asked_raises_the_limit_and_calls_again(guard: Guard, way: str) -> None:
    def agent(run: Run) -> list[Any]:
        found: list[Any] = []
        for n in range(3):
            try:
                found.append(WAYS[way](n))
            except LimitAskedError as asked:
                found.append(asked.facts())
                run.set_budget({"usd": 2}, actor="ann", reason="once")
                found.append(WAYS[way](n))
        return found

    with guard.run("r", run_id="r", budget=Budget(usd=1, on_limit="ask")) as run:
        *paid, asked, last = agent(run)
    assert [*paid, last] == [0, 1, 2]
    assert {name: asked[name] for name in ("resource", "spent", "requested", "limit", "run_id")} == {
        "resource": "usd", "spent": "0.8", "requested": "0.4", "limit": "1", "run_id": "r",
    }  # fmt: skip
    assert "run_paused" not in types(guard)
    assert (guard.summary("r").state, guard.summary("r").usage.steps) == (RunState.COMPLETED, 3)
    assert guard.verify()
    with guard.replay("r") as replayed:
        assert agent(replayed) == [*paid, asked, last]


def test_a_refusal_by_the_caller_stops_the_run_as_its_limit_would(guard: Guard) -> None:
    with pytest.raises(BudgetExceededError), guard.run("r", run_id="r", budget=Budget(usd=0, on_limit="ask")):
        guarded_step(usage=Usage(usd=1), asks=NO)(abs)(7)
    [refused] = (event for event in guard.history("r") if event.type == "step_refused")
    assert (refused.data["actor"], refused.data["reason"]) == ("bob", "too much")
    assert guard.summary("r").state is RunState.FAILED


def test_a_limit_that_does_not_ask_stops_whatever_the_caller_would_say() -> None:
    with Guard.in_memory(telemetry=False) as guard, pytest.raises(BudgetExceededError):
        with guard.run("r", budget=Budget(usd=0)):
            pay(7)


def test_the_limit_of_a_run_around_asks_an_operator_all_the_same(guard: Guard) -> None:
    def agent() -> int:
        with guard.run("outer", run_id="r", budget=Budget(usd=0, on_limit="ask")), guard.run("inner"):
            return pay(7)

    with ThreadPoolExecutor(1) as pool:
        paid = pool.submit(agent)
        wait_until(guard.approvals)
        guard.set_budget("r", {"usd": 1})
        assert paid.result(60) == 7


def test_the_question_of_a_limit_is_pickled_with_its_facts() -> None:
    error = LimitAskedError("main/pay#1", "pay", "usd", "0.8", "0", "0.4", "1", "r")
    assert pickle.loads(pickle.dumps(error)).facts() == error.facts()
