"""The SQLite store's file: rights, foreign and damaged files, triggers, erasure, the disk."""

from __future__ import annotations

import gc
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from agentguard import Guard
from agentguard.errors import StoreUnavailableError
from agentguard.events.codec import Stored
from agentguard.protocols import HeadMovedError, RunRow
from agentguard.stores import _busy_retry, _sql, _sqlite_file, _wal_sync
from agentguard.stores.sqlite import SQLiteEventStore

SECRET = b"a secret of the customer " * 500


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteEventStore]:
    store = SQLiteEventStore(path)
    yield store
    store.close()


def create(store: SQLiteEventStore, run_id: str = "r1", *, events: int = 3, **fields: Any) -> int:
    row = RunRow(run_id=run_id, name="n", tenant="t", state="RUNNING", created_ns=1, salt=SECRET)
    for name, value in fields.items():
        setattr(row, name, value)
    log = [Stored(seq, b'{"seq":%d}' % seq, b"hash", SECRET) for seq in range(1, events + 1)]
    return store.create(row, log)


def next_event(store: SQLiteEventStore) -> Stored:
    head = store.last("r1")
    return Stored(head.seq + 1 if head else 1, b"{}", b"hash")


# --- the file ----------------------------------------------------------------------------------


def test_constructing_touches_nothing(tmp_path: Path) -> None:
    store = SQLiteEventStore(tmp_path / "a" / "events.db")
    assert store.url == f"sqlite:///{tmp_path}/a/events.db"
    with store.lock_for("r1"):
        pass
    store.settle()
    store.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="rights are of another kind there")
def test_folders_and_file_are_for_their_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = SQLiteEventStore(tmp_path / "a" / "b" / "events.db")
        create(store)
    finally:
        os.umask(before)
    rights = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "a").rglob("*")}
    store.close()
    assert rights.pop("b") == stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    assert rights == dict.fromkeys(("events.db", "events.db-wal", "events.db-shm"), 0o600)


def test_a_relative_path_is_fixed_when_the_store_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = SQLiteEventStore("events.db")
    monkeypatch.chdir("/")
    create(store)
    store.close()
    assert (tmp_path / "events.db").exists()


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf")])
def test_a_store_timeout_that_is_no_time_is_refused(path: Path, timeout: float) -> None:
    with pytest.raises(ValueError, match="store_timeout"):
        SQLiteEventStore(path, store_timeout=timeout)


def test_an_unknown_durability_is_refused(path: Path, store: SQLiteEventStore) -> None:
    unknown: Any = "fsync"
    with pytest.raises(ValueError, match="process, power"):
        SQLiteEventStore(path, durability=unknown)
    with pytest.raises(ValueError, match="process, power"):
        store.append(1, [], durability=unknown)


def test_many_threads_may_open_a_new_file_at_once(path: Path) -> None:
    stores = [SQLiteEventStore(path) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda pair: create(pair[1], f"r{pair[0]}"), enumerate(stores)))
    assert sorted(numbers) == list(range(1, 9))
    for store in stores:
        store.close()


def test_many_processes_may_open_a_new_file_at_once(path: Path, store: SQLiteEventStore) -> None:
    script = (
        "import sys; from agentguard.stores.sqlite import SQLiteEventStore\n"
        "sys.stdin.readline(); store = SQLiteEventStore(sys.argv[1]); store.rows(); store.close()"
    )
    command = [sys.executable, "-c", script, str(path)]
    openers = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(4)]
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.close()
    assert [opener.wait(60) for opener in openers] == [0] * 4
    assert store.rows() == []


def test_a_file_that_somebody_took_out_of_wal_mode_is_put_back(path: Path) -> None:
    store = SQLiteEventStore(path)
    create(store)
    store.close()
    raw = sqlite3.connect(path)
    assert raw.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    raw.close()
    store = SQLiteEventStore(path, durability="power")
    store.append(1, [next_event(store)])
    assert Path(f"{path}-wal").exists()
    store.close()


# --- files that are not ours -------------------------------------------------------------------


