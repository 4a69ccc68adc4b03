"""What every event store promises: one body of tests over all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentguard.budget.account import Account, Request
from agentguard.budget.ledger import LedgerRefusedError, Movement
from agentguard.budget.model import Budget
from agentguard.errors import RunExistsError, StoreUnavailableError
from agentguard.events.codec import Stored, chain, genesis
from agentguard.protocols import EventStore, HeadMovedError, RunRow, StoreBusyError
from agentguard.stores.memory import MemoryEventStore
from agentguard.stores.sqlite import SQLiteEventStore

OPEN: dict[str, Callable[[Path], EventStore]] = {
    "memory": lambda folder: MemoryEventStore(),
    "sqlite": lambda folder: SQLiteEventStore(folder / "events.db"),
    "sqlite-power": lambda folder: SQLiteEventStore(folder / "events.db", durability="power"),
    "sqlite-buffered": lambda folder: SQLiteEventStore(folder / "events.db", durability="buffered"),
}

CALLS: dict[str, Callable[[EventStore], Any]] = {
    "create": lambda store: store.create(a_row("other"), log_of("other", 1)),
    "append": lambda store: store.append(1, log_of("r1", 2)[1:]),
    "exclusive": lambda store: store.exclusive().__enter__(),
    "row": lambda store: store.row("r1"),
    "rows": lambda store: store.rows(),
    "children": lambda store: store.children("r1"),
    "read": lambda store: list(store.read("r1")),
    "last": lambda store: store.last("r1"),
    "tail": lambda store: store.tail(),
    "accounts": lambda store: store.accounts(["a"]),
    "update_row": lambda store: store.update_row(a_row("r1")),
    "erase": lambda store: store.erase("r1"),
    "prune": lambda store: store.prune(10),
    "snapshot": lambda store: store.snapshot().__enter__(),
}


@pytest.fixture(params=OPEN)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EventStore]:
    store = OPEN[request.param](tmp_path)
    yield store
    store.close()


def a_row(run_id: str, **fields: Any) -> RunRow:
    defaults: dict[str, Any] = {
        "name": "triage",
        "tenant": "acme",
        "state": "RUNNING",
        "created_ns": 1,
        "owner": {"pid": 7, "host": "h"},
        "salt": b"salt",
        "summary": {"metadata": {"a": [1, None, "é"]}, "steps": 0},
    }
    return RunRow(run_id=run_id, **(defaults | fields))


def log_of(run_id: str, count: int, *, tag: str = "", payload: bytes | None = None) -> list[Stored]:
    events = []
    digest = genesis(run_id)
    for seq in range(1, count + 1):
        body = b'{"seq":%d,"type":"value","name":"%s"}' % (seq, f"{run_id}{tag}".encode())
        digest = chain(digest, body)
        events.append(Stored(seq, body, digest, payload))
    return events


def unplaced(events: Any) -> list[Stored]:
    return [event._replace(position=0) for event in events]


def steps(count: int) -> Request:
    return Request({"steps": count}, "step", "tool")


def opening(limit: int) -> Account:
    return Account("tenant:acme", Budget(steps=limit))


def on_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What `work(0..count-1)` gives, all begun at the same time."""
    barrier = threading.Barrier(count)

    def begin(index: int) -> Any:
        barrier.wait()
        return work(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


# --- reading back ------------------------------------------------------------------------------


def test_what_was_written_reads_back_equal_each_time(store: EventStore) -> None:
    row = a_row("r1", parent_id="p", heartbeat_ns=5)
    events = log_of("r1", 3, payload=b"\x00payload")
    number = store.create(row, events[:2])
    assert store.append(number, events[2:]) == {}
    for _ in range(2):
        assert unplaced(store.read("r1")) == events
        assert unplaced(store.read("r1", after=2)) == events[2:]
        assert store.last("r1") == list(store.read("r1"))[-1]
        assert store.row("r1") == msgspec.structs.replace(row, number=number)


def test_unknown_run_has_no_row_no_events_and_no_children(store: EventStore) -> None:
    assert store.row("nobody") is None
    assert list(store.read("nobody")) == []
    assert store.last("nobody") is None
    assert store.children("nobody") == []
    assert store.accounts(["nobody"]) == {}
    assert store.erase("nobody") == 0
    assert not store.update_row(a_row("nobody"))


def test_changing_a_row_that_was_read_changes_nothing_in_the_store(store: EventStore) -> None:
    row = a_row("r1")
    store.create(row, log_of("r1", 1))
    row.summary["steps"] = 9
    found = store.row("r1")
    assert found is not None
    found.owner["pid"] = 9
    again = store.row("r1")
    assert again is not None
    assert again.summary["steps"] == 0
    assert again.owner["pid"] == 7


def test_rows_are_the_newest_first_and_filtered(store: EventStore) -> None:
    for index in range(6):
        tenant = "acme" if index % 2 else "other"
        state = "FAILED" if index > 3 else "RUNNING"
        store.create(a_row(f"r{index}", tenant=tenant, state=state), log_of(f"r{index}", 1))
    ids = lambda rows: [row.run_id for row in rows]  # noqa: E731
    assert ids(store.rows()) == ["r5", "r4", "r3", "r2", "r1", "r0"]
    assert ids(store.rows(limit=2)) == ["r5", "r4"]
    assert ids(store.rows(tenant="acme")) == ["r5", "r3", "r1"]
    assert ids(store.rows(state="RUNNING", limit=3)) == ["r3", "r2", "r1"]
    assert ids(store.rows(tenant="acme", state="RUNNING")) == ["r3", "r1"]


def test_children_are_those_of_the_run_the_oldest_first(store: EventStore) -> None:
    for run_id, parent in (("a", None), ("b", "a"), ("c", "b"), ("d", "a")):
        store.create(a_row(run_id, parent_id=parent), log_of(run_id, 1))
    assert [row.run_id for row in store.children("a")] == ["b", "d"]


def test_a_read_sees_one_moment(store: EventStore) -> None:
    events = log_of("r1", 4)
    number = store.create(a_row("r1"), events[:3])
    reading = store.read("r1")
    first = next(reading)
    store.append(number, events[3:])
    assert unplaced([first, *reading]) == events[:3]


def test_rule_15_row_and_events_can_be_read_in_one_snapshot(store: EventStore) -> None:
    events = log_of("r1", 2)
    number = store.create(a_row("r1"), events[:1])
    changed = a_row("r1", state="FAILED", ended_ns=3)
    writer = threading.Thread(target=lambda: store.append(number, events[1:], row=changed))
    with store.snapshot():
        before = store.row("r1")
        writer.start()
        assert unplaced(store.read("r1")) == events[:1]
        assert store.row("r1") == before
    writer.join()
    assert unplaced(store.read("r1")) == events


def test_tail_gives_all_runs_in_commit_order(store: EventStore) -> None:
    logs = {run_id: log_of(run_id, 3) for run_id in ("a", "b", "c")}
    numbers = {run_id: store.create(a_row(run_id, tenant=run_id), log[:1]) for run_id, log in logs.items()}
    written = [(run_id, log[0]) for run_id, log in logs.items()]
    for run_id, seq in (("c", 2), ("a", 2), ("c", 3), ("b", 2), ("a", 3)):
        store.append(numbers[run_id], logs[run_id][seq - 1 : seq])
        written.append((run_id, logs[run_id][seq - 1]))
    tail = store.tail()
    assert [(run_id, event._replace(position=0)) for run_id, event in tail] == written
    positions = [event.position for _, event in tail]
    assert positions == sorted(set(positions))
    assert store.tail(after=positions[2], limit=3) == tail[3:6]
    assert [event.seq for _, event in store.tail(tenant="a")] == [1, 2, 3]
    assert store.tail(after=positions[-1]) == []
    assert list(store.read("c"))[-1].position == positions[5]


# --- appending ---------------------------------------------------------------------------------


def test_rule_12_conflicting_append_writes_nothing(store: EventStore) -> None:
    events = log_of("r1", 3)
    number = store.create(a_row("r1"), events[:2])
    rival = log_of("r1", 4, tag="-rival")
    row = a_row("r1", state="FAILED")
    opens = Movement("a", opening=opening(5), request=steps(1))
    for attempt in (rival[1:2], rival[:1], rival[1:4], []):
        with pytest.raises(HeadMovedError):
            store.append(number, [*attempt, rival[1]], row=row, movements=[opens])
    with pytest.raises(HeadMovedError):
        store.append(number, rival[1:2])
    assert unplaced(store.read("r1")) == events[:2]
    assert store.accounts(["a"]) == {}
    found = store.row("r1")
    assert found is not None
    assert found.state == "RUNNING"
    store.append(number, events[2:])
    assert unplaced(store.read("r1")) == events


def test_a_gap_is_impossible(store: EventStore) -> None:
    events = log_of("r1", 5)
    number = store.create(a_row("r1"), events[:1])
    for attempt in (events[2:3], events[2:], [events[1], events[3]]):
        with pytest.raises(HeadMovedError):
            store.append(number, attempt)
    for nobody in (number + 1, 0, -1):
        with pytest.raises(HeadMovedError):
            store.append(nobody, events[:1])
    with pytest.raises(HeadMovedError):
        store.create(a_row("r2"), log_of("r2", 3)[1:])
    assert store.row("r2") is None
    assert unplaced(store.read("r1")) == events[:1]
    assert len(store.tail()) == 1


def test_creating_a_run_twice_writes_nothing(store: EventStore) -> None:
    events = log_of("r1", 1)
    number = store.create(a_row("r1"), events)
    opens = Movement("a", opening=opening(5))
    with pytest.raises(RunExistsError) as caught:
        store.create(a_row("r1", name="another"), log_of("r1", 3), [opens])
    assert caught.value.run_id == "r1"
    assert unplaced(store.read("r1")) == events
    assert store.row("r1") == a_row("r1", number=number)
    assert store.accounts(["a"]) == {}
    assert len(store.tail()) == 1


def test_rule_12_of_two_writers_the_first_wins(store: EventStore) -> None:
    number = store.create(a_row("r1"), [])
    rivals = [log_of("r1", 60, tag=f"-{index}") for index in range(2)]
    won = []
    for seq in range(60):

        def write(index: int, seq: int = seq) -> bool:
            try:
                store.append(number, rivals[index][seq : seq + 1])
            except HeadMovedError:
                return False
            return True

        outcomes = on_threads(2, write)
        assert sorted(outcomes) == [False, True]
        won.append(rivals[outcomes.index(True)][seq])
    assert unplaced(store.read("r1")) == won


@pytest.mark.parametrize("exclusive", [False, True], ids=["optimistic", "exclusive"])
def test_many_threads_on_one_run_leave_one_intact_chain(store: EventStore, exclusive: bool) -> None:
    number = store.create(a_row("r1"), [])

    def extend(head: Stored | None, writer: int) -> None:
        seq, digest = (head.seq, head.hash) if head else (0, genesis("r1"))
        body = b'{"seq":%d,"writer":%d}' % (seq + 1, writer)
        store.append(number, [Stored(seq + 1, body, chain(digest, body))])

    def write(writer: int) -> None:
        for _ in range(10):
            while True:
                try:
                    if exclusive:
                        with store.exclusive():
                            extend(store.last("r1"), writer)
                    else:
                        extend(store.last("r1"), writer)
                except HeadMovedError:
                    assert not exclusive
                    continue
                break

    on_threads(8, write)
    digest = genesis("r1")
    events = list(store.read("r1"))
    assert [event.seq for event in events] == list(range(1, 81))
    for event in events:
        digest = chain(digest, event.body)
        assert event.hash == digest


def test_append_is_allowed_under_the_lock(store: EventStore) -> None:
    events = log_of("r1", 3)
    number = store.create(a_row("r1"), events[:1])
    with store.lock, store.lock:
        store.append(number, events[1:2])
        store.append(number, events[2:], row=a_row("r1", state="PAUSED"))
    assert unplaced(store.read("r1")) == events


def test_without_waiting_a_held_store_is_busy(store: EventStore) -> None:
    events = log_of("r1", 2)
    number = store.create(a_row("r1"), events[:1])
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with store.exclusive():
            held.set()
            leave.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)
    for row in (None, a_row("r1")):
        with pytest.raises(StoreBusyError):
            store.append(number, events[1:], row=row, wait=False)
    leave.set()
    holder.join()
    store.append(number, events[1:], wait=False)
    assert unplaced(store.read("r1")) == events


