"""The levels that a step is charged to: scopes, run, the runs around it, the tenant, and a named account.

Levels inside the run's log are checked in the fold.  Levels that other logs charge too are shared
accounts of the store; here they become movements that the store carries out with the event.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from agentguard.budget import resources as r
from agentguard.budget.account import Account, Amounts, Refusal, Request
from agentguard.budget.ledger import Movement
from agentguard.budget.model import Budget
from agentguard.budget.named import NamedAccount
from agentguard.budget.tenant import TenantBudgets
from agentguard.errors import StoreUnavailableError
from agentguard.protocols import EventStore

if TYPE_CHECKING:
    from agentguard.steps.log import RunLog
    from agentguard.steps.run_clock import RunClock


class Level(NamedTuple):
    """A level of a run around this one: the levels of that run, and the scope."""

    levels: BudgetLevels
    scope: str


class Refused(NamedTuple):
    """A level said no.  `log` is that of the run it belongs to; None for a tenant's, or a named account."""

    refusal: Refusal
    path: str
    log: RunLog | None
    scope: str


class BudgetLevels:
    """The levels of one run.  Used under the log's lock."""

    def __init__(self, log: RunLog, clock: RunClock, outer: Sequence[Level], tenants: TenantBudgets) -> None:
        self.log = log
        self.clock = clock
        self._tenants = tenants
        #: Whether it is known that the tenants' accounts are in the store.
        self._accounts_here = False
        #: Every level of every run around this one, the innermost first.
        self.outer = tuple(outer)
        #: Whether no level is shared, and whether one limits `seconds`: which slow ways are needed.
        self.only_this_run = True
        self.has_deadline = False
        #: Whether a level counts equal calls.
        self.counts_repeats = False
        #: What is limited and enforced at a scope or around it, by scope.
        self._limiting: dict[str, frozenset[str]] = {}
        self.changed()

    def changed(self) -> None:
        """Work out again which slow ways a step must take."""
        fold = self.log.fold
        tenant = bool(self._tenants.budgets(fold.tenant))
        shared = any(scope.shared for scope in fold.scopes.values())
        self.only_this_run = not (self.outer or tenant or shared)
        budgets = [scope.accounts[0].budget for scope in fold.scopes.values()]
        timed = any(r.SECONDS in budget.limits for budget in budgets)
        self.has_deadline = timed or any(level.levels.has_deadline for level in self.outer)
        self.counts_repeats = fold.counts_repeats or any(
            level.levels.log.fold.counts_repeats for level in self.outer
        )
        self._limiting = {}

    def limited(
        self, resources: Collection[str], scope: str, account: NamedAccount | None = None
    ) -> list[str]:
        """Return which of `resources` some level that a step of this scope is charged to limits."""
        known = self._limiting
        limiting = known.get(scope)
        if limiting is None:
            limiting = known[scope] = self._limits_of(scope)
        if account is not None:
            limiting |= _limited_by(account.budget)
        if limiting.isdisjoint(resources):
            return []
        return [name for name in resources if name in limiting]

    def _limits_of(self, scope: str) -> frozenset[str]:
        fold = self.log.fold
        levels = fold.chain(scope)
        levels += [level.levels.log.fold.scopes[level.scope] for level in self.outer]
        budgets = [level.accounts[0].budget for level in levels]
        budgets += self._tenants.budgets(fold.tenant).values()
        return _limited_by(*budgets)

    def refused(self, scope: str, request: Request) -> tuple[Refused | None, Refused | None]:
        """Return the first level of this log without room: one that stops, and one that only would."""
        shadow = None
        for level in self.log.fold.chain(scope):
            account = level.accounts[0]
            refusal = account.refusal(request)
            if refusal is not None:
                found = Refused(refusal, account.path, self.log, level.key)
                if account.budget.enforce:
                    return found, shadow
                shadow = shadow or found
        return None, shadow

    def overdrawn(self, scope: str, usage: Amounts, reserve: Amounts) -> Refused | None:
        """Return the first level of this log that usage, beyond its reservation, takes over a limit."""
        for level in self.log.fold.chain(scope):
            account = level.accounts[0]
            for resource, amount in usage.items():
                limit = account.limits.get(resource)
                if limit is None or amount <= reserve.get(resource, 0):
                    continue
                spent = account.spent.get(resource, 0) + amount
                if spent > limit and account.budget.enforce:
                    reserved = account.reserved.get(resource, 0) - reserve.get(resource, 0)
                    refusal = Refusal(resource, spent, reserved, 0, limit)
                    return Refused(refusal, account.path, self.log, level.key)
        return None

    # --- shared accounts -----------------------------------------------------------------------

    def account_name(self, scope: str) -> str:
        """Return the name of the shared account of a level of this run."""
        run_id = self.log.run_id
        return f"run:{run_id}/{scope}" if scope else f"run:{run_id}"

    def _shared(self, scope: str) -> list[str]:
        own = [self.account_name(level.key) for level in self.log.fold.chain(scope) if level.shared]
        return own + [level.levels.account_name(level.scope) for level in self.outer]

    def reserving(
        self, scope: str, request: Request, now: Callable[[], int], named: NamedAccount | None
    ) -> tuple[list[Movement], tuple[str, ...]]:
        """Return the movements that reserve on shared accounts, and the names of those outside any run.

        These are the tenant's periods, cut by what `now` tells, and the named account; settlement finds both
        by the step's event.
        """
        request = request.shared()
        moves = [Movement(name, request) for name in self._shared(scope)]
        periods = self._tenants.accounts(self.log.fold.tenant, now)
        if periods and not self._accounts_here:
            check_no_ledger(self.log.store)
            self._accounts_here = True
        charged = periods if named is None else [*periods, (named.id, named.opening())]
        moves += [Movement(name, request, opening=account) for name, account in charged]
        return moves, tuple(name for name, _ in charged)

    def settling(self, key: str, usage: Amounts | None) -> list[Movement]:
        """Return the movements that settle a step in flight on shared accounts; None releases it."""
        step = self.log.fold.open[key]
        names = [*self._shared(step.scope), *step.outside_accounts]
        if usage is None:
            return [Movement(name, step.request.shared(), undo=True) for name in names]
        return [Movement(name, settle=(step.request.reserve, usage)) for name in names]

    def sharing(self, scope: str, named: NamedAccount | None) -> list[Movement]:
        """Return what makes the levels around a nested run shared.

        The named account is opened by the run whose tenant it belongs to.
        """
        moves = [] if named is None else [Movement(named.id, opening=named.opening())]
        return moves + [
            Movement(self.account_name(level.key), opening=_copy(level.accounts[0]))
            for level in self.log.fold.chain(scope)
            if not level.shared
        ]

    def from_inside(self, scope: str) -> list[Level]:
        """Return the levels of this run that a run nested in a scope of it charges."""
        return [Level(self, level.key) for level in self.log.fold.chain(scope)]

    def closing(self) -> list[Movement]:
        """Return what keeps the runs inside this one, in whatever process, from going on after its end."""
        return [Movement(self.account_name(""), close=True)] if self.log.fold.scopes[""].shared else []

    def whose(self, account: str, path: str, refusal: Refusal) -> Refused:
        """Return which level a shared account belongs to."""
        for scope in self.log.fold.scopes.values():
            if self.account_name(scope.key) == account:
                return Refused(refusal, path, self.log, scope.key)
        for outer in self.outer:
            if outer.levels.account_name(outer.scope) == account:
                return Refused(refusal, path, outer.levels.log, outer.scope)
        return Refused(refusal, path, None, "")

    # --- time ----------------------------------------------------------------------------------

    def deadline(self, scope: str) -> tuple[int, Refused] | None:
        """Return the nearest deadline: nanoseconds left, and the level that sets it."""
        nearest: tuple[int, Refused] | None = None
        for level in self._all_levels(scope):
            log = level.levels.log
            found = log.fold.scopes[level.scope]
            budget = found.accounts[0].budget
            limit = budget.limits.get(r.SECONDS)
            if limit is None or not budget.enforce:
                continue
            used = level.levels.clock.elapsed() - found.opened_ns
            if nearest is None or limit - used < nearest[0]:
                refusal = Refusal(r.SECONDS, used, 0, 0, limit)
                nearest = limit - used, Refused(refusal, found.path, log, found.key)
        return nearest

    def _all_levels(self, scope: str) -> Iterator[Level]:
        yield from self.from_inside(scope)
        yield from self.outer


def check_no_ledger(store: EventStore) -> None:
    """Refuse to charge tenants in a store whose tenants' accounts an earlier version kept elsewhere.

    Raises:
        StoreUnavailableError: what they have spent is not in this store.
    """
    mark = store.accounts(["ledger"]).get("ledger")
    if mark is not None:
        raise StoreUnavailableError(
            f"what the tenants of {store.url} have spent was kept at the ledger {mark.path}, which this "
            "version cannot read; open a new store for tenants with budgets, or lift their budgets"
        )


def _limited_by(*budgets: Budget) -> frozenset[str]:
    return frozenset(name for budget in budgets if budget.enforce for name in budget.limits)


def _copy(account: Account) -> Account:
    return Account.from_data(account.to_data())
