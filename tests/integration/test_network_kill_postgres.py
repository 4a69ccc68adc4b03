"""Kills over PostgreSQL: the faults of its server, and who has which right."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from agentguard import Guard, KillSwitchTriggeredError, KillSwitchUnavailableError, guarded_step
from agentguard.errors import LogIntegrityError
from agentguard.killswitch import relay_process
from agentguard.killswitch.kill_requests import kill_data
from agentguard.killswitch.network import NetworkKillSwitch
from agentguard.protocols import abilities_of
from agentguard.stores._postgres_schema import migrate
from tests.postgres import Postgres
from tests.servers import wait_for as wait_for_seconds

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="the page needs flock and FIFOs"),
    # Relays and stopped servers: on a loaded machine, what they have to say comes late.
    pytest.mark.long,
]


def wait_for(condition: Callable[[], object]) -> None:
    """Wait longer than elsewhere: relays have to start."""
    wait_for_seconds(condition, 60)


Host = Callable[[str], NetworkKillSwitch]


@guarded_step
def step() -> str:
    return "done"


@pytest.fixture
def server(own_postgres: Postgres) -> Postgres:
    migrate(own_postgres.url())
    return own_postgres


@pytest.fixture
def url(server: Postgres) -> str:
    return f"{server.url()}{'&' if '?' in server.url() else '?'}max_staleness=1"


@pytest.fixture
def host(url: str, tmp_path: Path) -> Iterator[Host]:
    opened: list[NetworkKillSwitch] = []

    def switch(name: str, at: str = url) -> NetworkKillSwitch:
        opened.append(NetworkKillSwitch(at, tmp_path / name))
        return opened[-1]

    yield switch
    for each in opened:
        each.close()
        if (pid := relay_process.pid(each.home)) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            wait_for(lambda each=each, pid=pid: relay_process.pid(each.home) != pid)  # type: ignore[misc]


def everybody(server: Postgres, number: signal.Signals) -> None:
    """Signal the server's process and all of its sessions."""
    found = subprocess.run(["pgrep", "-P", str(server.pid)], check=False, capture_output=True, text=True)
    for pid in [server.pid, *map(int, found.stdout.split())]:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.mark.parametrize("fault", ["killed", "paused"])
def test_while_the_server_is_gone_steps_are_refused_and_then_go_on_without_a_restart(
    server: Postgres, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: Host, fault: str
) -> None:
    monkeypatch.setenv("AGENTGUARD_HOME", str(tmp_path / "a"))

    def step_is_refused() -> bool:
        try:
            step()
        except KillSwitchUnavailableError:
            return True
        return False

    with Guard.open("memory://", kill_switch=url, telemetry=False) as guard:
        with pytest.raises(KillSwitchTriggeredError), guard.run("agent") as run:
            step()
            guard.kill(reason="another", run="another")
            everybody(server, signal.SIGSTOP) if fault == "paused" else server.kill()
            wait_for(step_is_refused)
            with pytest.raises(KillSwitchUnavailableError, match="could not be recorded"):
                host("b").record(*kill_data("lost", run="lost"))
            everybody(server, signal.SIGCONT) if fault == "paused" else server.start()
            wait_for(lambda: not step_is_refused())
            host("b").record(*kill_data("stop", run=run.id))
            wait_for(step_is_refused)
        targets = [kill.target for kill in guard.kills()]
        assert targets[0] == "another"
        assert targets[-1] == run.id
    host("a")


def test_records_that_the_server_lost_are_given_back(server: Postgres, host: Host) -> None:
    switch = host("a")
    switch.join(lambda generation: None)
    for run in ("r1", "r2", "r3"):
        switch.record(*kill_data("stop", run=run))
    server.execute("ALTER TABLE agentguard.kill_record DISABLE TRIGGER kill_record_stays")
    server.execute("DELETE FROM agentguard.kill_record WHERE seq > 1")
    server.execute("ALTER TABLE agentguard.kill_record ENABLE TRIGGER kill_record_stays")
    new = host("b")
    wait_for(lambda: len(new.kills()) == 3)
    assert new.record(*kill_data("stop", run="r4")) == 4
    assert new.verify().seq == 4


def test_an_altered_record_is_found(server: Postgres, host: Host) -> None:
    for run in ("r1", "r2"):
        host("a").record(*kill_data("stop", run=run))
    with pytest.raises(psycopg.errors.RaiseException, match="never changed"):
        server.execute("UPDATE agentguard.kill_record SET hash = 'x'")
    server.execute("ALTER TABLE agentguard.kill_record DISABLE TRIGGER kill_record_stays")
    server.execute(
        "UPDATE agentguard.kill_record SET body = convert_to(replace(convert_from(body, 'UTF8'), 'stop', 'spot'), "
        "'UTF8') WHERE seq = 2"
    )
    with pytest.raises(LogIntegrityError) as caught:
        host("a").verify()
    assert caught.value.seq == 2


def test_a_login_of_one_tenant_sees_nothing_of_it_and_uses_the_page_of_a_relay(
    server: Postgres, url: str, host: Host
) -> None:
    server.execute("CREATE ROLE ann LOGIN IN ROLE agentguard_tenant")
    with psycopg.connect(server.url(), user="ann", autocommit=True) as ann:
        for table in ("kill_record", "kill_host", "reader_position"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                ann.execute(f"SELECT count(*) FROM agentguard.{table}")
    hers = url.replace("postgres@", "ann@", 1)
    assert hers != url
    with pytest.raises(KillSwitchUnavailableError, match="run `agentguard relay` with another"):
        _ = host("a", hers).signal
    host("a").join(lambda generation: None)
    assert host("a", hers).home == host("a").home
    host("b").record(*kill_data("stop", run="r1"))
    wait_for(lambda: host("a", hers).find("acme", "r1", since=0) is not None)


def test_a_database_without_our_schema_says_what_to_do(empty_postgres: str, host: Host) -> None:
    with pytest.raises(KillSwitchUnavailableError, match="agentguard migrate"):
        _ = host("a", empty_postgres).signal


def test_a_guard_on_postgres_takes_its_kills_from_there_by_itself(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: Host
) -> None:
    monkeypatch.delenv("AGENTGUARD_KILL_SWITCH")
    monkeypatch.setenv("AGENTGUARD_HOME", str(tmp_path / "a"))
    with Guard.open(postgres_url, telemetry=False) as guard:
        with pytest.raises(KillSwitchTriggeredError), guard.run("agent") as run:
            step()
            host("b", postgres_url).record(*kill_data("stop", run=run.id))
            wait_for(lambda: run.stop)
        assert guard.summary(run.id).state == "KILLED"
        assert guard.verify()
        positions = abilities_of(guard.components.store).positions
        assert positions is not None
        for saved, found in ((5, 5), (3, 5), (9, 9)):
            positions.save_position("r", saved)
            assert positions.position("r") == found
    host("a", postgres_url)
