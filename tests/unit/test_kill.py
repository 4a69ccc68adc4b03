"""Truth, the run's side: whom a kill stops, from when on, and what is on record of it."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime

import pytest

from agentguard import (
    Guard,
    KillSwitchTriggeredError,
    KillSwitchUnavailableError,
    RunState,
    RunStopped,
    guarded_step,
)
from agentguard.killswitch.memory import MemoryKillSwitch


@guarded_step
def tool() -> str:
    return "ran"


@pytest.fixture(params=["memory", "page"])
def either(request, home):
    """A guard on each embedded switch."""
    guard = Guard.in_memory(telemetry=False, kill_switch=request.param)
    with guard:
        yield guard


def start(guard: Guard, name: str = "r", **options):
    """A run that is not the current one."""
    import contextvars

    return contextvars.copy_context().run(guard.start, name, **options)


def stopped(run) -> bool:
    """Whether a step of the run is refused by a kill."""
    try:
        run.call("probe", lambda: None)
    except KillSwitchTriggeredError:
        return True
    return False


# --- whom it stops ---------------------------------------------------------------------------------


def test_a_global_kill_stops_every_run(either, eventually):
    runs = [start(either, tenant=tenant) for tenant in ("a", "b", "default")]
    either.kill(reason="all")
    assert all(stopped(run) for run in runs)
    eventually(lambda: all(run.state is RunState.KILLED for run in runs))  # who was told first writes it
    assert {run.stop.scope for run in runs} == {"global"}


def test_a_tenants_kill_stops_its_runs(either):
    mine, other = start(either, tenant="a"), start(either, tenant="b")
    either.kill(tenant="a", reason="all of a")
    assert stopped(mine)
    assert not stopped(other)
    assert mine.stop.scope == "tenant"
    other.close()


def test_a_runs_kill_stops_that_run(either):
    mine, other = start(either), start(either)
    either.kill(run=mine.id, reason="this one")
    assert stopped(mine)
    assert not stopped(other)
    assert (mine.stop.scope, mine.stop.run_id) == ("run", mine.id)
    other.close()


def test_tenants_and_runs_are_told_apart_exactly(either):
    """Hints may collide; what is stopped is looked up exactly."""
    runs = [start(either, tenant=f"tenant-{n}", run_id=f"run-{n}") for n in range(200)]
    either.kill(tenant="tenant-7", reason="seven")
    either.kill(run="run-8", reason="eight")
    either.kill(run="tenant-9", reason="a run of that name")
    found = [run.id for run in runs if stopped(run)]
    assert found == ["run-7", "run-8"]
    for run in runs:
        with suppress(KillSwitchTriggeredError):
            run.close()


def test_who_why_and_when_are_on_record(either):
    before = datetime.now(UTC)
    generation = either.kill(tenant="a", reason="runaway", actor="ann@ops")
    (kill,) = either.kills()
    assert (kill.scope, kill.target, kill.reason, kill.actor, kill.generation, kill.cleared) == (
        "tenant",
        "a",
        "runaway",
        "ann@ops",
        generation,
        False,
    )
    with pytest.raises(KillSwitchTriggeredError) as raised, either.run("r", tenant="a"):
        pytest.fail("entered")
    error = raised.value
    assert (error.scope, error.reason, error.actor) == ("tenant", "runaway", "ann@ops")
    assert before <= error.at <= datetime.now(UTC)
    control = either.history("control")
    assert [(e.type, e.data["reason"]) for e in control] == [("kill_set", "runaway")]
    assert either.verify("control")


@pytest.mark.parametrize("argument", ["tenant", "run"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_target_stops_nothing(either, argument, value):
    run = start(either)
    with pytest.raises(ValueError, match=argument):
        either.kill(reason="oops", **{argument: value})
    with pytest.raises(ValueError, match=argument):
        either.revive(**{argument: value})
    assert either.kills() == []
    assert not stopped(run)
    run.close()


@pytest.mark.parametrize("reason", ["", "  ", None, 5])
def test_a_kill_needs_a_reason(either, reason):
    with pytest.raises((ValueError, TypeError), match="reason"):
        either.kill(reason=reason)
    assert either.kills() == []


def test_a_kill_is_for_one_target(either):
    with pytest.raises(ValueError, match="not both"):
        either.kill(reason="r", tenant="a", run="b")


# --- from when on ----------------------------------------------------------------------------------


def test_an_active_kill_stops_a_run_that_begins(either):
    either.kill(tenant="a", reason="before")
    for _ in range(2):
        with pytest.raises(KillSwitchTriggeredError), either.run("r", tenant="a"):
            pytest.fail("entered")
    assert {row.state for row in either.runs(tenant="a")} == {RunState.KILLED}


def test_a_revive_lets_later_runs_start(either):
    killed = start(either, tenant="a")
    either.kill(tenant="a", reason="stop")
    either.revive(tenant="a", reason="fixed")
    with either.run("later", tenant="a"):
        assert tool() == "ran"
    assert stopped(killed), "a kill above the generation it was created at stops a run, revived since or not"
    assert [kill.cleared for kill in either.kills()] == [True]


def test_a_run_that_did_not_look_in_between_is_killed_all_the_same(either):
    """Kill and revive between two steps: the run is dead, as the log of kills says."""
    run = start(either)
    quiet = either.runtime.live
    either.components.switch.record(
        "kill_set", {"scope": "run", "target": run.id, "reason": "r", "actor": "a"}
    )
    either.components.switch.record(
        "kill_cleared", {"scope": "run", "target": run.id, "reason": "r", "actor": "a"}
    )
    assert run.id in quiet
    assert stopped(run)


def test_a_revive_clears_exactly_its_scope(either):
    either.kill(reason="everything")
    either.kill(tenant="a", reason="a")
    either.revive(tenant="a")
    assert stopped_at_start(either, "a")
    either.revive()
    assert not stopped_at_start(either, "a")
    either.kill(tenant="a", reason="again")
    assert stopped_at_start(either, "a")
    assert not stopped_at_start(either, "b")


def stopped_at_start(guard: Guard, tenant: str) -> bool:
    try:
        with guard.run("probe", tenant=tenant):
            return False
    except KillSwitchTriggeredError:
        return True


def test_a_revive_does_not_bring_back_the_dead(either):
    run = start(either)
    either.kill(run=run.id, reason="stop")
    assert stopped(run)
    either.revive(run=run.id)
    assert stopped(run)
    with pytest.raises(KillSwitchTriggeredError):
        run.close()
    assert run.state is RunState.KILLED


def test_kills_outlive_the_process(home):
    """Durable over restarts: another guard of this home finds them."""
    with Guard.open(telemetry=False) as first:
        first.kill(tenant="a", reason="for good")
    with Guard.open(telemetry=False) as second:
        with pytest.raises(KillSwitchTriggeredError, match="for good"), second.run("r", tenant="a"):
            pytest.fail("entered")
        second.revive(tenant="a")
    with Guard.open(telemetry=False) as third, third.run("r", tenant="a"):
        assert tool() == "ran"
        assert len(third.kills()) == 1


def test_one_page_serves_all_guards_of_a_home(home):
    with Guard.open(telemetry=False) as first, Guard.in_memory(kill_switch="page", telemetry=False) as second:
        run = start(second)
        first.kill(reason="everything under this home")
        assert stopped(run)


def test_a_guard_in_memory_has_a_switch_of_its_own(home):
    with Guard.open(telemetry=False) as shared, Guard.in_memory(telemetry=False) as alone:
        shared.kill(reason="everything under this home")
        with alone.run("r"):
            assert tool() == "ran"


# --- how it is found -------------------------------------------------------------------------------


def test_an_idle_run_is_ended_at_once(either, eventually):
    """Also a run that calls nothing: its record says KILLED soon after."""
    run = start(either)
    either.kill(run=run.id, reason="idle")
    eventually(lambda: either.components.store.row(run.id).state == "KILLED")
    assert [e.type for e in either.history(run.id)][-1] == "run_killed"


def test_run_killed_is_written_once(either):
    with suppress(RunStopped), either.run("r") as run:
        threads = [threading.Thread(target=run.bind(lambda: suppressed(tool))) for _ in range(8)]
        for thread in threads:
            thread.start()
        either.kill(reason="now")
        either.kill(reason="and again")
        for thread in threads:
            thread.join(60)
    assert [e.type for e in either.history(run.id)].count("run_killed") == 1
    assert run.stop.reason == "now"


def suppressed(function) -> None:
    with suppress(RunStopped):
        while True:
            function()


def test_a_kill_of_what_has_ended_changes_nothing(either):
    with either.run("r") as run:
        tool()
    head = either.summary(run.id).head
    either.kill(run=run.id, reason="too late")
    assert either.summary(run.id).state is RunState.COMPLETED
    assert either.summary(run.id).head == head


def test_a_kill_is_acknowledged(either, eventually):
    run = start(either)
    generation = either.kill(run=run.id, reason="ack")
    began = time.monotonic()
    acks = either.acknowledged(generation, timeout=3600)
    assert acks.live == acks.acknowledged == 1
    assert 0 <= acks.seconds <= time.monotonic() - began


class Unreadable(MemoryKillSwitch):
    """A switch that can be made to fail, as a page on a disk that is gone does."""

    broken = False

    @property
    def signal(self):
        self._may_be_read()
        return super().signal

    def find(self, *args):
        self._may_be_read()
        return super().find(*args)

    def _may_be_read(self) -> None:
        if self.broken:
            raise KillSwitchUnavailableError("the switch cannot be read")


def test_a_switch_that_cannot_be_read_refuses_the_step(home):
    """Fail closed, for this call alone; when it can be read again, the run goes on."""
    switch = Unreadable()
    with Guard.in_memory(kill_switch=switch, telemetry=False) as guard:
        with guard.run("r") as run:
            assert tool() == "ran"
            switch.broken = True
            switch.record("kill_set", {"scope": "run", "target": "another", "reason": "r", "actor": "a"})
            for _ in range(2):
                with pytest.raises(KillSwitchUnavailableError):
                    tool()
            with pytest.raises(KillSwitchUnavailableError), guard.run("inner", detached=True):
                pytest.fail("entered")
            switch.broken = False
            assert tool() == "ran"
        assert run.state is RunState.COMPLETED
        assert run.spent.steps == 2


def test_what_came_while_it_could_not_be_read_is_found(home):
    switch = Unreadable()
    with Guard.in_memory(kill_switch=switch, telemetry=False) as guard:
        with pytest.raises(KillSwitchTriggeredError), guard.run("r") as run:
            switch.broken = True
            switch.record("kill_set", {"scope": "run", "target": run.id, "reason": "r", "actor": "a"})
            with pytest.raises(KillSwitchUnavailableError):
                tool()
            switch.broken = False
            tool()
        assert run.state is RunState.KILLED


def test_a_kill_finds_every_run_while_others_come_and_go(guard):
    """Runs, scopes and kills in threads of their own: nobody stumbles over another's changes."""
    interval, over, errors = sys.getswitchinterval(), threading.Event(), []

    def churn() -> None:
        try:
            while not over.is_set():
                with guard.run("short", detached=True) as run, run.scope("s"):
                    pass
        except BaseException as error:
            errors.append(error)

    waiting = [start(guard, detached=True, tenant="doomed") for _ in range(120)]
    threads = [threading.Thread(target=churn) for _ in range(3)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for n in range(12):
            guard.kill(tenant=f"nobody-{n}", reason="look around")
            guard.runtime.observe()
        guard.kill(tenant="doomed", reason="all of them")
    finally:
        over.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join(60)
    assert errors == []
    assert all(run.state is RunState.KILLED for run in waiting)
