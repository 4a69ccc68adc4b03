"""`approval_timeout=`: a step that nobody approved in time is denied, on record, as by an operator."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import pytest

from agentguard import (
    AgentGuardError,
    ApprovalDeniedError,
    Budget,
    Guard,
    KillSwitchTriggeredError,
    RunState,
    guarded_step,
)
from agentguard.queries import Approval
from agentguard.testing import FakeClock
from tests.kit import is_waited, wait_until

#: So short that it is over as soon as it is looked at.
SOON = 0.001


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    known = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path / 'a.db'}"}
    return known.get(request.param) or str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def guard(url: str) -> Iterator[Guard]:
    with Guard.open(url, telemetry=False) as guard:
        yield guard


@guarded_step(approval=True, approval_timeout=SOON)
def wire(amount: int) -> int:
    return amount


@guarded_step(approval=True, approval_timeout=SOON)
async def awire(amount: int) -> int:
    return amount


@guarded_step(approval=lambda amount: amount > 1, approval_timeout=timedelta(milliseconds=1))
def wires(amount: int) -> Iterator[int]:
    yield amount


@guarded_step(approval=True, approval_timeout=SOON)
async def awires(amount: int) -> AsyncIterator[int]:
    yield amount


def _call(run: Any) -> Any:
    return run.call("wire", int, 7, approval=True, approval_timeout=SOON)


async def _acall(run: Any) -> Any:
    return await run.call("wire", awire.__wrapped__, 7, approval=True, approval_timeout=SOON)


async def _items(run: Any) -> list[int]:
    return [item async for item in awires(7)]


WAYS: dict[str, Callable[[Any], Any]] = {
    "function": lambda run: wire(7),
    "coroutine": lambda run: asyncio.run(awire(7)),
    "generator": lambda run: list(wires(7)),
    "async generator": lambda run: asyncio.run(_items(run)),
    "run.call": _call,
    "run.call, awaited": lambda run: asyncio.run(_acall(run)),
}


@pytest.mark.parametrize("way", WAYS)
def test_where_nobody_answers_the_step_is_denied_on_record_and_in_a_replay(guard: Guard, way: str) -> None:
    def agent(run: Any) -> tuple[Any, ...]:
        with pytest.raises(ApprovalDeniedError) as denied:
            WAYS[way](run)
        return denied.value.actor, denied.value.reason, run.call("next", int)

    with guard.run("r", run_id="r") as run:
        live = agent(run)
    assert live == ("agentguard", "nobody answered within 0.001 seconds", 0)
    assert guard.summary("r").state is RunState.COMPLETED
    assert guard.summary("r").usage.steps == 1
    asked, denied = (e for e in guard.history("r") if e.type.startswith("approval"))
    assert (asked.data["timeout"], denied.type, denied.data["actor"]) == (
        SOON,
        "approval_denied",
        "agentguard",
    )
    assert guard.verify()
    with guard.replay("r") as replayed:
        assert agent(replayed) == live


def test_a_step_can_be_called_again_and_is_asked_for_anew(guard: Guard) -> None:
    with guard.run("r") as run:
        for _ in range(2):
            with pytest.raises(ApprovalDeniedError):
                wire(7)
    assert [e.type for e in guard.history(run.id)].count("approval_requested") == 2


def test_who_answers_after_the_time_is_told_that_it_is_over(guard: Guard) -> None:
    with guard.run("r", run_id="r"):
        with pytest.raises(ApprovalDeniedError):
            wire(7)
        for answer in (guard.approve, guard.deny):
            with pytest.raises(AgentGuardError, match="was denied by agentguard .nobody answered within"):
                answer("r", "main/wire#1")


# --- whose time, and since when --------------------------------------------------------------------------


class Waiting:
    """A run `r` in a thread, with a step that waits, on a clock that the test moves."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.clock = FakeClock()
        self.guard = Guard.open(f"sqlite:///{path / 'a.db'}", telemetry=False, clock=self.clock, **options)
        self._pool = ThreadPoolExecutor(1)

    def run(self, budget: Budget | None = None, **step: Any) -> Future[int]:
        def program() -> int:
            with self.guard.run("r", run_id="r", budget=budget) as run:
                return run.call("wire", int, 7, approval=True, **step)

        return self._pool.submit(program)

    def asked(self) -> Approval:
        wait_until(self.guard.approvals)
        [found] = self.guard.approvals()
        return found

    def pass_until(self, done: Callable[[], object], seconds: float = 1) -> None:
        """Let the time go on until something has come of it."""
        wait_until(lambda: self.clock.advance(seconds) or done())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if any(row.state in {RunState.RUNNING, RunState.PAUSED} for row in self.guard.runs()):
            self.guard.kill(run="r", reason="the test is over")
        self._pool.shutdown()
        self.guard.close()


def test_an_answer_in_time_counts_and_the_time_is_told_to_who_looks(tmp_path: Path) -> None:
    with Waiting(tmp_path) as waiting:
        done = waiting.run(approval_timeout=30)
        found = waiting.asked()
        assert (found.timeout, found.seq) == (30, 3)
        waiting.clock.advance(29)
        waiting.guard.approve("r", found.key, asked=found.seq)
        assert done.result(60) == 7


