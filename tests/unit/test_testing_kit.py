"""What `agentguard.testing` gives to the tests of others: fakes, and steps outside a run."""

from __future__ import annotations

import asyncio
import os
import threading
from datetime import UTC, datetime, timedelta

import pytest

from agentguard import Budget, BudgetExceededError, Guard, NoActiveRunError, guarded_step
from agentguard.testing import FakeClock, FakeIds, allow_outside


@guarded_step
def double(number: int) -> int:
    return 2 * number


@guarded_step
async def double_later(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


def test_outside_a_run_a_step_refuses_until_it_is_allowed_and_refuses_again() -> None:
    with pytest.raises(NoActiveRunError, match="allow_outside"):
        double(1)
    with allow_outside():
        assert double(21) == 42
        with allow_outside():
            assert asyncio.run(double_later(21)) == 42
        assert double(21) == 42
    with pytest.raises(NoActiveRunError):
        double(1)


def test_an_error_inside_takes_the_permission_back_too() -> None:
    with pytest.raises(ZeroDivisionError), allow_outside():
        raise ZeroDivisionError
    with pytest.raises(NoActiveRunError):
        double(1)


def test_a_step_inside_a_run_is_guarded_all_the_same(guard: Guard) -> None:
    with allow_outside(), guard.run("r", budget=Budget(steps=1)) as run:
        double(1)
        assert run.spent.steps == 1


def test_a_bare_thread_refuses_even_there() -> None:
    """As it would inside a run: the code under test has a mistake that the test must show."""
    caught: list[BaseException] = []

    def work() -> None:
        try:
            double(1)
        except NoActiveRunError as error:
            caught.append(error)

    with allow_outside():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(caught) == 1


def test_no_environment_variable_relaxes_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OUTSIDE", "ALLOW_OUTSIDE", "TESTING", "DISABLED"):
        monkeypatch.setenv(f"AGENTGUARD_{name}", "allow")
    assert os.environ["AGENTGUARD_OUTSIDE"] == "allow"
    with pytest.raises(NoActiveRunError):
        double(1)


def test_a_fake_clock_stands_still_until_it_is_advanced() -> None:
    clock = FakeClock(datetime(2026, 5, 1, tzinfo=UTC))
    before = (clock.wall(), clock.monotonic())
    assert (clock.wall(), clock.monotonic()) == before
    clock.advance(1.5)
    clock.advance(timedelta(minutes=1))
    assert clock.wall() - before[0] == clock.monotonic() - before[1] == 61_500_000_000
    assert clock.now == datetime(2026, 5, 1, 0, 1, 1, 500_000, tzinfo=UTC)
    clock.turn_back(timedelta(hours=1))
    clock.turn_back(0.5)
    assert clock.now == datetime(2026, 4, 30, 23, 1, 1, tzinfo=UTC)
    assert clock.monotonic() - before[1] == 61_500_000_000


def test_a_fake_clock_refuses_what_no_clock_does() -> None:
    with pytest.raises(ValueError, match="negative"):
        FakeClock().advance(-1)
    with pytest.raises(ValueError, match="time zone"):
        FakeClock(datetime(2026, 1, 1))  # noqa: DTZ001 - that is the point


def test_a_fake_clock_runs_out_of_seconds() -> None:
    clock = FakeClock()

    def agent() -> None:
        double(1)
        clock.advance(61)
        double(1)

    with (
        Guard.in_memory(clock=clock, telemetry=False) as guard,
        pytest.raises(BudgetExceededError, match="seconds"),
        guard.run("r", budget=Budget(seconds=60)),
    ):
        agent()


def test_two_runs_with_fakes_are_the_same_events_with_the_same_times() -> None:
    def events() -> list[tuple[object, ...]]:
        clock = FakeClock()
        with Guard.in_memory(clock=clock, ids=FakeIds("job"), telemetry=False) as guard:
            with guard.run("r") as run:
                double(1)
                clock.advance(2)
                double(2)
            return [(e.run_id, e.seq, e.type, e.key, e.at_ns, e.duration_ns) for e in guard.history(run.id)]

    assert events() == events()
    assert events()[0][0] == "job-1"


def test_ids_count_for_runs_that_are_told_none() -> None:
    with Guard.in_memory(ids=FakeIds(), telemetry=False) as guard:
        ids = []
        for run_id in (None, "mine", None):
            with guard.run("r", run_id=run_id) as run:
                ids.append(run.id)
    assert ids == ["run-1", "mine", "run-2"]
