"""A log that the first schema wrote verifies, adds up, replays and carries on, whatever has come since.

`tests/data/schema_1` holds the agent and what it left behind, as text.
"""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from agentguard import Guard, RunState
from agentguard.runs.summary import from_data

DATA = Path(__file__).parents[1] / "data" / "schema_1"
NAME = "schema_1_agent"


@pytest.fixture
def agent() -> Iterator[ModuleType]:
    """The agent, under the name that its types have on record."""
    spec = importlib.util.spec_from_file_location(NAME, DATA / "agent.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[NAME]


@pytest.fixture
def database(home: Path) -> Guard:
    """A guard on the database that was dumped."""
    with closing(sqlite3.connect(home / "agentguard.db")) as connection:
        connection.executescript((DATA / "log.sql").read_text())
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    return Guard.open(telemetry=False)


@pytest.fixture(params=["database", "export"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guard]:
    if request.param == "database":
        guard = request.getfixturevalue("database")
    else:
        shutil.copy(DATA / "run.jsonl", tmp_path)
        guard = Guard.open(f"file://{tmp_path}/run.jsonl", telemetry=False)
    with guard:
        yield guard


def test_an_old_log_verifies_and_adds_up(old: Guard) -> None:
    report = old.verify()
    assert report, report
    assert old.summary("travel").state is RunState.FAILED
    assert str(old.summary("travel").usage.usd) == "0.05"
    for row in old.runs():
        stored = old.components.store.row(row.run_id)
        assert stored is not None
        # Rows of then did not count what cannot be replayed, as the log tells.
        told = msgspec.structs.replace(old.reconstruct(row.run_id), unreplayable=row.unreplayable)
        assert told == row
        assert not row.state.final or row == from_data(stored.summary)
        assert [event.seq for event in old.history(row.run_id)] == list(range(1, row.head.seq + 1))


def test_an_old_log_replays(old: Guard, agent: ModuleType) -> None:
    replay = old.replay("travel")
    assert replay.inputs == {"to": "Bergen"}
    seen, stop = asyncio.run(agent.carried_out(old, replay))
    assert agent.as_text(seen, stop) == (DATA / "seen.txt").read_text()
    assert agent.RAN == []
    assert replay.spent == old.summary("travel").usage


def test_an_old_run_is_carried_on(database: Guard, agent: ModuleType) -> None:
    """What was begun before an upgrade is ended after it."""
    with database as old:
        assert old.summary("half").state is RunState.RUNNING
        with old.recover("half", take_over=True) as run:
            assert run.inputs == {"train": "R1"}
            assert agent.reserve("R1", 1) == agent.Seat("R1", 1)
            assert run.call("die", divmod, 0, 1, effect="idempotent", capture="none") == (0, 0)
            assert agent.RAN == []
            assert agent.reserve("R9", 9) == agent.Seat("R9", 9)
        assert agent.RAN == ["reserve"]
        assert old.summary("half").state is RunState.COMPLETED
        assert old.verify("half")


def test_an_old_run_is_forked_and_asked(database: Guard, agent: ModuleType) -> None:
    with database as old:
        answer = old.what_if("travel", agent.Budget(usd="0.01"))
        assert (answer.would_stop, answer.seq, answer.resource) == (True, 4, "usd")
        wider = agent.Budget(usd="1")
        last = old.summary("travel").head.seq - 1
        with old.fork("travel", last, budget=wider, new_run_id="wider") as fork:
            seen = asyncio.run(agent.travel(old, fork))
        recorded = (DATA / "seen.txt").read_text().splitlines()[:-1]
        assert agent.as_text(seen, {}).splitlines()[: len(recorded)] == recorded
        assert len(seen) > len(recorded)
        assert old.summary("wider").state is RunState.COMPLETED
        assert old.verify("wider")
