"""`guard.submit`: a run is created and queued in one act, or not at all."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from agentguard import (
    Budget,
    Guard,
    KillSwitchTriggeredError,
    RunExistsError,
    RunState,
    StoreUnavailableError,
)
from agentguard.cli import main
from agentguard.errors import ProgramError, QueueUnavailableError
from agentguard.stores._postgres_schema import migrate
from agentguard.telemetry.spans import Telemetry
from tests.integration.workers.conftest import FAST, OfficeOfTest
from tests.kit import wait_until
from tests.postgres import execute, migrated


def jobs(url: str) -> list[tuple[Any, ...]]:
    return execute(
        url, "SELECT lock, queue_name, priority, status FROM agentguard_queue.procrastinate_jobs ORDER BY id"
    )


def test_a_submitted_run_waits_as_created_and_is_nobodys(office: OfficeOfTest, postgres_url: str) -> None:
    run = office.guard.submit(
        office.agents.letters,
        {"before": ["a"], "wait": "b", "after": []},
        budget=Budget(usd="1.50"),
        tenant="acme",
        metadata={"ticket": 7},
        priority=3,
    )
    assert (run.name, run.tenant, run.state) == ("letters", "acme", RunState.CREATED)
    summary = office.guard.summary(run.id)
    assert (summary.tenant, summary.metadata) == ("acme", {"ticket": 7})
    assert summary.budget.usd == Budget(usd="1.50").usd
    assert [event.type for event in office.guard.history(run.id)] == ["run_created"]
    row = office.guard.components.store.row(run.id)
    assert row is not None
    assert row.owner == {}
    assert jobs(postgres_url) == [(run.id, "acme", 3, "todo")]
    assert office.guard.verify()


def test_the_options_of_a_decorated_function_stand_for_what_is_left_out(office: OfficeOfTest) -> None:
    run = office.guard.submit(office.agents.letters, [["a"], "b", []])
    summary = run.summary()
    assert (summary.name, summary.tenant, summary.budget.steps) == ("letters", "default", 100)


def test_a_run_whose_id_is_taken_is_not_queued_again(office: OfficeOfTest, postgres_url: str) -> None:
    office.guard.submit(office.agents.alone, run_id="r1")
    with pytest.raises(RunExistsError):
        office.guard.submit(office.agents.alone, run_id="r1")
    assert len(jobs(postgres_url)) == 1


def test_a_run_that_cannot_be_queued_is_not_created(office: OfficeOfTest, postgres_url: str) -> None:
    execute(postgres_url, "DROP SCHEMA agentguard_queue CASCADE")
    with pytest.raises(StoreUnavailableError, match="agentguard migrate"):
        office.guard.submit(office.agents.alone)
    assert office.guard.runs() == []
    migrate(postgres_url)
    office.guard.submit(office.agents.alone)
    assert len(office.guard.runs()) == 1


def test_a_connection_that_breaks_in_the_middle_leaves_both_or_neither(
    office: OfficeOfTest, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = office.guard.components.store.queue  # type: ignore[attr-defined]
    put = queue.put

    def cut(*args: Any, **kwargs: Any) -> None:
        put(*args, **kwargs)
        execute(
            postgres_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'agentguard'",
        )

    monkeypatch.setattr(queue, "put", cut)
    with pytest.raises(StoreUnavailableError):
        office.guard.submit(office.agents.alone)
    assert office.guard.runs() == []
    assert jobs(postgres_url) == []


@pytest.mark.parametrize("url", ["memory://", "sqlite:///{}/runs.db"])
def test_a_store_without_a_queue_says_which_one_has_one(
    url: str, office: OfficeOfTest, tmp_path: Path
) -> None:
    with Guard.open(url.format(tmp_path), kill_switch="memory", telemetry=False) as guard:
        with pytest.raises(QueueUnavailableError, match="postgresql://"):
            guard.submit(office.agents.alone)
        with pytest.raises(QueueUnavailableError):
            guard.queue()
        assert guard.runs() == []


def test_a_function_that_workers_could_not_find_is_refused(office: OfficeOfTest) -> None:
    def inner() -> None: ...

    agents = office.agents
    for fn, said in (
        (lambda: None, "inside a function"),
        (inner, "inside a function"),
        (agents.Office().method, "something else"),
        (agents.letters.__wrapped__, "something else"),
        (agents.generator, "generator"),
        (print, "own library"),
        ("worker_office:alone", "no function"),
    ):
        with pytest.raises(ProgramError, match=said):
            office.guard.submit(fn)
    assert office.guard.runs() == []
    office.guard.submit(agents.Office.static)


def test_a_function_of_the_program_that_runs_is_refused(office: OfficeOfTest, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from agentguard import Guard\ndef agent(): ...\nguard = Guard.open(telemetry=False)\n"
        "try: guard.submit(agent)\nexcept Exception as error: print(f'{type(error).__name__}: {error}')\n"
        "guard.close()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert "ProgramError: agent: " in done.stdout
    assert "move it into a module" in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "script"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == "", "run by its module's name it is found"


@pytest.mark.parametrize(
    ("inputs", "error", "said"),
    [
        ({"name": 1, "more": 2}, TypeError, "alone.* does not take these inputs: .*more"),
        (["a", "b"], TypeError, "does not take these inputs"),
        ("text", TypeError, "a dict of keywords or a list of arguments, not str"),
        ({"name": object()}, ValueError, r"inputs\.kwargs\.name would not reach the worker"),
        (
            {"name": {"password": "hunter2-hunter2"}},
            ValueError,
            "inputs.* would not reach the worker.*secret",
        ),
    ],
)
def test_inputs_that_would_not_reach_the_function_are_refused(
    office: OfficeOfTest, inputs: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        office.guard.submit(office.agents.alone, inputs)
    assert office.guard.runs() == []


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"retries": -1}, ValueError, "retries"),
        ({"retries": True}, TypeError, "retries"),
        ({"priority": 1.5}, TypeError, "priority"),
        ({"priority": 2**31}, ValueError, "priority"),
        ({"backoff": -1}, ValueError, "backoff"),
        ({"backoff": float("nan")}, ValueError, "backoff"),
        ({"queue": ""}, ValueError, "queue"),
        ({"queue": "q" * 41}, ValueError, "queue"),
        ({"tenant": "t" * 41}, ValueError, "pass queue="),
        ({"budget": 5}, TypeError, "budget"),
        ({"name": ""}, ValueError, "name"),
    ],
)
def test_an_option_that_cannot_be_meant_names_itself(
    office: OfficeOfTest, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        office.guard.submit(office.agents.alone, **options)
    assert office.guard.runs() == []


def test_a_tenant_with_a_long_name_has_a_queue_of_another_name(office: OfficeOfTest) -> None:
    tenant = "t" * 200
    assert office.guard.submit(office.agents.alone, tenant=tenant, queue="long").tenant == tenant
    assert [depth.queue for depth in office.guard.queue()] == ["long"]


def test_a_guard_that_captures_no_inputs_takes_none(office: OfficeOfTest, postgres_url: str) -> None:
    with Guard.open(postgres_url, capture="none", telemetry=False) as guard:
        with pytest.raises(ValueError, match="capture='none'"):
            guard.submit(office.agents.plain, "a")
        guard.submit(office.agents.nothing)


def test_a_killed_tenant_submits_nothing(office: OfficeOfTest, postgres_url: str) -> None:
    office.guard.kill(reason="enough", tenant="acme")
    with pytest.raises(KillSwitchTriggeredError):
        office.guard.submit(office.agents.alone, tenant="acme")
    assert jobs(postgres_url) == []


def test_a_run_that_is_killed_while_it_waits_is_killed_at_once(office: OfficeOfTest) -> None:
    run = office.guard.submit(office.agents.alone)
    office.guard.kill(reason="enough", run=run.id)
    assert run.state is RunState.KILLED


def test_inside_a_run_a_submission_is_on_its_record_and_done_once(
    office: OfficeOfTest, postgres_url: str
) -> None:
    guard, submits = office.guard, office.agents.submits
    with guard.run("outer", tenant="acme", run_id="outer"):
        submitted = submits()
    assert guard.summary(submitted).tenant == "acme"
    with guard.replay("outer"):
        assert submits() == submitted
    assert len(jobs(postgres_url)) == 1
    assert not [row for row in guard.components.store.rows() if row.parent_id], "it is no child"


def test_a_run_that_died_as_it_submitted_submits_once(office: OfficeOfTest, postgres_url: str) -> None:
    guard = office.guard
    with guard.run("outer", run_id="outer") as run:
        first = str(run.uuid())
        guard.submit(office.agents.alone, {"name": "submitted"}, run_id=first)
    assert len(jobs(postgres_url)) == 1
    with guard.run("outer", run_id="again"):
        guard.submit(office.agents.alone, {"name": "submitted"}, run_id="own")
        with pytest.raises(RunExistsError):
            guard.submit(office.agents.alone, {"name": "submitted"}, run_id="own")


# --- who may -------------------------------------------------------------------------------------


@pytest.fixture
def logins(postgres_url: str) -> Iterator[dict[str, str]]:
    """URLs of logins: of agents, of the agents of tenant a, of workers, of operators."""
    tag = f"w{uuid.uuid4().hex[:12]}"
    roles = {
        "agents": "agentguard_agent",
        "agents_a": "agentguard_agent",
        "workers_a": "agentguard_agent, agentguard_worker",
        "workers": "agentguard_agent, agentguard_worker",
        "operators": "agentguard_operator",
        "tenant": "agentguard_tenant",
    }
    for what, role in roles.items():
        execute(postgres_url, f"CREATE ROLE {tag}_{what} LOGIN IN ROLE {role}")
    for what in ("agents_a", "workers_a", "tenant"):
        execute(postgres_url, f"INSERT INTO agentguard.tenant_login VALUES ('{tag}_{what}', 'a')")
    yield {what: postgres_url.replace("//postgres@", f"//{quote(f'{tag}_{what}')}@") for what in roles}
    for what in roles:
        execute(postgres_url, f"DROP OWNED BY {tag}_{what}; DROP ROLE {tag}_{what}")


def test_agents_submit_and_see_nothing_of_the_queue(office: OfficeOfTest, logins: dict[str, str]) -> None:
    with Guard.open(logins["agents"], telemetry=False) as guard:
        guard.submit(office.agents.alone)
    for what in ("agents", "agents_a", "operators", "tenant"):
        for sql in (
            "SELECT * FROM agentguard_queue.procrastinate_jobs",
            "SELECT nextval('agentguard_queue.procrastinate_jobs_id_seq')",
            "DELETE FROM agentguard_queue.procrastinate_jobs",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                execute(logins[what], sql)
    assert execute(logins["operators"], "SELECT waiting FROM agentguard_queue.depth") == [(1,)]


def test_a_login_of_a_tenant_submits_and_takes_its_own_runs_alone(
    office: OfficeOfTest, logins: dict[str, str]
) -> None:
    office.guard.submit(office.agents.alone, tenant="b", run_id="b1")
    with Guard.open(logins["agents_a"], telemetry=False) as guard:
        guard.submit(office.agents.alone, tenant="a")
        with pytest.raises(StoreUnavailableError):
            guard.submit(office.agents.alone, tenant="b")
    taken = "SELECT agentguard_queue.submit('q', 0, 'b1', 'b', '{}')"
    assert execute(logins["agents_a"], taken) == [(False,)], "the run of another tenant is not there"
    seen = execute(logins["workers_a"], "SELECT queue_name FROM agentguard_queue.procrastinate_jobs")
    assert seen == [("a",)]
    with Guard.open(logins["workers_a"], telemetry=False) as guard:
        assert [depth.queue for depth in guard.queue()] == ["a"]


def test_workers_of_a_tenant_see_each_other_and_those_that_have_a_run_of_theirs(
    office: OfficeOfTest, logins: dict[str, str]
) -> None:
    """They can take no other worker for dead, nor see what jobs of others went through."""

    def ask(what: str, sql: str) -> list[tuple[Any, ...]]:
        return execute(f"{logins[what]}?options=-csearch_path%3Dagentguard_queue", sql)

    workers = {
        what: ask(of, "SELECT worker_id FROM procrastinate_register_worker_v1()")[0][0]
        for what, of in (("own", "workers_a"), ("idle", "workers"), ("busy", "workers"), ("of b", "workers"))
    }
    for what, tenant in (("busy", "a"), ("of b", "b")):
        office.guard.submit(office.agents.alone, tenant=tenant)
        fetch = f"SELECT id FROM procrastinate_fetch_job_v2('{{{tenant}}}', {workers[what]})"
        assert ask("workers", fetch) != [(None,)]
    everyone = "SELECT id FROM procrastinate_workers"
    assert {number for (number,) in ask("workers_a", everyone)} == {workers["own"], workers["busy"]}
    assert {number for (number,) in ask("workers", everyone)} == set(workers.values())
    for table in ("procrastinate_events", "procrastinate_jobs"):
        assert len(ask("workers", f"SELECT FROM {table}")) == 2 * len(
            ask("workers_a", f"SELECT FROM {table}")
        )
    for change in (
        "UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 hour'",
        "DELETE FROM procrastinate_workers",
    ):
        ask("workers_a", change)
        alive = ask("workers", f"{everyone} WHERE last_heartbeat > now() - interval '1 minute'")
        assert {number for (number,) in alive} == set(workers.values()) - {workers["own"]}


def test_a_tenants_own_worker_carries_its_run_on_and_takes_no_other(
    office: OfficeOfTest, logins: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = office.guard.submit(office.agents.letters, [["a"], "c", ["d"]], tenant="a")
    everybodys = office.worker(*FAST)
    office.until("waits c")
    monkeypatch.setenv("AGENTGUARD_STORE", logins["workers_a"])
    own = office.worker(*FAST)
    everybodys.kill()
    everybodys.wait()
    other = office.guard.submit(office.agents.alone, tenant="b")
    office.until("waits c", times=2)
    office.open_gate("c")
    assert office.ends(run) == "COMPLETED"
    assert office.told() == ["step a", "waits c", "waits c", "step d"]
    assert str(other.state) == "CREATED"
    assert own.poll() is None


# --- how long the queue is -----------------------------------------------------------------------


def test_the_command_tells_autoscalers_how_long_the_queue_is(
    office: OfficeOfTest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["queue"]) == 0
    assert "no submitted run waits" in capsys.readouterr().out
    for _ in range(3):
        office.guard.submit(office.agents.alone, tenant="acme")
    assert main(["queue", "--json"]) == 0
    [depth] = json.loads(capsys.readouterr().out)
    assert depth["oldest_seconds"] >= 0
    counts = {name: depth[name] for name in ("queue", "waiting", "delayed", "running")}
    assert counts == {"queue": "acme", "waiting": 3, "delayed": 0, "running": 0}
    assert main(["queue", "nobody", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["waiting"] == 0, "of a queue that is empty too"
    assert main(["queue"]) == 0
    assert "acme" in capsys.readouterr().out


def test_a_run_that_is_killed_while_it_waits_is_counted_no_more(
    office: OfficeOfTest, logins: dict[str, str], postgres_url: str
) -> None:
    killed = office.guard.submit(office.agents.alone, tenant="acme")
    hour = "UPDATE agentguard_queue.procrastinate_events SET at = at - interval '1 hour' RETURNING id"
    assert len(execute(postgres_url, hour)) == 1
    office.guard.submit(office.agents.alone, tenant="acme")
    gone = office.guard.submit(office.agents.alone, tenant="b", queue="b")
    assert [(depth.waiting, depth.oldest_seconds > 3600) for depth in office.guard.queue()] == [
        *((2, True), (1, False)),
    ]
    for run in (killed, gone):
        office.guard.kill(run=run.id, reason="not wanted")
    for login in ("operators", "workers"):
        with Guard.open(logins[login], telemetry=False) as guard:
            [depth] = guard.queue()
            assert (depth.queue, depth.waiting, depth.oldest_seconds < 3600) == ("acme", 1, True)
    office.worker(*FAST)
    wait_until(lambda: execute(postgres_url, "SELECT id FROM agentguard_queue.procrastinate_jobs") == [])
    assert office.told() == ["step nobody"]


def test_doctor_says_that_runs_wait_and_no_worker_is_there(
    office: OfficeOfTest, capsys: pytest.CaptureFixture[str]
) -> None:
    office.guard.submit(office.agents.alone, tenant="acme")
    main(["doctor", "--json"])
    found = {each["check"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
    assert found["queue"]["detail"].startswith("acme: 1 waiting, 0 delayed, 0 running, the oldest for ")
    assert found["worker"] == {
        "check": "worker",
        "status": "note",
        "detail": "none, and runs wait: agentguard worker",
    }


def test_what_a_login_is_not_told_doctor_calls_no_fault_and_names_the_roles_that_are(
    office: OfficeOfTest, logins: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    office.guard.submit(office.agents.alone, tenant="acme")
    for login, hidden in (("agents", {"publisher", "queue", "worker"}), ("operators", set())):
        assert main(["doctor", "--json", "--store", logins[login]]) == 0
        checks = json.loads(capsys.readouterr().out)["checks"]
        found = {each["check"]: each for each in checks if each["check"] in {"publisher", "queue", "worker"}}
        untold = {name for name, each in found.items() if "may not do that" in each["detail"]}
        assert untold == hidden
        for name in untold:
            assert found[name]["status"] == "note"
            assert "agentguard_worker take runs from the queue, agentguard_operator" in found[name]["detail"]


def test_the_length_of_the_queue_is_a_metric(office: OfficeOfTest) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    Telemetry(meter_provider=provider).observe_queue(office.guard.queue)
    office.guard.submit(office.agents.alone, tenant="acme")
    data = reader.get_metrics_data()
    provider.shutdown()
    assert data is not None
    found = {
        (metric.name, point.attributes.get("agentguard.queue.state")): point.value  # type: ignore[union-attr]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }
    assert found["agentguard.queue.depth", "waiting"] == 1
    assert found["agentguard.queue.depth", "running"] == 0
    assert found["agentguard.queue.oldest_age", None] >= 0


def test_dates_and_other_values_come_as_they_were_given(office: OfficeOfTest) -> None:
    when = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    run = office.guard.submit(office.agents.plain, {"when": when, "to": ("a", "b")})
    with office.guard.recover(run.id) as recovered:
        assert recovered.inputs == {"when": when, "to": ("a", "b")}


def test_migrate_brings_the_queue_and_does_so_once(
    empty_postgres: str, open_office: Callable[..., Any]
) -> None:
    assert any(done.startswith("queue ") for done in migrate(empty_postgres))
    assert migrated(empty_postgres) == []
    with open_office(empty_postgres) as office:
        office.guard.submit(office.agents.alone)


def test_migrate_carries_out_the_scripts_of_a_newer_procrastinate(
    postgres_url: str, office: OfficeOfTest
) -> None:
    execute(postgres_url, "DELETE FROM agentguard_queue.migration WHERE name LIKE '03.04.00_50%'")
    [done] = migrated(postgres_url)
    assert "03.04.00_50" in done
    office.guard.submit(office.agents.alone)
    assert len(office.guard.queue()) == 1


@pytest.mark.parametrize("scope", ["run", "tenant", "global"])
def test_the_killer_writes_the_end_of_runs_that_wait_for_a_worker(
    office: OfficeOfTest, scope: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = (office.guard.submit(office.agents.alone, tenant=tenant) for tenant in ("acme", "zeta"))
    target = {"run": [run.id], "tenant": ["--tenant", "acme"], "global": ["--yes"]}[scope]
    assert main(["kill", *target, "--reason", "over quota"]) == 3  # no process was attached
    assert f"ended {2 if scope == 'global' else 1} that waited for a process" in capsys.readouterr().out
    assert run.state is RunState.KILLED
    assert run.wait(1) is RunState.KILLED
    assert (other.state is RunState.KILLED) == (scope == "global")
    assert main(["kill", *target, "--reason", "again"]) == 3
    assert office.guard.verify()
