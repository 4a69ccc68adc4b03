"""The WAL of a SQLite store stays small: its pages move in a thread of their own."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentguard import Guard
from agentguard.budget.ledger import Movement
from agentguard.cli import main
from agentguard.protocols import StoreBusyError
from agentguard.stores import _checkpointer
from agentguard.stores._checkpointer import BEGIN_ANEW_FROM, STAYS, WAIT_FROM, Checkpointer, reaches, wal_size
from agentguard.stores.sqlite import SQLiteEventStore
from agentguard.testing.conformance._given import a_row, log_of, opening
from tests.kit import wait_until

WRITES = """
import sys
from agentguard import Guard
with Guard.open(sys.argv[1], kill_switch="memory", telemetry=False) as guard, guard.run("writer") as run:
    for number in range(int(sys.argv[2])):
        run.call("note", len, "x" * int(sys.argv[3]))
"""


def write(guard: Guard, count: int) -> None:
    with guard.run("writer") as run:
        for _ in range(count):
            run.call("note", len, "x" * 4000)


def grow(guard: Guard, path: Path) -> None:
    """Write until the thread has begun that has the WAL begin anew."""
    while not writers():
        write(guard, 50)


def writers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "agentguard-checkpoint"]


def largest_wal(path: Path, steps: int, size: int, readers: tuple[sqlite3.Connection, ...] = ()) -> int:
    """Let two processes write without a pause; each reader begins before the one before it ends."""
    url = f"sqlite:///{path}"
    with Guard.open(url, kill_switch="memory", telemetry=False) as guard:
        write(guard, 1)
        command = [sys.executable, "-c", WRITES, url, str(steps), str(size)]
        processes = [subprocess.Popen(command, env=os.environ) for _ in range(2)]
        largest, turns = 0, cycle(readers)
        while any(process.poll() is None for process in processes):
            if readers:
                reader = next(turns)
                if reader.in_transaction:
                    reader.execute("COMMIT")
                reader.execute("BEGIN")
                reader.execute("SELECT count(*) FROM run").fetchone()
            largest = max(largest, wal_size(str(path)))
            time.sleep(0.05 if readers else 0.005)
        assert [process.returncode for process in processes] == [0, 0]
        return largest


@pytest.mark.parametrize(("steps", "size"), [(4000, 4000), (300, 400_000)], ids=["many", "large"])
def test_two_busy_writers_keep_the_wal_small(tmp_path: Path, steps: int, size: int) -> None:
    """Without pauses between them, SQLite by itself would never let it begin anew: some 300 MB.

    On a loaded machine, writers are made to wait for the checkpoint.
    """
    assert 0 < largest_wal(tmp_path / "store.db", steps, size) < 64 << 20


def test_readers_that_come_and_go_keep_the_wal_small(tmp_path: Path) -> None:
    """There is always one: a WAL can begin anew beside those that began when all pages were moved."""
    path = tmp_path / "store.db"
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as one,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        assert 0 < largest_wal(path, 4000, 4000, (one, other)) < 64 << 20


def test_what_is_left_of_an_earlier_wal_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        assert not reaches(str(path), 1)
        connection.execute("CREATE TABLE t (data BLOB)")
        connection.execute("INSERT INTO t VALUES (zeroblob(1000000))")
        size = wal_size(str(path))
        assert reaches(str(path), 500_000)
        assert reaches(str(path), size)
        assert not reaches(str(path), size + 1)
        connection.execute("PRAGMA wal_checkpoint(RESTART)")
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
        assert wal_size(str(path)) == size
        assert reaches(str(path), 50_000)
        assert not reaches(str(path), 500_000)


def test_a_wal_that_a_reader_has_pinned_is_small_again_once_the_reader_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with Guard.open(f"sqlite:///{path}", kill_switch="memory", telemetry=False) as guard:
        write(guard, 1)
        with closing(sqlite3.connect(path)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM event").fetchone()
            while not reaches(str(path), WAIT_FROM):
                write(guard, 500)
        write(guard, 500)  # what makes the next look at it due

        def small() -> bool:
            write(guard, 1)  # a WAL begins anew with the next event
            return not reaches(str(path), BEGIN_ANEW_FROM)

        wait_until(small)
        assert guard.verify()


def test_only_a_reader_that_stays_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of an earlier WAL may have kept as many pages from being moved: none, where it began with it."""
    path = tmp_path / "store.db"
    now = 0.0
    monkeypatch.setattr(_checkpointer, "time", SimpleNamespace(monotonic=lambda: now))

    def connect(path: str | Path) -> sqlite3.Connection:
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    with closing(connect(path)) as writer, closing(connect(path)) as reader:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute("CREATE TABLE t (data BLOB)")
        checkpointer = Checkpointer(str(path), connect)

        def begins_and_all_is_written() -> bool:
            writer.execute("PRAGMA wal_checkpoint(RESTART)")
            writer.execute("INSERT INTO t VALUES (1)")
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM t").fetchone()
            writer.execute("INSERT INTO t VALUES (zeroblob(?))", (BEGIN_ANEW_FROM,))
            return checkpointer._move(threading.Event())

        assert not begins_and_all_is_written()
        reader.execute("COMMIT")
        now = STAYS
        assert not begins_and_all_is_written()
        assert not checkpointer._pinned
        now = 2 * STAYS
        assert not checkpointer._move(threading.Event())
        assert checkpointer._pinned
        reader.execute("COMMIT")
        assert checkpointer._move(threading.Event())
        assert not checkpointer._pinned
        checkpointer.close()


