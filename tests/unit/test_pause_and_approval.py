"""Pause and approval: a pause closes admission and nothing else; an approval blocks its own step and no other."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentguard import (
    AgentGuardError,
    ApprovalDeniedError,
    Budget,
    Guard,
    InvalidStateTransitionError,
    KillSwitchTriggeredError,
    RunState,
    guarded_step,
)
from agentguard.testing import FakeClock
from tests.kit import is_waited, wait_until

DEADLINE = 60.0


@guarded_step
def work(number: int = 0) -> int:
    return number


@guarded_step(approval=True)
def wire(amount: int) -> int:
    return amount


@pytest.fixture(params=["memory", "sqlite"])
def guard(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guard]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'events.db'}"
    with Guard.open(url, kill_switch="memory", telemetry=False) as guard:
        yield guard


class Other:
    """A line of control beside the test's own, in a thread, and what came of it."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.result: object = None
        self.error: BaseException | None = None

        def run() -> None:
            try:
                self.result = call()
            except BaseException as error:  # looked at by the test
                self.error = error

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def join(self) -> Other:
        self.thread.join(DEADLINE)
        assert not self.thread.is_alive()
        return self


def types(guard: Guard, run_id: str) -> list[str]:
    return [event.type for event in guard.history(run_id)]


# --- pause -------------------------------------------------------------------------------------


def test_a_body_in_flight_finishes_and_is_delivered_during_a_pause(guard: Guard) -> None:
    begun, go_on = threading.Event(), threading.Event()

    @guarded_step
    def slow() -> str:
        begun.set()
        assert go_on.wait(DEADLINE)
        return "done"

    with guard.run("r") as run:
        other = Other(run.bind(slow))
        assert begun.wait(DEADLINE)
        run.pause("look")
        assert run.state is RunState.PAUSED
        go_on.set()
        assert other.join().result == "done"
        assert run.state is RunState.PAUSED
        assert types(guard, run.id)[-2:] == ["run_paused", "step_completed"]
        run.resume()


def test_a_step_waits_for_the_resume_and_is_not_on_record_before(guard: Guard) -> None:
    with guard.run("r") as run:
        run.pause("look")
        other = Other(run.bind(lambda: work(7)))
        other.thread.join(0.05)
        assert other.thread.is_alive()
        assert "step_started" not in types(guard, run.id)
        run.resume()
        assert other.join().result == 7


def test_a_task_waits_without_blocking_the_loop(guard: Guard) -> None:
    @guarded_step
    async def ask() -> str:
        return "answer"

    async def main() -> None:
        async with guard.run("r") as run:
            run.pause("look")
            task = asyncio.create_task(ask())
            for _ in range(20):  # the loop turns all the while
                await asyncio.sleep(0)
            assert not task.done()
            run.resume()
            assert await asyncio.wait_for(task, DEADLINE) == "answer"

    asyncio.run(main())


def test_whoever_waits_wakes_on_a_stop(guard: Guard) -> None:
    with pytest.raises(KillSwitchTriggeredError), guard.run("r") as run:
        run.pause("look")
        others = [Other(run.bind(work)) for _ in range(3)]
        run.kill("enough")
        for other in others:
            assert isinstance(other.join().error, KillSwitchTriggeredError)
    assert "step_started" not in types(guard, run.id)


def test_a_pause_takes_no_running_time() -> None:
    clock = FakeClock()
    with Guard.in_memory(clock=clock, telemetry=False) as guard:
        with guard.run("r", budget=Budget(seconds=10)) as run:
            clock.advance(4)
            run.pause("look")
            clock.advance(1000)
            run.resume()
            assert run.remaining.seconds == 6
            clock.advance(5)
            work()
        assert guard.summary(run.id).duration == 9


def test_resume_lifts_a_pause_and_nothing_else(guard: Guard) -> None:
    with guard.run("r") as run:
        with pytest.raises(InvalidStateTransitionError):
            run.resume()
        work()
    with pytest.raises(InvalidStateTransitionError):
        guard.resume(run.id)
    with pytest.raises(InvalidStateTransitionError):
        guard.pause(run.id)