def refused(path: Path) -> str:
    """What is said of a file, the same for a writer and a reader, without changing it."""
    before = path.read_bytes() if path.is_file() else b""
    messages = set()
    for use in (create, SQLiteEventStore.rows):
        store = SQLiteEventStore(path)
        with pytest.raises(StoreUnavailableError) as caught:
            use(store)
        messages.add(str(caught.value))
        store.close()
    assert (path.read_bytes() if path.is_file() else b"") == before
    (message,) = messages
    assert str(path) in message
    return message


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_text("Dear diary, " * 1000)
    assert "no SQLite database; name another file" in refused(path)


@pytest.mark.parametrize("version", [0, 1])
def test_the_database_of_another_program_is_refused(path: Path, version: int) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE event (a)")
    other.execute(f"PRAGMA user_version = {version}")
    other.close()
    assert "another program" in refused(path)


def test_a_newer_schema_is_refused(path: Path) -> None:
    store = SQLiteEventStore(path)
    create(store)
    store.close()
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    known = len(_sql.migrations("sqlite"))
    assert f"schema 99 and this agentguard knows {known}; upgrade agentguard" in refused(path)


def test_a_torn_file_is_said_to_be_damaged(path: Path) -> None:
    store = SQLiteEventStore(path)
    create(store, events=200)
    store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    store = SQLiteEventStore(path)
    with pytest.raises(StoreUnavailableError, match="damaged") as caught:
        list(store.read("r1"))
    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)
    assert str(path) in str(caught.value)
    store.close()


def test_a_folder_that_cannot_be_made_or_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refused(tmp_path / "file" / "events.db")
    (tmp_path / "folder").mkdir()
    assert "cannot be opened" in refused(tmp_path / "folder")


@pytest.mark.skipif(sys.platform == "win32", reason="rights are of another kind there")
def test_without_write_access_the_log_can_be_read_and_not_written() -> None:
    script = """
import os, sys
from agentguard import Guard
from agentguard.errors import StoreUnavailableError
from agentguard.events.codec import Stored
from agentguard.stores.sqlite import SQLiteEventStore
warm = SQLiteEventStore(sys.argv[1] + ".warm")  # imports what a stranger may not read
warm.rows()
warm.close()
if os.getuid() == 0:
    os.setuid(65534)
store = SQLiteEventStore(sys.argv[1])
assert [event.seq for event in store.read("r1")] == [1, 2, 3]
try:
    store.append(1, [Stored(4, b"{}", b"hash")])
except StoreUnavailableError as error:
    print(error)
"""
    with tempfile.TemporaryDirectory() as folder:
        store = SQLiteEventStore(Path(folder, "events.db"))
        create(store)
        Path(folder).chmod(0o755)
        for file in Path(folder).iterdir():
            file.chmod(0o444)
        said = subprocess.run(
            [sys.executable, "-c", script, store.path],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=60,
        )
        store.close()
    assert "it is read-only here; check the rights" in said.stdout


# --- what SQL by hand cannot do ----------------------------------------------------------------

#: The key of the first event of the first run.
FIRST = (1 << 32) + 1


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE event SET body = x'00' WHERE key = {FIRST + 1}",
        f"UPDATE event SET hash = x'00' WHERE key = {FIRST + 1}",
        f"UPDATE event SET at = 9 WHERE key = {FIRST + 1}",
        f"UPDATE event SET key = {FIRST + 8} WHERE key = {FIRST + 2}",
        f"UPDATE event SET key = key + {1 << 32}",
        f"UPDATE event SET rowid = 99 WHERE key = {FIRST + 2}",
        f"UPDATE event SET payload = x'00' WHERE key = {FIRST + 1}",
        f"UPDATE event SET payload = payload WHERE key = {FIRST + 1}",
        f"UPDATE OR REPLACE event SET key = {FIRST + 1} WHERE key = {FIRST + 2}",
        "DELETE FROM event",
        f"DELETE FROM event WHERE key = {FIRST + 2}",
        f"INSERT INTO event (key, at, body, hash) VALUES ({FIRST + 4}, 0, x'', x'')",
        f"INSERT INTO event (key, at, body, hash) VALUES ({FIRST + 2}, 0, x'', x'')",
        f"INSERT INTO event (key, at, body, hash) VALUES ({FIRST - 1}, 0, x'', x'')",
        f"INSERT INTO event (key, at, body, hash) VALUES ({FIRST + (1 << 32)}, 0, x'', x'')",
        "INSERT INTO event (key, at, body, hash) VALUES (1, 0, x'00', x'')",
        "INSERT INTO event (key, at, body, hash) VALUES (-5, 0, x'00', x'')",
        f"INSERT OR IGNORE INTO event (key, at, body, hash) VALUES ({FIRST + 8}, 0, x'', x'')",
        f"INSERT OR REPLACE INTO event (key, at, body, hash) VALUES ({FIRST}, 0, x'', x'')",
        f"INSERT OR REPLACE INTO event (key, at, body, hash) VALUES ({FIRST + 1}, 0, x'', x'')",
        f"REPLACE INTO event (key, at, body, hash) VALUES ({FIRST + 2}, 0, x'', x'')",
        "UPDATE feed SET position = 9 WHERE position = 1",
        f"UPDATE feed SET key = {FIRST} WHERE position = 2",
        "DELETE FROM feed WHERE position = 3",
        f"INSERT INTO feed (key) VALUES ({FIRST})",
        f"INSERT INTO feed (key) VALUES ({FIRST + 5})",
        f"INSERT OR REPLACE INTO feed (position, key) VALUES (2, {FIRST})",
        "UPDATE run SET pruning = 1",
        "DELETE FROM run",
    ],
)
def test_triggers_refuse_edits_by_hand(store: SQLiteEventStore, path: Path, statement: str) -> None:
    create(store)
    before = list(store.read("r1")), store.tail()
    raw = sqlite3.connect(path, isolation_level=None)
    with pytest.raises(sqlite3.IntegrityError, match="agentguard: "):
        raw.execute(statement)
    raw.close()
    assert (list(store.read("r1")), store.tail()) == before