@pytest.mark.parametrize("step", [{}, {"approval_timeout": 5}])
def test_the_guard_says_how_long_where_the_step_does_not(tmp_path: Path, step: dict[str, Any]) -> None:
    with Waiting(tmp_path, approval_timeout=timedelta(minutes=1)) as waiting:
        done = waiting.run(**step)
        assert waiting.asked().timeout == step.get("approval_timeout", 60)
        waiting.pass_until(done.done, 10)
        with pytest.raises(ApprovalDeniedError, match=f"within {step.get('approval_timeout', 60)} seconds"):
            done.result()


def test_the_time_goes_on_in_a_pause_and_the_denial_is_met_after_it(tmp_path: Path) -> None:
    with Waiting(tmp_path) as waiting:
        done = waiting.run(approval_timeout=30)
        waiting.asked()
        waiting.guard.pause("r")
        waiting.pass_until(lambda: not waiting.guard.approvals())
        assert not done.done()
        waiting.guard.resume("r")
        with pytest.raises(ApprovalDeniedError, match="nobody answered within 30 seconds"):
            done.result(60)
        assert waiting.guard.verify()


def test_a_kill_wins_over_the_time_and_nothing_comes_after_it(tmp_path: Path) -> None:
    with Waiting(tmp_path) as waiting:
        done = waiting.run(approval_timeout=30)
        waiting.asked()
        waiting.guard.kill(run="r", reason="wild")
        waiting.clock.advance(31)
        with pytest.raises(KillSwitchTriggeredError):
            done.result(60)
        assert [event.type for event in waiting.guard.history("r")][-1] == "run_killed"


def test_the_seconds_of_the_run_do_not_go_on_meanwhile(tmp_path: Path) -> None:
    with Waiting(tmp_path) as waiting:
        done = waiting.run(Budget(seconds=5), approval_timeout=30)
        wait_until(lambda: is_waited(waiting.guard))
        waiting.pass_until(done.done, 10)
        with pytest.raises(ApprovalDeniedError):
            done.result()


def test_a_question_about_a_limit_keeps_its_own_time_beside_it(tmp_path: Path) -> None:
    budget = Budget(steps=1, on_limit="ask", ask_timeout=50_000)  # far beyond what a late thread lets pass
    with Waiting(tmp_path) as waiting:

        def program() -> tuple[str, str]:
            with suppress(AgentGuardError), waiting.guard.run("r", run_id="r", budget=budget) as run:
                run.call("first", int)
                with ThreadPoolExecutor(2) as pool:
                    wired = pool.submit(run.bind(run.call), "wire", int, approval=True, approval_timeout=30)
                    wait_until(waiting.guard.approvals)
                    more = pool.submit(run.bind(run.call), "more", int)
                    return tuple(type(each.exception(60)).__name__ for each in (wired, more))  # type: ignore[return-value]
            raise AssertionError

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(program)
            wait_until(lambda: len(waiting.guard.approvals()) == 2)
            waiting.pass_until(lambda: len(waiting.guard.approvals()) == 1)
            [left] = waiting.guard.approvals()
            assert left.limit is not None
            waiting.pass_until(done.done, 1000)
        denied = [event for event in waiting.guard.history("r") if event.data.get("actor") == "agentguard"]
        assert [event.type for event in denied] == ["approval_denied", "step_refused"]
        assert waiting.guard.verify()


CRASHING = """
import sys
from agentguard import Guard
with Guard.open(sys.argv[1], telemetry=False) as guard:
    with guard.run("r", run_id="r") as run:
        run.call("wire", int, 7, approval=True, approval_timeout=30)
"""


@pytest.mark.parametrize("answer", ["granted while it was dead", "granted after", "never"])
def test_a_recovery_waits_the_whole_time_again(tmp_path: Path, answer: str) -> None:
    with Waiting(tmp_path) as waiting:
        guard = waiting.guard
        process = subprocess.Popen([sys.executable, "-c", CRASHING, f"sqlite:///{tmp_path / 'a.db'}"])
        found = waiting.asked()
        process.kill()
        process.wait()
        waiting.clock.advance(1000)

        def recover() -> int:
            with guard.recover("r", take_over=True) as run:
                return run.call("wire", int, 7, approval=True, approval_timeout=30)

        if answer == "granted while it was dead":
            guard.approve("r", found.key)
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(recover)
            if answer == "granted after":
                wait_until(lambda: "run_recovered" in {event.type for event in guard.history("r")})
                assert waiting.asked().seq == found.seq
                guard.approve("r", found.key, asked=found.seq)
            if answer == "never":
                waiting.pass_until(done.done, 10)
                with pytest.raises(ApprovalDeniedError):
                    done.result()
            else:
                assert done.result(60) == 7
        assert guard.verify()


# --- options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, True, "soon", float("nan"), float("inf"), timedelta(0)])
def test_a_time_that_cannot_be_meant_is_named(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="wire: approval_timeout"):
        guarded_step(name="wire", approval=True, approval_timeout=value)(abs)
    with pytest.raises((TypeError, ValueError), match="approval_timeout"):
        Guard.in_memory(approval_timeout=value)


def test_a_time_without_an_approval_is_refused() -> None:
    with pytest.raises(ValueError, match="wire: approval_timeout is how long approval= waits"):
        guarded_step(name="wire", approval_timeout=5)(abs)
