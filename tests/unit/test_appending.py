"""Appending, the run's side: appending against others, and a store that fails."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing, suppress

import pytest

from agentguard import (
    Budget,
    BudgetExceededError,
    Guard,
    KillSwitchTriggeredError,
    RunState,
    RunStopped,
    StoreUnavailableError,
    Usage,
    guarded_step,
)
from agentguard.errors import DuplicateKeyError
from agentguard.protocols import abilities_of
from agentguard.sessions.base import live_run_of
from agentguard.stores.memory import MemoryEventStore


@guarded_step(usage=Usage(usd="0.1"))
def pay() -> str:
    return "paid"


@guarded_step(usage=Usage(usd="0.1"))
async def async_pay() -> str:
    return "paid"


class Failing(MemoryEventStore):
    """A memory store that can be made to refuse every write, as a full disk does."""

    down = False

    def _up(self) -> None:
        if self.down:
            raise StoreUnavailableError("the disk is full")

    def append(self, *args, **options):
        self._up()
        return super().append(*args, **options)

    def append_one(self, *args, **options):
        self._up()
        return super().append_one(*args, **options)

    def create(self, *args, **options):
        self._up()
        return super().create(*args, **options)


@pytest.fixture
def failing(guard) -> Failing:
    guard.components.store = Failing()
    guard.components.abilities = abilities_of(guard.components.store)
    return guard.components.store


# --- several writers -------------------------------------------------------------------------------


@pytest.fixture
def twins(home):
    """Two guards on one file, as two processes have them: with live runs of their own."""
    with Guard.open(telemetry=False) as first, Guard.open(telemetry=False) as second:
        yield first, second


def test_another_head_is_a_race_and_is_tried_again(twins):
    first, second = twins
    with first.run("r", budget=Budget(usd=9)) as run, second.attach(run.id, branch="b") as attached:
        for _ in range(5):
            assert run.call("f", lambda: "a") == "a"
            assert attached.call("g", lambda: "b") == "b"
    events = first.history(run.id)
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert first.verify(run.id)
    assert first.summary(run.id).usage.steps == 10


def test_a_terminal_state_is_final(twins):
    first, second = twins
    with suppress(RunStopped), first.run("r") as run:
        attached = second.attach(run.id, branch="b")
        with pytest.raises(KillSwitchTriggeredError), attached:
            run.kill("over")
            attached.call("f", pytest.fail, "ran")
    assert first.history(run.id)[-1].type == "run_killed"


def test_a_stop_of_another_writer_is_met_at_the_next_append(twins):
    """Without any signal: the log itself says so."""
    first, second = twins
    with pytest.raises(BudgetExceededError), first.run("r", budget=Budget(usd="0.2")) as run:
        with pytest.raises(BudgetExceededError), second.attach(run.id, branch="b") as attached:
            for _ in range(9):
                attached.call("f", lambda: None, usage=Usage(usd="0.1"))
        assert run.stop is None
        run.call("f", pytest.fail, "ran")
    assert run.stop.resource == "usd"


def test_a_stop_of_another_writer_ends_the_runs_inside_too(twins):
    """Taken in from the log, it is as good as one of this process."""
    first, second = twins
    with pytest.raises(BudgetExceededError), first.run("outer", budget=Budget(steps=3)) as outer:
        with pytest.raises(BudgetExceededError), first.run("inner") as inner:
            pay()
            with suppress(BudgetExceededError), second.attach(outer.id, branch="b") as attached:
                while True:
                    attached.call("f", lambda: None)
            with pytest.raises(BudgetExceededError):
                outer.call("f", pytest.fail, "ran")
            assert inner.state is RunState.FAILED
            pay()
    for run in (inner, outer):
        assert first.reconstruct(run.id) == first.summary(run.id)
    assert first.summary(outer.id).usage.steps == 3
    assert first.verify()


def test_a_scopes_stop_is_seen_by_other_writers(twins):
    """Its event carries the stop; a writer whose live run is behind takes it in."""
    first, second = twins
    with first.run("r") as run, suppress(BudgetExceededError), run.scope("s", Budget(usd="0.1")):
        pay()
        live_run = live_run_of(second.runtime, run.id)
        with suppress(BudgetExceededError):
            pay()
        live_run.refresh()
        assert live_run.stops.scopes["main/s#1"].scope == "s"


def test_commit_order_is_log_order_is_hash_order(twins):
    first, second = twins

    def work(guard: Guard, name: str) -> None:
        with guard.attach(run.id, branch=name):
            for _ in range(20):
                pay()

    with first.run("r") as run:
        threads = [
            threading.Thread(target=work, args=(guard, f"{guard is first}{n}"))
            for guard in twins
            for n in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    events = first.events(limit=10_000)
    own = [e for e in events if e.run_id == run.id]
    assert [e.seq for e in own] == list(range(1, len(own) + 1))
    assert [e.position for e in events] == sorted(e.position for e in events)
    totals = [e.spent.steps for e in own if e.type == "step_completed"]
    assert totals == list(range(1, 121))
    assert first.verify(run.id)
    assert first.summary(run.id).usage.steps == 120


def test_pause_reaches_other_writers(twins, eventually):
    first, second = twins
    went_on = []
    with first.run("r") as run:

        def work() -> None:
            with second.attach(run.id, branch="b") as attached:
                attached.call("f", lambda: None)
                entered.set()
                assert paused.wait(60)
                attached.call("g", lambda: went_on.append(1))

        entered, paused = threading.Event(), threading.Event()
        thread = threading.Thread(target=work)
        thread.start()
        assert entered.wait(60)
        run.pause("a moment")
        paused.set()
        live_run = live_run_of(second.runtime, run.id)
        eventually(lambda: live_run.fold.state is RunState.PAUSED)
        assert not went_on
        run.resume()
        thread.join(60)
        assert went_on == [1]


# --- a store that fails ----------------------------------------------------------------------------


def test_a_store_that_fails_refuses_the_step(guard, failing):
    """This call alone: when the store is back, the run goes on, and the log has no hole."""
    with guard.run("r", budget=Budget(usd=1)) as run:
        pay()
        failing.down = True
        body = guarded_step(lambda: pytest.fail("ran"))
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match="disk is full"):
                body()
        with pytest.raises(StoreUnavailableError):
            asyncio.run(async_pay())
        failing.down = False
        assert pay() == "paid"
        assert asyncio.run(async_pay()) == "paid"
        assert run.remaining.usd == Budget(usd="0.7").usd
    assert run.state is RunState.COMPLETED
    assert guard.verify(run.id)
    assert guard.reconstruct(run.id) == guard.summary(run.id)


@pytest.mark.parametrize("act", ["scope", "nested run", "value", "pause", "warning"])
def test_whatever_was_not_written_did_not_happen(guard, failing, act):
    with guard.run("r", budget=Budget(usd=1, warn_at=0.05)) as run:
        failing.down = True
        with pytest.raises(StoreUnavailableError):
            if act == "scope":
                run.scope("s", Budget(usd=0)).__enter__()
            elif act == "nested run":
                guard.run("n").__enter__()
            elif act == "value":
                run.record("v", lambda: 1)
            elif act == "pause":
                run.pause()
            else:
                pay()
        failing.down = False
        assert pay() == "paid"
        with run.scope("s"), guard.run("n"):
            pay()
    assert run.state is RunState.COMPLETED
    assert guard.verify()
    for row in guard.runs():
        assert guard.reconstruct(row.run_id) == row


def test_an_outcome_that_cannot_be_written_is_told_to_the_caller(guard, failing):
    """The start is on record, so the books show a step that may have happened."""

    def body() -> None:
        failing.down = True

    with guard.run("r", budget=Budget(usd=1)) as run:
        with pytest.raises(StoreUnavailableError):
            run.call("f", body, usage=Usage(usd="0.25"))
        failing.down = False
        assert run.remaining.usd == Budget(usd="0.75").usd
        pay()
    types = [e.type for e in guard.history(run.id)]
    assert types.count("step_started") == 2
    assert types.count("step_completed") == 1
    assert guard.verify(run.id)


def test_a_store_that_fails_saves_nobody_from_a_stop(guard, failing):
    """A kill holds in memory, and is put on record as soon as that is possible."""
    with pytest.raises(KillSwitchTriggeredError) as raised, guard.run("r") as run:
        failing.down = True
        guard.kill(run=run.id, reason="now")
        with pytest.raises(KillSwitchTriggeredError):
            pay()
        assert failing.row(run.id).state == "RUNNING"
        failing.down = False
    assert raised.value is run.stop
    assert failing.row(run.id).state == "KILLED"
    assert guard.verify(run.id)


def test_an_end_that_cannot_be_written_is_raised(guard, failing):
    with pytest.raises(StoreUnavailableError), guard.run("r") as run:
        pay()
        failing.down = True
    failing.down = False
    assert failing.row(run.id).state == "RUNNING"


def test_an_end_that_cannot_be_written_hides_no_error(guard, failing):
    error = ZeroDivisionError("the agent's own")
    with pytest.raises(ZeroDivisionError) as raised, guard.run("r"):
        failing.down = True
        raise error
    assert raised.value is error
    assert "could not record the end" in error.__notes__[0]


def test_an_end_that_cannot_be_written_hides_no_stop(guard, failing):
    with pytest.raises(KillSwitchTriggeredError) as raised, guard.run("r") as run:
        failing.down = True
        guard.kill(run=run.id, reason="now")
    assert raised.value is run.stop
    assert "could not record the end" in raised.value.__notes__[0]


def test_no_run_without_a_store(guard, failing):
    failing.down = True
    with pytest.raises(StoreUnavailableError), guard.run("r", run_id="r1"):
        pytest.fail("entered")
    failing.down = False
    with guard.run("r", run_id="r1"):
        pay()


def test_a_closed_guard_refuses(home):
    with Guard.open(telemetry=False) as guard:
        run = guard.run("r").__enter__()
        guard.close()
        with pytest.raises(StoreUnavailableError):
            pay()
        with suppress(StoreUnavailableError):
            run.close()


# --- a guard that many threads open at once --------------------------------------------------------


@pytest.mark.parametrize("url", ["memory://", None])
def test_a_guard_is_opened_once(home, url):
    """The first uses come together: all of them get the same parts."""
    import sys

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            with Guard.open(url, kill_switch="memory", telemetry=False) as guard:
                start = threading.Barrier(8)
                found = []

                def use(guard=guard, start=start, found=found) -> None:
                    start.wait()
                    found.append(guard.components)

                threads = [threading.Thread(target=use) for _ in range(8)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join(60)
                assert len({id(parts) for parts in found}) == 1
                assert guard.components is found[0]
    finally:
        sys.setswitchinterval(interval)


# --- async steps among other writers ---------------------------------------------------------------


def test_async_steps_race_with_other_writers_too(twins):
    """At the start, and while the body runs: the head has moved, and is met in a thread."""
    first, second = twins

    async def main():
        async with first.run("r", budget=Budget(usd=9)) as run, second.attach(run.id, branch="b") as other:

            async def meanwhile():
                return other.call("inside", lambda: "b")

            out = []
            for _ in range(3):
                out.append(other.call("before", lambda: "a"))
                out.append(await run.call("meanwhile", meanwhile))
        return run, out

    run, out = asyncio.run(main())
    assert out == ["a", "b"] * 3
    events = first.history(run.id)
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert first.verify(run.id)
    assert first.summary(run.id).usage.steps == 9


def test_a_step_cancelled_while_the_store_is_busy_runs_no_body(sqlite_guard, eventually):
    """What was begun in a thread is written; the cancelled caller gives it back before it goes on."""
    ran = []

    @guarded_step(usage=Usage(usd="0.1"))
    async def work():
        ran.append(1)

    async def main():
        async with sqlite_guard.run("r", budget=Budget(usd=1)) as run:
            with closing(sqlite3.connect(sqlite_guard.components.store.path)) as other:
                other.execute("BEGIN IMMEDIATE")
                task = asyncio.ensure_future(work())
                for _ in range(10):
                    await asyncio.sleep(0.002)
                task.cancel()
                await asyncio.sleep(0)
                assert not task.done()
                other.rollback()
            with pytest.raises(asyncio.CancelledError):
                await task
        return run

    run = asyncio.run(main())
    assert ran == []
    assert run.spent.usd == 0
    outcomes = [e.data["body_ran"] for e in sqlite_guard.history(run.id) if e.type == "step_failed"]
    assert outcomes == [False]
    assert sqlite_guard.verify(run.id)


def test_one_name_attached_twice_makes_no_second_step_of_a_key(twins):
    first, second = twins
    going_on, hangs = threading.Event(), threading.Event()

    def body():
        going_on.set()
        assert hangs.wait(60)

    with first.run("r") as run, second.attach(run.id, branch="w") as other:
        attached = first.attach(run.id, branch="w")

        def work():
            with attached:
                attached.call("f", body)

        thread = threading.Thread(target=work)
        thread.start()
        assert going_on.wait(60)
        with pytest.raises(DuplicateKeyError):
            other.call("f", int)
        hangs.set()
        thread.join(60)
    assert first.verify(run.id)