def test_an_ended_run_is_deleted_by_hand_only_when_it_is_marked(store: SQLiteEventStore, path: Path) -> None:
    create(store, state="KILLED", ended_ns=2)
    raw = sqlite3.connect(path, isolation_level=None)
    for statement in ("DELETE FROM event", "DELETE FROM run"):
        with pytest.raises(sqlite3.IntegrityError, match="agentguard: "):
            raw.execute(statement)
    raw.execute("UPDATE event SET payload = NULL")
    raw.execute("UPDATE run SET pruning = 1")
    with pytest.raises(sqlite3.IntegrityError, match="after its events"):
        raw.execute("DELETE FROM run")
    raw.execute("DELETE FROM event")
    raw.execute("DELETE FROM run")
    raw.close()


# --- erasure -----------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["erase", "prune"])
def test_what_was_dropped_is_in_no_file_any_more(store: SQLiteEventStore, path: Path, act: str) -> None:
    create(store, state="KILLED", ended_ns=2, events=20)
    files = [path, Path(f"{path}-wal")]
    in_files = lambda: any(SECRET[:25] in file.read_bytes() for file in files)  # noqa: E731
    assert in_files()
    if act == "erase":
        assert store.erase("r1") == 20
    else:
        assert store.prune(3) == ["r1"]
    assert not in_files()


def test_erasing_waits_for_no_reader_for_long(store: SQLiteEventStore, path: Path) -> None:
    create(store)
    reading = store.read("r1")
    next(reading)
    assert store.erase("r1") == 3
    assert [event.payload for event in reading] == [SECRET, SECRET], "its moment was before"
    store.erase("r1")
    create(store, "r2")
    assert store.erase("r2") == 3
    assert SECRET[:25] not in Path(f"{path}-wal").read_bytes() + path.read_bytes()


# --- the disk ----------------------------------------------------------------------------------


def test_a_full_disk_refuses_and_goes_on_when_there_is_room(store: SQLiteEventStore) -> None:
    number = create(store)
    writer = store._database().writer.connection
    assert writer is not None
    pages = writer.execute("PRAGMA page_count").fetchone()[0]
    big = next_event(store)._replace(payload=bytes(1_000_000))
    writer.execute(f"PRAGMA max_page_count = {pages + 2}")
    for row in (None, store.row("r1")):
        with pytest.raises(StoreUnavailableError, match="the disk is full; make room"):
            store.append(number, [big], row=row)
    writer.execute("PRAGMA max_page_count = 1000000")
    store.append(number, [big])
    last = store.last("r1")
    assert last is not None
    assert last.seq == 4


