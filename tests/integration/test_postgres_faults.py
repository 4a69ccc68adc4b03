"""What happens to the server happens to no promise: steps are refused or go on, and nothing reported is lost."""

from __future__ import annotations

import asyncio
import random
import secrets
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agentguard import (
    Budget,
    Guard,
    KillSwitchUnavailableError,
    RunStopped,
    StoreUnavailableError,
    Usage,
    guarded_step,
)
from agentguard.sessions.base import live_run_of
from agentguard.stores._postgres_schema import migrate
from tests import postgres
from tests.kit import wait_until
from tests.postgres import Postgres, execute
from tests.relays import end_relays

TIMEOUT = 2.0


@pytest.fixture
def server(own_postgres: Postgres) -> Postgres:
    own_postgres.execute("CREATE DATABASE app")
    migrate(own_postgres.url("app"))
    return own_postgres


@pytest.fixture
def guard(server: Postgres) -> Iterator[Guard]:
    with Guard.open(server.url("app"), telemetry=False, store_timeout=TIMEOUT) as guard:
        yield guard


@pytest.fixture(params=["page", "server"])
def deployed(
    request: pytest.FixtureRequest, server: Postgres, home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Guard]:
    """A guard whose kills lie in the page of the host, or on the same server, as they do by default."""
    if request.param == "server":
        monkeypatch.delenv("AGENTGUARD_KILL_SWITCH")
    with Guard.open(server.url("app"), telemetry=False, store_timeout=TIMEOUT) as guard:
        yield guard
    end_relays(home)


#: What says that a step was refused since a server is away.
AWAY = (StoreUnavailableError, KillSwitchUnavailableError)


class Agents:
    """Threads and tasks that step for as long as they may, and what they were told."""

    def __init__(self, guard: Guard, *, tenant: str, threads: int = 4, tasks: int = 8) -> None:
        self.guard = guard
        self.tenant = tenant
        #: Bodies that ran, and results that were handed out, by run.
        self.ran: Counter[str] = Counter()
        self.reported: Counter[str] = Counter()
        self.refused = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._sync) for _ in range(threads)]
        self._threads.append(threading.Thread(target=lambda: asyncio.run(self._many(tasks))))
        for thread in self._threads:
            thread.start()

    def _body(self, run_id: str) -> str:
        with self._lock:
            self.ran[run_id] += 1
        return run_id

    def _note(self, run_id: str) -> None:
        with self._lock:
            self.reported[run_id] += 1

    def _refuse(self) -> None:
        with self._lock:
            self.refused += 1

    def _sync(self) -> None:
        step = guarded_step(usage=Usage(usd="0.01"), name="work")(self._body)
        run = self._run("threads")
        with suppress(RunStopped):
            while not self._over.is_set():
                try:
                    run.bind(step)(run.id)
                    self._note(run.id)
                except AWAY:
                    self._refuse()
        run.close()

    async def _many(self, tasks: int) -> None:
        @guarded_step(usage=Usage(usd="0.01"), name="work")
        async def step(run_id: str) -> str:
            await asyncio.sleep(0)
            return self._body(run_id)

        async def agent(run_id: str) -> None:
            while not self._over.is_set():
                try:
                    await step(run_id)
                    self._note(run_id)
                except AWAY:
                    self._refuse()
                    await asyncio.sleep(0.01)

        run = await asyncio.to_thread(self._run, "tasks")
        done = await asyncio.gather(
            *(asyncio.create_task(run.bind(agent)(run.id)) for _ in range(tasks)), return_exceptions=True
        )
        await run.aclose()
        for error in done:
            if isinstance(error, BaseException) and not isinstance(error, RunStopped):
                raise error

    def _run(self, name: str) -> Any:
        while True:  # the server may be away when a run begins
            with suppress(*AWAY):
                return self.guard.start(name, tenant=self.tenant)

    def reach(self, count: int) -> None:
        """Return when so many more results were handed out."""
        target = sum(self.reported.values()) + count
        deadline = time.monotonic() + 60
        while sum(self.reported.values()) < target:
            assert time.monotonic() < deadline, (target, self.reported, self.refused)
            assert any(thread.is_alive() for thread in self._threads)
            time.sleep(0.005)

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)

    def check(self, guard: Guard, limit: int | None = None) -> None:
        """Logs hold what was reported, and the books say what the logs do."""
        spent = 0
        for run_id in set(self.ran) | set(self.reported):
            events = guard.history(run_id)
            completed = [event for event in events if event.type == "step_completed"]
            assert len(completed) >= self.reported[run_id], "a result that was handed out is on record"
            assert sum(event.type == "step_started" for event in events) >= self.ran[run_id]
            assert guard.verify(run_id)
            fold = live_run_of(guard.runtime, run_id).fold
            assert guard.reconstruct(run_id).usage == guard.summary(run_id).usage
            spent += fold.account.spent.get("steps", 0) + fold.account.reserved.get("steps", 0)
        [account] = [found for found in guard.tenants() if found.tenant == self.tenant]
        books = guard.components.store.accounts([f"tenant:{self.tenant}"])[f"tenant:{self.tenant}"]
        assert books.spent.get("steps", 0) + books.reserved.get("steps", 0) == spent
        assert not limit or spent <= limit
        assert account.budget.to_fields()