def test_settled_appends_are_no_different(store: EventStore) -> None:
    events = log_of("r1", 3)
    number = store.create(a_row("r1"), events[:1])
    store.append(number, events[1:2], deferred=True)
    store.append(number, events[2:], deferred=True, row=a_row("r1"))
    pending = store.durable()
    if pending is not None:
        pending.result(30)
    store.settle()
    assert store.durable() is None
    assert unplaced(store.read("r1")) == events


# --- rows --------------------------------------------------------------------------------------


def test_row_change_and_events_are_one_act(store: EventStore) -> None:
    events = log_of("r1", 2)
    number = store.create(a_row("r1"), events[:1])
    ended = a_row("r1", state="COMPLETED", ended_ns=9, summary={"steps": 4}, epoch=2)
    store.append(number, events[1:], row=ended)
    assert store.row("r1") == msgspec.structs.replace(ended, number=number)


def test_what_a_run_is_born_with_never_changes(store: EventStore) -> None:
    number = store.create(a_row("r1", parent_id="p"), log_of("r1", 1))
    store.erase("r1")
    other = a_row("r1", name="x", tenant="x", created_ns=9, parent_id="x", salt=b"x")
    store.append(number, log_of("r1", 2)[1:], row=other)
    assert store.row("r1") == a_row("r1", parent_id="p", number=number, salt=None)


