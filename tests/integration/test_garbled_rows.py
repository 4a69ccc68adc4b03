"""A file that somebody edited by hand: whoever reads it says so, and nothing breaks on it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agentguard import (
    AgentGuardError,
    Budget,
    Guard,
    KillSwitchUnavailableError,
    LogIntegrityError,
    RunStopped,
    guarded_step,
)
from agentguard._process import identity
from agentguard.cli import main
from agentguard.events.codec import chain, genesis
from agentguard.sessions.upkeep import beat

Cli = Callable[..., tuple[int, str, str]]

#: Statements on run "a" and what `verify` says; SQLite gives what `replace` returns as text, not as bytes.
EVENTS = {
    "a body as text": (
        "UPDATE event SET body = replace(body, 'completed', 'failed') WHERE key = {at} + 4",
        4,
    ),
    "a body as a number": ("UPDATE event SET body = 5 WHERE key = {at} + 4", 4),
    "an empty body": ("UPDATE event SET body = '' WHERE key = {at} + 4", 4),
    "a body that is no text": ("UPDATE event SET body = CAST(x'ff00' AS TEXT) WHERE key = {at} + 4", 4),
    "a hash as text": ("UPDATE event SET hash = 'abc' WHERE key = {at} + 4", 4),
    "a hash as a number": ("UPDATE event SET hash = 7 WHERE key = {at} + 4", 4),
    "a payload as text": ("UPDATE event SET payload = replace(payload, '1', '2') WHERE key = {at} + 3", 3),
    "a payload as a number": ("UPDATE event SET payload = 1.5 WHERE key = {at} + 3", 3),
    "a salt as text": ("UPDATE run SET salt = 'aa' WHERE run_id = 'a'", 3),
}
ROWS = {
    "summary": "UPDATE run SET summary = 'garbage' WHERE run_id = 'a'",
    "no summary": "UPDATE run SET summary = '{{}}' WHERE run_id = 'a'",
    "a summary of other types": "UPDATE run SET summary = json_set(summary, '$.steps', 'x') WHERE run_id = 'a'",
    "a summary that is no text": "UPDATE run SET summary = x'ff00' WHERE run_id = 'a'",
    "state": "UPDATE run SET state = 'x' WHERE run_id = 'a'",
}
#: What a row may hold in the place of what was written.
GARBLED = ("'x'", "''", "x'ff00'", "7", "-1", "1e99", "NULL", "'{{}}'", "'[]'")
COLUMNS = ("name", "tenant", "parent_id", "created_ns", "ended_ns", "epoch", "owner", "heartbeat_ns", "salt")


@guarded_step
def echo(value: int) -> int:
    return value


@pytest.fixture
def store(home: Path) -> Path:
    with Guard.open(kill_switch="memory", telemetry=False) as guard:
        for run_id in "ab":
            with guard.run("r", run_id=run_id):
                echo(1)
    return home / "agentguard.db"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        return code, *capsys.readouterr()

    return call


def garble(file: Path, statement: str) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f'DROP TRIGGER "{name}"')
        (number,) = connection.execute("SELECT number FROM run WHERE run_id = 'a'").fetchone()
        connection.execute(statement.format(at=number << 32))


@pytest.mark.parametrize("case", EVENTS)
def test_an_event_of_another_type_is_a_fault_and_no_exception(store: Path, cli: Cli, case: str) -> None:
    statement, seq = EVENTS[case]
    garble(store, statement)
    with Guard.open(kill_switch="memory", telemetry=False) as guard:
        assert [fault[:2] for fault in guard.verify().faults] == [("a", seq)]
        assert guard.verify("b")
        with pytest.raises(LogIntegrityError):
            guard.replay("a").__enter__()
    code, out, _ = cli("verify", "--json")
    assert (code, [fault["seq"] for fault in json.loads(out)["faults"]]) == (1, [seq])
    for command in (["replay", "a"], ["show", "a"], ["export", "a"], ["diff", "a", "b"], ["doctor"]):
        code, out, err = cli(*command)
        assert code in {0, 1}, err
        if "payload" not in case and "salt" not in case and command[0] != "doctor":
            assert code == 1
            assert "run a, event 4" in out + err
    assert cli("what-if", "a", "--steps", "9")[0] in {0, 1}
    assert cli("tail")[0] in {0, 1}


@pytest.mark.parametrize("case", ROWS)
def test_a_garbled_row_is_a_fault_and_hides_no_other_run(store: Path, cli: Cli, case: str) -> None:
    garble(store, ROWS[case])
    with Guard.open(kill_switch="memory", telemetry=False) as guard:
        (fault,) = guard.verify().faults
        assert fault.run_id == "a"
        with pytest.raises(LogIntegrityError, match="run a, event 0: its row .* `agentguard verify`"):
            guard.summary("a")
        assert guard.summary("b").steps == 1
    code, out, err = cli("runs", "--json")
    assert (code, [run["run_id"] for run in json.loads(out)]) == (1, ["b"])
    assert "run a" in err
    for command in (["summary", "a"], ["export", "a"], ["show", "a", "--json"], ["verify"]):
        code, out, err = cli(*command)
        assert code == 1
        assert "run a" in out + err


@pytest.fixture
def left(home: Path) -> Path:
    """A run that ended, and run "a" that nobody carries on, with a tenant, an account and a run inside."""
    with Guard.open(kill_switch="memory", telemetry=False) as guard:
        with guard.run("r", run_id="b"):
            echo(1)
        run = guard.start("r", run_id="a", tenant="t", account="c", account_budget=Budget(steps=9))
        echo(1)
        with guard.run("n"):
            echo(2)
        run.drain(0)
        with suppress(RunStopped):
            run.close()
    with closing(sqlite3.connect(home / "agentguard.db")) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '') WHERE type = 'table'")
    return home / "agentguard.db"


def told(call: Callable[[], object]) -> None:
    """Make a call that may be refused, by an error that has a name."""
    with suppress(AgentGuardError):
        call()


@pytest.mark.parametrize("column", [*COLUMNS, "state", "summary"])
def test_whatever_a_row_holds_no_command_ends_with_an_error_of_python(left: Path, column: str) -> None:
    whole = left.read_bytes()
    for value in GARBLED:
        left.write_bytes(whole)
        garble(left, f"UPDATE run SET {column} = {value} WHERE run_id = 'a'")
        with Guard.open(kill_switch="memory", telemetry=False) as guard:
            for ask in (guard.summary, guard.history, guard.reconstruct, guard.verify):
                told(partial(ask, "a"))
            for ask_all in (guard.runs, guard.verify, guard.costs, guard.approvals, guard.tenants):
                told(ask_all)
            told(partial(beat, guard.runtime))
            for carry_on in (guard.attach, guard.replay, lambda run_id: guard.fork(run_id, at=3)):
                told(lambda: carry_on("a").__enter__().close())  # noqa: B023
            told(partial(guard.pause, "a"))
            told(partial(guard.set_budget, "a", Budget(steps=5)))
            told(partial(guard.kill, run="a", reason="x"))
            told(lambda: guard.recover("a", take_over=True).__enter__().close())
            assert guard.verify("b")


OWNERS: dict[str, dict[str, Any]] = {
    "no host": {"host": None},
    "a pid that is none": {"pid": "x"},
    "a pid of another type": {"pid": [1]},
    "a pid above all": {"pid": 10**30},
    "a start that is none": {"start": "x"},
    "a time that is none": {"monotonic_ns": "x"},
}


@pytest.mark.parametrize("case", OWNERS)
def test_an_owner_of_other_types_is_no_error_of_python(left: Path, case: str) -> None:
    owner = json.dumps(identity() | OWNERS[case])
    with closing(sqlite3.connect(left)) as connection, connection:
        connection.execute("UPDATE run SET owner = ?, heartbeat_ns = 1 WHERE run_id = 'a'", (owner,))
    with Guard.open(kill_switch="memory", telemetry=False) as guard:
        guard.summary("a")
        told(partial(guard.pause, "a"))
        told(lambda: guard.attach("a").__enter__().close())
        with guard.recover("a", take_over=True):
            echo(1)
            with guard.run("n"):
                echo(2)
        assert guard.summary("a").state == "COMPLETED"
        assert guard.verify()


@pytest.mark.parametrize("column", ["name", "tenant"])
def test_a_run_whose_row_is_renamed_is_carried_on_by_nobody(store: Path, column: str) -> None:
    garble(store, f"UPDATE run SET {column} = char(0), state = 'RUNNING' WHERE run_id = 'a'")
    with Guard.open(kill_switch="memory", telemetry=False) as guard:
        for carry_on in (guard.recover, guard.replay, lambda run_id: guard.fork(run_id, at=3)):
            with pytest.raises(LogIntegrityError, match="run a"):
                carry_on("a").__enter__()


def test_a_run_of_which_a_page_is_zeroed_is_a_fault_and_hides_no_other(store: Path, cli: Cli) -> None:
    """What no statement writes: NULL where the schema allows none."""
    with closing(sqlite3.connect(store)) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '') WHERE type = 'table'")
    garble(
        store, "UPDATE run SET name = NULL, tenant = NULL, state = NULL, summary = NULL WHERE run_id = 'a'"
    )
    garble(store, "UPDATE event SET body = NULL, hash = NULL WHERE key = {at} + 4")
    with Guard.open(kill_switch="memory", telemetry=False) as guard:
        assert {fault.run_id for fault in guard.verify().faults} == {"a"}
        assert guard.summary("b").steps == 1
        for ask in (guard.summary, guard.history, guard.reconstruct):
            with pytest.raises(LogIntegrityError):
                ask("a")
    assert cli("runs", "--json")[0] == 1
    assert cli("verify")[0] == 1


def test_a_garbled_owner_is_a_fault_and_the_run_can_be_told(store: Path, cli: Cli) -> None:
    garble(store, "UPDATE run SET owner = 'x' WHERE run_id = 'a'")
    with Guard.open(kill_switch="memory", telemetry=False) as guard:
        (fault,) = guard.verify().faults
        assert fault[:2] == ("a", 5)
        assert "owner" in fault.problem
        assert guard.summary("a").steps == 1
    assert cli("runs")[0] == 0


def test_an_altered_log_is_exported_as_it_is_and_said_to_be_altered(
    store: Path, cli: Cli, tmp_path: Path
) -> None:
    garble(store, EVENTS["a body as text"][0])
    code, _, err = cli("export", "a", "-o", str(tmp_path / "a.jsonl"))
    assert code == 1
    assert "run a, event 4: its hash does not fit" in err
    with Guard.open(f"file://{tmp_path / 'a.jsonl'}", telemetry=False) as guard:
        assert [fault[:2] for fault in guard.verify().faults] == [("a", 4)]


def test_a_run_whose_row_was_deleted_is_a_fault(store: Path, cli: Cli) -> None:
    garble(store, "DELETE FROM run WHERE run_id = 'a'")
    with Guard.open(kill_switch="memory", telemetry=False) as guard:
        (fault,) = guard.verify().faults
        assert fault == ("?", 1, "events of run number 1 are here, and the run's row is gone")
        assert guard.verify("b")
    code, out, _ = cli("verify")
    assert code == 1
    assert "the run's row is gone" in out


def test_a_run_id_of_another_type_is_a_fault(store: Path) -> None:
    garble(store, "UPDATE run SET run_id = CAST(run_id AS BLOB) WHERE run_id = 'a'")
    with Guard.open(kill_switch="memory", telemetry=False) as guard:
        assert [fault.seq for fault in guard.verify().faults] == [1]


BUDGETS: dict[str, dict[str, Any]] = {
    "no tenant": {"tenant": None},
    "a tenant of another type": {"tenant": []},
    "a period that is none": {"per": "week"},
    "a period of another type": {"per": {}},
    "a budget of another type": {"budget": 7},
    "a limit that is none": {"budget": {"usd": "x"}},
}


@pytest.mark.parametrize("case", BUDGETS)
def test_a_tenants_budget_that_is_none_stops_what_it_would_limit(home: Path, cli: Cli, case: str) -> None:
    """Written by somebody who knows how to make the chain fit."""
    with Guard.open(telemetry=False) as guard:
        guard.set_tenant_budget("acme", Budget(usd=1))
        with guard.run("r"):
            echo(1)
    log = home / "control.log"
    event = json.loads(log.read_bytes())["event"]
    event["data"] |= BUDGETS[case]
    body = json.dumps(event, separators=(",", ":")).encode()
    log.write_bytes(b'{"hash":"%s","event":%s}\n' % (chain(genesis("control"), body).hex().encode(), body))
    (home / "kill.page").unlink()
    with Guard.open(telemetry=False) as guard:
        told_of = pytest.raises(
            KillSwitchUnavailableError, match="the control log is damaged at event 1: it sets"
        )
        with told_of, guard.run("r", tenant="acme"):
            echo(1)
        with told_of:
            guard.tenants()
    assert cli("tenants")[0] == 5


@pytest.mark.parametrize("left", [2, 1, 0])
def test_a_control_log_cut_off_is_held_against_the_kill_page(home: Path, cli: Cli, left: int) -> None:
    with Guard.open(telemetry=False) as guard:
        for reason in ("one", "two", "three"):
            guard.kill(run="nobody", reason=reason)
        assert guard.verify()
    log = home / "control.log"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:left]))
    problem = "the log ends before record 3, which the kill page has announced"
    with Guard.open(telemetry=False) as guard:
        assert guard.verify("control").faults == (("control", left, problem),)
        assert guard.verify().faults == (("control", left, problem),)
    code, out, _ = cli("verify", "--json")
    assert (code, json.loads(out)["faults"][0]["problem"]) == (1, problem)


def test_an_anchored_run_that_was_pruned_is_told(store: Path, cli: Cli) -> None:
    with Guard.open(kill_switch="page", telemetry=False) as guard:
        heads = {run.run_id: run.head for run in guard.runs()}
        guard.prune(0)
        report = guard.verify(anchors=heads)
        assert (bool(report), report.pruned) == (True, 2)
        assert "2 anchored runs are gone, pruned on record" in str(report)
    head = heads["a"]
    code, out, _ = cli("verify", "--anchor", f"a={head.seq}:{head.hash}")
    assert code == 0
    assert "1 anchored runs are gone, pruned on record" in out
