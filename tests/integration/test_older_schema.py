"""What only reads leaves a SQLite file of an older schema as it is; what writes brings it up to date."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from agentguard import Budget, Guard, guarded_step
from agentguard.cli import main
from agentguard.errors import StoreUnavailableError
from agentguard.stores import _sqlite_file

NEWEST = _sqlite_file.known_schema()
#: An agent of a version that knew fewer schemas: as many as it is told.
AGENT = """
import sys
from agentguard.stores import _sql
newest, known = _sql.migrations("sqlite"), int(sys.argv[1])
_sql.migrations = lambda backend: newest[:known]
from agentguard import Budget, Guard, guarded_step

@guarded_step
def work(number):
    return number

with Guard.open(telemetry=False, kill_switch="memory") as guard:
    guard.set_tenant_budget("acme", Budget(steps=50))
    for name in sys.argv[2:]:
        with guard.run(name, run_id=name, tenant="acme"):
            work(1)
            print(name, flush=True)
            sys.stdin.readline()
            work(2)
"""
READING = (
    *(["runs"], ["show", "before"], ["tail"], ["tail", "before"], ["summary", "before"], ["verify"], ["top"]),
    *(
        ["what-if", "before", "--steps", "9"],
        ["diff", "before", "before"],
        ["export", "before", "-o", "x.jsonl"],
    ),
    *(["costs"], ["approvals"], ["doctor"]),
)


@guarded_step
def work(number: int) -> int:
    return number


def agent(schema: int, *names: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", AGENT, str(schema), *names],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(agent: subprocess.Popen[str]) -> str:
    _, complaints = agent.communicate("\n" * 9, timeout=60)
    return complaints


@pytest.fixture
def file(home: Path) -> Path:
    return home / "agentguard.db"


@pytest.fixture(params=range(1, NEWEST))
def schema(request: pytest.FixtureRequest, file: Path) -> int:
    """The schema of a file that an agent of then has made."""
    schema: int = request.param
    assert finish(agent(schema, "before")) == ""
    return schema


def schema_of(file: Path) -> int:
    with closing(sqlite3.connect(file)) as connection:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        return version


def test_what_reads_leaves_the_file_to_the_agents_of_then(
    schema: int,
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    live = agent(schema, "live")
    assert live.stdout is not None
    assert live.stdout.readline() == "live\n"
    for command in READING:
        assert main(command) == 0, f"{command}: {capsys.readouterr()}"
        assert schema_of(file) == schema, command
    assert f"schema {schema} (the next that writes makes it {NEWEST})" in capsys.readouterr().out
    assert finish(live) == ""
    assert finish(agent(schema, "later")) == ""
    with Guard.open(telemetry=False) as guard:
        assert [run.run_id for run in guard.runs()] == ["later", "live", "before"]
        assert [event.run_id for event in guard.events()] == [
            *["before"] * 7,
            *["live"] * 7,
            *["later"] * 7,
        ]
        assert guard.events(guard.events()[-1].position) == []
        assert guard.verify()
        assert schema_of(file) == schema


def test_what_writes_brings_it_up_to_date_with_all_that_is_in_it(schema: int, file: Path) -> None:
    with Guard.open(telemetry=False) as guard:
        before = guard.history("before")
        positions = [event.position for event in guard.events()]
        assert schema_of(file) == schema
        guard.set_tenant_budget("acme", Budget(steps=3))
        with guard.run("after", run_id="after", tenant="acme"):
            work(1)
        assert schema_of(file) == NEWEST
        assert guard.history("before") == before
        assert [event.position for event in guard.events()][: len(positions)] == positions
        assert guard.verify()
        assert [(account.tenant, account.spent.steps) for account in guard.tenants()] == [("acme", 3)]
    assert "upgrade agentguard" in finish(agent(schema, "too late"))


def test_a_file_that_was_read_and_is_replaced_is_noticed_by_the_first_that_writes(
    schema: int, file: Path
) -> None:
    with Guard.open(telemetry=False) as guard:
        assert guard.runs()
        copy = file.with_name("copy.db")
        copy.write_bytes(file.read_bytes())
        copy.replace(file)
        with pytest.raises(StoreUnavailableError, match="is not the file any more"), guard.run("after"):
            work(1)


def test_a_publisher_that_saves_nothing_yet_begins_at_the_first_event(schema: int, file: Path) -> None:
    with Guard.open(telemetry=False) as guard:
        readers = guard.components.abilities.readers
        assert readers is not None
        assert (readers.position("kafka"), readers.positions()) == (0, {})
        assert schema_of(file) == schema
        readers.save_position("kafka", 4)
        assert (readers.position("kafka"), readers.positions()) == (4, {"kafka": 4})
        assert schema_of(file) == NEWEST
