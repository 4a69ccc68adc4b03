"""Kills over PostgreSQL: the faults of its server, and who has which right."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import psycopg
import pytest

from agentguard import Guard, KillSwitchTriggeredError, KillSwitchUnavailableError
from agentguard.errors import LogIntegrityError
from agentguard.killswitch.kill_requests import kill_data, revive_data
from agentguard.protocols import abilities_of
from agentguard.stores._postgres_schema import migrate
from tests import postgres
from tests.kit import wait_until
from tests.postgres import Postgres
from tests.relays import Hosts, believed_run, control_entry, running_relay, step_is_refused, with_option

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the page needs flock and FIFOs")

Sql = Callable[[str], object]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """One server for all tests of this file, each of which leaves it running."""
    with postgres.postgres(*postgres.DURABLE) as server:
        yield server


@pytest.fixture
def url(server: Postgres) -> Iterator[str]:
    """A database of the test's own, with our schema in it."""
    with postgres.database(server.url(), postgres.template(server.url())) as url:
        yield url


@pytest.fixture
def sql(url: str) -> Sql:
    """Carry out a statement as the superuser."""
    return lambda statement: postgres.execute(url, statement)


@pytest.mark.parametrize("fault", ["killed", "paused"])
def test_while_the_server_is_gone_steps_are_refused_and_then_go_on_without_a_restart(
    server: Postgres, monkeypatch: pytest.MonkeyPatch, host: Hosts, fault: str
) -> None:
    monkeypatch.setenv("AGENTGUARD_HOME", str(host.folder / "a"))
    url = with_option(host.url, max_staleness=1)
    with Guard.open("memory://", kill_switch=url, telemetry=False) as guard:
        with pytest.raises(KillSwitchTriggeredError), believed_run(guard, "agent") as run:
            wait_until(lambda: not step_is_refused())
            guard.kill(reason="another", run="another")
            server.everything(signal.SIGSTOP) if fault == "paused" else server.kill()
            wait_until(step_is_refused)
            away = host("b")
            with pytest.raises(KillSwitchUnavailableError, match="could not be recorded"):
                away.record(*kill_data("lost", run="lost"))
            server.resume() if fault == "paused" else server.start()
            wait_until(lambda: not step_is_refused())
            away.record(*kill_data("stop", run=run.id))
            while True:
                wait_until(lambda: not step_is_refused())
        targets = [kill.target for kill in guard.kills()]
        assert targets[0] == "another"
        assert targets[-1] == run.id


@pytest.mark.parametrize("fault", ["ended", "silent"])
def test_a_kill_is_recorded_though_the_connection_was_cut_while_it_was_idle(
    sql: Sql, host: Hosts, fault: str
) -> None:
    switch = host("a")
    switch.record(*kill_data("stop", run="r1"))
    found = sql(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query ~ 'add_control_record' "
        "AND pid <> pg_backend_pid()"
    )
    assert isinstance(found, list)
    [(pid,)] = found
    if fault == "ended":
        sql(f"SELECT pg_terminate_backend({pid}, 10000)")
    else:
        os.kill(pid, signal.SIGSTOP)  # as where a firewall has forgotten the connection
    try:
        assert switch.record(*kill_data("stop", run="r2")) == 2
        assert [kill.target for kill in switch.kills()] == ["r1", "r2"]
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_a_login_that_reads_alone_is_told_so(url: str, sql: Sql, host: Hosts) -> None:
    """As on a server that has become a replica."""
    sql(f"ALTER DATABASE {urlsplit(url).path[1:]} SET default_transaction_read_only = on")
    with pytest.raises(KillSwitchUnavailableError, match="could not be recorded in postgresql://.*a replica"):
        host("a").record(*kill_data("stop", run="r1"))


def test_a_kill_gets_through_where_connections_are_kept_for_operators(server: Postgres, host: Hosts) -> None:
    """As the docs have it for a server without a connection left."""
    [(version,)] = server.execute("SHOW server_version_num")
    if int(version) < 160_000:
        pytest.skip("PostgreSQL 16 has reserved_connections")
    settings = ("max_connections=12", "superuser_reserved_connections=1", "reserved_connections=3")
    with postgres.postgres(*postgres.QUICK, *settings) as small, ExitStack() as stack:
        small.execute("CREATE DATABASE app")
        migrate(small.url("app"))
        for name in ("agents", "oncall"):
            small.execute(f"CREATE ROLE {name} LOGIN IN ROLE agentguard_operator")
        small.execute("GRANT pg_use_reserved_connections TO oncall")
        with suppress(psycopg.OperationalError):
            while True:
                stack.enter_context(psycopg.connect(small.url("app", "agents")))
        with pytest.raises(KillSwitchUnavailableError, match="could not be recorded"):
            host("a", url=small.url("app", "agents")).record(*kill_data("stop", run="r1"))
        assert host("b", url=small.url("app", "oncall")).record(*kill_data("stop", run="r1")) == 1


@pytest.mark.parametrize("level", ["serializable", "repeatable read"])
def test_hosts_that_kill_at_once_are_all_on_record_at_any_isolation_level(
    sql: Sql, url: str, host: Hosts, level: str
) -> None:
    sql(f"ALTER DATABASE {urlsplit(url).path[1:]} SET default_transaction_isolation = '{level}'")
    together = threading.Barrier(4)

    def kill(name: str) -> None:
        switch = host(name)
        together.wait()
        for number in range(10):
            switch.record(*kill_data("stop", run=f"{name}{number}"))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(kill, "abcd"))
    assert len(host("e").kills()) == 40


