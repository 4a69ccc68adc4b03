"""Clocks of hosts differ and jump; who lives on another host is told all the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime

import pytest

from agentguard import Budget, BudgetExceededError, Guard, Usage, guarded_step
from agentguard._clock import Clock
from agentguard.budget.account import Account, Request
from agentguard.budget.ledger import Movement
from agentguard.errors import RunOwnedError
from agentguard.monitoring import owner_lives
from agentguard.protocols import HeadMovedError, RunRow
from agentguard.sessions.upkeep import beat
from agentguard.stores._postgres_time import ServerTime
from agentguard.stores.postgres import PostgresEventStore
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


DAY = 24 * 60 * MINUTE


def window() -> str:
    """The day of the server, which is this machine."""
    return f"{datetime.now(UTC):%Y-%m-%d}"


@pytest.mark.usefixtures("within_a_day")
@pytest.mark.parametrize("hosts", [(DAY, -DAY), (0, 40 * DAY), (-MINUTE, MINUTE)], indirect=True, ids=str)
def test_the_windows_of_tenants_are_cut_by_the_servers_clock(
    hosts: tuple[Host, Host], postgres_url: str
) -> None:
    one, other = hosts
    for per in ("day", "month"):
        one.guard.set_tenant_budget("acme", Budget(steps=3), per=per)
    before = window()
    for host in (one, other, one):
        with host.guard.run("r", tenant="acme"):
            assert look() == "looked"
    for host in (one, other):
        assert [each.spent for each in host.guard.tenants()] == 2 * [Usage.from_amounts({"steps": 3})]
        with pytest.raises(BudgetExceededError), host.guard.run("r", tenant="acme"):
            look()
    names = {f"tenant:acme:{part}" for day in (before, window()) for part in (day, day[:7])}
    assert set(one.guard.components.store.accounts(sorted(names))) >= {f"tenant:acme:{before}"}
    assert {name for (name,) in execute(postgres_url, "SELECT id FROM agentguard.account")} <= names


@pytest.mark.parametrize("hosts", [(0, 0)], indirect=True, ids=str)
def test_a_window_that_is_over_by_the_servers_clock_is_charged_by_nobody(
    hosts: tuple[Host, Host], postgres_url: str
) -> None:
    """A host that takes the server's clock for another, as after it was set, is told, and decides anew."""
    guard = hosts[0].guard
    guard.set_tenant_budget("acme", Budget(steps=10), per="day")
    store = guard.components.store
    assert isinstance(store, PostgresEventStore)
    store._server = ServerTime(guard.components.clock, lambda: time.time_ns() - DAY)

    @guarded_step
    async def listen() -> str:
        return "heard"

    async def main() -> None:
        async with guard.run("r", tenant="acme"):
            assert await listen() == "heard"

    before = window()
    with guard.run("r", tenant="acme") as run:
        assert look() == "looked"
    asyncio.run(main())
    assert {
        name for (name,) in execute(postgres_url, "SELECT id FROM agentguard.account WHERE data IS NOT NULL")
    } <= {
        f"tenant:acme:{before}",
        f"tenant:acme:{window()}",
    }
    assert [each.type for each in guard.history(run.id)].count("step_started") == 1


@pytest.mark.parametrize("hosts", [(0, 0)], indirect=True, ids=str)
def test_what_was_reserved_before_midnight_is_settled_after_it(hosts: tuple[Host, Host]) -> None:
    store = hosts[0].guard.components.store
    with hosts[0].guard.run("r", run_id="r", tenant="acme"):
        row = hosts[0].row()
        name, opening = "tenant:acme:2026-01-31", Account("tenant:acme", Budget(steps=10))
        reserve = Movement(name, Request({"steps": 1}, "look", "tool", postpaid=False), opening=opening)
        with pytest.raises(HeadMovedError):
            store.append(row.number, (), movements=(reserve,))
        opening.reserve(Request({"steps": 1}, "look", "tool", postpaid=False))  # as it was on that day
        store.append(row.number, (), movements=(Movement(name, opening=opening),))
        store.append(row.number, (), movements=(Movement(name, settle=({"steps": 1}, {"steps": 1})),))
    account = store.accounts([name])[name]
    assert (account.spent, account.reserved.get("steps", 0)) == ({"steps": 1}, 0)


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
