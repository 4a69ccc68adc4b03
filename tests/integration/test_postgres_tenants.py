"""Tenants in PostgreSQL are kept apart by the server, whatever a login says to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest

from agentguard import Budget, Guard, StoreUnavailableError, guarded_step
from agentguard.cli import main
from agentguard.errors import ControlLogDeniedError
from agentguard.stores import _sql
from agentguard.stores.postgres import PostgresEventStore
from agentguard.testing.conformance._given import a_row, log_of, unplaced
from tests.postgres import execute, login, store_at, with_month


@guarded_step
def work(item: int) -> str:
    return f"result {item}"


@pytest.fixture
def roles(postgres_url: str) -> Iterator[dict[str, str]]:
    """URLs of logins: of each tenant, of none yet, of the agents of tenant a, of all agents, and of operators."""
    tag = postgres_url.rpartition("/")[2]
    names = {what: f"{tag}_{what}" for what in ("a", "b", "unbound", "agents_a", "agents", "operators")}
    for what, name in names.items():
        role = {"agents_a": "agent", "agents": "agent", "operators": "operator"}.get(what, "tenant")
        execute(postgres_url, f"CREATE ROLE {name} LOGIN IN ROLE agentguard_{role}")
    for what, tenant in (("a", "a"), ("b", "b"), ("agents_a", "a")):
        execute(postgres_url, f"INSERT INTO agentguard.tenant_login VALUES ('{names[what]}', '{tenant}')")
    yield {what: login(postgres_url, name) for what, name in names.items()} | {"postgres": postgres_url}
    for name in names.values():
        execute(postgres_url, f"DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.fixture
def filled(roles: dict[str, str]) -> dict[str, str]:
    """The runs of two tenants, a with 1 and b with 7, by their ids."""
    runs = {}
    with Guard.open(roles["agents"], telemetry=False) as guard:
        guard.set_tenant_budget("a", Budget(steps=100))
        guard.set_tenant_budget("b", Budget(steps=100))
        for tenant, count in (("a", 1), ("b", 7)):
            for _ in range(count):
                with guard.run("secret-of-" + tenant, tenant=tenant) as run:
                    work(1)
                runs[tenant] = run.id
    return runs


def ask(url: str, sql: str) -> list[tuple[Any, ...]]:
    return execute(url, sql)


def test_a_tenants_login_pages_through_its_own_runs_and_no_others(
    roles: dict[str, str], filled: dict[str, str]
) -> None:
    with Guard.open(roles["agents"], telemetry=False) as guard, guard.run("newer", tenant="a") as newer:
        work(1)
    with Guard.open(roles["a"], telemetry=False) as guard:
        store = guard.components.store
        assert [row.run_id for row in store.rows(limit=1)] == [newer.id]
        assert [row.run_id for row in store.rows(before=newer.id)] == [filled["a"]]
        assert store.rows(before=filled["b"]) == []


def test_a_tenants_login_reads_its_own_tenant_and_no_other(
    roles: dict[str, str], filled: dict[str, str]
) -> None:
    with Guard.open(roles["a"], telemetry=False) as guard:
        assert [row.tenant for row in guard.runs()] == ["a"]
        assert guard.runs(tenant="b") == []
        assert guard.history(filled["a"])[-1].type == "run_completed"
        assert guard.verify(filled["a"])
        assert guard.components.store.row(filled["b"]) is None
        assert list(guard.components.store.read(filled["b"])) == []
        assert guard.components.store.last(filled["b"]) is None
        assert {run_id for run_id, _ in guard.components.store.tail()} == {filled["a"]}
        assert guard.components.store.tail(tenant="b") == []
        assert list(guard.components.store.accounts(["tenant:a", "tenant:b"])) == ["tenant:a"]
        assert guard.components.store.neighbours(filled["b"])[1] is None
        assert guard.components.store.neighbours("") == (None, filled["a"])
        with pytest.raises(
            StoreUnavailableError, match="this login may not do that; agentguard_agent may read and append"
        ):
            with guard.run("mine", tenant="a"):
                pass


@pytest.mark.parametrize("login", ["agents", "agents_a"])
def test_the_neighbours_of_an_id_are_found_by_the_index_of_ids(
    roles: dict[str, str], filled: dict[str, str], login: str
) -> None:
    """Also under row-level security, and whatever the order of words in the database."""
    query = _sql.queries("postgres")["neighbours"]
    with psycopg.connect(roles[login]) as connection:
        connection.execute("SET enable_seqscan = off; SET enable_sort = off; SET enable_bitmapscan = off")
        found = connection.execute(f"EXPLAIN {query}".encode(), {"run_id": filled["a"]}).fetchall()
    plan = "\n".join(line for (line,) in found)
    assert plan.count("Index Cond: (run_id < ") == plan.count("Index Cond: (run_id > ") == 1, plan
    assert "Sort" not in plan


def test_an_account_that_runs_share_by_name_is_its_tenants_alone(roles: dict[str, str]) -> None:
    account: Any = {"account": "thread:42", "account_budget": Budget(steps=9)}
    with Guard.open(roles["agents_a"], telemetry=False) as guard, guard.run("turn", tenant="a", **account):
        work(1)
    with Guard.open(roles["agents"], telemetry=False) as guard:
        with guard.run("turn", tenant="b", **account):
            work(1)
            work(2)
        account["account"] = "thread:7"
        with guard.run("turn", tenant="a", **account), guard.run("helper", tenant="b"):
            work(3)  # a step of one tenant opens the account of another
    for reader, other, name, steps in (
        ("a", "b", "thread:42", 1),
        ("b", "a", "thread:42", 2),
        ("a", "b", "thread:7", 1),
    ):
        with Guard.open(roles[reader], telemetry=False) as guard:
            found = guard.account(name, tenant=reader)
            assert found is not None
            assert found.spent.steps == steps
            assert guard.account(name, tenant=other) is None


WIDEN = (
    "SELECT 1",
    "SELECT set_config('agentguard.tenant', 'b', false)",
    "SET agentguard.tenant = ''",
    "SET row_security = off",
)
QUERIES = (
    "SELECT * FROM agentguard.run WHERE tenant = 'b'",
    "SELECT * FROM agentguard.event WHERE tenant = 'b'",
    "SELECT * FROM agentguard.account WHERE tenant = 'b'",
    "SELECT * FROM agentguard.event_of_other_months WHERE tenant = 'b'",
    "SELECT * FROM agentguard.tenant_login WHERE tenant = 'b'",
    "SELECT * FROM agentguard.tenant_runs() WHERE tenant = 'b'",
    "SELECT * FROM agentguard.tail(0, 'b', 100)",
    "SELECT * FROM agentguard.tail(0, NULL, 100) WHERE tenant = 'b'",
    "SELECT * FROM agentguard.hold(ARRAY[{number}], '{{}}', '{{}}', '{{}}', 0, NULL)",
    "SELECT * FROM agentguard.hold(ARRAY[{number}], '{{}}', '{{}}', '{{}}', 1000, 'b')",
    "SELECT agentguard.append({number}, 1, NULL, 0, 0, 'b', '{{}}', '{{}}', '{{}}') EXCEPT SELECT 'm'",
    "SELECT * FROM agentguard.tenant_accounts() WHERE tenant = 'b'",
    "SELECT * FROM agentguard.kill_record",
    "SELECT * FROM agentguard.kill_host",
    "SELECT * FROM agentguard.reader_position",
    "SELECT * FROM agentguard.control_records(0)",
    "SELECT * FROM agentguard.control_records(1000000)",
    "SELECT * FROM agentguard.host_reports()",
    "SELECT * FROM agentguard_queue.procrastinate_jobs",
    "SELECT * FROM agentguard_queue.procrastinate_events",
    "SELECT * FROM agentguard_queue.depth",
    "SELECT r.number FROM pg_stats s, agentguard.run r WHERE r.tenant = 'b'",
    "SELECT most_common_vals, histogram_bounds FROM pg_stats WHERE schemaname = 'agentguard'",
)


@pytest.mark.parametrize("tenant", ["a", "unbound", "agents_a"])
def test_no_hand_written_query_reads_another_tenant(
    roles: dict[str, str], filled: dict[str, str], tenant: str, postgres_url: str
) -> None:
    [[number]] = ask(postgres_url, f"SELECT number FROM agentguard.run WHERE run_id = '{filled['b']}'")
    for widen in WIDEN:
        with psycopg.connect(roles[tenant], autocommit=True) as connection:
            connection.execute(widen)
            for query in QUERIES:
                sql = query.format(number=number)
                try:
                    assert connection.execute(sql).fetchall() == [], (widen, sql)
                except psycopg.errors.InsufficientPrivilege as refused:
                    assert "secret-of-b" not in str(refused)


def test_no_hand_written_statement_writes_to_another_tenant(
    roles: dict[str, str], filled: dict[str, str], postgres_url: str
) -> None:
    [[number]] = ask(postgres_url, f"SELECT number FROM agentguard.run WHERE run_id = '{filled['b']}'")
    ask(postgres_url, "INSERT INTO agentguard.kill_host VALUES ('h', 'of a host')")
    before = ask(postgres_url, "SELECT * FROM agentguard.run WHERE tenant = 'b' ORDER BY born")
    append = (
        f"SELECT * FROM agentguard.append({number}, 7, NULL, 0, 1000, NULL, "
        "ARRAY['x'::bytea], ARRAY['x'::bytea], ARRAY[NULL::bytea])"
    )
    [[mine]] = ask(postgres_url, f"SELECT number FROM agentguard.run WHERE run_id = '{filled['a']}'")
    accounts = ask(postgres_url, "SELECT * FROM agentguard.account ORDER BY id")
    [[charges]] = ask(
        postgres_url,
        "SELECT json_agg(json_build_array(id, data::jsonb - '{spent,reserved,excess}'::text[], NULL, NULL, "
        "'[[\"steps\", 1, 0, 0, 0, 100]]'::json))::text FROM agentguard.account WHERE id = 'tenant:b'",
    )
    charge = (
        f"SELECT agentguard.append({mine}, (SELECT max(seq) + 1 FROM agentguard.event WHERE number = {mine}), "
        "NULL, 0, 1000, NULL, ARRAY['x'::bytea], ARRAY['x'::bytea], ARRAY[NULL::bytea], "
        f"'{charges}')"
    )
    put = (
        f"SELECT agentguard.put(0, ARRAY[{number}], ARRAY[99], ARRAY['x'::bytea], ARRAY['x'::bytea], "
        "ARRAY[NULL::bytea], ARRAY['tenant:b'], ARRAY['{}'])"
    )
    for statement in (
        append,
        charge,
        f"SELECT agentguard.charge('{charges}')",
        put,
        f"UPDATE agentguard.run SET state = 'KILLED' WHERE number = {number}",
        "INSERT INTO agentguard.run (number, run_id, born, tenant, name, state, created_ns, epoch, owner, "
        "heartbeat_ns, summary) VALUES (1, 'x', 1, 'b', 'n', 'RUNNING', 1, 1, '{}', 1, '{}')",
        f"DELETE FROM agentguard.event WHERE number = {number}",
        "SELECT * FROM agentguard.drop_month('event_2026_01', 1, '{}')",
        "INSERT INTO agentguard.tenant_login VALUES ('x', 'b')",
        "SELECT agentguard.add_control_record(1, 'x', 'x', 'x')",
        "SELECT agentguard.report_host('x', '{}')",
        "SELECT agentguard.forget_hosts(NULL, -1)",
        "INSERT INTO agentguard.kill_record VALUES (1, 'x', 'x')",
        "INSERT INTO agentguard.kill_host VALUES ('x', 'x')",
        "DELETE FROM agentguard.kill_host",
        "BEGIN; LOCK TABLE agentguard.kill_host IN SHARE MODE; COMMIT",
        "BEGIN; LOCK TABLE agentguard.run IN SHARE MODE; COMMIT",
    ):
        for tenant in ("a", "unbound", "agents_a"):
            try:
                ask(roles[tenant], statement)
            except (psycopg.errors.InsufficientPrivilege, psycopg.errors.RaiseException):
                continue
    assert ask(postgres_url, "SELECT * FROM agentguard.run WHERE tenant = 'b' ORDER BY born") == before
    assert ask(
        postgres_url, f"SELECT count(*) FROM agentguard.event WHERE number = {number} AND seq > 5"
    ) == [(0,)]
    assert ask(postgres_url, "SELECT * FROM agentguard.account ORDER BY id") == accounts
    assert ask(postgres_url, "SELECT count(*) FROM agentguard.kill_record") == [(0,)]
    assert ask(postgres_url, "SELECT host, report FROM agentguard.kill_host") == [("h", "of a host")]
    with Guard.open(postgres_url, telemetry=False) as guard:
        assert guard.verify()


def test_neither_explain_nor_numbers_nor_errors_count_the_rows_of_another_tenant(
    roles: dict[str, str], filled: dict[str, str], postgres_url: str
) -> None:
    """What a tenant's login can see is the same, however many runs another tenant has."""

    def seen() -> list[Any]:
        plans = [
            ask(roles["a"], f"EXPLAIN (ANALYZE, TIMING off, SUMMARY off, BUFFERS off, COSTS on) {query}")
            for query in (
                "SELECT * FROM agentguard.tenant_runs() WHERE tenant = 'b'",
                f"SELECT * FROM agentguard.tenant_events('{filled['b']}', 0)",
                "SELECT * FROM agentguard.tenant_tail(0, 1000) WHERE tenant = 'b'",
            )
        ]
        errors: list[Any] = []
        for query in (
            "EXPLAIN ANALYZE SELECT * FROM agentguard.run",
            "EXPLAIN SELECT * FROM agentguard.event WHERE tenant = 'b'",
            "SELECT last_value FROM pg_sequences WHERE schemaname = 'agentguard'",
            "INSERT INTO agentguard.run (run_id) VALUES ('x')",
        ):
            try:
                errors.append(ask(roles["a"], query))
            except psycopg.Error as error:
                errors.append(str(error))
        mine = ask(roles["a"], "SELECT run_id FROM agentguard.tenant_runs()")
        return [plans, errors, mine]

    before = seen()
    with Guard.open(roles["agents"], telemetry=False) as guard:
        for _ in range(5):
            with guard.run("more", tenant="b"):
                work(2)
    execute(postgres_url, "ANALYZE agentguard.run; ANALYZE agentguard.event")
    assert seen() == before