def test_records_that_the_server_lost_are_given_back(sql: Sql, host: Hosts) -> None:
    switch = host.following("a")
    for run in ("r1", "r2", "r3"):
        switch.record(*kill_data("stop", run=run))
    sql("ALTER TABLE agentguard.kill_record DISABLE TRIGGER kill_record_stays")
    sql("DELETE FROM agentguard.kill_record WHERE seq > 1")
    sql("ALTER TABLE agentguard.kill_record ENABLE TRIGGER kill_record_stays")
    new = host("b")
    wait_until(lambda: len(new.kills()) == 3)
    assert new.record(*kill_data("stop", run="r4")) == 4
    assert new.verify().seq == 4


def test_an_altered_record_is_found(sql: Sql, host: Hosts) -> None:
    switch = host("a")
    for run in ("r1", "r2"):
        switch.record(*kill_data("stop", run=run))
    with pytest.raises(psycopg.errors.RaiseException, match="never changed"):
        sql("UPDATE agentguard.kill_record SET hash = 'x'")
    sql("ALTER TABLE agentguard.kill_record DISABLE TRIGGER kill_record_stays")
    sql(
        "UPDATE agentguard.kill_record SET body = convert_to(replace(convert_from(body, 'UTF8'), 'stop', 'spot'), "
        "'UTF8') WHERE seq = 2"
    )
    with pytest.raises(LogIntegrityError) as caught:
        switch.verify()
    assert caught.value.seq == 2


@pytest.mark.parametrize("kind", ["tenant", "agent"])
def test_a_login_of_one_tenant_sees_nothing_of_it_and_uses_the_page_of_a_relay(
    sql: Sql, host: Hosts, kind: str
) -> None:
    ann = f"ann_{kind}"
    sql(f"CREATE ROLE {ann} LOGIN IN ROLE agentguard_{kind}")
    sql(f"INSERT INTO agentguard.tenant_login VALUES ('{ann}', 'acme')")
    with psycopg.connect(host.url, user=ann, autocommit=True) as connection:
        for table in ("kill_record", "kill_host", "reader_position"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"SELECT count(*) FROM agentguard.{table}")
        # Also while there is no record: nothing found would be taken for nobody killed.
        for call in (
            "control_records(0)",
            "add_control_record(1, 'x', 'x', 'x')",
            "report_host('h', '{}')",
            "host_reports()",
            "forget_hosts('h', 0)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"SELECT * FROM agentguard.{call}")
    hers = host("a", url=host.url.replace("postgres@", f"{ann}@", 1))
    with pytest.raises(KillSwitchUnavailableError, match="run `agentguard relay` with another"):
        _ = hers.signal
    switch = host.following("a")
    assert hers.home == switch.home
    host("b").record(*kill_data("stop", run="r1"))
    wait_until(lambda: hers.find("acme", "r1", since=0) is not None)


def test_what_is_said_on_the_channel_is_not_believed_and_nothing_is_told_there(sql: Sql, host: Hosts) -> None:
    """Every login of a database may listen and notify."""
    switch = host.following("a")
    relay = running_relay(switch)
    sql("CREATE ROLE stranger LOGIN")
    with psycopg.connect(host.url, user="stranger", autocommit=True) as stranger:
        stranger.execute("LISTEN agentguard_kill")
        host("b").record(*kill_data("a secret of b", tenant="b", actor="bob"))
        assert [heard.payload for heard in stranger.notifies(timeout=60, stop_after=1)] == [""]
        wait_until(lambda: len(switch.kills()) == 1)
        [first] = switch.read()
        lies = [
            control_entry(first, *data) for data in (kill_data("a lie"), revive_data("a lie", tenant="b"))
        ]
        for said in ("x", "", "2", "2 x", "-1", *lies):
            stranger.execute("SELECT pg_notify('agentguard_kill', %s)", (said,))
    host("b").record(*kill_data("stop", run="r1"))  # told after them
    wait_until(lambda: len(switch.kills()) == 2)
    assert [(kill.target, kill.cleared) for kill in switch.kills()] == [("b", False), ("r1", False)]
    assert sql("SELECT count(*) FROM agentguard.kill_record") == [(2,)]
    assert running_relay(switch) == relay


def test_a_report_that_says_nothing_is_of_a_host_that_has_heard_nothing(sql: Sql, host: Hosts) -> None:
    sql("INSERT INTO agentguard.kill_host VALUES ('h', 'x')")
    killer = host("a")
    generation = killer.record(*kill_data("stop", run="r1"))
    [report] = killer.hosts()
    assert (report.host, report.generation, report.fresh) == ("h", 0, True)
    assert not report.count(generation).complete


def test_a_database_without_our_schema_says_what_to_do(empty_postgres: str, host: Hosts) -> None:
    with pytest.raises(KillSwitchUnavailableError, match="agentguard migrate"):
        _ = host("a", url=empty_postgres).signal


def test_a_guard_on_postgres_takes_its_kills_from_there_by_itself(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, host: Hosts
) -> None:
    monkeypatch.delenv("AGENTGUARD_KILL_SWITCH")
    monkeypatch.setenv("AGENTGUARD_HOME", str(host.folder / "a"))
    with Guard.open(postgres_url, telemetry=False) as guard:
        with pytest.raises(KillSwitchTriggeredError), believed_run(guard, "agent") as run:
            wait_until(lambda: not step_is_refused())
            host("b", url=postgres_url).record(*kill_data("stop", run=run.id))
            wait_until(lambda: run.stop)
        assert guard.summary(run.id).state == "KILLED"
        assert guard.verify()
        positions = abilities_of(guard.components.store).positions
        assert positions is not None
        for saved, found in ((5, 5), (3, 5), (9, 9)):
            positions.save_position("r", saved)
            assert positions.position("r") == found
        readers = abilities_of(guard.components.store).readers
        assert readers is not None
        assert readers.positions() == {"r": 9}
