"""An approval or a raise is answered twice: by two operators, after the time, a kill, a crash: one outcome.

Whoever comes second is told, whichever way each of them answers: from a program, by command, in the console.
"""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Self

import pytest

pytest.importorskip("starlette")

from starlette.testclient import TestClient

from agentguard import (
    AgentGuardError,
    ApprovalDeniedError,
    Budget,
    BudgetExceededError,
    Event,
    Guard,
    KillSwitchTriggeredError,
    Run,
    Usage,
)
from agentguard.cli import main
from agentguard.console.app import create_app
from agentguard.console.tokens import Role, Tokens
from agentguard.monitoring import Approval
from tests.kit import wait_until

#: Gives an answer, yes or no, to what was asked; returns what the operator is told, None where it counts.
Operator = Callable[[Approval, bool], str | None]

QUESTIONS = ("approval", "limit")
WAYS = ("program", "command", "console")
LONG, SOON = 3600.0, 0.001


def agent(run: Run, question: str, timeout: float = LONG) -> int:
    """Pay: with an approval, or two dollars where the limit is one and asks."""
    if question == "approval":
        return int(run.call("pay", int, 7, approval=True, approval_timeout=timeout))
    return int(run.call("pay", int, 7, usage=Usage(usd=2)))


def budget(timeout: float = LONG) -> Budget:
    return Budget(usd=1, on_limit="ask", ask_timeout=timeout)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, home: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{home / 'a.db'}"


@pytest.fixture
def guard(url: str) -> Iterator[Guard]:
    with Guard.open(url, telemetry=False) as guard:
        yield guard


@pytest.fixture
def operators(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Operator]]:
    """An operator for each way to answer, none of them by the guard that the agent runs with."""
    monkeypatch.setenv("AGENTGUARD_STORE", url)
    with Guard.open(url, telemetry=False) as other:
        tokens = Tokens(tmp_path / "tokens.json")
        bearer = {"authorization": f"Bearer {tokens.add('on-call', Role.OPERATOR)}"}
        client = TestClient(create_app(other, tokens), headers=bearer)

        def program(asked: Approval, yes: bool) -> str | None:
            try:
                if not yes:
                    other.deny(asked.run_id, asked.key, asked=asked.seq)
                elif asked.limit is None:
                    other.approve(asked.run_id, asked.key, asked=asked.seq)
                else:
                    other.set_budget(asked.run_id, {"usd": 5}, asked=asked.seq)
            except AgentGuardError as error:
                return str(error)
            return None

        def command(asked: Approval, yes: bool) -> str | None:
            given = [asked.run_id, asked.key, "--asked", str(asked.seq)]
            order = ["approve" if yes else "deny", *given]
            if yes and asked.limit is not None:
                order = ["set-budget", asked.run_id, "--usd", "5", "--asked", str(asked.seq)]
            said = io.StringIO()
            with redirect_stdout(io.StringIO()), redirect_stderr(said):
                code = main(order)
            assert code in {0, 1}, said.getvalue()
            return said.getvalue() if code else None

        def console(asked: Approval, yes: bool) -> str | None:
            fields = {"key": asked.key, "decision": "approve" if yes else "deny", "asked": str(asked.seq)}
            path = "decide"
            if yes and asked.limit is not None:
                path, fields = "limit", {"usd": "5", "asked": str(asked.seq)}
            answer = client.post(f"/api/runs/{asked.run_id}/{path}", json=fields)
            assert answer.status_code in {200, 409}, answer.text
            return None if answer.status_code == 200 else str(answer.json()["error"])

        yield {"program": program, "command": command, "console": console}


