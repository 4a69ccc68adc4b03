"""What a shift says of acts on an account is what the ledger does to it, whatever was spent there meanwhile."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from agentguard import Budget
from agentguard.budget import ledger
from agentguard.budget.account import AMOUNTS, Account, Request
from agentguard.budget.ledger import LedgerRefusedError, Movement
from agentguard.budget.tenant import account_id, charged_during, is_charged_at

RESOURCES = ("emails", "steps")
amounts = st.fixed_dictionaries({}, optional=dict.fromkeys(RESOURCES, st.integers(0, 4)))
requests = st.builds(Request, amounts, st.sampled_from("ab"), st.just("tool"), st.booleans())
movements = st.one_of(
    st.builds(lambda request, undo: Movement("x", request, undo), requests, st.booleans()),
    st.builds(lambda reserve, usage: Movement("x", settle=(reserve, usage)), amounts, amounts),
)
acts = st.lists(st.lists(movements, min_size=1, max_size=2), min_size=1, max_size=4)
budgets = st.builds(
    lambda limits, calls, enforce: Budget(
        **limits, calls={} if calls is None else {"a": calls}, enforce=enforce
    ),
    st.fixed_dictionaries({}, optional=dict.fromkeys(RESOURCES, st.integers(20, 60))),
    st.none() | st.integers(0, 9),
    st.booleans(),
)
#: What is spent, reserved and in excess: as much is reserved as acts give back.
held = st.tuples(amounts, st.fixed_dictionaries(dict.fromkeys(RESOURCES, st.integers(0, 32))), amounts)


def an_account(budget: Budget, *parts: dict[str, int]) -> Account:
    account = Account("tenant:acme", budget)
    account.spent, account.reserved, account.excess = ({**part} for part in parts)
    return account


def fits(shift: ledger.Shift, now: Account) -> bool:
    """What the server compares."""
    return (
        now.rest() == shift.rest
        and all(now.reserved.get(name, 0) >= amount for name, amount in shift.held.items())
        and all(
            now.spent.get(name, 0) + now.reserved.get(name, 0) <= most for name, most in shift.most.items()
        )
    )


@given(acts, budgets, held, held)
def test_whatever_was_spent_meanwhile_acts_within_a_shift_are_admitted_and_do_just_that(
    acts, budget, was, has
):
    before, now = an_account(budget, *was), an_account(budget, *has)
    found = ledger.shifts(acts, {"x": before})
    assume(found)
    shift = (found or {})["x"]
    assume(fits(shift, now))
    expected = now.to_data()
    for part in AMOUNTS:
        for name, amount in shift.added[part].items():
            expected[part] = expected[part] | {name: expected[part].get(name, 0) + amount}
    accounts = {"x": now}
    for act in acts:
        ledger.apply(act, accounts)
    moved = accounts["x"].to_data()
    for part in AMOUNTS:  # what was never named may be there as 0, or not
        for data in (moved, expected):
            data[part] = {name: amount for name, amount in data[part].items() if amount}
    assert moved == expected


@given(acts, budgets, held, held)
def test_what_is_refused_now_fits_no_shift_of_the_same_acts(acts, budget, was, has):
    found = ledger.shifts(acts, {"x": an_account(budget, *was)})
    assume(found)
    now = an_account(budget, *has)
    accounts = {"x": now}
    try:
        for act in acts:
            ledger.apply(act, accounts)
    except LedgerRefusedError:
        assert not fits((found or {})["x"], an_account(budget, *has))


def test_an_account_that_is_not_known_or_that_changes_otherwise_has_no_shift():
    reserve = Movement("x", Request({"steps": 1}, "a", "tool"))
    room = an_account(Budget(steps=9), {}, {}, {})
    assert ledger.shifts([[reserve]], {"x": room}) is not None
    assert ledger.shifts([[reserve]], {}) is None
    other = reserve._replace(opening=Account("tenant:acme", Budget(steps=8)))
    assert ledger.shifts([[other]], {"x": room}) is None
    assert ledger.shifts([[Movement("x", close=True)]], {"x": room}) is None
    assert ledger.shifts([[reserve]], {"x": an_account(Budget(steps=9, calls={"a": 3}), {}, {}, {})}) is None
    assert ledger.shifts([[reserve]], {"x": an_account(Budget(steps=1), {}, {}, {})}) is None
    settle = Movement("x", settle=({"steps": 2}, {"steps": 2}))
    assert ledger.shifts([[settle]], {"x": an_account(Budget(steps=9), {}, {"steps": 2}, {})}) is not None
    assert ledger.shifts([[settle]], {"x": an_account(Budget(steps=9), {}, {"steps": 1}, {})}) is None


@given(st.integers(631_152_000, 4_102_444_800), st.sampled_from(["day", "month"]))
def test_an_account_of_a_window_is_charged_in_the_seconds_of_that_window_alone(at, per):
    name = account_id("a:2026-01-01", per, at * 10**9)
    seconds = charged_during(name, "tenant:a:2026-01-01")
    assert seconds is not None
    assert at in seconds
    assert {account_id("a:2026-01-01", per, n * 10**9) for n in (seconds[0], seconds[-1])} == {name}
    for outside in (seconds[0] - 1, seconds[-1] + 1):
        assert account_id("a:2026-01-01", per, outside * 10**9) != name
        assert not is_charged_at(name, "tenant:a:2026-01-01", [outside])
        assert is_charged_at(name, "tenant:a:2026-01-01", [outside, at])


def test_an_account_without_a_window_is_always_charged_and_one_of_no_window_never():
    assert charged_during("tenant:a", "tenant:a") is None
    assert charged_during("run:x", "run") is None
    for name in (
        "tenant:a:2026-13",
        "tenant:a:2026-1-1",
        "tenant:a:20260101",
        "tenant:a:x",
        "tenant:a:2026-01-01x",
    ):
        assert not is_charged_at(name, "tenant:a", range(0, 2 * 10**9, 10**6))
