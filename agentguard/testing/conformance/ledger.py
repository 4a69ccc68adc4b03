"""What a ledger apart from the store promises: each act once, nothing over a limit, nothing freed early."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from agentguard.budget.account import Account, Amounts, Request
from agentguard.budget.ledger import LedgerRefusedError
from agentguard.budget.model import Budget
from agentguard.budget.reservation import LedgerBehindError, Reservation, ReservationTakenError
from agentguard.protocols import Ledger
from agentguard.testing.conformance._given import on_threads, wait_until

NAME = "tenant:acme"
NOW = 7
#: Seconds that a holder is taken to live; what is to run out is given none.
LEASE = 60.0


def reservation(key: str = "main/s#1", **fields: Any) -> Reservation:
    """What a step holds."""
    given: dict[str, Any] = {
        "run_id": "r1",
        "attempt": 1,
        "accounts": (NAME,),
        "reserve": {"steps": 1, "nano_usd": 10},
        "name": "s",
        "kind": "tool",
        "epoch": 1,
        "generation": NOW,
        "holder": {"host": "h", "boot": "b", "pid": 1, "start": 5},
    }
    return Reservation(key=key, **(given | fields))


def opening(**limits: Any) -> dict[str, Account]:
    """The account as it opens."""
    return {NAME: Account(NAME, Budget(**limits))}


def totals(ledger: Ledger, name: str = NAME) -> tuple[Amounts, Amounts]:
    """What is spent and what is reserved, without what is nothing."""
    account = ledger.accounts([name])[name]
    return _some(account.spent), _some(account.reserved)


def _some(amounts: Amounts) -> Amounts:
    return {name: amount for name, amount in amounts.items() if amount}


ONE: Amounts = {"steps": 1, "nano_usd": 10}


class LedgerContract:
    """The contract of `agentguard.protocols.Ledger`, as tests."""

    @pytest.fixture
    def ledger(self) -> Ledger:
        """The ledger under test, new and empty."""
        raise NotImplementedError("override the fixture `ledger`: give an empty ledger of yours")

    @pytest.fixture
    def begun(self, ledger: Ledger) -> Ledger:
        """The same with books, of generation 7."""
        ledger.rebuild(NOW, {}, [])
        return ledger

    def hold(self, ledger: Ledger, held: Reservation, **limits: Any) -> dict[str, Account]:
        """Reserve."""
        return ledger.reserve(held, held.request, opening(**limits), LEASE)

    # --- generations ---------------------------------------------------------------------------

    def test_a_new_ledger_has_no_books_and_grants_nothing(self, ledger: Ledger) -> None:
        assert ledger.generation() == 0
        assert ledger.accounts([NAME]) == {}
        assert ledger.overdue() == []
        held = reservation()
        with pytest.raises(LedgerBehindError) as behind:
            self.hold(ledger, held)
        assert behind.value.found == 0
        with pytest.raises(LedgerBehindError):
            ledger.settle(held, ONE)
        with pytest.raises(LedgerBehindError):
            ledger.renew(NOW, held.holder, [held], LEASE)

    def test_another_generation_is_refused_and_changes_nothing(self, begun: Ledger) -> None:
        self.hold(begun, reservation())
        for generation in (NOW - 1, NOW + 1):
            other = reservation("main/s#2", generation=generation)
            with pytest.raises(LedgerBehindError) as behind:
                self.hold(begun, other)
            assert behind.value.found == NOW
            with pytest.raises(LedgerBehindError):
                begun.renew(generation, other.holder, [other], LEASE)
        with pytest.raises(LedgerBehindError):
            begun.settle(reservation(generation=NOW + 1), ONE)
        assert totals(begun) == ({}, ONE)

    def test_rebuilding_puts_other_books_in_the_place_of_these(self, begun: Ledger) -> None:
        self.hold(begun, reservation())
        begun.settle(reservation(), ONE)
        account = opening(steps=50)[NAME]
        open_step = reservation("main/s#9", generation=NOW + 1)
        account.reserve(open_step.request)
        account.settle({}, {"steps": 3})
        begun.rebuild(NOW + 1, {NAME: account}, [open_step])
        assert begun.generation() == NOW + 1
        assert totals(begun) == ({"steps": 3}, ONE)
        begun.settle(open_step, {"steps": 1, "nano_usd": 4})
        assert totals(begun) == ({"steps": 4, "nano_usd": 4}, {})
        # It was settled before the log was read for these books.
        begun.settle(reservation("main/s#5"), ONE)
        assert totals(begun) == ({"steps": 4, "nano_usd": 4}, {})

    def test_books_are_never_replaced_by_older_ones(self, begun: Ledger) -> None:
        with pytest.raises(LedgerBehindError) as behind:
            begun.rebuild(NOW - 1, {}, [])
        assert behind.value.found == NOW
        assert begun.generation() == NOW

    def test_books_that_were_put_in_place_are_not_put_there_again(self, begun: Ledger) -> None:
        """The answer was lost, and what was granted since is not to be."""
        self.hold(begun, reservation())
        begun.settle(reservation(), ONE)
        begun.rebuild(NOW, {}, [])
        assert totals(begun) == (ONE, {})

    # --- reserving and settling ----------------------------------------------------------------

    def test_what_is_reserved_is_held_and_what_was_used_takes_its_place(self, begun: Ledger) -> None:
        accounts = self.hold(begun, reservation(), steps=5, usd=1)
        assert accounts[NAME].budget == Budget(steps=5, usd=1)
        assert _some(accounts[NAME].reserved) == ONE
        accounts = begun.settle(reservation(), {"steps": 1, "nano_usd": 25, "emails": 2})
        assert _some(accounts[NAME].spent) == {"steps": 1, "nano_usd": 25, "emails": 2}
        assert _some(accounts[NAME].reserved) == {}
        assert accounts[NAME].excess == {"nano_usd": 15}
        assert begun.accounts([NAME, "tenant:other"])[NAME].to_data() == accounts[NAME].to_data()

    def test_what_is_given_back_leaves_nothing_and_may_be_reserved_again(self, begun: Ledger) -> None:
        self.hold(begun, reservation(), calls={"s": 1})
        begun.settle(reservation(), None)
        assert totals(begun) == ({}, {})
        self.hold(begun, reservation(), calls={"s": 1})
        assert totals(begun) == ({}, ONE)

    def test_what_arrives_after_it_was_given_back_holds_nothing(self, begun: Ledger) -> None:
        """Its answer did not come in time: it was given up, and still on its way."""
        late = reservation(nonce="a")
        begun.settle(late, None)
        with pytest.raises(ReservationTakenError):
            self.hold(begun, late)
        self.hold(begun, replace(late, nonce="b"))
        with pytest.raises(ReservationTakenError):
            self.hold(begun, late)
        begun.settle(late, None)
        assert totals(begun) == ({}, ONE), "the next try keeps what it holds"
        begun.settle(replace(late, nonce="b"), None)
        assert totals(begun) == ({}, {})

    def test_two_that_ask_for_one_step_in_one_process_are_told_apart(self, begun: Ledger) -> None:
        self.hold(begun, reservation(nonce="a"))
        self.hold(begun, reservation(nonce="a"))
        other = reservation(nonce="b")
        with pytest.raises(ReservationTakenError):
            self.hold(begun, other)
        begun.settle(other, None)
        assert totals(begun) == ({}, ONE)

    def test_who_holds_what_the_log_alone_tells_of_may_give_it_back(self, begun: Ledger) -> None:
        account = opening()[NAME]
        account.reserve(reservation().request)
        begun.rebuild(NOW + 1, {NAME: account}, [reservation(generation=NOW + 1)])
        begun.settle(reservation(nonce="a"), None)
        assert totals(begun) == ({}, {})

    def test_every_act_is_done_once(self, begun: Ledger) -> None:
        for _ in range(2):
            self.hold(begun, reservation())
        assert totals(begun) == ({}, ONE)
        for _ in range(2):
            begun.settle(reservation(), ONE)
        assert totals(begun) == (ONE, {})
        begun.settle(reservation(), None)
        assert totals(begun) == (ONE, {}), "what was settled is not given back"
        with pytest.raises(ReservationTakenError) as taken:
            self.hold(begun, reservation())
        assert taken.value.held is None
        self.hold(begun, reservation(attempt=2))
        begun.settle(reservation(attempt=2), None)
        begun.settle(reservation(attempt=2), None)
        assert totals(begun) == (ONE, {})

    def test_one_step_is_held_by_one_process_and_given_back_by_it_alone(self, begun: Ledger) -> None:
        self.hold(begun, reservation())
        other = reservation(holder={"host": "h", "boot": "b", "pid": 2, "start": 9})
        with pytest.raises(ReservationTakenError) as taken:
            self.hold(begun, other)
        assert taken.value.held == reservation()
        begun.settle(other, None)
        assert totals(begun) == ({}, ONE)
        begun.settle(other, {"steps": 1})
        assert totals(begun) == ({"steps": 1}, {}), "what it used is on record: whoever read it may say so"

    def test_a_reservation_whose_record_was_lost_is_charged_all_the_same(self, begun: Ledger) -> None:
        for _ in range(2):
            begun.settle(reservation(), {"steps": 1, "nano_usd": 4})
        assert totals(begun) == ({"steps": 1, "nano_usd": 4}, {})

    # --- the limit -----------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("limits", "resource", "limit"),
        [({"steps": 2}, "steps", 2), ({"usd": "0.00000002"}, "nano_usd", 20), ({"emails": 0}, None, None)],
        ids=["steps", "usd", "not used"],
    )
    def test_a_limit_is_never_passed(
        self, begun: Ledger, limits: dict[str, Any], resource: str | None, limit: int | None
    ) -> None:
        self.hold(begun, reservation(), **limits)
        begun.settle(reservation(), ONE)
        self.hold(begun, reservation("main/s#2"), **limits)
        third = reservation("main/s#3")
        if resource is None:
            self.hold(begun, third, **limits)
            return
        with pytest.raises(LedgerRefusedError) as refused:
            self.hold(begun, third, **limits)
        assert (refused.value.account, refused.value.path) == (NAME, NAME)
        assert refused.value.refusal == (resource, ONE[resource], ONE[resource], ONE[resource], limit)
        assert totals(begun) == (ONE, ONE)
        self.hold(begun, third, **limits | {"enforce": False})

    def test_a_limit_of_nothing_refuses_what_would_use_it(self, begun: Ledger) -> None:
        emails = reservation(reserve={"steps": 1, "emails": 1})
        with pytest.raises(LedgerRefusedError) as refused:
            self.hold(begun, emails, emails=0)
        assert refused.value.refusal == ("emails", 0, 0, 1, 0)

    def test_usage_known_only_afterwards_needs_room(self, begun: Ledger) -> None:
        held = reservation(reserve={"steps": 1})
        request = Request(held.reserve, "s", "tool", postpaid=True)
        begun.reserve(held, request, opening(emails=3), LEASE)
        begun.settle(held, {"steps": 1, "emails": 3})
        with pytest.raises(LedgerRefusedError) as refused:
            begun.reserve(replace(held, key="main/s#2"), request, opening(emails=3), LEASE)
        assert refused.value.refusal == ("emails", 3, 0, 0, 3)

    @pytest.mark.parametrize("pattern", ["s", "kind:tool"])
    def test_calls_are_counted(self, begun: Ledger, pattern: str) -> None:
        self.hold(begun, reservation(), calls={pattern: 1})
        with pytest.raises(LedgerRefusedError) as refused:
            self.hold(begun, reservation("main/s#2"), calls={pattern: 1})
        assert refused.value.refusal == (f"calls:{pattern}", 1, 0, 1, 1)
        self.hold(begun, reservation("main/t#1", name="t", kind="llm"), calls={pattern: 1})

    def test_all_accounts_or_none(self, begun: Ledger) -> None:
        day = f"{NAME}:2026-11-22"
        both = reservation(accounts=(NAME, day))
        openings = {NAME: Account(NAME, Budget(steps=9)), day: Account(NAME, Budget(steps=0))}
        with pytest.raises(LedgerRefusedError) as refused:
            begun.reserve(both, both.request, openings, LEASE)
        assert refused.value.account == day
        assert all(totals(begun, name) == ({}, {}) for name in begun.accounts([NAME, day]))
        openings[day] = Account(NAME, Budget(steps=1))
        begun.reserve(both, both.request, openings, LEASE)
        begun.settle(both, {"steps": 1})
        assert [totals(begun, name) for name in (NAME, day)] == [({"steps": 1}, {})] * 2

    def test_another_budget_takes_effect_at_the_next_step(self, begun: Ledger) -> None:
        self.hold(begun, reservation(), steps=1)
        self.hold(begun, reservation("main/s#2"), steps=2)
        with pytest.raises(LedgerRefusedError):
            self.hold(begun, reservation("main/s#3"), steps=1)

    def test_amounts_are_exact(self, begun: Ledger) -> None:
        """A dollar is 1,000,000,000 here, so large budgets need all the digits."""
        large = 9_000_000_000_000_001
        held = reservation(reserve={"steps": 1, "nano_usd": large})
        self.hold(begun, held, usd="9000000.000000002")
        with pytest.raises(LedgerRefusedError) as refused:
            self.hold(
                begun, reservation("main/s#2", reserve={"steps": 1, "nano_usd": 2}), usd="9000000.000000002"
            )
        assert refused.value.refusal == ("nano_usd", 0, large, 2, large + 1)
        self.hold(
            begun, reservation("main/s#3", reserve={"steps": 1, "nano_usd": 1}), usd="9000000.000000002"
        )
        begun.settle(held, {"steps": 1, "nano_usd": large})
        assert totals(begun)[0]["nano_usd"] == large

    def test_at_the_limit_many_threads_are_granted_exactly_the_limit(self, begun: Ledger) -> None:
        def run(index: int) -> int:
            granted = 0
            for n in range(8):
                held = reservation(f"main/s#{index}-{n}", reserve={"steps": 1})
                try:
                    self.hold(begun, held, steps=50)
                except LedgerRefusedError:
                    continue
                granted += 1
                if n % 2:
                    begun.settle(held, {"steps": 1})
            return granted

        assert sum(on_threads(16, run)) == 50
        spent, reserved = totals(begun)
        assert spent.get("steps", 0) + reserved.get("steps", 0) == 50

    # --- leases --------------------------------------------------------------------------------

    def test_who_is_silent_keeps_what_it_holds_and_is_named(self, begun: Ledger) -> None:
        held = reservation()
        begun.reserve(held, held.request, opening(steps=1), 0.0)
        wait_until(begun.overdue)
        assert begun.overdue() == [held]
        assert totals(begun) == ({}, ONE)
        with pytest.raises(LedgerRefusedError):
            self.hold(begun, reservation("main/s#2"), steps=1)

    def test_a_sign_of_life_counts_for_all_that_a_process_holds(self, begun: Ledger) -> None:
        held = [reservation(f"main/s#{n}") for n in range(3)]
        for one in held:
            begun.reserve(one, one.request, opening(), 0.0)
        wait_until(begun.overdue)
        begun.renew(NOW, held[0].holder, held[:1], LEASE)
        assert begun.overdue() == []

    def test_a_sign_of_life_puts_back_what_was_lost(self, begun: Ledger) -> None:
        lost, older = reservation(), reservation("main/s#2", generation=NOW - 1)
        for _ in range(2):
            begun.renew(NOW, lost.holder, [lost, older], LEASE)
        assert totals(begun) == ({}, ONE), "what is of an older generation was in the log when these began"
        begun.settle(lost, ONE)
        begun.renew(NOW, lost.holder, [lost], LEASE)
        assert totals(begun) == (ONE, {})

    def test_what_nobody_knows_is_charged_until_somebody_does(self, begun: Ledger) -> None:
        held = reservation()
        begun.reserve(held, held.request, opening(steps=5), 0.0)
        for _ in range(2):
            begun.settle(held, held.reserve, final=False)
        assert totals(begun) == (ONE, {})
        assert begun.overdue() == []
        with pytest.raises(ReservationTakenError) as taken:
            self.hold(begun, held)
        assert taken.value.held == replace(held, charged=True)
        for _ in range(2):
            begun.settle(replace(held, holder={"pid": 2}), {"steps": 1, "nano_usd": 3})
        assert totals(begun) == ({"steps": 1, "nano_usd": 3}, {})
