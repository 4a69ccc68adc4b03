"""After a stop: what may still be appended after a stop, and what is legal for a key."""

from __future__ import annotations

import asyncio
import itertools
import threading
from contextlib import suppress
from decimal import Decimal

import pytest

from agentguard import (
    Budget,
    BudgetExceededError,
    Guard,
    InvalidStateTransitionError,
    KillSwitchTriggeredError,
    RunState,
    RunStopped,
    Usage,
    guarded_step,
)
from agentguard.errors import DuplicateKeyError
from agentguard.runs.state import LEGAL_MOVES, check_move


def types(guard: Guard, run_id: str) -> list[str]:
    return [event.type for event in guard.history(run_id)]


# --- states ----------------------------------------------------------------------------------------

LEGAL = {
    "CREATED": {"RUNNING", "KILLED", "FAILED"},
    "RUNNING": {"PAUSED", "COMPLETED", "KILLED", "FAILED"},
    "PAUSED": {"RUNNING", "COMPLETED", "KILLED", "FAILED"},
    "COMPLETED": set(),
    "KILLED": set(),
    "FAILED": set(),
}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(RunState, RunState)))
def test_one_table_says_which_moves_are_legal(before, after):
    if after.value in LEGAL[before.value]:
        check_move("r1", before, after)
    else:
        with pytest.raises(InvalidStateTransitionError) as raised:
            check_move("r1", before, after)
        error = raised.value
        assert (error.run_id, error.from_state, error.to_state) == ("r1", before, after)
        assert all(text in str(error) for text in ("r1", before, after))


def test_final_states():
    assert {state for state in RunState if state.final} == {
        RunState.COMPLETED,
        RunState.KILLED,
        RunState.FAILED,
    }
    assert {state.value: set(moves) for state, moves in LEGAL_MOVES.items()} == LEGAL


def test_illegal_moves_are_refused_and_leave_no_trace(guard):
    with guard.run("r") as run:
        with pytest.raises(InvalidStateTransitionError):
            run.resume()
        run.pause()
        with pytest.raises(InvalidStateTransitionError):
            run.pause()
        run.resume()
    for move in (lambda: guard.pause(run.id), lambda: guard.resume(run.id)):
        with pytest.raises(InvalidStateTransitionError) as raised:
            move()
        assert raised.value.from_state is RunState.COMPLETED
    assert types(guard, run.id) == [
        "run_created",
        "run_started",
        "run_paused",
        "run_resumed",
        "run_completed",
    ]


def test_a_paused_run_may_end(guard):
    with guard.run("completes") as completes:
        completes.pause()
    with suppress(RunStopped), guard.run("killed") as killed:
        killed.pause()
        killed.kill("while paused")
    with suppress(ZeroDivisionError), guard.run("fails") as fails:
        fails.pause()
        raise ZeroDivisionError
    assert [run.state for run in (completes, killed, fails)] == [
        RunState.COMPLETED,
        RunState.KILLED,
        RunState.FAILED,
    ]


def test_a_kill_ends_a_run_that_was_only_created(guard):
    guard.kill(reason="all")
    with pytest.raises(KillSwitchTriggeredError), guard.run("r", run_id="r1"):
        pytest.fail("entered")
    assert types(guard, "r1") == ["run_created", "run_killed"]
    assert guard.summary("r1").state is RunState.KILLED
    assert guard.summary("r1").started_at is None
    assert guard.verify("r1")


# --- after the terminal event ----------------------------------------------------------------------


def in_flight(guard: Guard, run, body, **options):
    """Start a step in a thread; gives the function that lets it end."""
    entered, go_on = threading.Event(), threading.Event()

    def wait():
        entered.set()
        assert go_on.wait(60)
        return body()

    def call() -> None:
        with suppress(Exception):
            run.call("late", wait, **options)

    thread = threading.Thread(target=run.bind(call))
    thread.start()
    assert entered.wait(60)

    def finish() -> None:
        go_on.set()
        thread.join(60)

    return finish


@pytest.mark.parametrize(
    ("body", "outcome", "usd"),
    [(lambda: 1, "step_completed", "0.5"), (lambda: 1 / 0, "step_failed", "0.5")],
    ids=["completed", "failed"],
)
def test_settlement_stays_open(guard, body, outcome, usd):
    with suppress(RunStopped), guard.run("r", budget=Budget(usd=9)) as run:
        finish = in_flight(guard, run, body, usage=Usage(usd="0.5"))
        run.kill("now")
    before = guard.summary(run.id)
    finish()
    after = guard.summary(run.id)
    assert types(guard, run.id)[-2:] == ["run_killed", outcome]
    assert after.usage.usd == Decimal(usd)
    assert (after.state, after.termination, after.ended_at, after.duration) == (
        before.state,
        before.termination,
        before.ended_at,
        before.duration,
    )
    assert after.head.seq == before.head.seq + 1
    assert guard.reconstruct(run.id) == after
    assert guard.history(run.id)[-1].spent.usd == Decimal(usd)