def test_rule_13_a_row_of_an_epoch_that_is_over_is_fenced(store: EventStore) -> None:
    events = log_of("r1", 2)
    number = store.create(a_row("r1", epoch=1), events[:1])
    assert store.update_row(a_row("r1", epoch=2, owner={"pid": 8}))
    with pytest.raises(HeadMovedError):
        store.append(number, events[1:], row=a_row("r1", epoch=1, state="FAILED"))
    assert unplaced(store.read("r1")) == events[:1]
    assert store.row("r1") == a_row("r1", epoch=2, owner={"pid": 8}, number=number)


def test_rule_13_the_first_claim_wins_and_fences_the_old_owner(store: EventStore) -> None:
    mine, yours = {"host": "h", "pid": 8}, {"pid": 9, "host": "h"}
    number = store.create(a_row("r1"), log_of("r1", 1))
    assert store.update_row(a_row("r1", heartbeat_ns=2)), "the owner's heartbeat"
    assert store.update_row(a_row("r1", epoch=2, owner=mine, heartbeat_ns=3)), "a claim"
    assert not store.update_row(a_row("r1", epoch=2, owner=yours)), "a claim that comes too late"
    assert not store.update_row(a_row("r1", heartbeat_ns=4)), "the old owner"
    assert not store.update_row(a_row("r1", epoch=4, owner=yours)), "a claim of a later epoch"
    assert store.update_row(a_row("r1", epoch=2, owner={"pid": 8, "host": "h"}, heartbeat_ns=5))
    assert store.row("r1") == a_row("r1", number=number, epoch=2, owner=mine, heartbeat_ns=5)
    assert store.update_row(a_row("r1", epoch=2, owner={})), "a release"
    assert not store.update_row(a_row("r1", epoch=2, owner=mine)), "a heartbeat after the release"
    assert store.update_row(a_row("r1", epoch=3, owner=yours)), "a claim of a released run"


