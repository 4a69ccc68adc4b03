"""Checkpointers of LangGraph's: a recovery goes on from them, and a replay writes nothing into them."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver

from agentguard import Guard, ReplayDivergenceError, RunState
from agentguard_langchain import CheckpointedReplayError
from tests.integrations.langchain.checkpointed import BUDGET, GO, Program, thread

PROGRAM = Path(__file__).with_name("checkpointed.py")


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints.db"


@pytest.fixture
def saver(db: Path) -> Iterator[SqliteSaver]:
    connection = sqlite3.connect(db, check_same_thread=False)
    yield SqliteSaver(connection)
    connection.close()


def crash(db: Path, *, at: int, parallel: bool = False) -> None:
    command = [sys.executable, str(PROGRAM), str(db), str(at), str(int(parallel))]
    assert subprocess.run(command, timeout=200, check=False).returncode == 9


def written(saver: SqliteSaver) -> list[Any]:
    return [found.checkpoint["id"] for found in saver.list(None)]


# --- recovery --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at", "parallel"), [(0, False), (1, False), (2, False), (0, True), (2, True)])
def test_a_recovery_goes_on_from_the_checkpoint(
    home: Path, db: Path, saver: SqliteSaver, at: int, parallel: bool
) -> None:
    crash(db, at=at, parallel=parallel)
    program = Program(saver, parallel=parallel)
    with Guard.open(telemetry=False) as guard:
        with guard.recover("r") as run:
            assert program.go(None) == "done"
        summary = guard.summary("r")
        assert summary.state is RunState.COMPLETED
        assert summary.budget == BUDGET
        assert guard.verify("r")
        finished = [e.key for e in guard.history("r") if e.type == "step_completed" and e.name == "work"]
        assert len(finished) == len(set(finished)) == 3
        # The call that the process died in is charged, and so is its second attempt.
        assert run.spent.steps == (6 if parallel else 8)
    assert set(program.worked) >= {at}
    assert program.worked == sorted(set(program.worked))


def test_a_recovery_from_the_start_in_a_new_thread_is_served_as_ever(
    home: Path, db: Path, saver: SqliteSaver
) -> None:
    crash(db, at=2)
    program = Program(saver)
    with Guard.open(telemetry=False) as guard, guard.recover("r"):
        assert program.go(GO, "another") == "done"
    assert program.worked == [2]
    assert program.model.asked == [3]


def test_a_run_that_went_on_from_a_checkpoint_is_replayed_from_its_start(
    home: Path, db: Path, saver: SqliteSaver
) -> None:
    crash(db, at=1)
    with Guard.open(telemetry=False) as guard:
        with guard.recover("r"):
            Program(saver).go(None)
        replayed = Program(InMemorySaver())
        with guard.replay("r"):
            assert replayed.go(GO) == "done"
    assert replayed.worked == replayed.model.asked == []


def test_calls_of_another_thread_are_not_taken_for_those_before_the_checkpoint(
    home: Path, db: Path, saver: SqliteSaver
) -> None:
    crash(db, at=2)
    program = Program(saver)
    with Guard.open(telemetry=False) as guard:
        with pytest.raises(ReplayDivergenceError, match="a run for each thread"), guard.recover("r"):
            program.go(None)
            program.go(GO, "another")
    assert program.worked == [2]


# --- replay ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke"])
def test_a_replay_is_refused_before_it_writes_into_a_thread(
    guard: Guard, db: Path, saver: SqliteSaver, way: str
) -> None:
    with guard.run("a") as run:
        Program(saver).go(GO)
    before = written(saver)
    assert before
    agent = Program(saver).agent
    with pytest.raises(CheckpointedReplayError, match="InMemorySaver"), guard.replay(run.id):
        if way == "invoke":
            agent.invoke(GO, thread())
        elif way == "stream":
            list(agent.stream(GO, thread()))
        else:
            asyncio.run(agent.ainvoke(GO, thread()))
    assert written(saver) == before


def test_a_replay_in_memory_is_served(guard: Guard, saver: SqliteSaver) -> None:
    with guard.run("a") as run:
        Program(saver).go(GO)
    before, replayed = written(saver), Program(InMemorySaver())
    with guard.replay(run.id):
        assert replayed.go(GO) == "done"
    assert replayed.worked == []
    assert written(saver) == before
