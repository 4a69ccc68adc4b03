"""What is special to the memory store: room, eviction, forks, and that it promises nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from agentguard.errors import StoreUnavailableError
from agentguard.events.codec import Stored, encode
from agentguard.events.model import Record
from agentguard.protocols import RunRow
from agentguard.stores.memory import MemoryEventStore


def a_row(run_id: str, state: str = "RUNNING", **fields: Any) -> RunRow:
    return RunRow(run_id=run_id, name="n", tenant="t", state=state, created_ns=1, **fields)


def an_event(seq: int, kind: str = "step_started") -> Stored:
    return Stored(seq, encode(Record(seq, kind, 0)), b"hash")


def fill(store: MemoryEventStore, run_id: str, events: int) -> int:
    """A live run with so many events."""
    return store.create(a_row(run_id), [an_event(seq + 1) for seq in range(events)])


def end(store: MemoryEventStore, number: int, run_id: str, seq: int) -> None:
    row = a_row(run_id, "COMPLETED", ended_ns=2, summary={"steps": 1})
    store.append(number, [an_event(seq, "run_completed")], row=row)


def kept(store: MemoryEventStore) -> set[str]:
    return {run_id for run_id, _ in store.tail()}


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_durability_it_cannot_have_is_refused(durability: Any) -> None:
    store = MemoryEventStore()
    number = fill(store, "r1", 1)
    with pytest.raises(ValueError, match=f"cannot promise '{durability}'"):
        store.append(number, [an_event(2)], durability=durability)
    store.append(number, [an_event(2)])


def test_room_for_no_event_is_refused() -> None:
    with pytest.raises(ValueError, match="max_events"):
        MemoryEventStore(max_events=0)


def test_ended_runs_are_evicted_whole_in_the_order_in_which_they_ended() -> None:
    store = MemoryEventStore(max_events=12)
    numbers = {run_id: fill(store, run_id, 3) for run_id in ("live", "second", "first")}
    end(store, numbers["first"], "first", 4)
    end(store, numbers["second"], "second", 4)
    store.append(numbers["live"], [an_event(4)])
    assert kept(store) == {"live", "first", "second"}
    store.append(numbers["live"], [an_event(5)])
    assert kept(store) == {"live", "second"}
    fill(store, "new", 3)
    assert kept(store) == {"live", "second", "new"}
    fill(store, "newer", 2)
    assert kept(store) == {"live", "new", "newer"}


def test_an_evicted_run_keeps_its_summary_and_says_that_its_events_are_gone() -> None:
    store = MemoryEventStore(max_events=3)
    number = fill(store, "old", 1)
    end(store, number, "old", 2)
    fill(store, "new", 2)
    row = store.row("old")
    assert row is not None
    assert (row.state, row.summary) == ("COMPLETED", {"steps": 1})
    assert [row.run_id for row in store.rows()] == ["new", "old"]
    for reading in (
        lambda: store.read("old"),
        lambda: store.last("old"),
        lambda: store.append(number, [an_event(3, "step_completed")]),
    ):
        with pytest.raises(StoreUnavailableError, match="run old were evicted from memory://"):
            reading()
    assert store.erase("old") == 0
    assert store.prune(3) == ["old"]
    assert list(store.read("old")) == []


def test_if_live_runs_fill_it_what_begins_is_refused_and_what_ends_is_taken() -> None:
    store = MemoryEventStore(max_events=3)
    number = fill(store, "r1", 3)
    for attempt in (
        lambda: store.append(number, [an_event(4)]),
        lambda: store.append(number, [an_event(4, "value")]),
        lambda: store.append(number, [an_event(4, "budget_warning"), an_event(5)]),
        lambda: store.create(a_row("r2"), [an_event(1, "run_created")]),
    ):
        with pytest.raises(StoreUnavailableError, match="memory:// is full: live runs hold 3 events"):
            attempt()
    closing = ("step_completed", "step_failed", "step_resolved", "scope_closed", "run_paused")
    for seq, kind in enumerate(closing, 4):
        store.append(number, [an_event(seq, kind)])
    store.append(number, [an_event(9, "budget_warning"), an_event(10, "step_completed")])
    assert store.row("r2") is None
    end(store, number, "r1", 11)
    assert len(list(store.read("r1"))) == 11
    fill(store, "r2", 3)
    assert kept(store) == {"r2"}


def test_what_ends_in_exclusive_is_not_evicted_before_it_is_sure() -> None:
    store = MemoryEventStore(max_events=4)
    ending = fill(store, "ending", 2)
    live = fill(store, "live", 1)

    def end_and_fail() -> None:
        with store.exclusive("r1"):
            end(store, ending, "ending", 3)
            with pytest.raises(StoreUnavailableError, match="full"):
                store.append(live, [an_event(2)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        end_and_fail()
    assert [event.seq for event in store.read("ending")] == [1, 2]
    store.append(live, [an_event(2)])
    with pytest.raises(StoreUnavailableError, match="full"):
        store.append(live, [an_event(3)])
    with store.exclusive("r1"):
        end(store, ending, "ending", 3)
    store.append(live, [an_event(3)])
    assert kept(store) == {"live"}


def test_pruning_in_exclusive_is_refused() -> None:
    store = MemoryEventStore()
    with store.exclusive("r1"), pytest.raises(RuntimeError, match="inside exclusive"):
        store.prune(1)


def test_two_stores_share_nothing() -> None:
    first, second = MemoryEventStore(), MemoryEventStore()
    fill(first, "r1", 1)
    assert second.rows() == []
    assert first.lock_for("r1") is not second.lock_for("r1")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_is_refused_even_while_a_thread_of_the_parent_writes() -> None:
    script = """
import os, sys, threading
from agentguard.errors import StoreUnavailableError
from agentguard.events.codec import Stored
from agentguard.protocols import RunRow
from agentguard.stores.memory import MemoryEventStore

store = MemoryEventStore()
lock = store.lock_for("r1")
row = RunRow(run_id="r1", name="n", tenant="t", state="RUNNING", created_ns=1)
number = store.create(row, [Stored(1, b"{}", b"hash")])
held, leave = threading.Event(), threading.Event()

def hold():
    with store.exclusive("r1"):
        held.set()
        leave.wait(60)

holder = threading.Thread(target=hold)
holder.start()
held.wait(60)
child = os.fork()
if child == 0:
    refused = 0
    for use in (
        lambda: store.append(number, [Stored(2, b"{}", b"hash")]),
        lambda: store.create(row, []),
        lambda: store.read("r1"),
        lambda: store.rows(),
    ):
        try:
            with lock:
                use()
        except StoreUnavailableError as error:
            assert "not shared with a forked process; use sqlite://" in str(error)
            refused += 1
    MemoryEventStore().create(row, [])
    os._exit(refused)
assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 4
leave.set()
holder.join()
store.append(number, [Stored(2, b"{}", b"hash")])
"""
    options = ["-W", "ignore::DeprecationWarning", "-c"]
    subprocess.run([sys.executable, *options, script], check=True, timeout=60)
