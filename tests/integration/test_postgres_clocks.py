"""Clocks of hosts differ and jump; who lives on another host is told all the same."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from agentguard import Guard, guarded_step
from agentguard._clock import Clock
from agentguard.errors import RunOwnedError
from agentguard.monitoring import owner_lives
from agentguard.protocols import RunRow
from agentguard.sessions.upkeep import beat
from tests.postgres import execute

MINUTE = 60 * 10**9


@guarded_step(effect="read")
def look() -> str:
    return "looked"


class Host:
    """A guard on a host whose clock is off by some time."""

    def __init__(self, url: str, off_ns: int) -> None:
        self.off_ns = off_ns
        self.clock = Clock(wall=lambda: time.time_ns() + self.off_ns)
        self.guard = Guard.open(url, telemetry=False, clock=self.clock)

    def row(self) -> RunRow:
        row = self.guard.components.store.row("r")
        assert row is not None
        return row

    def is_refused(self) -> bool:
        """Whether this host takes the owner of the run to live, and may not claim it."""
        alive = owner_lives(self.row(), self.clock.wall())
        try:
            with self.guard.recover("r"):
                pass
        except RunOwnedError:
            assert alive
            return True
        assert not alive
        return False


@pytest.fixture(autouse=True)
def hosts_see_no_process_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentguard._process.is_alive", lambda owner: None)


@pytest.fixture
def hosts(request: pytest.FixtureRequest, postgres_url: str) -> Iterator[tuple[Host, Host]]:
    with ExitStack() as stack:
        one, other = (Host(postgres_url, off_ns) for off_ns in request.param)
        stack.callback(one.guard.close)
        stack.callback(other.guard.close)
        yield one, other


OFF = pytest.mark.parametrize(
    "hosts", [(-MINUTE, 0), (MINUTE, 0), (0, MINUTE), (MINUTE, -60 * MINUTE)], indirect=True, ids=str
)


@OFF
def test_a_live_run_of_a_host_with_another_clock_is_not_claimed(hosts: tuple[Host, Host]) -> None:
    one, other = hosts
    with one.guard.run("r", run_id="r"):
        assert look() == "looked"
        assert other.is_refused()
        beat(one.guard.runtime)
        assert other.is_refused()
        assert look() == "looked"


@OFF
def test_a_run_without_a_sign_of_life_is_claimed_whatever_the_clocks_say(
    hosts: tuple[Host, Host], postgres_url: str
) -> None:
    one, other = hosts
    with pytest.raises(RunOwnedError), one.guard.run("r", run_id="r"):
        execute(postgres_url, f"UPDATE agentguard.run SET heartbeat_ns = heartbeat_ns - {MINUTE}")
        assert not other.is_refused()
        look()


@pytest.mark.parametrize("hosts", [(0, 0)], indirect=True)
@pytest.mark.parametrize("jump", [-MINUTE, MINUTE])
def test_a_clock_that_jumps_makes_nobody_dead(hosts: tuple[Host, Host], jump: int) -> None:
    one, other = hosts
    with one.guard.run("r", run_id="r"):
        assert look() == "looked"
        one.off_ns = jump
        beat(one.guard.runtime)
        assert other.is_refused()
        other.off_ns = -jump
        assert other.is_refused()
        assert look() == "looked"


@pytest.mark.parametrize("hosts", [(0, MINUTE)], indirect=True)
def test_a_row_comes_back_as_it_was_written(hosts: tuple[Host, Host]) -> None:
    """To the nanosecond, by whom it was written; to others by their own clock."""
    for host in hosts:
        with host.guard.run("r", run_id=f"r{host.off_ns}") as run:
            row = run.live_run.row
            assert host.guard.components.store.row(run.id) == row
    [read] = [row for row in hosts[0].guard.components.store.rows() if row.run_id == f"r{MINUTE}"]
    assert abs(row.heartbeat_ns - read.heartbeat_ns - MINUTE) < MINUTE // 2
