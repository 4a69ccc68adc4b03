"""Whether shared accounts say at least what the logs prove.

A log proves what its steps have charged, and what those in flight hold.  So an account may not say less, for
then a budget could be spent again.  That one says more is no fault: runs that were pruned or evicted have
charged it too.  All that the account of a run says is told by its own log and those of the runs in it; so its
limits and its calls are compared too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from agentguard.budget import resources as r
from agentguard.budget.account import ONE_STEP, Account, Amounts
from agentguard.budget.named import account_tenant
from agentguard.errors import EventsEvictedError, LogIntegrityError, StoreUnavailableError
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.data import NestedRunOpened, StepEnded, StepStarted, data_of
from agentguard.events.model import Record
from agentguard.protocols import EventStore, RunRow, abilities_of
from agentguard.runs.fold import RunFold

_OUTCOMES = (ev.STEP_COMPLETED, ev.STEP_FAILED, ev.STEP_RESOLVED)


class _Held(NamedTuple):
    amounts: Amounts
    accounts: tuple[str, ...]


class Charges:
    """What one log proves of the accounts outside any run that its steps are charged to."""

    __slots__ = ("_open", "spent")

    def __init__(self) -> None:
        #: What closed steps have charged, by account.
        self.spent: dict[str, Amounts] = {}
        self._open: dict[str, _Held] = {}

    def take(self, record: Record) -> None:
        """Take in the next event of the log."""
        key = record.key or ""
        if record.type == ev.STEP_STARTED:
            data = data_of(record, StepStarted)
            if accounts := data.get("windows"):
                self._open[key] = _Held(data.get("reserve", ONE_STEP), tuple(accounts))
        elif record.type in _OUTCOMES and (held := self._open.pop(key, None)) is not None:
            free = data_of(record, StepEnded).get("body_ran") is False
            for account in held.accounts:
                add(self.spent.setdefault(account, {}), {} if free else record.usage or {})

    def held(self) -> dict[str, Amounts]:
        """Return what steps in flight hold, by account."""
        found: dict[str, Amounts] = {}
        for step in self._open.values():
            for account in step.accounts:
                add(found.setdefault(account, {}), step.amounts)
        return found


class Books:
    """What the logs of a store prove of its accounts, and which accounts say less."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        #: By account: what was spent, and what each run holds.
        self._spent: dict[str, Amounts] = {}
        self._held: dict[str, dict[str, Amounts]] = {}
        self._tenants: set[str] = set()
        #: The accounts that were looked at with their run.
        self._seen: set[str] = set()
        abilities = abilities_of(store)
        #: Whether the store has any: an export has none, nor a store whose accounts lay elsewhere once.
        self.kept = abilities.accounts is not None and not store.accounts(["ledger"])

    def take(self, row: RunRow, charges: Charges) -> None:
        """Take in what the log of a run proves."""
        self._tenants.add(row.tenant)
        for account, amounts in charges.spent.items():
            add(self._spent.setdefault(account, {}), amounts)
        for account, amounts in charges.held().items():
            self._spent.setdefault(account, {})
            self._held.setdefault(account, {})[row.run_id] = amounts

    def problems_of_run(self, run_id: str) -> Iterator[str]:
        """Return what is wrong with the accounts of a run that others are nested in; in a snapshot."""
        fold = _with_nested(self._store, run_id)
        for scope in fold.scopes.values():
            if not scope.shared:
                continue
            name = f"run:{run_id}/{scope.key}" if scope.key else f"run:{run_id}"
            self._seen.add(name)
            proven = scope.accounts[0]
            found, problem = self._find(name)
            problem = problem or _less(name, found, proven.spent, proven.reserved)
            if problem is None and found is not None:
                problem = _differs(name, found, proven)
            if problem is not None:
                yield problem

    def problems(self, listed: Iterable[str] = ()) -> Iterator[str]:
        """Return what is wrong with the accounts that the logs charge, and with those that are listed.

        Spending only grows, so that what the logs were found to prove holds for accounts that are read later.
        """
        for name in sorted({*self._spent, *listed} - self._seen):
            found, problem = self._find(name)
            if found is None and problem is None and not self._must_see(name):
                continue
            problem = problem or _less(name, found, self._spent.get(name, {}), {})
            if problem is None and found is not None:
                problem = self._overbooked(name, found)
            if problem is not None:
                yield problem

    def _must_see(self, name: str) -> bool:
        """Whether a log charges an account, and its tenant is not one of which nothing is seen from here."""
        return name in self._spent and account_tenant(name) in (None, *self._tenants)

    def _find(self, name: str) -> tuple[Account | None, str | None]:
        try:
            found = self._store.accounts([name]).get(name)
        except StoreUnavailableError as error:
            if error.__cause__ is None:
                raise
            return None, f"the account {name} cannot be read ({error.__cause__})"
        negative = {} if found is None else _negative(found)
        said = f"the account {name} says {r.describe(negative.items())}" if negative else None
        return found, said

    def _overbooked(self, name: str, found: Account) -> str | None:
        """What is wrong with the reservations; steps may have ended since, so it is looked at twice."""
        runs = self._held.get(name, {})
        if _less(name, found, {}, _sum(runs.values())) is None:
            return None
        with self._store.snapshot():
            held = _sum(_charges(self._store, run_id).held().get(name, {}) for run_id in runs)
            again = self._store.accounts([name]).get(name)
            return _less(name, again, {}, held)