def test_a_store_that_is_kept_to_a_tenant_is_refused_with_a_login_that_nothing_binds(
    postgres_url: str, roles: dict[str, str], filled: dict[str, str]
) -> None:
    with Guard.open(f"{roles['agents']}?tenant=a", telemetry=False) as guard:
        assert [row.tenant for row in guard.runs()] == ["a"]
        with pytest.raises(StoreUnavailableError, match="row-level security"):
            with guard.run("theirs", tenant="b"):
                pass
    with Guard.open(f"{postgres_url}?tenant=a", telemetry=False) as guard:
        with pytest.raises(StoreUnavailableError, match="does not bind this login"):
            guard.runs()


def test_agents_append_and_only_operators_erase_and_prune(
    roles: dict[str, str], filled: dict[str, str]
) -> None:
    with Guard.open(roles["agents"], telemetry=False) as guard:
        with pytest.raises(StoreUnavailableError, match="agentguard_operator"):
            guard.components.store.erase(filled["a"])
        with pytest.raises(StoreUnavailableError, match="agentguard_operator"):
            guard.components.store.prune(2**62)
    with Guard.open(roles["operators"], telemetry=False) as guard:
        assert guard.components.store.erase(filled["a"]) > 0
        assert len(guard.components.store.prune(2**62)) == 8


