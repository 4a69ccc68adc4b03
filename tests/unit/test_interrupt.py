"""`interrupt_threads=True`: a stop ends sync bodies in flight, and touches nothing but them ("Cancellation" in docs/semantics.md)."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import pytest

from agentguard import (
    Budget,
    BudgetExceededError,
    KillSwitchTriggeredError,
    RunState,
    RunStopped,
    guarded_step,
    heartbeat,
)

DEADLINE = 60.0


def spin(began: threading.Event) -> None:
    """Python code that does not end by itself in the time of a test."""
    began.set()
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until:
        pass
    raise AssertionError("nobody interrupted it")


busy = guarded_step(spin)


@guarded_step
def stubborn(began: threading.Event) -> None:
    try:
        spin(began)
    except Exception:
        spin(began)


@guarded_step
def outer(began: threading.Event) -> None:
    busy(began)


def kill_once_begun(run, began):
    def kill():
        assert began.wait(DEADLINE)
        run.kill("enough")

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@pytest.mark.parametrize("body", [busy, stubborn, outer], ids=lambda body: body.__name__)
def test_a_kill_interrupts_the_body(guard, body):
    began = threading.Event()
    with (
        pytest.raises(KillSwitchTriggeredError, match="enough"),
        guard.run("r", interrupt_threads=True) as run,
    ):
        thread = kill_once_begun(run, began)
        try:
            body(began)
        finally:
            thread.join(DEADLINE)
    assert run.state is RunState.KILLED
    ends = [event for event in guard.history(run.id) if event.type == "step_failed"]
    assert {event.data["error"]["type"] for event in ends} == {"KillSwitchTriggeredError"}
    assert run.summary().open_steps == ()
    assert guard.verify(run.id)


def test_bodies_in_other_threads_are_interrupted_too(guard):
    began = [threading.Event() for _ in range(3)]
    ended = []

    def work(event):
        try:
            busy(event)
        except KillSwitchTriggeredError as stop:
            ended.append(stop)

    with suppress(RunStopped), guard.run("r", interrupt_threads=True) as run:
        threads = [threading.Thread(target=run.bind(work), args=(event,)) for event in began]
        for thread in threads:
            thread.start()
        assert all(event.wait(DEADLINE) for event in began)
        run.kill("enough")
        for thread in threads:
            thread.join(DEADLINE)
    assert len(ended) == 3


def test_the_time_of_a_run_interrupts_the_body(guard, monkeypatch):
    monkeypatch.setattr(heartbeat, "CHECK_INTERVAL", 0.01)
    with (
        pytest.raises(BudgetExceededError) as raised,
        guard.run("r", budget=Budget(seconds=0.05), interrupt_threads=True) as run,
    ):
        busy(threading.Event())
    assert raised.value.resource == "seconds"
    assert run.state is RunState.FAILED


def test_without_it_the_body_goes_on_to_its_end(guard):
    @guarded_step
    def steady():
        run.kill("enough")
        return "done"

    with suppress(RunStopped), guard.run("r") as run:
        assert steady() == "done"
    assert [event.type for event in guard.history(run.id)][-1] == "step_completed"


def test_a_stop_interrupts_no_code_outside_bodies(guard):
    with suppress(RunStopped), guard.run("r", interrupt_threads=True) as run:
        run.kill("enough")
        counted = sum(1 for _ in range(100_000))
        assert counted == 100_000
        with pytest.raises(KillSwitchTriggeredError):
            busy(threading.Event())


@pytest.mark.no_cover  # what is raised in the thread may hit coverage's own code, which then holds its lock for ever
# It may arrive in the callback of a weak reference, where the interpreter can only report it.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_many_bodies_that_end_as_the_stop_comes(guard):
    """What arrives as a body ends is taken back: nothing is raised later, in the code after it."""

    @guarded_step
    def short():
        return sum(range(50))

    for _ in range(30):
        with suppress(RunStopped), guard.run("r", interrupt_threads=True) as run:
            began = threading.Event()
            thread = kill_once_begun(run, began)
            with suppress(KillSwitchTriggeredError):
                while True:
                    short()
                    began.set()
            thread.join(DEADLINE)
        assert run.summary().open_steps == ()
        assert guard.verify(run.id)