def test_an_anchor_says_what_an_event_was_and_not_that_the_log_ends_there(guard):
    with suppress(RunStopped), guard.run("r") as run:
        finish = in_flight(guard, run, lambda: 1)
        run.kill("now")
    anchor = guard.summary(run.id).head
    finish()
    assert guard.verify(run.id, anchors={run.id: anchor})
    assert guard.summary(run.id).head != anchor


def test_scopes_close_after_the_stop(guard):
    with suppress(RunStopped), guard.run("r") as run, run.scope("a"), run.scope("b"):
        run.kill("now")
    assert types(guard, run.id)[-3:] == ["run_killed", "scope_closed", "scope_closed"]
    assert guard.verify(run.id)


def test_nothing_else_is_appended(guard):
    with suppress(RunStopped), guard.run("r") as run:
        run.kill("now")
        for attempt in (
            lambda: run.call("x", pytest.fail, "ran"),
            lambda: run.scope("s").__enter__(),
            run.now,
            lambda: run.record("v", lambda: 1),
            lambda: guard.run("inner").__enter__(),
            lambda: asyncio.run(run.call("y", asyncio.sleep, 0)),
            run.pause,
        ):
            with pytest.raises((RunStopped, InvalidStateTransitionError)):
                attempt()
    assert types(guard, run.id) == ["run_created", "run_started", "run_killed"]


def test_the_first_stop_wins(guard):
    """Many threads meet different stops at once: one is on record, with one refusal at most."""
    for _ in range(10):
        with suppress(RunStopped), guard.run("r", budget=Budget(steps=8)) as run:

            def work(run=run) -> None:
                with suppress(RunStopped):
                    while True:
                        run.call("f", int)

            threads = [threading.Thread(target=run.bind(work)) for _ in range(4)]
            threads.append(threading.Thread(target=run.kill, args=("race",)))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        found = types(guard, run.id)
        assert sum(t in ("run_failed", "run_killed", "run_completed") for t in found) == 1
        assert found.count("step_refused") <= 1
        assert guard.summary(run.id).termination["type"] == type(run.stop).__name__
        assert guard.reconstruct(run.id) == guard.summary(run.id)


def test_later_refusals_raise_without_an_event(guard):
    with suppress(RunStopped), guard.run("r", budget=Budget(steps=1)) as run:
        run.call("f", int)
        for _ in range(5):
            with pytest.raises(BudgetExceededError):
                run.call("f", int)
    assert types(guard, run.id)[-3:] == ["step_completed", "step_refused", "run_failed"]


def test_one_refusal_for_a_scopes_stop(guard):
    with guard.run("r") as run, suppress(RunStopped), run.scope("s", Budget(steps=1)):
        for _ in range(5):
            with suppress(BudgetExceededError):
                run.call("f", int)
    assert types(guard, run.id).count("step_refused") == 1


# --- legal for a key -------------------------------------------------------------------------------


def test_a_key_is_repeated_by_attempt(guard):
    @guarded_step(key="once")
    def flaky(fail: bool) -> str:
        if fail:
            raise OSError
        return "done"

    with guard.run("r") as run:
        for fail in (True, True, False):
            with suppress(OSError):
                flaky(fail)
        with pytest.raises(DuplicateKeyError):
            flaky(False)
    of_key = [(e.type, e.attempt) for e in guard.history(run.id) if e.key == "key:once"]
    assert of_key == [
        ("step_started", 1),
        ("step_failed", 1),
        ("step_started", 2),
        ("step_failed", 2),
        ("step_started", 3),
        ("step_completed", 3),
    ]


def test_a_refused_key_never_started(guard):
    step = guarded_step(key="dear", usage=Usage(usd=2))(lambda: pytest.fail("ran"))
    with suppress(RunStopped), guard.run("r", budget=Budget(usd=1)) as run:
        step()
    assert [e.type for e in guard.history(run.id) if e.key == "key:dear"] == ["step_refused"]


def test_two_lines_of_control_in_one_branch_never_mix(guard):
    """One name attached twice: the second step of a key in flight is refused, not mixed up."""
    url_guard = guard
    entered, go_on = threading.Event(), threading.Event()
    raised = []

    def wait() -> None:
        entered.set()
        assert go_on.wait(60)

    def first() -> None:
        with url_guard.attach(run.id, branch="w") as attached:
            attached.call("f", wait)

    def second() -> None:
        from agentguard.run import Run
        from agentguard.sessions.attached import AttachedSession

        joining = AttachedSession(url_guard.runtime, run.id, "w")
        attached = Run(joining)
        with attached:
            # As a process does that has attached at the same moment, before there was a key to pass.
            attached._branch._counts.clear()
            try:
                attached.call("f", int)
            except DuplicateKeyError as error:
                raised.append(error.key)

    with guard.run("r", budget=Budget(steps=9)) as run:
        threads = [threading.Thread(target=first), threading.Thread(target=second)]
        threads[0].start()
        assert entered.wait(60)
        threads[1].start()
        threads[1].join(60)
        go_on.set()
        threads[0].join(60)
    assert raised == ["main/w/f#1"]
    assert run.spent.steps == 1
    assert run.remaining.steps == 8