def disturbed(guard: Guard, disturb: Callable[[], None]) -> Agents:
    """Agents of a tenant with a budget at work while something happens to the server."""
    guard.set_tenant_budget("acme", Budget(steps=100_000))
    agents = Agents(guard, tenant="acme")
    try:
        agents.reach(20)
        disturb()
        agents.reach(20)
    finally:
        agents.end()
    agents.check(guard)
    return agents


def test_a_server_that_is_stopped_and_started(deployed: Guard, server: Postgres) -> None:
    def disturb() -> None:
        server.stop()
        time.sleep(1.5 * TIMEOUT)  # what is asked meanwhile is refused in the end
        server.start()

    assert disturbed(deployed, disturb).refused


def test_a_server_that_is_killed_and_started_at_once(deployed: Guard, server: Postgres) -> None:
    def disturb() -> None:
        for _ in range(2):
            server.everything(signal.SIGKILL)
            server.kill()
            (server.data / "postmaster.pid").unlink(missing_ok=True)
            server.start()
            time.sleep(random.random() / 2)

    disturbed(deployed, disturb)


def test_a_server_that_is_paused_for_longer_than_every_timeout(deployed: Guard, server: Postgres) -> None:
    def disturb() -> None:
        server.everything(signal.SIGSTOP)
        time.sleep(3 * TIMEOUT)
        server.everything(signal.SIGCONT)

    assert disturbed(deployed, disturb).refused


def test_connections_that_are_cut_in_the_middle_of_transactions(deployed: Guard, server: Postgres) -> None:
    def disturb() -> None:
        for _ in range(20):
            server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'agentguard' AND state <> 'idle' ORDER BY random() LIMIT 3"
            )
            time.sleep(0.02)

    disturbed(deployed, disturb)


def test_a_step_refused_by_a_server_that_was_paused_holds_nothing(guard: Guard, server: Postgres) -> None:
    """Whether its start was committed nobody knows then; once the server answers, it is given back."""
    step = guarded_step(usage=Usage(usd="0.30"))(lambda: "done")
    with guard.run("r", budget=Budget(usd=1)) as run:
        step()
        server.everything(signal.SIGSTOP)
        with pytest.raises(StoreUnavailableError):
            step()
        server.everything(signal.SIGCONT)
        assert step() == "done"
        assert step() == "done"
        assert run.remaining.usd * 10 == 1
    events = guard.history(run.id)
    failed = [event for event in events if event.type == "step_failed"]
    assert all(event.data["body_ran"] is False for event in failed)
    assert guard.summary(run.id).usage.usd * 10 == 9
    assert guard.verify(run.id)