def test_rule_13_of_many_claims_one_wins(store: EventStore) -> None:
    store.create(a_row("r1"), log_of("r1", 1))
    claims = on_threads(8, lambda index: store.update_row(a_row("r1", epoch=2, owner={"pid": index})))
    assert claims.count(True) == 1
    row = store.row("r1")
    assert row is not None
    assert row.owner == {"pid": claims.index(True)}


# --- movements ---------------------------------------------------------------------------------


def test_movements_are_given_as_they_are_now(store: EventStore) -> None:
    events = log_of("r1", 4)
    number = store.create(a_row("r1"), events[:1], [Movement("a", opening=opening(5))])
    assert store.accounts(["a", "b"])["a"].to_data() == opening(5).to_data()
    moved = store.append(number, events[1:2], movements=[Movement("a", steps(2))])
    assert moved["a"].reserved == {"steps": 2}
    settled = store.append(
        number, events[2:3], movements=[Movement("a", settle=({"steps": 2}, {"steps": 3}))]
    )
    assert moved["a"].reserved == {"steps": 2}, "what was given before stays as it was"
    assert (settled["a"].spent, settled["a"].reserved) == ({"steps": 3}, {"steps": 0})
    assert settled["a"].excess == {"steps": 1}
    store.append(number, events[3:], movements=[Movement("a", steps(2), undo=False)])
    assert store.append(number, [], movements=[Movement("a", steps(2), undo=True)]).keys() == {"a"}
    assert store.accounts(["a"])["a"].to_data() == settled["a"].to_data()


