"""A guard whose store is PostgreSQL does what it does elsewhere."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from agentguard import (
    Budget,
    BudgetExceededError,
    Guard,
    KillSwitchTriggeredError,
    RunStopped,
    StoreUnavailableError,
    guarded_step,
)
from agentguard.cli import main
from agentguard.stores import _postgres_pool, _sql
from agentguard.stores._postgres_link import connect
from agentguard.stores._postgres_schema import known_version, migrate
from tests.postgres import database, execute
from tests.postgres import login as login_of


@guarded_step
def work(item: int) -> int:
    return item * 2


@guarded_step
async def awork(item: int) -> int:
    await asyncio.sleep(0)
    return item * 2


@pytest.fixture
def guard(postgres_url: str) -> Iterator[Guard]:
    with Guard.open(postgres_url, telemetry=False, store_timeout=10) as guard:
        yield guard


def test_a_run_is_on_record_and_its_log_is_intact(guard: Guard) -> None:
    with guard.run("triage", tenant="acme", budget=Budget(steps=5)) as run:
        assert [work(item) for item in range(5)] == [0, 2, 4, 6, 8]
    summary = guard.summary(run.id)
    assert (summary.state, summary.steps) == ("COMPLETED", 5)
    assert [event.type for event in guard.history(run.id)][-1] == "run_completed"
    assert guard.verify(run.id)
    assert guard.verify()


@pytest.mark.usefixtures("within_a_day")
def test_hosts_of_other_encodings_charge_one_tenant_to_one_account(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = "&" if "?" in postgres_url else "?"
    refused = []
    for host, url in (("UTF8", postgres_url), ("LATIN1", f"{postgres_url}{joined}client_encoding=LATIN1")):
        monkeypatch.setenv("PGCLIENTENCODING", host)
        with Guard.open(url, telemetry=False) as guard:
            guard.set_tenant_budget("müller", Budget(steps=3), per="day")
            try:
                with guard.run("Zoë", tenant="müller") as run:
                    work(1)
                    work(2)
            except BudgetExceededError:
                refused.append(host)
            assert guard.summary(run.id).name == "Zoë"
    assert refused == ["LATIN1"]


def test_many_tasks_of_one_run_stay_within_its_budget(guard: Guard) -> None:
    async def main() -> list[int | BaseException]:
        async with guard.run("many", budget=Budget(steps=20)) as run:
            done = await asyncio.gather(*(awork(item) for item in range(40)), return_exceptions=True)
            assert run.spent.steps == 20
            return done

    with pytest.raises(BudgetExceededError):
        asyncio.run(main())
    [row] = guard.runs()
    assert row.usage.steps == 20
    assert guard.verify()


def test_a_budget_of_a_tenant_is_exact_over_threads_and_runs(guard: Guard) -> None:
    guard.set_tenant_budget("acme", Budget(steps=50))
    granted = []

    def agent() -> None:
        with pytest.raises(RunStopped), guard.run("agent", tenant="acme"):
            while True:
                granted.append(work(1))

    threads = [threading.Thread(target=agent) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(granted) == 50
    [account] = guard.tenants()
    assert account.spent.steps == 50
    assert guard.verify()


@pytest.mark.usefixtures("within_a_day")
@pytest.mark.parametrize("level", ["serializable", "repeatable read"])
def test_a_login_whose_transactions_are_of_another_level_by_default_works_alike(
    postgres_url: str, level: str
) -> None:
    login = f"agents_{level.partition(' ')[0]}"
    with suppress(psycopg.errors.DuplicateObject):
        execute(postgres_url, f"CREATE ROLE {login} LOGIN IN ROLE agentguard_agent")
    execute(postgres_url, f"ALTER ROLE {login} SET default_transaction_isolation = '{level}'")
    with Guard.open(login_of(postgres_url, login), telemetry=False) as guard:
        guard.set_tenant_budget("acme", Budget(steps=20), per="day")
        together, wrong, ended = threading.Barrier(8), list[Exception](), list[int]()

        def job(number: int) -> None:
            try:
                together.wait()
                with guard.run(f"job {number}", tenant="acme"), guard.run("inside"):
                    for item in range(5):
                        work(item)
                ended.append(number)
            except BudgetExceededError:
                ended.append(number)
            except Exception as error:
                wrong.append(error)

        threads = [threading.Thread(target=job, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len(ended) == 8
        [account] = guard.tenants()
        assert account.spent.steps == 20
        assert guard.verify()


def test_a_url_whose_host_is_an_option_reaches_the_kills_too(postgres_url: str) -> None:
    parts = urlsplit(postgres_url)
    host, _, port = parts.netloc.rpartition("@")[2].partition(":")
    url = f"postgresql://{parts.path}?host={host}&port={port}&user=postgres"
    with Guard.open(url, kill_switch=url, telemetry=False) as guard:
        guard.kill(tenant="acme", reason="over quota")
        with pytest.raises(KillSwitchTriggeredError), guard.run("job", tenant="acme"):
            pass
        with guard.run("job", tenant="zeta"):
            work(1)


@pytest.mark.parametrize(("option", "idle"), [("", 60), ("&keepalives_idle=7", 7)])
def test_what_is_idle_stays_known_to_firewalls_in_between(postgres_url: str, option: str, idle: int) -> None:
    port = execute(postgres_url, "SHOW port")[0][0]
    url = f"postgresql://postgres@127.0.0.1:{port}{urlsplit(postgres_url).path}?application_name=x{option}"
    with connect(url, 30) as link, socket.socket(fileno=os.dup(link.fileno())) as copy:
        assert copy.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == idle


@pytest.mark.parametrize(
    "option", ["sslmode=bogus", "target_session_attrs=bogus", "sslmode=require", "port=no"]
)
def test_an_option_that_cannot_be_meant_is_not_tried_again(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    tried: list[int] = []
    parts = urlsplit(postgres_url)
    monkeypatch.setattr(_postgres_pool, "connect", lambda *given: tried.append(1) or connect(*given))
    url = f"postgresql://127.0.0.1{parts.path}?{option}"
    if option == "sslmode=require":
        port = execute(postgres_url, "SHOW port")[0][0]
        url += f"&port={port}"
    with Guard.open(url, kill_switch="page", telemetry=False) as guard, pytest.raises(StoreUnavailableError):
        guard.runs()
    assert len(tried) == 1


def test_a_database_without_our_schema_says_what_to_do(empty_postgres: str) -> None:
    with Guard.open(empty_postgres, telemetry=False) as guard:
        with pytest.raises(StoreUnavailableError, match="agentguard migrate"):
            guard.runs()


@pytest.mark.parametrize("older", range(1, known_version()))
def test_migrate_takes_along_what_lies_in_an_older_schema(
    empty_postgres: str, postgres_url: str, older: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Guard.open(postgres_url, telemetry=False) as guard:
        guard.set_tenant_budget("acme", Budget(steps=4))
        with guard.run("ended", run_id="ended", tenant="acme"):
            work(1)
        with guard.run("other", run_id="other", tenant="zen"):
            work(1)
        live = guard.start("live", run_id="live", tenant="acme")
        work(1)
        assert live.drain(10)
        with pytest.raises(RunStopped):
            live.close()
        before = {run.run_id: run for run in guard.runs()}
        logs = {run_id: guard.history(run_id) for run_id in before}
    scripts = _sql.migrations("postgres")
    with monkeypatch.context() as patch:
        patch.setattr(_sql, "migrations", lambda backend: scripts[:older])
        migrate(empty_postgres)
    copy_data(postgres_url, empty_postgres, "run", "event", "account", "timeline")

    with Guard.open(empty_postgres, telemetry=False) as guard:
        with pytest.raises(StoreUnavailableError, match=f"schema {older} .*run `agentguard migrate`"):
            guard.runs()
        assert main(["migrate", "--store", empty_postgres]) == 0
        assert {run.run_id: run for run in guard.runs()} == before
        assert {run_id: guard.history(run_id) for run_id in before} == logs
        assert guard.verify()
        with guard.recover("live"):
            work(1)
            work(1)
        with pytest.raises(BudgetExceededError), guard.run("more", tenant="acme"):
            work(1)  # the fourth of its tenant
            work(1)
        assert guard.verify()


def copy_data(source: str, target: str, *tables: str) -> None:
    """Put what lies in tables of one database into those of another, as far as it has their columns."""
    with psycopg.connect(source) as reading, psycopg.connect(target) as writing:
        writing.execute("SET session_replication_role = replica")
        for table in tables:
            columns = [
                column
                for (column,) in writing.execute(
                    "SELECT column_name FROM information_schema.columns "
                    "WHERE table_schema = 'agentguard' AND table_name = %s AND is_generated = 'NEVER'",
                    (table,),
                )
            ]
            named = sql.SQL(", ").join(map(sql.Identifier, columns))
            place = sql.Identifier("agentguard", table)
            writing.execute(sql.SQL("DELETE FROM {}").format(place))
            with (
                reading.cursor().copy(
                    sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT").format(named, place)
                ) as out,
                writing.cursor().copy(sql.SQL("COPY {} ({}) FROM STDIN").format(place, named)) as into,
            ):
                for data in out:
                    into.write(data)


def test_migrate_makes_the_schema_and_a_newer_one_is_refused(
    empty_postgres: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTGUARD_STORE", empty_postgres)
    assert main(["migrate"]) == 0
    assert "monthly partitions" in capsys.readouterr().out
    assert main(["migrate", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert [each for each in done if not each.endswith("monthly partitions")] == []
    execute(empty_postgres, "INSERT INTO agentguard.migration (version, name) VALUES (9999, 'later')")
    assert main(["migrate"]) == 5
    assert "upgrade agentguard" in capsys.readouterr().err
    with Guard.open(empty_postgres, telemetry=False) as guard:
        with pytest.raises(StoreUnavailableError, match="upgrade agentguard"):
            guard.runs()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_in_which_not_every_text_can_be_stored_is_refused(
    postgres_server: str, capsys: pytest.CaptureFixture[str], encoding: str
) -> None:
    made = f"template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
    with database(postgres_server, made) as url:
        assert main(["migrate", "--store", url]) == 5
        assert f"has the encoding {encoding}" in (said := capsys.readouterr().err)
        assert "--encoding=UTF8" in said


@pytest.mark.parametrize("fault", ["NOLOGIN", "no right to connect"])
def test_a_login_that_may_not_connect_is_told_so_at_once(postgres_url: str, fault: str) -> None:
    """It is not tried again until `store_timeout` is over."""
    name = postgres_url.partition("?")[0].rpartition("/")[2]
    execute(postgres_url, f"CREATE ROLE {name}_r {'NOLOGIN' if fault == 'NOLOGIN' else 'LOGIN'}")
    execute(postgres_url, f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")
    url = login_of(postgres_url, f"{name}_r")
    try:
        with Guard.open(url, telemetry=False, store_timeout=600) as guard:
            with pytest.raises(StoreUnavailableError, match="permi"):
                guard.runs()
    finally:
        execute(postgres_url, f"DROP ROLE {name}_r")


def another_line(url: str, run_id: str) -> None:
    """Let a run lose its last step, as on a replica that was promoted too early, and another process go on.

    That one knew less, and appends up to the very sequence that is known here.
    """
    execute(
        url,
        "SET session_replication_role = replica; DELETE FROM agentguard.event WHERE seq > 4 "
        f"AND number = (SELECT number FROM agentguard.run WHERE run_id = '{run_id}')",
    )
    with Guard.open(url, telemetry=False) as other, other.attach(run_id, branch="other"):
        work(7)


@pytest.mark.parametrize("tenant", ["default", "acme"])
@pytest.mark.parametrize("how", ["step", "async step", "end", "pause"])
def test_a_run_whose_lost_events_were_replaced_by_as_many_others_takes_no_further_step(
    guard: Guard, postgres_url: str, how: str, tenant: str
) -> None:
    """What is compared is the newest event itself, and not its sequence alone."""
    guard.set_tenant_budget("acme", Budget(steps=50))
    run = guard.start("agent", tenant=tenant)
    work(1)
    work(2)
    known = guard.history(run.id)[-1]
    another_line(postgres_url, run.id)
    log = guard.history(run.id)
    assert log[-1].seq == known.seq
    assert log[-1].hash != known.hash
    acts = {
        "step": lambda: work(3),
        "async step": lambda: asyncio.run(awork(3)),
        "end": run.close,
        "pause": run.pause,
    }
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="those events are lost"):
            acts[how]()
    assert guard.history(run.id) == log
    with pytest.raises(StoreUnavailableError, match="those events are lost"):
        run.close()
    assert guard.history(run.id) == log
    assert guard.verify(run.id)