def test_without_a_connection_to_be_had_steps_wait_and_then_are_refused(home: Any) -> None:
    with postgres.postgres(
        *postgres.QUICK, "max_connections=12", "superuser_reserved_connections=1"
    ) as server:
        server.execute("CREATE DATABASE app")
        migrate(server.url("app"))
        server.execute("CREATE ROLE agents LOGIN IN ROLE agentguard_agent")
        url = server.url("app", "agents")
        taken = []
        with suppress(psycopg.OperationalError):
            while True:
                taken.append(psycopg.connect(url))
        with Guard.open(url, telemetry=False) as guard:  # with the kill switch on the same server
            with pytest.raises(KillSwitchUnavailableError, match=r"connection slots|too many"):
                guard.start("r")
        with Guard.open(url, kill_switch="page", telemetry=False, store_timeout=TIMEOUT) as guard:
            with pytest.raises(StoreUnavailableError, match=r"connection slots|too many"):
                with guard.run("r"):
                    pass
            free = threading.Timer(TIMEOUT / 4, lambda: [taken.pop().close() for _ in range(4)])
            free.start()
            with guard.run("r") as run:
                run.call("f", lambda: 1)
            free.join()
            assert guard.verify(run.id)
        for connection in taken:
            connection.close()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk that has room for a server and little more."""
    # The path to the server's socket, which lies here, must be short.
    with tempfile.TemporaryDirectory(prefix="agentguard-") as name:
        mount = ["mount", "-t", "tmpfs", "-o", "size=110m,mode=700", "none", name]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("nothing can be mounted here")
        yield Path(name)
        subprocess.run(["umount", "--lazy", name], check=True)


def test_a_server_whose_disk_is_full(home: Any, monkeypatch: pytest.MonkeyPatch, small_disk: Path) -> None:
    """Steps are refused with the server's message, and go on when there is room, with nothing restarted."""
    monkeypatch.setenv("AGENTGUARD_KILL_SWITCH", "page")
    server = Postgres(small_disk, *postgres.DURABLE, "max_wal_size=32MB", "min_wal_size=32MB")
    server.create()
    server.start()
    try:
        server.execute("CREATE DATABASE app")
        migrate(server.url("app"))
        with Guard.open(server.url("app"), telemetry=False, store_timeout=TIMEOUT) as guard:
            guard.set_tenant_budget("acme", Budget(steps=100_000))
            fill_and_free(guard, small_disk / "filler")
            with guard.run("another", tenant="acme") as run:
                run.call("later", lambda: 1)
            assert guard.verify()
    finally:
        server.stop()


def fill_and_free(guard: Guard, filler: Path) -> None:
    """Step before the disk is full, until the server says so, and when there is room again."""
    ran: list[str] = []
    done: list[str] = []
    refused: list[str] = []

    def body(text: str) -> None:
        ran.append(text)

    def step() -> None:
        text = secrets.token_hex(20_000)  # which cannot be compressed
        try:
            run.call("note", body, text)
        except StoreUnavailableError as error:
            refused.append(str(error))
        else:
            done.append(text)

    with guard.run("agent", tenant="acme") as run:
        step()
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(65536)):
                pass
        deadline = time.monotonic() + 60
        while len(refused) < 3:
            assert time.monotonic() < deadline, "the disk was not full"
            step()
        assert all("No space left on device" in message for message in refused), refused
        filler.unlink()
        before = len(done)
        while len(done) < before + 3:
            assert time.monotonic() < deadline, refused[-1]
            step()
    events = guard.history(run.id)
    types = Counter(event.type for event in events)
    assert types["step_completed"] >= len(done), "a result that was handed out is on record"
    assert types["step_started"] >= len(ran)
    assert guard.verify(run.id)
    summary = guard.summary(run.id)
    assert guard.reconstruct(run.id) == summary
    books = guard.components.store.accounts(["tenant:acme"])["tenant:acme"]
    assert not any(books.reserved.values())
    assert books.spent["steps"] == summary.usage.steps >= len(ran)


def test_a_replica_is_promoted_behind_the_agents_back(home: Any) -> None:
    """What a synchronous standby has confirmed is there; agents find it by themselves."""
    with postgres.postgres(*postgres.DURABLE) as server:
        server.execute("CREATE DATABASE app")
        migrate(server.url("app"))
        with server.replica() as standby:
            server.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            server.execute("SELECT pg_reload_conf()")
            hosts = f"host=127.0.0.1,127.0.0.1&port={server.port},{standby.port}"
            url = f"postgresql://postgres@/app?{hosts}&target_session_attrs=read-write"
            with Guard.open(url, telemetry=False, store_timeout=20) as guard:
                guard.set_tenant_budget("acme", Budget(steps=100_000))
                agents = Agents(guard, tenant="acme")
                try:
                    agents.reach(20)
                    server.everything(signal.SIGKILL)
                    server.kill()
                    execute(standby.url(tcp=True), "SELECT pg_promote(true, 20)")
                    agents.reach(20)
                finally:
                    agents.end()
                agents.check(guard)