def test_a_refused_movement_undoes_the_whole_act(store: EventStore) -> None:
    events = log_of("r1", 2)
    opens = [Movement("a", opening=opening(5)), Movement("b", opening=opening(1))]
    number = store.create(a_row("r1"), events[:1], opens)
    both = [Movement("a", steps(2)), Movement("b", steps(2))]
    with pytest.raises(LedgerRefusedError) as caught:
        store.append(number, events[1:], movements=both, row=a_row("r1", state="FAILED"))
    assert caught.value.account == "b"
    assert caught.value.refusal.limit == 1
    assert [account.reserved for account in store.accounts(["a", "b"]).values()] == [{}, {}]
    assert unplaced(store.read("r1")) == events[:1]
    assert store.row("r1") == a_row("r1", number=number)
    with pytest.raises(LedgerRefusedError):
        store.create(a_row("r2"), log_of("r2", 1), both)
    assert store.row("r2") is None


def test_at_the_limit_many_threads_are_granted_exactly_the_limit(store: EventStore) -> None:
    def run(index: int) -> int:
        run_id = f"r{index}"
        number = store.create(a_row(run_id), log_of(run_id, 1), [Movement("tenant", opening=opening(50))])
        granted = 0
        for _ in range(8):
            event = Stored(granted + 2, b"{}", b"hash")
            try:
                store.append(number, [event], movements=[Movement("tenant", steps(1))])
            except LedgerRefusedError:
                continue
            granted += 1
        return granted

    granted = on_threads(16, run)
    assert sum(granted) == 50
    assert store.accounts(["tenant"])["tenant"].reserved == {"steps": 50}
    assert len(store.tail()) == 16 + 50


# --- exclusive ---------------------------------------------------------------------------------


def test_what_is_done_in_exclusive_is_seen_there_and_committed_at_its_end(store: EventStore) -> None:
    events = log_of("r1", 3)
    number = store.create(a_row("r1"), events[:1])
    with store.exclusive():
        store.append(number, events[1:2])
        assert store.last("r1") == list(store.read("r1"))[-1]
        assert unplaced(store.read("r1")) == events[:2]
        with store.exclusive():
            store.append(number, events[2:], row=a_row("r1", state="PAUSED"))
        found = store.row("r1")
        assert found is not None
        assert found.state == "PAUSED"
    assert unplaced(store.read("r1")) == events


