"""What is one act, who may claim a run, and how something leaves a store."""

from __future__ import annotations

import msgspec
import pytest

from agentguard.budget.ledger import LedgerRefusedError, Movement
from agentguard.errors import RunExistsError
from agentguard.protocols import EventStore, HeadMovedError
from agentguard.testing.conformance._given import a_row, log_of, on_threads, opening, steps, unplaced
from agentguard.testing.conformance._stores import StoreSuite


class ActsContract(StoreSuite):
    """Rows, acts and removals."""

    def test_row_change_and_events_are_one_act(self, store: EventStore) -> None:
        events = log_of("r1", 2)
        number = store.create(a_row("r1"), events[:1])
        ended = a_row("r1", state="COMPLETED", ended_ns=9, summary={"steps": 4}, epoch=2)
        store.append(number, events[1:], row=ended)
        assert store.row("r1") == msgspec.structs.replace(ended, number=number)

    def test_what_a_run_is_born_with_never_changes(self, store: EventStore) -> None:
        number = store.create(a_row("r1", parent_id="p"), log_of("r1", 1))
        store.erase("r1")
        other = a_row("r1", name="x", tenant="x", created_ns=9, parent_id="x", salt=b"x")
        store.append(number, log_of("r1", 2)[1:], row=other)
        assert store.row("r1") == a_row("r1", parent_id="p", number=number, salt=None)

    def test_a_row_of_an_epoch_that_is_over_is_fenced(self, store: EventStore) -> None:
        events = log_of("r1", 2)
        number = store.create(a_row("r1", epoch=1), events[:1])
        assert store.update_row(a_row("r1", epoch=2, owner={"pid": 8}))
        with pytest.raises(HeadMovedError):
            store.append(number, events[1:], row=a_row("r1", epoch=1, state="FAILED"))
        assert unplaced(store.read("r1")) == events[:1]
        assert store.row("r1") == a_row("r1", epoch=2, owner={"pid": 8}, number=number)

    def test_the_first_claim_wins_and_fences_the_old_owner(self, store: EventStore) -> None:
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

    def test_of_many_claims_one_wins(self, store: EventStore) -> None:
        store.create(a_row("r1"), log_of("r1", 1))
        claims = on_threads(8, lambda index: store.update_row(a_row("r1", epoch=2, owner={"pid": index})))
        assert claims.count(True) == 1
        row = store.row("r1")
        assert row is not None
        assert row.owner == {"pid": claims.index(True)}

    def test_what_is_done_in_exclusive_is_seen_there_and_committed_at_its_end(
        self, store: EventStore
    ) -> None:
        events = log_of("r1", 3)
        number = store.create(a_row("r1"), events[:1])
        with store.exclusive("r1"):
            store.append(number, events[1:2])
            assert store.last("r1") == list(store.read("r1"))[-1]
            assert unplaced(store.read("r1")) == events[:2]
            with store.exclusive("r1"):
                store.append(number, events[2:], row=a_row("r1", state="PAUSED"))
            found = store.row("r1")
            assert found is not None
            assert found.state == "PAUSED"
        assert unplaced(store.read("r1")) == events

    def test_an_exception_undoes_what_was_done_in_exclusive(self, store: EventStore) -> None:
        events = log_of("r1", 3, payload=b"p")
        number = store.create(a_row("r1"), events[:1], [Movement("a", opening=opening(5))])

        def act_and_fail() -> None:
            with store.exclusive("r1"):
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

    def test_what_failed_inside_exclusive_leaves_nothing_and_the_rest_is_kept(
        self, store: EventStore
    ) -> None:
        events = log_of("r1", 3)
        number = store.create(a_row("r1"), events[:1], [Movement("a", opening=opening(1))])

        def act_and_fail() -> None:
            with store.exclusive("r1"):
                store.append(number, events[2:])
                raise ZeroDivisionError

        with store.exclusive("r1"):
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

    def test_erasing_drops_payloads_and_salt_and_nothing_else(self, store: EventStore) -> None:
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

    def test_pruning_drops_ended_runs_whole(self, store: EventStore) -> None:
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

    def test_pruning_leaves_out_what_is_to_be_kept(self, store: EventStore) -> None:
        for run_id in ("a", "b", "c"):
            store.create(a_row(run_id, state="FAILED", ended_ns=1), log_of(run_id, 2))
        assert store.prune(2, keep={"b", "nobody"}) == ["a", "c"]
        assert unplaced(store.read("b")) == log_of("b", 2)
        assert store.prune(2) == ["b"]

    def test_pruning_everything_keeps_positions_from_being_given_again(self, store: EventStore) -> None:
        last = 0
        for turn in range(3):
            store.create(a_row(f"r{turn}", state="KILLED", ended_ns=1), log_of(f"r{turn}", 2))
            tail = store.tail(after=last)
            assert [run_id for run_id, _ in tail] == [f"r{turn}"] * 2
            last = tail[-1][1].position
            assert store.prune(2) == [f"r{turn}"]
            assert store.tail() == []

    def test_a_late_append_to_a_pruned_run_is_refused(self, store: EventStore) -> None:
        number = store.create(a_row("r1", state="KILLED", ended_ns=1), log_of("r1", 1))
        store.create(a_row("r2"), log_of("r2", 1))
        store.prune(2)
        for events in (log_of("r1", 2)[1:], log_of("r1", 1)):
            with pytest.raises(HeadMovedError):
                store.append(number, events)

    def test_the_accounts_of_a_pruned_run_go_with_it(self, store: EventStore) -> None:
        """So that a run of the same id begins anew; those of tenants and of other runs stay."""
        gone = ["run:r1", "run:r1/scope", "run:r1/scope/inner", "attach:r1"]
        stay = ["tenant:r1", "run:r10", "run:r1/other", "run:r1/other/scope", "run:r1-", "attach:r10"]
        movements = [Movement(name, settle=({}, {"steps": 1}), opening=opening(9)) for name in gone + stay]
        store.create(a_row("r1/other"), log_of("r1/other", 1))
        store.create(a_row("r1", state="KILLED", ended_ns=1), log_of("r1", 1), movements)
        assert store.prune(2) == ["r1"]
        assert sorted(store.accounts(gone + stay)) == sorted(stay)