def add(amounts: Amounts, more: Mapping[str, int]) -> None:
    """Add amounts to others."""
    for resource, amount in more.items():
        amounts[resource] = amounts.get(resource, 0) + amount


def _sum(found: Iterable[Amounts]) -> Amounts:
    total: Amounts = {}
    for amounts in found:
        add(total, amounts)
    return total


def _charges(store: EventStore, run_id: str) -> Charges:
    charges = Charges()
    for stored in store.read(run_id):
        charges.take(codec.decode(stored.body))
    return charges


def _with_nested(store: EventStore, run_id: str) -> RunFold:
    """Fold a run's log, charged with what the runs in it have used that are still open there."""
    fold = RunFold(run_id)
    opened: dict[str | None, NestedRunOpened] = {}
    for stored in store.read(run_id):
        record = fold.apply_stored(stored)
        if record.type == ev.SCOPE_OPENED and "run" in (data := data_of(record, NestedRunOpened)):
            opened[record.key] = data
        elif record.type == ev.SCOPE_CLOSED:
            opened.pop(record.key, None)
    for data in opened.values():
        with contextlib.suppress(EventsEvictedError, LogIntegrityError):  # it proves nothing then
            nested = _with_nested(store, data["run"])
            for account in fold.scopes[data.get("scope", "")].accounts:
                account.charge(nested.account.spent)
                add(account.reserved, nested.account.reserved)
    return fold


def _negative(account: Account) -> Amounts:
    found = (account.spent, account.reserved)
    return {name: amount for amounts in found for name, amount in amounts.items() if amount < 0}


def _less(name: str, found: Account | None, spent: Amounts, reserved: Amounts) -> str | None:
    """Say what an account lacks of what is proven."""
    if found is None:
        charged = {name: n for name, n in (_sum((spent, reserved))).items() if n}
        return f"the account {name} is gone, and logs charge it {r.describe(charged.items()) or 'steps'}"
    for what, said, proven in (("spent", found.spent, spent), ("reserved", found.reserved, reserved)):
        for resource, amount in proven.items():
            if said.get(resource, 0) < amount:
                less, more = (r.describe([(resource, n)]) for n in (said.get(resource, 0), amount))
                return f"the account {name} says {less} {what}, and logs prove {more}"
    return None


def _differs(name: str, found: Account, proven: Account) -> str | None:
    """Say what else the account of a run says, and its log does not."""
    if found.budget != proven.budget:
        return f"the account {name} has the limits {found.budget!r}, and the log of its run {proven.budget!r}"
    for pattern, calls in proven.calls.items():
        if found.calls.get(pattern, 0) < calls:
            said = found.calls.get(pattern, 0)
            return f"the account {name} says {said} calls of {pattern}, and logs prove {calls}"
    return None
