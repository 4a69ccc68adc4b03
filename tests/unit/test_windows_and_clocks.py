"""Windows and clocks: seconds by the monotonic clock, tenant windows in UTC by the store's, order by sequence alone."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agentguard import Budget, BudgetExceededError, Guard, Usage, guarded_step
from agentguard._clock import Clock
from agentguard.testing import FakeClock

DEADLINE = 60.0
SECOND = 1_000_000_000


@guarded_step(usage=Usage(usd="0.25"))
def pay() -> None: ...


def test_a_wall_clock_that_jumps_changes_no_deadline_and_no_order() -> None:
    wall, monotonic = [10_000 * SECOND], [0]
    clock = Clock(wall=lambda: wall[0], monotonic=lambda: monotonic[0])
    with Guard.in_memory(clock=clock, telemetry=False) as guard:
        with guard.run("r", budget=Budget(seconds=10)) as run:
            for jump in (-5000, +9000, -1):
                wall[0] += jump * SECOND
                monotonic[0] += SECOND
                pay()
            assert run.remaining.seconds == 7
        events = guard.history(run.id)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert [event.at_ns for event in events] != sorted(event.at_ns for event in events)
        assert guard.summary(run.id).duration == 3
        assert guard.verify()


def test_a_clock_that_stands_still_never_makes_time_negative() -> None:
    wall = [10_000 * SECOND]
    clock = Clock(wall=lambda: wall[0], monotonic=lambda: 5)
    with Guard.in_memory(clock=clock, telemetry=False) as guard:
        with guard.run("r", budget=Budget(seconds=1)) as run:
            wall[0] -= 500 * SECOND
            pay()
            assert run.remaining.seconds == 1
        assert guard.summary(run.id).duration == 0


def test_seconds_add_up_over_pauses_and_stop_the_run_when_they_are_used_up() -> None:
    clock = FakeClock()
    with Guard.in_memory(clock=clock, telemetry=False) as guard:
        with pytest.raises(BudgetExceededError) as stop, guard.run("r", budget=Budget(seconds=10)) as run:
            for _ in range(3):
                clock.advance(3)
                pay()
                run.pause("lunch")
                clock.advance(3600)
                run.resume()
            clock.advance(1)
            pay()
        assert (stop.value.resource, stop.value.limit) == ("seconds", 10)


@pytest.mark.parametrize(
    ("per", "before", "after"),
    [
        ("day", datetime(2026, 3, 28, 23, 59, 59, tzinfo=UTC), datetime(2026, 3, 29, 0, 0, 0, tzinfo=UTC)),
        ("month", datetime(2026, 2, 28, 23, 59, 59, tzinfo=UTC), datetime(2026, 3, 1, 0, 0, 0, tzinfo=UTC)),
        ("month", datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(2027, 1, 1, 0, 0, 0, tzinfo=UTC)),
    ],
)
def test_a_tenants_window_begins_at_midnight_utc(
    per: str, before: datetime, after: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the zone of the host."""
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    clock = FakeClock(before)
    with Guard.in_memory(clock=clock, telemetry=False) as guard:
        guard.set_tenant_budget("acme", Budget(usd="0.25"), per=per)
        with guard.run("late", tenant="acme"):
            pay()
        with pytest.raises(BudgetExceededError), guard.run("too much", tenant="acme"):
            pay()
        clock.advance((after - before).total_seconds())
        with guard.run("early", tenant="acme"):
            pay()


PROGRAM = """
import os, signal, sys
from agentguard import Budget, Guard
from agentguard._clock import Clock
seconds = [0]
clock = Clock(wall=lambda: (10_000 + seconds[0]) * 10**9, monotonic=lambda: seconds[0] * 10**9)
guard = Guard.open(sys.argv[1], kill_switch="memory", telemetry=False, clock=clock)
run = guard.start("r", run_id="r1", budget=Budget(seconds=100))
seconds[0] = 30
run.call("work", lambda: 1)
print("worked", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_time_from_the_last_sign_of_life_to_a_recovery_is_not_counted(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'events.db'}"
    child = subprocess.run(
        [sys.executable, "-c", PROGRAM, url], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert (child.returncode, child.stdout) == (-signal.SIGKILL, "worked\n"), child.stderr
    passed = [90_000]
    clock = Clock(wall=lambda: (10_000 + passed[0]) * SECOND, monotonic=lambda: passed[0] * SECOND)
    with Guard.open(url, kill_switch="memory", telemetry=False, clock=clock) as guard:
        assert guard.summary("r1").duration == 30
        with guard.recover("r1") as run:
            run.call("work", lambda: 1)
            assert run.remaining.seconds == 70
            passed[0] += 5
            assert run.remaining.seconds == 65