def test_an_exception_undoes_what_was_done_in_exclusive(store: EventStore) -> None:
    events = log_of("r1", 3, payload=b"p")
    number = store.create(a_row("r1"), events[:1], [Movement("a", opening=opening(5))])

    def act_and_fail() -> None:
        with store.exclusive():
            store.append(number, events[1:2], movements=[Movement("a", steps(2))])
            store.append(number, events[2:], row=a_row("r1", state="FAILED", ended_ns=2))
            store.create(a_row("r2"), log_of("r2", 1), [Movement("b", opening=opening(5))])
            store.update_row(a_row("r1", epoch=2))
            store.erase("r1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        act_and_fail()
    assert unplaced(store.read("r1")) == events[:1]
    assert store.row("r1") == a_row("r1", number=number)
    assert store.row("r2") is None
    assert {name: found.reserved for name, found in store.accounts(["a", "b"]).items()} == {"a": {}}
    store.append(number, events[1:])
    assert unplaced(store.read("r1")) == events


def test_what_failed_inside_exclusive_leaves_nothing_and_the_rest_is_kept(store: EventStore) -> None:
    events = log_of("r1", 3)
    number = store.create(a_row("r1"), events[:1], [Movement("a", opening=opening(1))])

    def act_and_fail() -> None:
        with store.exclusive():
            store.append(number, events[2:])
            raise ZeroDivisionError

    with store.exclusive():
        store.append(number, events[1:2])
        with pytest.raises(LedgerRefusedError):
            store.append(number, events[2:], movements=[Movement("a", steps(2))])
        with pytest.raises(HeadMovedError):
            store.append(number, [events[2], events[2]], row=a_row("r1", state="FAILED"))
        with pytest.raises(RunExistsError):
            store.create(a_row("r1"), log_of("r1", 1))
        with pytest.raises(ZeroDivisionError):
            act_and_fail()
    assert unplaced(store.read("r1")) == events[:2]
    assert store.row("r1") == a_row("r1", number=number)


# --- removal -----------------------------------------------------------------------------------


def test_erasing_drops_payloads_and_salt_and_nothing_else(store: EventStore) -> None:
    events = log_of("r1", 3, payload=b"secret")
    store.create(a_row("other"), log_of("other", 1, payload=b"kept"))
    number = store.create(a_row("r1"), [*events[:2], events[2]._replace(payload=None)])
    before = list(store.read("r1"))
    assert store.erase("r1") == 2
    assert list(store.read("r1")) == [event._replace(payload=None) for event in before]
    assert store.row("r1") == a_row("r1", number=number, salt=None)
    assert [event.payload for event in store.read("other")] == [b"kept"]
    assert store.erase("r1") == 0
    assert store.append(number, log_of("r1", 4)[3:]) == {}


def test_pruning_drops_ended_runs_whole(store: EventStore) -> None:
    ends = {"old": 5, "late": 20, "live": None, "newest": 5}
    for run_id, end in ends.items():
        state = "RUNNING" if end is None else "COMPLETED"
        store.create(a_row(run_id, state=state, ended_ns=end), log_of(run_id, 2))
    last = store.tail()[-1][1].position
    assert store.prune(20) == ["old", "newest"]
    assert [row.run_id for row in store.rows()] == ["live", "late"]
    assert [(run_id, event.seq) for run_id, event in store.tail()] == [
        ("late", 1),
        ("late", 2),
        ("live", 1),
        ("live", 2),
    ]
    assert list(store.read("old")) == []
    assert store.prune(20) == []
    number = store.create(a_row("old"), log_of("old", 1))
    assert number > 4, "a number of the past would let a writer of the past in"
    assert store.tail()[-1][1].position > last, "a position is never given again"


def test_pruning_everything_keeps_positions_from_being_given_again(store: EventStore) -> None:
    last = 0
    for turn in range(3):
        store.create(a_row(f"r{turn}", state="KILLED", ended_ns=1), log_of(f"r{turn}", 2))
        tail = store.tail(after=last)
        assert [run_id for run_id, _ in tail] == [f"r{turn}"] * 2
        last = tail[-1][1].position
        assert store.prune(2) == [f"r{turn}"]
        assert store.tail() == []


def test_a_late_append_to_a_pruned_run_is_refused(store: EventStore) -> None:
    number = store.create(a_row("r1", state="KILLED", ended_ns=1), log_of("r1", 1))
    store.create(a_row("r2"), log_of("r2", 1))
    store.prune(2)
    for events in (log_of("r1", 2)[1:], log_of("r1", 1)):
        with pytest.raises(HeadMovedError):
            store.append(number, events)


# --- closing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [True, False], ids=["used", "never used"])
@pytest.mark.parametrize("call", CALLS)
def test_a_closed_store_raises_ours(store: EventStore, call: str, used: bool) -> None:
    if used:
        store.create(a_row("r1"), log_of("r1", 1))
    store.close()
    store.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        CALLS[call](store)
