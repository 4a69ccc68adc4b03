"""Movements on shared accounts: the levels that more than one log charges.

A run's own level and its scopes are folded from its log.  A tenant, and a run that has nested runs,
are charged from several logs at once; their accounts lie in the store, beside the events, and move in
the same act as the event is appended.  A store loads accounts, calls `apply`, and writes them back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

from agentguard.budget.account import AMOUNTS, Account, Amounts, Refusal, Request
from agentguard.budget.model import Budget, check_stops
from agentguard.errors import StoreUnavailableError


class Movement(NamedTuple):
    """One change to one shared account.

    Exactly one of four things: `request` alone reserves; `request` with `undo` releases;
    `settle` gives back `(reserve, usage)`; `close` lets nobody reserve any more, since the run has
    ended.  `opening` is the account to start from where the store has none yet; with nothing else
    it only opens.
    """

    account: str
    request: Request | None = None
    undo: bool = False
    settle: tuple[Amounts, Amounts] | None = None
    opening: Account | None = None
    close: bool = False


class Shift(NamedTuple):
    """What movements do to one account while there is room to spare, whatever is spent and reserved there."""

    #: What it holds beside its amounts, which must not have changed.
    rest: dict[str, Any]
    #: By part (`spent` and so on) and resource: what is added.
    added: dict[str, Amounts]
    #: What must be reserved, since it is given back.
    held: Amounts
    #: How much may be spent and reserved, at most, so that nothing is refused.
    most: Amounts


class LedgerRefusedError(Exception):
    """Internal: a shared account said no, and nothing was changed.  Without a refusal it is closed."""

    def __init__(self, account: str, path: str, refusal: Refusal | None) -> None:
        super().__init__(account, path, refusal)
        self.account = account
        self.path = path
        self.refusal = refusal


def apply(movements: Sequence[Movement], accounts: MutableMapping[str, Account]) -> None:
    """Carry out all movements, or none.

    `accounts` holds the loaded accounts by id; missing ones are opened.  Every reservation is
    checked before any amount is changed, so a refusal leaves the accounts as they were.

    Raises:
        LedgerRefusedError: an account has no room for a request.
        StoreUnavailableError: an account is gone, and only somebody who edits the store can take it away.
    """
    for movement in movements:
        if movement.opening is not None:
            _open(movement.account, movement.opening, accounts)
        if movement.request is not None and not movement.undo:
            _check(movement.account, _find(movement.account, accounts), movement.request)
    for account, movement in [(_find(movement.account, accounts), movement) for movement in movements]:
        if movement.request is not None:
            if movement.undo:
                _hold(account, movement.request.reserve)
                account.release(movement.request)
            else:
                account.reserve(movement.request)
        if movement.settle is not None:
            _hold(account, movement.settle[0])
            account.settle(*movement.settle)
        if movement.close:
            account.closed = True


def shifts(acts: Iterable[Sequence[Movement]], accounts: Mapping[str, Account]) -> dict[str, Shift] | None:
    """Return by account what acts, one after the other, would do; None where that depends on what is left.

    `accounts` is what the accounts held some time ago.  `apply` does the same with what they hold now, if the
    rest of each is as it was and its amounts are within the shift.
    """
    trial: dict[str, Account] = {}
    movements: dict[str, list[Movement]] = {}
    try:
        for act in acts:
            for movement in act:
                name = movement.account
                if name not in trial:
                    trial[name] = Account.from_data(accounts[name].to_data())
                movements.setdefault(name, []).append(movement)
            apply(act, trial)
    except (LedgerRefusedError, StoreUnavailableError, KeyError):
        return None
    found: dict[str, Shift] = {}
    for name, account in trial.items():
        shift = _shift(accounts[name], account, movements[name])
        if shift is None:
            return None
        found[name] = shift
    return found


def _shift(before: Account, after: Account, movements: Sequence[Movement]) -> Shift | None:
    rest = before.rest()
    held, taken, asked = _summed(movements)
    enforced = asked and before.budget.enforce
    # One is left over: a limit may also refuse where nothing is left, though nothing of it is asked for.
    most = {name: limit - taken.get(name, 0) - 1 for name, limit in before.limits.items()} if enforced else {}
    if (
        after.rest() != rest
        or any(before.reserved.get(name, 0) < amount for name, amount in held.items())
        or any(before.spent.get(name, 0) + before.reserved.get(name, 0) > at for name, at in most.items())
    ):
        return None
    added = {
        part: {name: n - was.get(name, 0) for name, n in now.items() if was.get(name) != n}
        for part, was, now in ((part, getattr(before, part), getattr(after, part)) for part in AMOUNTS)
    }
    return Shift(rest, added, held, most)


def _summed(movements: Iterable[Movement]) -> tuple[Amounts, Amounts, bool]:
    """Return what movements give back, what they take, and whether they ask for room."""
    held: Amounts = {}
    taken: Amounts = {}
    asked = False
    for movement in movements:
        gives, takes = movement.settle or ({}, {})
        if movement.request is not None and movement.undo:
            gives = movement.request.reserve
        elif movement.request is not None:
            takes, asked = movement.request.reserve, True
        for sums, amounts in ((held, gives), (taken, takes)):
            for name, amount in amounts.items():
                sums[name] = sums.get(name, 0) + amount
    return held, taken, asked


def _find(name: str, accounts: MutableMapping[str, Account]) -> Account:
    account = accounts.get(name)
    if account is None:
        raise StoreUnavailableError(
            f"the account {name} is gone from the store, so that nothing is charged to it; put back what it "
            "was, as in a copy of the store: `agentguard verify` says what logs prove"
        )
    return account


def _hold(account: Account, reserve: Amounts) -> None:
    """See that a reservation can be given back, also by an account that somebody edited to hold less."""
    reserved = account.reserved
    for resource, amount in reserve.items():
        if reserved.get(resource, 0) < amount:
            reserved[resource] = amount


def _check(name: str, account: Account, request: Request) -> None:
    if account.closed:
        raise LedgerRefusedError(name, account.path, None)
    refusal = account.refusal(request)
    if refusal is not None and account.budget.enforce:
        raise LedgerRefusedError(name, account.path, refusal)


def _open(name: str, opening: Account, accounts: MutableMapping[str, Account]) -> None:
    known = accounts.get(name)
    if known is None:
        accounts[name] = Account.from_data(opening.to_data())
    elif known.budget != opening.budget:  # a tenant was given another budget
        accounts[name] = account = Account.from_data(known.to_data())
        account.limit_by(opening.budget)


def check_shared(budget: Budget, field: str) -> None:
    """Refuse limits that an account which many runs charge cannot keep.

    Raises:
        ValueError: it limits seconds or repeats, which only a run can count, or asks at a limit.
    """
    check_stops(budget, field)
    if budget["seconds"] is not None:
        raise ValueError(f"{field} cannot limit seconds; limit them for each run")
    if budget.repeats is not None:
        raise ValueError(f"{field} cannot limit repeats; limit them for each run")