def test_after_sqlite_has_rolled_back_nothing_more_is_written_in_exclusive(
    store: SQLiteEventStore,
) -> None:
    number = create(store)
    event = next_event(store)

    def lose_and_go_on() -> None:
        with store.exclusive("r1"):
            writer = store._database().writer.connection
            assert writer is not None
            writer.execute("ROLLBACK")  # as SQLite does by itself after some errors
            with pytest.raises(StoreUnavailableError, match="rolled back"):
                store.append(number, [event])

    with pytest.raises(StoreUnavailableError, match="rolled back"):
        lose_and_go_on()
    store.append(number, [event])


def test_a_transaction_that_an_interrupt_left_open_is_undone(store: SQLiteEventStore, path: Path) -> None:
    number = create(store)
    writer = store._database().writer.connection
    assert writer is not None
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM account")
    store.append(number, [next_event(store)])
    raw = sqlite3.connect(path)
    assert raw.execute("SELECT count(*) FROM event").fetchone() == (4,)
    raw.close()


def test_power_syncs_each_commit_and_process_none(
    store: SQLiteEventStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(_wal_sync, "_sync_file", synced.append)
    number = create(store)
    store.append(number, [next_event(store)])
    assert synced == []
    store.append(number, [next_event(store)], durability="power")
    assert len(synced) == 1
    store.append(number, [next_event(store)], durability="power", row=store.row("r1"))
    assert len(synced) == 2
    with store.exclusive("r1"):
        store.append(number, [next_event(store)], durability="power")
        store.append(number, [next_event(store)])
        assert len(synced) == 2
    assert len(synced) == 3
    power = SQLiteEventStore(path, durability="power")
    power.append(number, [next_event(store)])
    with power.exclusive("r1"):
        pass
    power.update_row(RunRow(run_id="r1", name="n", tenant="t", state="RUNNING", created_ns=1))
    assert len(synced) == 6
    power.append(number, [next_event(store)], deferred=True)
    assert len(synced) == 6
    power.close()


def test_power_shares_one_sync_among_all_who_committed_before_it(
    store: SQLiteEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = create(store)
    begun, go_on = threading.Event(), threading.Event()
    synced: list[int] = []

    def sync(fd: int) -> None:
        synced.append(fd)
        begun.set()
        go_on.wait(60)

    monkeypatch.setattr(_wal_sync, "_sync_file", sync)

    def append() -> None:
        with store.lock_for("r1"):
            store.append(number, [next_event(store)], durability="power", deferred=True)
        appended.release()
        store.settle()

    appended = threading.Semaphore(0)
    threads = [threading.Thread(target=append) for _ in range(12)]
    threads[0].start()
    assert begun.wait(60)
    for thread in threads[1:]:
        thread.start()
    for _ in threads:
        assert appended.acquire(timeout=60)
    shared = store._database().sync
    deadline = time.monotonic() + 60
    while shared._written < len(threads):  # each commits what it has appended before it waits
        assert time.monotonic() < deadline
        time.sleep(0.001)
    futures = [store.durable() for _ in range(5)]
    go_on.set()
    for thread in threads:
        thread.join()
    for future in futures:
        assert future is not None
        future.result(60)
    assert store.durable() is None
    assert len(synced) == 2, "that of the first, and one for all who came while it went on"


def test_deferred_events_are_read_by_this_process_and_committed_together(
    store: SQLiteEventStore, path: Path
) -> None:
    number = create(store, events=1)
    other = SQLiteEventStore(path)
    raw = sqlite3.connect(path)

    def committed() -> int:
        count: int = raw.execute("SELECT count(*) FROM event").fetchone()[0]
        return count

    def defer(*seqs: int) -> None:
        for seq in seqs:
            store.append(number, [Stored(seq, b"{}", b"hash")], durability="power", deferred=True)

    with store.lock_for("r1"):  # which keeps the thread that commits by itself away
        defer(2, 3)
        with pytest.raises(HeadMovedError):
            defer(3)
        assert committed() == 1
        store.settle()
        assert committed() == 3
        defer(4)
        assert len(list(other.read("r1"))) == 4
        defer(5)
        other.append(number, [Stored(6, b"{}", b"hash")])
        defer(7)
        with store.exclusive("r1"):
            defer(8)
        assert committed() == 8
        defer(9)
    store.close()
    assert committed() == 9
    raw.close()
    other.close()


def test_deferred_events_that_nobody_settles_do_not_keep_others_out(
    store: SQLiteEventStore, path: Path
) -> None:
    number = create(store, events=1)
    store.append(number, [Stored(2, b"{}", b"hash")], durability="power", deferred=True)
    raw = sqlite3.connect(path, timeout=60)
    raw.execute(f"INSERT INTO event (key, at, body, hash) VALUES ({FIRST + 2}, 0, x'', x'')")
    raw.close()


def test_when_deferred_events_are_lost_who_appended_them_is_told_and_nobody_else(
    store: SQLiteEventStore,
) -> None:
    number = create(store, events=1)
    writer = store._database().writer.connection
    assert writer is not None
    with store.lock_for("r1"):
        store.append(number, [Stored(2, b"{}", b"hash")], durability="power", deferred=True)
        writer.execute("ROLLBACK")
        with pytest.raises(StoreUnavailableError, match="no transaction"):
            list(store.read("r1"))
    others: list[object] = []

    def other() -> None:
        store.append(number, [next_event(store)], durability="power", deferred=True)
        store.settle()
        others.append(list(store.read("r1"))[-1].seq)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert others == [2]
    with pytest.raises(StoreUnavailableError, match="are lost"):
        store.settle()
    store.append(number, [next_event(store)], durability="power", deferred=True)
    store.settle()
    assert store.durable() is None


def test_a_future_of_events_that_got_lost_fails_and_the_next_one_does_not(store: SQLiteEventStore) -> None:
    number = create(store, events=1)
    writer = store._database().writer.connection
    assert writer is not None
    with store.lock_for("r1"):
        store.append(number, [Stored(2, b"{}", b"hash")], durability="power", deferred=True)
        writer.execute("ROLLBACK")
        with pytest.raises(StoreUnavailableError, match="no transaction"):
            list(store.read("r1"))
    lost = store.durable()
    assert lost is not None
    with pytest.raises(StoreUnavailableError, match="are lost"):
        lost.result(60)
    store.append(number, [next_event(store)], durability="power", deferred=True)
    kept = store.durable()
    assert kept is not None
    kept.result(60)


def test_after_a_failed_sync_nothing_is_promised_any_more(
    store: SQLiteEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = create(store)

    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(_wal_sync, "_sync_file", fail)
        with pytest.raises(StoreUnavailableError, match="refused to sync it"):
            store.append(number, [next_event(store)], durability="power")
    with pytest.raises(StoreUnavailableError, match="restart"):
        store.append(number, [next_event(store)], durability="power")
    future = store.durable()
    assert future is not None
    assert isinstance(future.exception(60), StoreUnavailableError)
    store.append(number, [next_event(store)])


# --- readers -----------------------------------------------------------------------------------


def test_a_long_read_holds_up_no_writer(store: SQLiteEventStore) -> None:
    number = create(store, events=50)
    readings = [store.read("r1") for _ in range(10)]
    for reading in readings:
        next(reading)
    for _ in range(20):
        store.append(number, [next_event(store)])
    assert [len(list(reading)) for reading in readings] == [49] * 10
    assert len(store._database().readers.opened) <= 4, "the rest were closed"


def test_a_read_that_is_dropped_gives_its_connection_back(store: SQLiteEventStore) -> None:
    create(store, events=50)
    for _ in range(20):
        next(store.read("r1"))
        gc.collect()
    assert len(store._database().readers.opened) == 1


# --- the order of all runs ---------------------------------------------------------------------


def test_two_readers_of_the_feed_see_the_same_positions_for_ever(path: Path) -> None:
    """Whoever reads first gives the positions; nothing appears below one that was read."""
    one, two = SQLiteEventStore(path), SQLiteEventStore(path)
    first, second = create(one, "r1", events=1), create(one, "r2", events=1)
    seen = one.tail()
    two.append(second, [Stored(2, b"{}", b"h")])
    one.append(first, [Stored(2, b"{}", b"h")])
    assert two.tail() == [*seen, *one.tail(seen[-1][1].position)]
    assert [(run_id, event.seq) for run_id, event in one.tail()] == [
        ("r1", 1),
        ("r2", 1),
        ("r2", 2),
        ("r1", 2),
    ]
    one.close()
    two.close()


def test_a_run_keeps_its_order_in_the_feed_when_the_clock_goes_back(
    store: SQLiteEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = create(store, events=1)
    monkeypatch.setattr("agentguard.stores._sqlite_writer.time_ns", iter(range(9, 0, -1)).__next__)
    for seq in range(2, 6):
        store.append(number, [Stored(seq, b"{}", b"h")])
    assert [event.seq for _, event in store.tail()] == [1, 2, 3, 4, 5]


def test_an_event_after_the_end_of_its_run_is_in_the_feed(store: SQLiteEventStore, path: Path) -> None:
    number = create(store, events=2, state="KILLED", ended_ns=2)
    last = store.tail()[-1][1].position
    raw = sqlite3.connect(path)
    assert raw.execute("SELECT fed FROM run").fetchone() == (1,), "an ended run is not looked at again"
    store.append(number, [Stored(3, b"{}", b"h")])
    assert [event.seq for _, event in store.tail(last)] == [3]
    assert raw.execute("SELECT fed FROM run").fetchone() == (1,)
    raw.close()


def test_a_long_backlog_is_placed_bit_by_bit_and_whole(
    store: SQLiteEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentguard.stores._sqlite_feed._MOST", 3)
    for run_id in ("r1", "r2", "r3"):
        create(store, run_id, events=5)
    found, after = [], 0
    while page := store.tail(after, limit=4):
        found += page
        after = page[-1][1].position
    for run_id in ("r1", "r2", "r3"):
        assert [event.seq for name, event in found if name == run_id] == [1, 2, 3, 4, 5]
    assert [event.position for _, event in found] == list(range(1, 16))


def test_while_the_file_is_locked_the_feed_gives_what_has_its_place(
    store: SQLiteEventStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentguard.stores._sqlite_feed._PATIENCE", 0.01)
    number = create(store, events=1)
    before = store.tail()
    store.append(number, [Stored(2, b"{}", b"h")])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert store.tail() == before
    other.execute("ROLLBACK")
    other.close()
    assert [event.seq for _, event in store.tail()] == [1, 2]


# --- a file that is gone -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_file_that_is_gone_is_noticed_while_a_run_goes_on(
    home: Path, eventually: Callable[[Callable[[], object]], None], how: str
) -> None:
    file = home / "agentguard.db"
    guard = Guard.open(telemetry=False)
    with pytest.raises(StoreUnavailableError, match="agentguard.db is not the file any more"):
        with guard.run("r") as run:
            run.call("before", int)
            for part in home.glob("agentguard.db*"):
                part.rename(home / f"moved{part.suffix}")
            if how == "replaced":
                with Guard.open(
                    f"sqlite:///{home / 'new.db'}", telemetry=False, kill_switch="memory"
                ) as other:
                    other.start("new", detached=True).close()
                (home / "new.db").rename(file)
            store = guard.components.store
            eventually(lambda: store._shared.writer.refusal)  # type: ignore[attr-defined]
            with pytest.raises(StoreUnavailableError, match="agentguard.db is not the file any more"):
                run.call("after", int)
            with pytest.raises(StoreUnavailableError):
                guard.runs()
    with suppress(StoreUnavailableError):
        guard.close()
    with Guard.open(telemetry=False) as again:
        assert [row.name for row in again.runs()] == (["new"] if how == "replaced" else [])
        with again.run("next"):
            pass
        assert again.verify()


def test_the_end_of_a_run_does_not_go_into_a_deleted_file(home: Path) -> None:
    guard = Guard.open(telemetry=False)
    with pytest.raises(StoreUnavailableError, match="deleted, moved or replaced"):
        with guard.run("r"):
            (home / "agentguard.db").unlink()
    guard.close()


def test_a_file_that_another_process_is_making_is_not_taken_for_another_programs(tmp_path):
    """It is looked at with three statements; whoever makes it may come between two of them."""
    path = str(tmp_path / "events.db")
    _sqlite_file.create(path)
    mine, makers = _sqlite_file.connect(path), []

    def make() -> None:
        _sqlite_file.open_writer(path, 30.0).close()

    def execute(sql: str) -> sqlite3.Cursor:
        if "sqlite_master" in sql and not makers:
            makers.append(threading.Thread(target=make))
            makers[0].start()
            makers[0].join(0.3)  # it is kept out until everything has been looked at
        return _busy_retry.execute(mine, path, sql, (), 30.0)

    try:
        _sqlite_file.prepare(path, execute)
    finally:
        makers[0].join()
        mine.close()
