"""What every store promises of shared accounts: they move in the act of an append."""

from __future__ import annotations

import pytest

from agentguard.budget.ledger import LedgerRefusedError, Movement
from agentguard.events.codec import Stored
from agentguard.protocols import EventStore, HeadMovedError
from agentguard.testing.conformance._given import a_row, log_of, on_threads, opening, steps, unplaced
from agentguard.testing.conformance._stores import StoreSuite


class AccountsContract(StoreSuite):
    """Reserve, settle and release, all or nothing, never over a limit."""

    def test_movements_are_given_as_they_are_now(self, store: EventStore) -> None:
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

    def test_a_refused_movement_undoes_the_whole_act(self, store: EventStore) -> None:
        events = log_of("r1", 2)
        opens = [Movement("a", opening=opening(5)), Movement("b", opening=opening(1))]
        number = store.create(a_row("r1"), events[:1], opens)
        both = [Movement("a", steps(2)), Movement("b", steps(2))]
        with pytest.raises(LedgerRefusedError) as caught:
            store.append(number, events[1:], movements=both, row=a_row("r1", state="FAILED"))
        assert caught.value.account == "b"
        assert caught.value.refusal is not None
        assert caught.value.refusal.limit == 1
        assert [account.reserved for account in store.accounts(["a", "b"]).values()] == [{}, {}]
        assert unplaced(store.read("r1")) == events[:1]
        assert store.row("r1") == a_row("r1", number=number)
        with pytest.raises(LedgerRefusedError):
            store.create(a_row("r2"), log_of("r2", 1), both)
        assert store.row("r2") is None

    def test_a_closed_account_takes_no_more_reservations_and_still_settles(self, store: EventStore) -> None:
        events = log_of("r1", 3)
        number = store.create(a_row("r1"), events[:1], [Movement("a", steps(2), opening=opening(5))])
        closed = store.append(number, events[1:2], movements=[Movement("a", close=True)])
        assert closed["a"].closed
        with pytest.raises(LedgerRefusedError) as caught:
            store.append(number, events[2:], movements=[Movement("a", steps(1))])
        assert (caught.value.account, caught.value.refusal) == ("a", None)
        settled = store.append(
            number, events[2:], movements=[Movement("a", settle=({"steps": 2}, {"steps": 2}))]
        )
        assert (settled["a"].spent, settled["a"].closed) == ({"steps": 2}, True)

    def test_movements_alone_need_no_run(self, store: EventStore) -> None:
        moved = store.append(0, (), movements=[Movement("a", steps(2), opening=opening(5))])
        assert moved["a"].reserved == {"steps": 2}
        assert store.accounts(["a"])["a"].to_data() == moved["a"].to_data()
        with pytest.raises(HeadMovedError):
            store.append(0, log_of("r1", 1), movements=[Movement("a", steps(1))])
        assert store.accounts(["a"])["a"].reserved == {"steps": 2}

    def test_at_the_limit_many_threads_are_granted_exactly_the_limit(self, store: EventStore) -> None:
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