def promoted_without_the_last_events(server: Postgres, standby: Postgres, act: Callable[[], None]) -> None:
    """Let a replica take its server's place that has not got what `act` does."""
    [[newest]] = server.execute("SELECT pg_current_wal_flush_lsn()::text")
    wait_until(lambda: standby.execute(f"SELECT pg_last_wal_replay_lsn() >= '{newest}'") == [(True,)])
    standby.stop()
    act()
    server.everything(signal.SIGKILL)
    server.kill()
    standby.start()
    execute(standby.url(tcp=True), "SELECT pg_promote(true, 20)")


@pytest.mark.parametrize("in_flight", [False, True], ids=["between steps", "in a step"])
def test_a_run_that_misses_its_own_events_on_a_promoted_replica_takes_no_further_step(
    home: Any, monkeypatch: pytest.MonkeyPatch, *, in_flight: bool
) -> None:
    """The replica is asynchronous: what it had not got is lost, and no run goes on as if it had not been."""
    monkeypatch.setenv("AGENTGUARD_KILL_SWITCH", "page")
    ran: list[str] = []
    pay = guarded_step(usage=Usage(usd="0.30"), name="pay")(ran.append)
    with postgres.postgres(*postgres.DURABLE) as server:
        server.execute("CREATE DATABASE app")
        migrate(server.url("app"))
        with server.replica() as standby:
            hosts = f"host=127.0.0.1,127.0.0.1&port={server.port},{standby.port}"
            url = f"postgresql://postgres@/app?{hosts}&target_session_attrs=read-write"
            with Guard.open(url, telemetry=False, store_timeout=20) as guard:
                guard.set_tenant_budget("acme", Budget(usd=10))
                run = guard.start("agent", budget=Budget(usd=5), tenant="acme")
                pay("first")

                def act() -> None:
                    pay("lost")
                    pay("lost too")
                    guard.start("nested").close()

                def promote(_text: str = "") -> None:
                    promoted_without_the_last_events(server, standby, act)

                if in_flight:
                    with pytest.raises(StoreUnavailableError, match="those events are lost"):
                        guarded_step(usage=Usage(usd="0.01"), name="promote")(promote)()
                else:
                    promote()
                known = run.summary() if not in_flight else None
                for _ in range(3):
                    with pytest.raises(StoreUnavailableError, match="those events are lost"):
                        pay("again")
                    with pytest.raises(StoreUnavailableError, match="those events are lost"):
                        asyncio.run(pay_later())
                    with pytest.raises(StoreUnavailableError), guard.run("nested"):
                        pay("nested")
                assert ran == ["first", "lost", "lost too"]
                with pytest.raises(StoreUnavailableError, match="those events are lost"):
                    run.close()
                with guard.run("new", tenant="acme") as new:
                    pay("new")
                assert guard.verify(new.id)
                [account] = guard.tenants()
                assert account.spent == guard.summary(run.id).usage + new.summary().usage
                # What is there is whole; that something is missing is told by what was known before.
                assert guard.verify()
                if known is not None:
                    report = guard.verify(anchors={run.id: known.head})
                    assert not report
                    assert run.id in str(report)


@guarded_step(usage=Usage(usd="0.01"))
async def pay_later() -> None:
    raise AssertionError("the run has lost its events")


def test_clocks_that_jump_change_no_order(server: Postgres) -> None:
    from agentguard.testing import FakeClock

    clock = FakeClock()
    with Guard.open(server.url("app"), telemetry=False, clock=clock) as guard:
        with guard.run("r") as run:
            for jump in (3600, -7200, 10):
                run.call("f", lambda: 1)
                (clock.advance if jump > 0 else clock.turn_back)(abs(jump))
        assert [event.seq for event in guard.history(run.id)] == list(range(1, 10))
        assert [event.seq for _, event in guard.components.store.tail()] == list(range(1, 10))
        assert guard.verify(run.id)
