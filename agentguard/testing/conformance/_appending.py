"""What appending promises."""

from __future__ import annotations

import threading

import pytest

from agentguard.budget.ledger import Movement
from agentguard.errors import RunExistsError
from agentguard.events.codec import Stored, chain, genesis
from agentguard.protocols import EventStore, HeadMovedError, StoreBusyError
from agentguard.testing.conformance._given import a_row, log_of, on_threads, opening, steps, unplaced
from agentguard.testing.conformance._stores import StoreSuite


class AppendingContract(StoreSuite):
    """Appending: the first of two writers wins."""

    def test_conflicting_append_writes_nothing(self, store: EventStore) -> None:
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

    def test_a_gap_is_impossible(self, store: EventStore) -> None:
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

    def test_creating_a_run_twice_writes_nothing(self, store: EventStore) -> None:
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

    def test_of_two_writers_the_first_wins(self, store: EventStore) -> None:
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
    def test_many_threads_on_one_run_leave_one_intact_chain(self, store: EventStore, exclusive: bool) -> None:
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
                            with store.exclusive("r1"):
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

    def test_a_run_has_one_lock_in_a_process(self, store: EventStore) -> None:
        first = store.lock_for("r1")
        assert store.lock_for("r1") is first
        entered, tried = [], threading.Event()

        def enter() -> None:
            tried.set()
            with store.lock_for("r1"):
                entered.append(True)

        with first:
            other = threading.Thread(target=enter)
            other.start()
            assert tried.wait(30)
            other.join(0.05)
            assert not entered
        other.join(30)
        assert entered

    def test_append_is_allowed_under_the_lock(self, store: EventStore) -> None:
        events = log_of("r1", 3)
        number = store.create(a_row("r1"), events[:1])
        with store.lock_for("r1"), store.lock_for("r1"):
            store.append(number, events[1:2])
            store.append(number, events[2:], row=a_row("r1", state="PAUSED"))
        assert unplaced(store.read("r1")) == events

    def test_without_waiting_a_held_store_is_busy(self, store: EventStore) -> None:
        events = log_of("r1", 2)
        number = store.create(a_row("r1"), events[:1])
        held, leave = threading.Event(), threading.Event()

        def hold() -> None:
            with store.exclusive("r1"):
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

    def test_settled_appends_are_no_different(self, store: EventStore) -> None:
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
