"""A log that is not what was written is refused before anything runs on it, and the fault is named."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from agentguard import Guard, LogIntegrityError, Run, guarded_step
from agentguard.events.codec import Stored

RAN: list[int] = []


@guarded_step(effect="read")
def work(n: int) -> int:
    RAN.append(n)
    return n * 10


def agent(last: int = 4) -> list[int]:
    return [work(n) for n in range(1, last + 1)]


def crash() -> None:
    """Run "crashed" is left behind in mid-run by a process that is killed."""
    if (pid := os.fork()) == 0:
        try:
            with Guard.open(telemetry=False) as guard, guard.run("program", run_id="crashed", inputs=[4]):
                agent(3)
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(70)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.fixture
def database(home: Path) -> Path:
    """A file with a run that has ended, one that crashed, and a fork of the former."""
    crash()
    with Guard.open(telemetry=False) as guard:
        with guard.run("program", run_id="ended", inputs=[4]):
            agent()
        with guard.fork("ended", 6, new_run_id="forked"):
            agent()
        assert guard.verify()
    RAN.clear()
    return home / "agentguard.db"


Change = tuple[str, str]
#: What somebody with write access does to a run's events, and what is said of it.
CHANGES: dict[str, Change] = {
    "an event was edited": (
        "UPDATE event SET body = CAST(replace(body, 'step_', 'pets_') AS BLOB) WHERE key = {base} + 5",
        "event 5: its hash does not fit: it, or its order, was changed",
    ),
    "an event was edited with its hash": (
        "UPDATE event SET body = CAST(replace(body, 'step_', 'pets_') AS BLOB), hash = zeroblob(32) "
        "WHERE key = {base} + 5",
        "event 5: ",
    ),
    "an event is missing": ("DELETE FROM event WHERE key = {base} + 5", "expected event 5, found 6"),
    "the first event is missing": ("DELETE FROM event WHERE key = {base} + 1", "expected event 1, found 2"),
    "events changed places": (
        "UPDATE event SET body = (SELECT body FROM event AS other WHERE other.key = event.key + 2) "
        "WHERE key = {base} + 4",
        "event 4: its hash does not fit: it, or its order, was changed",
    ),
    "a result was edited": (
        "UPDATE event SET payload = CAST('11' AS BLOB) WHERE key = {base} + 4",
        "event 4: its payload",
    ),
    "arguments were edited": (
        "UPDATE event SET payload = CAST('[[7],{{}}]' AS BLOB) WHERE key = {base} + 3",
        "event 3: its payload",
    ),
    "the inputs were edited": (
        "UPDATE event SET payload = CAST('[5]' AS BLOB) WHERE key = {base} + 1",
        "event 1: its payload",
    ),
}
CUT_OFF = (
    "DELETE FROM event WHERE key > {base} + 6 AND key <= {base} + 4294967295",
    "the log ends before event 11",
)


def change(database: Path, run_id: str, statement: str) -> None:
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f'DROP TRIGGER "{name}"')
        (number,) = connection.execute("SELECT number FROM run WHERE run_id = ?", (run_id,)).fetchone()
        assert connection.execute(statement.format(base=number << 32)).rowcount


def refuses(open_block: Callable[[Guard], Run], said: str, *, of: str, url: str | None = None) -> None:
    """Nothing of a program runs, and nothing is written."""
    with Guard.open(url, telemetry=False) as guard:
        before = everything_in(guard)
        with pytest.raises(LogIntegrityError) as caught, open_block(guard):
            agent()
        assert said in str(caught.value), caught.value
        assert caught.value.run_id == of
        assert everything_in(guard) == before
    assert RAN == []


def everything_in(guard: Guard) -> dict[str, list[Stored]]:
    store = guard.components.store
    return {row.run_id: list(store.read(row.run_id)) for row in store.rows()}


@pytest.mark.parametrize("name", [*CHANGES, "the end was cut off"])
def test_no_replay_of_a_log_that_was_altered(name: str, database: Path) -> None:
    statement, said = CHANGES.get(name, CUT_OFF)
    change(database, "ended", statement)
    refuses(lambda guard: guard.replay("ended"), said, of="ended")


@pytest.mark.parametrize("name", CHANGES)
def test_no_recovery_from_a_log_that_was_altered(name: str, database: Path) -> None:
    statement, said = CHANGES[name]
    change(database, "crashed", statement)
    refuses(lambda guard: guard.recover("crashed"), said, of="crashed")


@pytest.mark.parametrize("name", CHANGES)
def test_no_fork_of_a_log_that_was_altered(name: str, database: Path) -> None:
    statement, said = CHANGES[name]
    change(database, "ended", statement)
    refuses(lambda guard: guard.fork("ended", 8), said, of="ended")


@pytest.mark.parametrize("name", CHANGES)
def test_no_replay_of_a_fork_whose_origin_was_altered(name: str, database: Path) -> None:
    statement, said = CHANGES[name]
    change(database, "ended", statement)
    refuses(lambda guard: guard.replay("forked"), said, of="ended")


def test_a_log_beside_an_altered_one_can_be_replayed(database: Path) -> None:
    change(database, "crashed", CHANGES["an event was edited"][0])
    with Guard.open(telemetry=False) as guard, guard.replay("ended"):
        assert agent() == [10, 20, 30, 40]
    assert RAN == []


# --- files ---------------------------------------------------------------------------------------


def without_an_event(lines: list[bytes]) -> None:
    del lines[6]


def with_another_event(lines: list[bytes]) -> None:
    lines[6] = lines[6].replace(b'"step_', b'"pets_')


def with_another_result(lines: list[bytes]) -> None:
    lines[5] = lines[5].replace(b'"payload":"10"', b'"payload":"11"')


def cut_off(lines: list[bytes]) -> None:
    del lines[8:]


def cut_off_in_a_line(lines: list[bytes]) -> None:
    del lines[8:]
    lines[7] = lines[7][: len(lines[7]) // 2]


def without_the_last_line(lines: list[bytes]) -> None:
    del lines[-1]


@pytest.mark.parametrize(
    "spoil",
    [
        without_an_event,
        with_another_event,
        with_another_result,
        cut_off,
        cut_off_in_a_line,
        without_the_last_line,
    ],
)
def test_no_replay_of_a_file_that_was_altered(
    spoil: Callable[[list[bytes]], None], database: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run.jsonl"
    with Guard.open(telemetry=False) as guard:
        guard.export("ended", path)
    lines = path.read_bytes().splitlines(keepends=True)
    before = list(lines)
    spoil(lines)
    assert lines != before
    path.write_bytes(b"".join(lines))
    refuses(lambda guard: guard.replay("ended"), "event ", of="ended", url=f"file://{path}")
