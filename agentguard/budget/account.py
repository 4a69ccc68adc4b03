"""One level of a budget: what it limits, what is spent and reserved there, and the rule at the limit.

Scopes, runs, outer runs and tenants all hold an `Account`; every ledger, wherever it keeps its
numbers, decides with `Account.refusal`.  Pure: no clock, no I/O, no lock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from agentguard.budget import resources as r
from agentguard.budget.model import Budget
from agentguard.errors import BudgetExceededError

Amounts = dict[str, int]

#: The parts of an account that movements add to, of which only the first two are asked at a limit.
AMOUNTS = ("spent", "reserved", "excess")
#: What a step reserves where it names nothing else.
ONE_STEP: Amounts = {r.STEPS: 1}


class Request:
    """What one step asks of every level.  It is never changed.

    `reserve` holds amounts by resource, always with `steps=1`.  `postpaid` says that usage is
    known only afterwards: any limited resource without a reservation is then checked for room.
    `repeat` identifies name and arguments, where some level limits repeats; in a nested run
    `repeat_around` does so for all levels that runs share.
    """

    # No msgspec.Struct: `guarded_step` makes one, and msgspec takes longer to load than all that it needs.
    __slots__ = ("kind", "name", "postpaid", "repeat", "repeat_around", "reserve")

    def __init__(  # noqa: PLR0917 - in the order of the fields, for speed
        self,
        reserve: Amounts,
        name: str,
        kind: str,
        postpaid: bool = False,  # noqa: FBT001, FBT002 - likewise
        repeat: str | None = None,
        repeat_around: str | None = None,
    ) -> None:
        self.reserve = reserve
        self.name = name
        self.kind = kind
        self.postpaid = postpaid
        self.repeat = repeat
        self.repeat_around = repeat_around

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Request):
            return NotImplemented
        return all(getattr(self, field) == getattr(other, field) for field in self.__slots__)

    __hash__ = None  # type: ignore[assignment]  # the amounts are a dict

    def shared(self) -> Request:
        """The same, as levels that several runs charge count it."""
        if self.repeat_around is None:
            return self
        around = self.repeat_around
        return Request(self.reserve, self.name, self.kind, self.postpaid, around, around)


class Refusal(NamedTuple):
    """Why a level said no; amounts are internal ones."""

    resource: str
    spent: int
    reserved: int
    requested: int
    limit: int

    def error(self, scope: str, run_id: str | None) -> BudgetExceededError:
        """The error a user sees, in the units a user knows."""
        spent, reserved, requested, limit = (
            r.public_amount(self.resource, n) for n in (self.spent, self.reserved, self.requested, self.limit)
        )
        name = r.public_name(self.resource)
        return BudgetExceededError(name, spent, reserved, requested, limit, scope, run_id)


class Account:
    """The running totals of one level.

    Invariant, checked by the property tests: for every limited resource,
    `spent + reserved <= limit + the logged excesses`.
    """

    __slots__ = (
        "alarms",
        "budget",
        "by_call",
        "calls",
        "closed",
        "excess",
        "limits",
        "path",
        "repeats",
        "reserved",
        "spent",
        "uncounted",
    )

    def __init__(self, path: str, budget: Budget | None) -> None:
        self.path = path
        self.budget = _NO_LIMITS
        self.spent: Amounts = {}
        self.reserved: Amounts = {}
        self.excess: Amounts = {}
        #: Started steps by the entries of `budget.calls`.
        self.calls: Amounts = {}
        #: Started steps by name and arguments, kept only where repeats are limited.
        self.repeats: Amounts = {}
        #: Steps that were in flight when calls of an entry, or repeats, began to be counted.
        self.uncounted: Amounts = {}
        #: Whether its run has ended, so that the runs inside it must stop too.
        self.closed = False
        self.limit_by(budget or _NO_LIMITS)

    def limit_by(self, budget: Budget) -> None:
        """Take another budget; what is spent and reserved stays.

        Calls and repeats that were not limited before have not been counted: they count from now on.
        """
        for name in _counted(budget) - _counted(self.budget):
            if in_flight := self.reserved.get(r.STEPS):
                self.uncounted[name] = in_flight
        self.budget = budget
        self.limits = {k: v for k, v in self.budget.limits.items() if k != r.SECONDS}
        #: From where on a limit is near: what `warn_at` means in numbers.
        warn_at = self.budget.warn_at
        self.alarms = {k: max(1, math.ceil(limit * warn_at)) for k, limit in self.limits.items()}
        #: Whether calls or repeats are limited too: else a step skips the question.
        self.by_call = bool(self.budget.calls) or self.budget.repeats is not None

    def refusal(self, request: Request) -> Refusal | None:
        """The rule at the limit ("At the limit" in docs/semantics.md): None if the step may run here."""
        limits = self.limits
        if limits:
            for resource, amount in request.reserve.items():
                limit = limits.get(resource)
                if limit is not None and amount:
                    spent = self.spent.get(resource, 0)
                    reserved = self.reserved.get(resource, 0)
                    if spent + reserved + amount > limit:
                        return Refusal(resource, spent, reserved, amount, limit)
            if request.postpaid:
                for resource, limit in limits.items():
                    if not request.reserve.get(resource):
                        spent = self.spent.get(resource, 0)
                        reserved = self.reserved.get(resource, 0)
                        if spent + reserved >= limit:
                            return Refusal(resource, spent, reserved, 0, limit)
        return self._refusal_by_call(request) if self.by_call else None

    def _refusal_by_call(self, request: Request) -> Refusal | None:
        for pattern, limit in self.budget.calls.items():
            if _matches(pattern, request) and self.calls.get(pattern, 0) + 1 > limit:
                used = self.calls.get(pattern, 0)
                return Refusal(f"calls:{pattern}", used, 0, 1, limit)
        if self.budget.repeats is not None and request.repeat is not None:
            used = self.repeats.get(request.repeat, 0)
            if used + 1 >= self.budget.repeats:
                return Refusal("repeats", used, 0, 1, self.budget.repeats)
        return None

    def reserve(self, request: Request) -> bool:
        """Hold what the step asked for; gives whether a limit of it is near now (see `crossed`)."""
        reserved, alarms = self.reserved, self.alarms
        near = False
        for resource, amount in request.reserve.items():
            reserved[resource] = held = reserved.get(resource, 0) + amount
            if resource in alarms and held + self.spent.get(resource, 0) >= alarms[resource]:
                near = True
        if self.by_call:
            if self.uncounted:  # as many of them are still in flight as steps are, at most
                before = reserved[r.STEPS] - 1
                self.uncounted = {name: min(n, before) for name, n in self.uncounted.items() if before}
            for _, counts, entry in self._counts(request):
                counts[entry] = counts.get(entry, 0) + 1
        return near

    def _counts(self, request: Request) -> Iterator[tuple[str, Amounts, str]]:
        """Yield where a step is counted: by which limit, in what, and under which name."""
        for pattern in self.budget.calls:
            if _matches(pattern, request):
                yield pattern, self.calls, pattern
        if self.budget.repeats is not None and request.repeat is not None:
            yield _REPEATS, self.repeats, request.repeat

    def settle(self, reserve: Mapping[str, int], usage: Mapping[str, int]) -> None:
        """Give a reservation back and charge what was used in its place."""
        reserved, spent = self.reserved, self.spent
        if usage is reserve:  # the usual case: nothing can be over
            for resource, amount in reserve.items():
                reserved[resource] -= amount
                spent[resource] = spent.get(resource, 0) + amount
            return
        for resource, amount in reserve.items():
            reserved[resource] -= amount
        limits = self.limits
        for resource, amount in usage.items():
            spent[resource] = spent.get(resource, 0) + amount
            if resource in limits and (over := amount - reserve.get(resource, 0)) > 0:
                self.excess[resource] = self.excess.get(resource, 0) + over

    def charge(self, usage: Mapping[str, int]) -> None:
        """Take in what was used, and checked, elsewhere: by a nested run.

        What this takes beyond a limit can only be an excess that the other log tells of.
        """
        for resource, amount in usage.items():
            spent = self.spent[resource] = self.spent.get(resource, 0) + amount
            limit = self.limits.get(resource)
            if limit is not None:
                known = self.excess.get(resource, 0)
                over = spent + self.reserved.get(resource, 0) - limit - known
                if over > 0:
                    self.excess[resource] = known + over

    def release(self, request: Request) -> None:
        """Undo `reserve` for a step whose body did not run.

        One that may have begun before it was counted takes nothing off: a call too many is counted rather
        than one too few.
        """
        self.settle(request.reserve, {})
        for name, counts, entry in self._counts(request) if self.by_call else ():
            if uncounted := self.uncounted.pop(name, 0):
                self.uncounted[name] = uncounted - 1
            else:
                counts[entry] = max(counts.get(entry, 0) - 1, 0)

    def overdrawn(self) -> Refusal | None:
        """The first limit that spending has passed, which only an excess can do."""
        for resource, limit in self.limits.items():
            spent = self.spent.get(resource, 0)
            if spent > limit:
                reserved = self.reserved.get(resource, 0)
                return Refusal(resource, spent, reserved, 0, limit)
        return None

    def remaining(self) -> Amounts:
        """What is left of each limit, reservations taken off."""
        left = {
            name: limit - self.spent.get(name, 0) - self.reserved.get(name, 0)
            for name, limit in self.limits.items()
        }
        for pattern, limit in self.budget.calls.items():
            left[f"calls:{pattern}"] = limit - self.calls.get(pattern, 0)
        return left

    def crossed(self, resources: Iterable[str]) -> list[tuple[str, int, int]]:
        """`(resource, spent + reserved, limit)` for those of `resources` at or above `warn_at`."""
        found = []
        for resource in resources:
            alarm = self.alarms.get(resource)
            if alarm is not None:
                used = self.spent.get(resource, 0) + self.reserved.get(resource, 0)
                if used >= alarm:
                    found.append((resource, used, self.limits[resource]))
        return found

    def untouched(self) -> list[tuple[str, int]]:
        """Return `(resource, limit)` for those above 0 that no step has named or counted."""
        named = self.spent.keys() | self.reserved.keys()
        limits = {**self.limits, **{f"calls:{name}": n for name, n in self.budget.calls.items()}}
        used = named | {f"calls:{name}" for name in self.calls}
        return [(name, limit) for name, limit in limits.items() if limit and name not in used]

    def less(self, spent: Mapping[str, int], reserved: Mapping[str, int]) -> Account:
        """A copy that has used so much less."""
        account = Account.from_data(self.to_data())
        for amounts, off in ((account.spent, spent), (account.reserved, reserved)):
            for resource, amount in off.items():
                if left := amounts.get(resource, 0) - amount:
                    amounts[resource] = left
                else:
                    amounts.pop(resource, None)
        return account

    def to_data(self) -> dict[str, Any]:
        """The account as plain data, for a store's row."""
        data = {
            "path": self.path,
            "budget": self.budget.to_fields(),
            "spent": self.spent,
            "reserved": self.reserved,
            "excess": self.excess,
            "calls": self.calls,
            "repeats": self.repeats,
            "closed": self.closed,
        }
        if self.uncounted:
            data["uncounted"] = self.uncounted
        return data

    def rest(self) -> dict[str, Any]:
        """What there is of `to_data` beside `AMOUNTS`."""
        return {name: value for name, value in self.to_data().items() if name not in AMOUNTS}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Account:
        """An account from what `to_data` gave."""
        account = cls(data["path"], Budget.from_fields(data["budget"]))
        for name in ("spent", "reserved", "excess", "calls", "repeats"):
            setattr(account, name, dict(data[name]))
        account.uncounted = dict(data.get("uncounted", {}))
        account.closed = data["closed"]
        return account


_NO_LIMITS = Budget()
#: What `uncounted` calls the limit on repeats; no step has this name.
_REPEATS = ""


def _counted(budget: Budget) -> set[str]:
    """Return the limits of a budget that count steps."""
    return {*budget.calls} if budget.repeats is None else {*budget.calls, _REPEATS}


def _matches(pattern: str, request: Request) -> bool:
    return pattern == request.name or pattern == f"kind:{request.kind}"
