"""What a store reads back, and what it says when it is closed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from agentguard.errors import StoreUnavailableError
from agentguard.protocols import EventStore, RunRow
from agentguard.testing.conformance._given import a_row, log_of, unplaced
from agentguard.testing.conformance._stores import StoreSuite

CALLS: dict[str, Callable[[EventStore], Any]] = {
    "create": lambda store: store.create(a_row("other"), log_of("other", 1)),
    "append": lambda store: store.append(1, log_of("r1", 2)[1:]),
    "exclusive": lambda store: store.exclusive("r1").__enter__(),
    "row": lambda store: store.row("r1"),
    "rows": lambda store: store.rows(),
    "neighbours": lambda store: store.neighbours("r1"),
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


class ReadingContract(StoreSuite):
    """Reading, and the end of reading."""

    def test_payloads_of_several_lines_read_back_byte_for_byte(self, store: EventStore) -> None:
        """As those of calls with conversations are."""
        payloads = (
            b'{"conversations":[]}\n' + b"0" * 64 + b'{"text":"\xc3\xa9"}\n',
            b"\n",
            b"",
            b"\n" * 70_000,
        )
        log = log_of("r1", len(payloads))
        events = [event._replace(payload=payload) for event, payload in zip(log, payloads, strict=True)]
        number = store.create(a_row("r1"), events[:1])
        for event in events[1:]:
            store.append(number, [event])
        assert [event.payload for event in store.read("r1")] == list(payloads)
        assert [event.payload for _, event in store.tail()] == list(payloads)
        assert store.erase("r1") == len(payloads)

    def test_what_was_written_reads_back_equal_each_time(self, store: EventStore) -> None:
        row = a_row("r1", parent_id="p", heartbeat_ns=5)
        events = log_of("r1", 3, payload=b"\x00payload")
        number = store.create(row, events[:2])
        assert store.append(number, events[2:]) == {}
        for _ in range(2):
            assert unplaced(store.read("r1")) == events
            assert unplaced(store.read("r1", after=2)) == events[2:]
            assert store.last("r1") == list(store.read("r1"))[-1]
            assert store.row("r1") == msgspec.structs.replace(row, number=number)

    def test_unknown_run_has_no_row_no_events_and_no_children(self, store: EventStore) -> None:
        assert store.row("nobody") is None
        assert list(store.read("nobody")) == []
        assert store.last("nobody") is None
        assert store.children("nobody") == []
        assert store.accounts(["nobody"]) == {}
        assert store.erase("nobody") == 0
        assert not store.update_row(a_row("nobody"))

    def test_changing_a_row_that_was_read_changes_nothing_in_the_store(self, store: EventStore) -> None:
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

    def test_rows_are_the_newest_first_and_filtered(self, store: EventStore) -> None:
        for index in range(6):
            tenant = "acme" if index % 2 else "other"
            state = "FAILED" if index > 3 else "RUNNING"
            store.create(a_row(f"r{index}", tenant=tenant, state=state), log_of(f"r{index}", 1))

        def ids(rows: list[RunRow]) -> list[str]:
            return [row.run_id for row in rows]

        assert ids(store.rows()) == ["r5", "r4", "r3", "r2", "r1", "r0"]
        assert ids(store.rows(limit=2)) == ["r5", "r4"]
        assert ids(store.rows(tenant="acme")) == ["r5", "r3", "r1"]
        assert ids(store.rows(state="RUNNING", limit=3)) == ["r3", "r2", "r1"]
        assert ids(store.rows(tenant="acme", state="RUNNING")) == ["r3", "r1"]
        assert ids(store.rows(before="r4", limit=2)) == ["r3", "r2"]
        assert ids(store.rows(tenant="acme", before="r5")) == ["r3", "r1"]
        assert ids(store.rows(state="RUNNING", before="r2")) == ["r1", "r0"]
        assert ids(store.rows(tenant="acme", state="RUNNING", before="r1")) == []
        assert ids(store.rows(before="nobody")) == []

    def test_neighbours_are_next_in_the_order_of_characters(self, store: EventStore) -> None:
        """Not in the order of words, which passes over signs and the size of letters."""
        ids = ["01-b", "01-B", "01_b", "01b", "01-c", "1", "Z", "a", "z-1", "z.1", "ä", "\U0001f600"]
        for run_id in ids:
            store.create(a_row(run_id), log_of(run_id, 1))
        in_order = sorted(ids)
        for before, own, after in zip([None, *in_order], in_order, [*in_order[1:], None], strict=False):
            assert store.neighbours(own) == (before, after)
        assert store.neighbours("01-") == (None, "01-B")
        assert store.neighbours("01-b1") == ("01-b", "01-c")
        assert store.neighbours("\U0001f600!") == ("\U0001f600", None)

    def test_the_only_run_and_one_that_is_not_there_have_the_neighbours_that_there_are(
        self, store: EventStore
    ) -> None:
        assert store.neighbours("a") == (None, None)
        store.create(a_row("b"), log_of("b", 1))
        assert store.neighbours("b") == (None, None)
        assert store.neighbours("a") == (None, "b")
        assert store.neighbours("c") == ("b", None)

    def test_children_are_those_of_the_run_the_oldest_first(self, store: EventStore) -> None:
        for run_id, parent in (("a", None), ("b", "a"), ("c", "b"), ("d", "a")):
            store.create(a_row(run_id, parent_id=parent), log_of(run_id, 1))
        assert [row.run_id for row in store.children("a")] == ["b", "d"]

    def test_a_read_sees_one_moment(self, store: EventStore) -> None:
        events = log_of("r1", 4)
        number = store.create(a_row("r1"), events[:3])
        reading = store.read("r1")
        first = next(reading)
        store.append(number, events[3:])
        assert unplaced([first, *reading]) == events[:3]

    def test_row_and_events_can_be_read_in_one_snapshot(self, store: EventStore) -> None:
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

    def test_tail_gives_all_runs_in_commit_order(self, store: EventStore) -> None:
        logs = {run_id: log_of(run_id, 3) for run_id in ("a", "b", "c")}
        numbers = {
            run_id: store.create(a_row(run_id, tenant=run_id), log[:1]) for run_id, log in logs.items()
        }
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
        # Only `tail` has to know the positions.
        assert list(store.read("c"))[-1].position in (0, positions[5])

    @pytest.mark.parametrize("used", [True, False], ids=["used", "never used"])
    @pytest.mark.parametrize("call", CALLS)
    def test_a_closed_store_raises_ours(self, store: EventStore, call: str, used: bool) -> None:
        if used:
            store.create(a_row("r1"), log_of("r1", 1))
        store.close()
        store.close()
        with pytest.raises(StoreUnavailableError, match="closed"):
            CALLS[call](store)
