"""The SQLite store among processes: contention, crashes, forks, locks."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentguard.errors import StoreUnavailableError
from agentguard.events.codec import Stored, chain, genesis
from agentguard.protocols import HeadMovedError, RunRow, StoreBusyError
from agentguard.stores import _sql
from agentguard.stores.sqlite import SQLiteEventStore
from agentguard.testing.conformance._given import a_row, log_of, unplaced
from tests.scale import scaled

DEADLINE = 60.0

PRELUDE = """
import os, sys, threading, time
from agentguard.events.codec import Stored, chain, genesis
from agentguard.protocols import HeadMovedError, RunRow
from agentguard.stores.sqlite import SQLiteEventStore

store = SQLiteEventStore(sys.argv[1], durability=os.environ.get("DURABILITY", "process"))

def extend(head, writer="x", **options):
    seq, digest = (head.seq, head.hash) if head else (0, genesis("r1"))
    body = b'{"seq":%d,"writer":"%s"}' % (seq + 1, str(writer).encode())
    event = Stored(seq + 1, body, chain(digest, body))
    store.append(1, [event], **options)
    return event

def on_threads(count, work):
    failed = []
    def run(index):
        try:
            work(index)
        except BaseException as error:
            failed.append(error)
    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    if failed: raise failed[0]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteEventStore]:
    store = SQLiteEventStore(path)
    store.create(RunRow(run_id="r1", name="n", tenant="t", state="RUNNING", created_ns=1), [])
    yield store
    store.close()


