"""Kills over PostgreSQL: the faults of its server, and who has which right."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator

import psycopg
import pytest

from agentguard import Guard, KillSwitchTriggeredError, KillSwitchUnavailableError
from agentguard.errors import LogIntegrityError
from agentguard.killswitch.kill_requests import kill_data
from agentguard.protocols import abilities_of
from tests import postgres
from tests.kit import wait_until
from tests.postgres import Postgres
from tests.relays import Hosts, step_is_refused, with_option

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
        with pytest.raises(KillSwitchTriggeredError), guard.run("agent") as run:
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


def test_a_login_of_one_tenant_sees_nothing_of_it_and_uses_the_page_of_a_relay(sql: Sql, host: Hosts) -> None:
    sql("CREATE ROLE ann LOGIN IN ROLE agentguard_tenant")
    with psycopg.connect(host.url, user="ann", autocommit=True) as ann:
        for table in ("kill_record", "kill_host", "reader_position"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                ann.execute(f"SELECT count(*) FROM agentguard.{table}")
    hers = host("a", url=host.url.replace("postgres@", "ann@", 1))
    with pytest.raises(KillSwitchUnavailableError, match="run `agentguard relay` with another"):
        _ = hers.signal
    switch = host.following("a")
    assert hers.home == switch.home
    host("b").record(*kill_data("stop", run="r1"))
    wait_until(lambda: hers.find("acme", "r1", since=0) is not None)


def test_a_database_without_our_schema_says_what_to_do(empty_postgres: str, host: Hosts) -> None:
    with pytest.raises(KillSwitchUnavailableError, match="agentguard migrate"):
        _ = host("a", url=empty_postgres).signal


def test_a_guard_on_postgres_takes_its_kills_from_there_by_itself(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, host: Hosts
) -> None:
    monkeypatch.delenv("AGENTGUARD_KILL_SWITCH")
    monkeypatch.setenv("AGENTGUARD_HOME", str(host.folder / "a"))
    with Guard.open(postgres_url, telemetry=False) as guard:
        with pytest.raises(KillSwitchTriggeredError), guard.run("agent") as run:
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