class Asking:
    """A run `r` in a thread, that asks."""

    def __init__(self, guard: Guard, question: str, timeout: float = LONG) -> None:
        self._guard = guard
        self._pool = ThreadPoolExecutor(1)

        def run() -> int:
            with guard.run("billing", run_id="r", budget=budget(timeout)) as run:
                return agent(run, question, timeout)

        self.result: Future[int] = self._pool.submit(run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if not self.result.done():
            self._guard.kill(run="r", reason="the test is over")
        self._pool.shutdown()


def asked(guard: Guard) -> Approval:
    """What is asked, by the one step that waits."""
    wait_until(guard.approvals)
    [found] = guard.approvals()
    return found


def answers(guard: Guard) -> list[Event]:
    """What the log has for answers."""
    kinds = {"approval_granted", "approval_denied", "run_budget_set", "step_refused"}
    return [event for event in guard.history("r") if event.type in kinds]


def orders(guard: Guard) -> int:
    return len([event for event in guard.history("control") if event.type == "operator_action"])


def check(guard: Guard, question: str, result: Future[int], *, yes: bool) -> None:
    """One outcome: in the program, in the run's log, and in the control log."""
    if yes:
        assert result.result(60) == 7
    else:
        with pytest.raises(ApprovalDeniedError if question == "approval" else BudgetExceededError):
            result.result(60)
    [answer] = answers(guard)
    assert (answer.type in {"approval_granted", "run_budget_set"}) is yes
    assert orders(guard) == 1
    assert guard.verify()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("yes", [True, False])
def test_who_answers_second_is_told(
    guard: Guard, operators: dict[str, Operator], question: str, way: str, *, yes: bool
) -> None:
    with Asking(guard, question) as asking:
        found = asked(guard)
        assert operators[way](found, yes) is None
        for again in (yes, not yes):
            assert operators[way](found, again) is not None
        check(guard, question, asking.result, yes=yes)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_of_two_at_once_one_counts(
    guard: Guard, operators: dict[str, Operator], question: str, way: str
) -> None:
    with Asking(guard, question) as asking, ThreadPoolExecutor(2) as pool:
        found = asked(guard)
        start = threading.Barrier(2)

        def answer(way: str, yes: bool) -> str | None:
            start.wait()
            return operators[way](found, yes)

        given = [pool.submit(answer, way, True), pool.submit(answer, "program", False)]
        told = [each.result() for each in given]
        assert told.count(None) == 1, told
        check(guard, question, asking.result, yes=told[0] is None)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("ended_by", ["the time", "a kill"])
def test_who_answers_too_late_is_told(
    guard: Guard, operators: dict[str, Operator], question: str, way: str, ended_by: str
) -> None:
    with Asking(guard, question, SOON if ended_by == "the time" else LONG) as asking:
        if ended_by == "a kill":
            found = asked(guard)
            guard.kill(run="r", reason="wild")
        error = asking.result.exception(60)
        if ended_by == "the time":
            [request] = (e for e in guard.history("r") if e.type in {"approval_requested", "run_paused"})
            limit: dict[str, Any] | None = None if question == "approval" else {}
            found = Approval("r", "main/pay#1", "pay", limit, seq=request.seq)
        else:
            assert isinstance(error, KillSwitchTriggeredError)
        before = guard.history("r")
        for yes in (True, False):
            assert operators[way](found, yes) is not None
        assert guard.history("r") == before
        assert orders(guard) == 0
        assert guard.verify()


CRASHING = """
import sys
from agentguard import Guard
from tests.integration.test_answered_twice import agent, budget
with Guard.open(sys.argv[1], telemetry=False) as guard:
    with guard.run("billing", run_id="r", budget=budget()) as run:
        agent(run, sys.argv[2])
"""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("answered", ["before the recovery", "after it"])
def test_after_a_crash_one_answer_counts_and_a_recovery_finds_it(
    url: str, guard: Guard, operators: dict[str, Operator], question: str, way: str, answered: str
) -> None:
    process = subprocess.Popen([sys.executable, "-c", CRASHING, url, question])
    found = asked(guard)
    process.kill()
    process.wait()

    def recover() -> int:
        with guard.recover("r", take_over=True) as run:
            return agent(run, question)

    def answer_twice() -> None:
        assert operators[way](found, True) is None
        assert operators[way](found, False) is not None

    with ThreadPoolExecutor(1) as pool:
        if answered == "before the recovery":
            answer_twice()
        recovered = pool.submit(recover)
        if answered == "after it":
            wait_until(lambda: "run_recovered" in {event.type for event in guard.history("r")})
            answer_twice()
        check(guard, question, recovered, yes=True)
    assert operators[way](found, False) is not None


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_to_an_earlier_question_is_none_to_a_later_one_of_the_same_step(
    guard: Guard, operators: dict[str, Operator], way: str
) -> None:
    def pay(amount: int) -> int:
        if amount == 5:
            raise OSError("try again")
        return amount

    def run() -> int:
        with guard.run("billing", run_id="r") as run:
            for amount in (5, 9):
                try:
                    return int(run.call("pay", pay, amount, approval=True, key="the-payment"))
                except OSError:
                    pass
        raise AssertionError

    with ThreadPoolExecutor(1) as pool:
        paid = pool.submit(run)
        first = asked(guard)
        guard.approve("r", first.key)
        wait_until(lambda: guard.approvals() and asked(guard).seq != first.seq)
        try:
            for yes in (True, False):
                told = operators[way](first, yes)
                assert told is not None
                assert "has been answered" in told
        finally:
            guard.approve("r", first.key, asked=asked(guard).seq)
        assert paid.result(60) == 9