PROGRAM = """
import os, signal, sys
from agentguard import Guard
guard = Guard.open(sys.argv[1], kill_switch="memory", telemetry=False)
run = guard.start("r", run_id="r1")
run.pause("look")
print("paused", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_pause_outlives_its_owner(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'events.db'}"
    child = subprocess.run(
        [sys.executable, "-c", PROGRAM, url], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert (child.returncode, child.stdout) == (-signal.SIGKILL, "paused\n"), child.stderr
    with Guard.open(url, kill_switch="memory", telemetry=False) as guard:
        assert guard.summary("r1").state is RunState.PAUSED
        guard.resume("r1")
        assert guard.summary("r1").state is RunState.RUNNING
        assert os.getpid() not in (guard.components.store.row("r1").owner or {}).values()  # type: ignore[union-attr]


# --- approvals ---------------------------------------------------------------------------------


def test_an_approval_blocks_its_own_step_and_no_other(guard: Guard) -> None:
    with guard.run("r") as run:
        other = Other(run.bind(lambda: wire(5)))
        wait_until(guard.approvals)
        assert run.state is RunState.RUNNING
        assert work(1) == 1
        (waiting,) = guard.approvals()
        guard.approve(run.id, waiting.key, actor="ann")
        assert other.join().result == 5


def test_a_denied_step_does_not_run_and_the_run_goes_on(guard: Guard) -> None:
    with guard.run("r") as run:
        other = Other(run.bind(lambda: wire(5)))
        wait_until(guard.approvals)
        guard.deny(run.id, guard.approvals()[0].key, reason="too much", actor="ann")
        error = other.join().error
        assert isinstance(error, ApprovalDeniedError)
        assert (error.reason, error.actor) == ("too much", "ann")
        assert work(1) == 1
    assert run.state is RunState.COMPLETED
    assert run.spent["steps"] == 1, "a refused step uses nothing"


def test_a_decision_is_for_the_arguments_it_was_asked_about(guard: Guard) -> None:
    @guarded_step(approval=True, key="the-transfer")
    def transfer(amount: int) -> int:
        if amount == 5:
            raise OSError("try again")
        return amount

    with guard.run("r") as run:
        for amount in (5, 9):
            other = Other(run.bind(lambda amount=amount: transfer(amount)))
            wait_until(guard.approvals)
            guard.approve(run.id, guard.approvals()[0].key)
            other.join()
        assert other.result == 9
    assert types(guard, run.id).count("approval_requested") == 2, "other arguments were asked about anew"


def test_a_decision_that_nobody_waits_for_is_refused(guard: Guard) -> None:
    with guard.run("r") as run:
        for decide in (guard.approve, guard.deny):
            with pytest.raises(AgentGuardError, match="no step 'main/wire#1'"):
                decide(run.id, "main/wire#1")


def test_a_step_that_waits_wakes_on_a_kill(guard: Guard) -> None:
    with pytest.raises(KillSwitchTriggeredError), guard.run("r") as run:
        other = Other(run.bind(lambda: wire(5)))
        wait_until(guard.approvals)
        run.kill("enough")
        assert isinstance(other.join().error, KillSwitchTriggeredError)
    assert "step_started" not in types(guard, run.id)


def test_seconds_do_not_count_while_approvals_alone_are_waited_for() -> None:
    clock = FakeClock()
    with Guard.in_memory(clock=clock, telemetry=False) as guard:

        @guarded_step
        def pay(amount: int) -> int:
            return wire(amount)

        with guard.run("r", budget=Budget(seconds=10)) as run:
            waiter = Other(lambda: run.bind(pay)(7))
            wait_until(lambda: is_waited(guard))
            clock.advance(3600)
            assert run.remaining.seconds == 10
            guard.approve(run.id, guard.approvals()[0].key)
            waiter.join()
            clock.advance(4)
            assert run.remaining.seconds == 6
        assert waiter.result == 7
        assert guard.summary(run.id).duration == 4


def test_seconds_count_while_another_step_is_in_flight() -> None:
    clock, go = FakeClock(), threading.Event()
    with Guard.in_memory(clock=clock, telemetry=False) as guard:

        @guarded_step
        def busy() -> None:
            go.wait(DEADLINE)

        with guard.run("r", budget=Budget(seconds=10)) as run:
            other, waiter = Other(run.bind(busy)), Other(lambda: run.bind(wire)(7))
            wait_until(lambda: is_waited(guard) and run.summary().open_steps)
            clock.advance(9)
            assert run.remaining.seconds == 1
            go.set()
            other.join()
            clock.advance(3600)
            assert run.remaining.seconds == 1
            guard.approve(run.id, guard.approvals()[0].key)
            waiter.join()
        assert waiter.result == 7