def test_who_prunes_the_runs_of_one_tenant_drops_no_month_with_those_of_another(
    roles: dict[str, str], postgres_url: str
) -> None:
    with_month(postgres_url, "2026-01-01", "2026-02-01")
    with store_at(postgres_url, "2026-01-05 12:00Z") as then:
        for tenant, ended in (("a", 5), ("b", 50)):
            then.create(a_row(tenant, tenant=tenant, state="COMPLETED", ended_ns=ended), log_of(tenant, 2))
    with closing(PostgresEventStore(roles["operators"], tenant="a")) as store:
        assert store.prune(10) == ["a"]
        assert store.prune(100) == []
    with closing(PostgresEventStore(roles["operators"])) as store:
        assert unplaced(store.read("b")) == log_of("b", 2)
        assert store.prune(100) == ["b"]
    assert execute(postgres_url, "SELECT to_regclass('agentguard.event_2026_01')") == [(None,)]


def test_the_commands_for_tenants_set_limits_and_show_what_was_spent(
    roles: dict[str, str], filled: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("AGENTGUARD_STORE", roles["operators"])
    assert main(["tenants"]) == 0
    out = capsys.readouterr().out
    assert "7 steps" in out
    assert "1 step" in out
    assert main(["tenants", "c", "--usd", "2.50", "--counter", "emails=3", "--per", "day", "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["tenant"], row["per"], row["budget"]) == ("c", "day", {"usd": "2.5", "emails": 3})
    assert main(["tenants", "c", "--lift", "--per", "day"]) == 0
    assert "no tenant has a budget" in capsys.readouterr().out
    assert main(["tenants", "--usd", "1"]) == 2
    assert main(["tenants", "c", "--usd", "1", "--per", "week"]) == 2


@pytest.mark.parametrize("who", ["a", "agents_a"])
def test_a_tenants_login_is_shown_its_limits_and_verifies_its_logs_with_kills_on_the_server(
    roles: dict[str, str],
    filled: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    who: str,
) -> None:
    """The default: the control log, which says what limits there are, lies on the server."""
    monkeypatch.setenv("AGENTGUARD_STORE", roles["operators"])
    monkeypatch.delenv("AGENTGUARD_KILL_SWITCH")
    for tenant in ("a", "b"):
        assert main(["tenants", tenant, "--steps", "40", "--per", "month"]) == 0
        assert main(["tenants", tenant, "--steps", "99"]) == 0
        assert main(["tenants", tenant, "--steps", "50"]) == 0
    assert main(["tenants", "a", "--steps", "7", "--per", "day"]) == 0
    assert main(["tenants", "a", "--lift", "--per", "day"]) == 0
    capsys.readouterr()
    monkeypatch.setenv("AGENTGUARD_STORE", roles[who])
    assert main(["tenants", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["tenant"], row["per"], row["budget"]) for row in rows] == [
        ("a", "month", {"steps": 40}),
        ("a", None, {"steps": 50}),
    ]
    assert rows[1]["spent"]["steps"] == 1
    assert main(["tenants", "b"]) == 0
    assert "no tenant has a budget" in capsys.readouterr().out
    assert main(["verify"]) == 0
    assert "of 1 run; " in (out := capsys.readouterr().out)
    assert "the control log was left out" in out
    assert main(["verify", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["intact"], report["runs"], report["left_out"]) == (True, 1, ["control"])
    assert main(["verify", filled["a"]]) == 0
    with Guard.open(roles[who], telemetry=False) as guard:
        assert [(account.tenant, account.per) for account in guard.tenants()] == [("a", "month"), ("a", None)]
        assert guard.verify().left_out == ("control",)
        with pytest.raises(ControlLogDeniedError):
            guard.kills()
    # What was asked for by name is not left out.
    assert main(["verify", "control"]) == 5
    assert main(["verify", "--anchor", f"control=1:{'0' * 64}"]) == 5
    assert main(["verify", filled["b"]]) == 3
    monkeypatch.setenv("AGENTGUARD_STORE", roles["operators"])
    capsys.readouterr()
    assert main(["verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == []


@pytest.mark.parametrize("binder", ["operators", "postgres"])
def test_a_login_is_bound_to_one_tenant_by_command(
    binder: str,
    roles: dict[str, str],
    filled: dict[str, str],
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    name = postgres_url.rpartition("/")[2] + "_reader"
    execute(postgres_url, f"CREATE ROLE {name} LOGIN")
    try:
        monkeypatch.setenv("AGENTGUARD_STORE", roles[binder])
        assert main(["tenants", "a", "--login", name]) == 0
        assert main(["tenants", "a", "--login", name]) == 0
        assert main(["tenants", "b", "--login", name]) == 5
        assert "another tenant" in capsys.readouterr().err
        with Guard.open(login(postgres_url, name), telemetry=False) as guard:
            assert [row.tenant for row in guard.runs()] == ["a"]
        monkeypatch.setenv("AGENTGUARD_STORE", roles["agents"])
        assert main(["tenants", "a", "--login", name]) == 5
        assert "agentguard_operator" in capsys.readouterr().err
        monkeypatch.setenv("AGENTGUARD_STORE", roles["operators"])
        assert main(["tenants", "a", "--login", f"{name}_2"]) == 5
        assert f'role "{name}_2" does not exist' in capsys.readouterr().err
        assert ask(postgres_url, f"SELECT * FROM agentguard.tenant_login WHERE login = '{name}_2'") == []
    finally:
        execute(postgres_url, f"DROP OWNED BY {name}; DROP ROLE {name}")