def test_who_may_not_wait_for_the_wal_to_be_small_leaves_that_to_others(tmp_path: Path) -> None:
    """An event loop does not stand still: it is told that the store is busy, and asks in a thread."""
    path = tmp_path / "store.db"
    log = log_of("r", 1 + 2 * WAIT_FROM // (1 << 20), payload=bytes(1 << 20))
    with closing(SQLiteEventStore(path)) as store:
        number = store.create(a_row("r"), log[:1])
        checkpointer = store._database().checkpointer
        assert checkpointer.stand_still(10)
        try:
            with pytest.raises(StoreBusyError):
                for event in log[1:]:
                    store.append_one(number, event.seq, event.body, event.hash, event.payload, False)
            assert reaches(str(path), WAIT_FROM)
            there = len(list(store.read("r")))
            for movements in ([], [Movement("tenant:acme", opening=opening(1))]):
                with pytest.raises(StoreBusyError):
                    store.append(number, log[there : there + 1], movements=movements, wait=False)
            assert len(list(store.read("r"))) == there
        finally:
            checkpointer.go_on()
        store.append(number, log[there : there + 1])
        store.append(number, log[there + 1 : there + 2], wait=False)
        assert len(list(store.read("r"))) == there + 2


def test_closing_a_store_ends_its_thread_and_leaves_no_wal(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    guard = Guard.open(f"sqlite:///{path}", kill_switch="memory", telemetry=False)
    grow(guard, path)
    assert writers()
    guard.close()
    assert not writers()
    assert wal_size(str(path)) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_a_thread_and_a_connection_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with Guard.open(f"sqlite:///{path}", kill_switch="memory", telemetry=False) as guard:
        grow(guard, path)
        child = os.fork()
        if not child:
            grow(guard, path)
            os._exit(0 if len(writers()) == 1 and guard.verify() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        write(guard, 100)
        assert guard.verify()


def test_doctor_says_that_a_wal_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AGENTGUARD_HOME", str(tmp_path))
    with Guard.open(telemetry=False) as guard:
        write(guard, 1)
        with (tmp_path / "agentguard.db-wal").open("r+b") as wal:
            wal.truncate(65 << 20)  # frames of zeros end a WAL: nothing of it counts
        assert main(["doctor"]) == 0
        assert "its WAL has 65 MB: a reader that stays keeps it from being emptied" in capsys.readouterr().out