def start(path: Path, script: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PRELUDE + script, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def finish(*processes: subprocess.Popen[str]) -> list[str]:
    outputs = [process.communicate(timeout=DEADLINE)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return outputs


def event_after(head: Stored | None, tag: str = "") -> Stored:
    seq, digest = (head.seq, head.hash) if head else (0, genesis("r1"))
    body = b'{"seq":%d,"tag":"%s"}' % (seq + 1, tag.encode())
    return Stored(seq + 1, body, chain(digest, body))


def intact(store: SQLiteEventStore) -> list[Stored]:
    """The events of the run, once they are seen to be one gapless chain."""
    digest = genesis("r1")
    events = list(store.read("r1"))
    for seq, event in enumerate(events, 1):
        digest = chain(digest, event.body)
        assert (event.seq, event.hash) == (seq, digest)
    return events


# --- many writers ------------------------------------------------------------------------------

EXCLUSIVE = """
def work(index):
    for _ in range(int(os.environ["EACH"])):
        with store.exclusive("r1"):
            extend(store.last("r1"), os.getpid())
on_threads(int(os.environ["THREADS"]), work)
"""

OPTIMISTIC = """
def work(index):
    for _ in range(int(os.environ["EACH"])):
        while True:
            try:
                extend(store.last("r1"), os.getpid())
                break
            except HeadMovedError:
                pass
on_threads(int(os.environ["THREADS"]), work)
"""


@pytest.mark.parametrize(
    ("script", "threads", "each"),
    [
        (EXCLUSIVE, 4, 15),
        (OPTIMISTIC, 4, 15),
        pytest.param(EXCLUSIVE, 16, scaled(25), marks=pytest.mark.long),
    ],
    ids=["exclusive", "optimistic", "exclusive-16-threads"],
)
def test_four_processes_of_many_threads_leave_one_intact_chain(
    store: SQLiteEventStore, path: Path, script: str, threads: int, each: int
) -> None:
    options = {"THREADS": str(threads), "EACH": str(each)}
    finish(*[start(path, script, **options) for _ in range(4)])
    writers = [event.body for event in intact(store)]
    assert len(writers) == 4 * threads * each
    assert len({body.partition(b"writer")[2] for body in writers}) == 4


def test_no_thread_starves_in_exclusive(store: SQLiteEventStore, path: Path) -> None:
    """While fifteen threads of each of four processes never pause, the sixteenth gets its turns."""
    script = """
enough = threading.Event()
def work(index):
    if index == 0:
        for _ in range(10):
            with store.exclusive("r1"):
                extend(store.last("r1"))
        enough.set()
    while not enough.is_set():
        with store.exclusive("r1"):
            extend(store.last("r1"))
on_threads(16, work)
"""
    finish(*[start(path, script) for _ in range(4)])
    assert len(intact(store)) >= 40


# --- locks -------------------------------------------------------------------------------------

HOLD = """
with store.exclusive("r1"):
    print("held", flush=True)
    sys.stdin.readline()
    extend(store.last("r1"), "holder")
"""


def test_a_store_locked_by_another_process_is_waited_for(store: SQLiteEventStore, path: Path) -> None:
    holder = start(path, HOLD)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StoreBusyError):
        store.append(1, [event_after(None)], wait=False)

    def append() -> None:
        with store.exclusive("r1"):
            store.append(1, [event_after(store.last("r1"), "waited")])

    waiting = threading.Thread(target=append)
    waiting.start()
    finish(holder)  # end of input lets it go on
    waiting.join(DEADLINE)
    assert [b"holder" in event.body for event in intact(store)] == [True, False]


def test_after_store_timeout_the_error_says_who_holds_the_file(store: SQLiteEventStore, path: Path) -> None:
    impatient = SQLiteEventStore(path, store_timeout=0.05)
    holder = start(path, HOLD)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(StoreUnavailableError) as caught:
        impatient.append(1, [event_after(None)])
    assert str(path) in str(caught.value)
    assert "store_timeout" in str(caught.value)
    if sys.platform == "linux":
        assert f"process {holder.pid};" in str(caught.value)
    with pytest.raises(StoreUnavailableError), impatient.exclusive("r1"):
        pass
    finish(holder)
    impatient.append(1, [event_after(store.last("r1"))])
    impatient.close()


def test_a_lock_held_by_another_thread_is_waited_for_up_to_the_timeout(path: Path) -> None:
    store = SQLiteEventStore(path, store_timeout=0.05)
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with store.lock_for("r1"):
            held.set()
            leave.wait(DEADLINE)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(DEADLINE)
    with pytest.raises(StoreUnavailableError, match=r"locked for 0\.05 s"):
        store.append(1, [event_after(None)])
    leave.set()
    holder.join()
    store.close()


# --- crashes -----------------------------------------------------------------------------------


def test_after_kill_9_the_log_is_a_gapless_prefix(store: SQLiteEventStore, path: Path) -> None:
    """In ten kills at random moments nothing is lost that was acknowledged."""
    script = """
head = store.last("r1")
while True:
    head = extend(head)
    print(head.seq, flush=True)
"""
    chance = random.Random(20)
    before = 0
    for _ in range(10):
        writer = start(path, script)
        assert writer.stdout is not None
        acknowledged = [writer.stdout.readline() for _ in range(chance.randrange(1, 120))]
        writer.kill()
        acknowledged += writer.communicate(timeout=DEADLINE)[0].splitlines()
        events = intact(store)
        assert len(events) >= max(int(line) for line in acknowledged if line.strip())
        assert len(events) >= before
        before = len(events)
    store.append(1, [event_after(store.last("r1"))])


# --- fork --------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


@needs_fork
def test_a_forked_child_opens_its_own_connections(store: SQLiteEventStore, path: Path) -> None:
    script = """
head = extend(None, "parent")
child = os.fork()
if child == 0:
    with store.exclusive("r1"):
        extend(store.last("r1"), "child")
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
extend(store.last("r1"), "parent")
"""
    finish(start(path, script))
    writers = [event.body.split(b'"')[5] for event in intact(store)]
    assert writers == [b"parent", b"child", b"parent"]


@needs_fork
@pytest.mark.parametrize("durability", ["process", "power"])
def test_children_that_end_while_the_parent_writes_do_no_harm(
    store: SQLiteEventStore, path: Path, durability: str
) -> None:
    """Children exit through the interpreter, which would close what they inherited."""
    script = """
over = threading.Event()
def write(index):
    while not over.is_set():
        with store.exclusive("r1"):
            extend(store.last("r1"), "parent")
writers = [threading.Thread(target=write, args=(index,)) for index in range(3)]
for writer in writers: writer.start()
reading = store.read("r1")
next(reading, None)
for _ in range(15):
    child = os.fork()
    if child == 0:
        with store.exclusive("r1"):
            extend(store.last("r1"), "child")
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
over.set()
for writer in writers: writer.join()
"""
    finish(start(path, script, DURABILITY=durability))
    assert sum(b"child" in event.body for event in intact(store)) == 15


@needs_fork
def test_a_child_forked_inside_exclusive_neither_commits_nor_undoes_it(
    store: SQLiteEventStore, path: Path
) -> None:
    """The child ends after the parent has committed, and must not roll back what it inherited."""
    script = """
from agentguard.errors import StoreUnavailableError
committed, commit = os.pipe()
try:
    with store.exclusive("r1"):
        head = extend(None, "parent")
        child = os.fork()
        if child == 0:
            os.close(commit)
            os.read(committed, 1)
except StoreUnavailableError as error:
    assert child == 0 and "forked" in str(error)
    sys.exit(7)
os.close(commit)
assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 7
assert [event.seq for event in store.read("r1")] == [1]
extend(head)
"""
    finish(start(path, script))
    assert len(intact(store)) == 2


# --- sharing -----------------------------------------------------------------------------------


def test_stores_of_one_file_share_lock_and_connection(tmp_path: Path, path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    first = SQLiteEventStore(path)
    second = SQLiteEventStore(tmp_path / "link" / "events.db", durability="power")
    assert first.lock_for("r1") is second.lock_for("r1")
    row = RunRow(run_id="r1", name="n", tenant="t", state="RUNNING", created_ns=1)
    with first.exclusive("r1"):
        second.create(row, [event_after(None)])
    first.close()
    assert len(intact(second)) == 1
    lock = second.lock_for("r1")
    second.close()
    third = SQLiteEventStore(path)
    assert third.lock_for("r1") is not lock
    assert len(intact(third)) == 1
    third.close()


def test_a_closed_or_forgotten_store_leaves_nothing_open(store: SQLiteEventStore, path: Path) -> None:
    def open_files() -> list[Any]:
        folder = Path("/proc/self/fd")
        if not folder.exists():
            pytest.skip("no way to list open files")
        links = [str(link.readlink()) for link in folder.iterdir() if link.is_symlink()]
        return [link for link in links if str(path) in link]

    store.append(1, [event_after(None)], durability="power")
    reading = store.read("r1")
    next(reading)
    assert len(open_files()) > 2
    store.close()
    del reading
    assert open_files() == []
    forgotten = SQLiteEventStore(path)
    forgotten.row("r1")
    assert open_files() != []
    del forgotten
    assert open_files() == []
    assert not Path(f"{path}-wal").exists()


def test_head_moved_by_another_process_is_seen_at_the_next_append(
    store: SQLiteEventStore, path: Path
) -> None:
    finish(start(path, "extend(None)"))
    with pytest.raises(HeadMovedError):
        store.append(1, [event_after(None)])
    store.append(1, [event_after(store.last("r1"))])
    assert len(intact(store)) == 2


# --- the short way -----------------------------------------------------------------------------


def test_the_short_way_is_a_compare_and_swap_too(path: Path) -> None:
    store, other = SQLiteEventStore(path), SQLiteEventStore(path)
    number = store.create(a_row("r1"), log_of("r1", 1))
    _, second, third = log_of("r1", 3)
    store.append_one(number, second.seq, second.body, second.hash, second.payload)
    for wrong in (1, 2, 4, 9):
        with pytest.raises(HeadMovedError):
            other.append_one(number, wrong, b"{}", b"h", None)
    with store.exclusive("r1"):
        store.append_one(number, third.seq, third.body, third.hash, third.payload)
    assert unplaced(other.read("r1")) == log_of("r1", 3)
    store.close()
    other.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        store.append_one(number, 4, b"{}", b"h", None)


def test_the_short_way_waits_for_nobody_unless_it_may(path: Path) -> None:
    store = SQLiteEventStore(path, store_timeout=0.05)
    number = store.create(a_row("r1"), log_of("r1", 1))
    shell = sqlite3.connect(path, isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusyError):
        store.append_one(number, 2, b"{}", b"h", None, False)
    with pytest.raises(StoreUnavailableError, match="was locked for 0.05 s"):
        store.append_one(number, 2, b"{}", b"h", None)
    shell.execute("ROLLBACK")
    shell.close()
    store.append_one(number, 2, b"{}", b"h", None)
    store.close()


def test_the_neighbours_of_an_id_are_found_by_the_index_of_ids(tmp_path: Path) -> None:
    """They are asked for each id that a listing shows."""
    path = tmp_path / "events.db"
    store = SQLiteEventStore(path)
    store.create(a_row("r1"), log_of("r1", 1))
    store.close()
    with sqlite3.connect(path) as connection:
        plan = connection.execute(
            f"EXPLAIN QUERY PLAN {_sql.queries('sqlite')['neighbours']}", {"run_id": "r1"}
        ).fetchall()
    connection.close()
    looked = [line[-1] for line in plan if " run " in line[-1]]
    assert len(looked) == 2
    assert all(line.startswith("SEARCH run USING COVERING INDEX sqlite_autoindex_run_1 (") for line in looked)
