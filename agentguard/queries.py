"""What a guard answers: lists and summaries, histories, whether a log is intact, exports.  It only reads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

from msgspec import structs

from agentguard._process import is_alive
from agentguard.audit import checkpoint
from agentguard.audit import verify as audit
from agentguard.audit.compare import RunDiff, diff
from agentguard.audit.costs import CostKey, CostLine, costs, since_ns
from agentguard.audit.export import Exported, Sink, export
from agentguard.audit.whatif import WhatIf, what_if
from agentguard.budget.account import Account
from agentguard.budget.model import Budget, Remaining, Usage, check_budget
from agentguard.budget.named import named_account_id
from agentguard.budget.tenant import account_id
from agentguard.errors import LogIntegrityError
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.conversations import whole
from agentguard.events.model import Event, Head
from agentguard.killswitch.model import Kill
from agentguard.monitoring import Approval, approvals_in
from agentguard.protocols import AnnouncedSwitch, RunRow
from agentguard.replay.origin import origin_log
from agentguard.runs.summary import RunSummary, from_row, summarize
from agentguard.runtime import Runtime
from agentguard.sessions.base import live_run_of
from agentguard.steps.budget_levels import check_no_ledger
from agentguard.tenancy import check_id

_ALL = 2**31


class TenantAccount(NamedTuple):
    """A tenant's budget, and what was spent of it in the present window."""

    tenant: str
    per: str | None
    budget: Budget
    spent: Usage


class SharedAccount(NamedTuple):
    """An account that runs share by name: what they have used together, and what it leaves.

    `budget`, and so `remaining`, are as the run that was charged last named them.
    """

    name: str
    tenant: str
    budget: Budget
    spent: Usage
    reserved: Usage
    remaining: Remaining


class Queries:
    """The reading side of a guard; `Guard` has the same methods, with their documentation."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def runs(self, tenant: str | None, state: str | None, limit: int) -> list[RunSummary]:
        """See `Guard.runs`."""
        _check_count(limit, "limit")
        rows = self._runtime.components.store.rows(tenant=tenant, state=state, limit=limit)
        return [self._listed(row) for row in rows]

    def _listed(self, row: RunRow) -> RunSummary:
        try:
            return self._summary(row)
        except LogIntegrityError as error:
            return structs.replace(from_row(row), damaged=str(error))

    def summary(self, run_id: str) -> RunSummary:
        """See `Guard.summary`."""
        return self._summary(self._runtime.row(run_id))

    def _summary(self, row: RunRow) -> RunSummary:
        live = self._runtime.live.get(row.run_id)
        if live is not None and live.owner:
            return live.summary()
        summary = from_row(row)
        if row.ended_ns is not None:
            return summary
        components = self._runtime.components
        fold = audit.reconstruct(components.store, row)
        # Its owner's own clock is not at hand: now, if it lives, or the last that was heard of it.
        alive = is_alive(row.owner)
        seen = components.clock.wall() if alive else 0 if alive is False else row.heartbeat_ns
        return summarize(fold, fold.running_until(seen))

    def costs(
        self, by: CostKey, since: datetime | date | timedelta | None, tenant: str | None
    ) -> list[CostLine]:
        """See `Guard.costs`."""
        components = self._runtime.components
        start = since_ns(since, components.clock.wall())
        return costs(components.store, components.store.rows(tenant=tenant, limit=_ALL), by, start)

    def history(self, run_id: str) -> list[Event]:
        """See `Guard.history`."""
        return list(self._events(run_id))

    def _events(self, run_id: str) -> Iterator[Event]:
        components = self._runtime.components
        if run_id == ev.CONTROL_RUN_ID:
            log = components.switch.read()
        else:
            log = components.store.read(self._runtime.row(run_id).run_id)
        head = codec.genesis(run_id)
        for stored in log:
            yield codec.to_event(run_id, stored, head)
            head = stored.hash

    def reconstruct(self, run_id: str) -> RunSummary:
        """See `Guard.reconstruct`."""
        fold = audit.reconstruct(self._runtime.components.store, self._runtime.row(run_id))
        return summarize(fold, fold.running_until_last_event())

    def events(self, after: int, tenant: str | None, limit: int) -> list[Event]:
        """See `Guard.events`."""
        _check_count(limit, "limit")
        _check_count(after, "after")
        found = self._runtime.components.store.tail(after, tenant, limit)
        return [codec.to_event(run_id, stored, b"") for run_id, stored in found]

    def verify(
        self, run_id: str | None, anchors: Mapping[str, Head | tuple[int, str]] | None
    ) -> audit.VerifyReport:
        """See `Guard.verify`."""
        heads = _heads({} if anchors is None else anchors)
        components = self._runtime.components
        store, control = components.store, components.switch.read
        switch = components.switch
        announced = switch.announced if isinstance(switch, AnnouncedSwitch) else 0
        if run_id is None:
            return audit.verify_all(store, heads, control, announced)
        own = {name: head for name, head in heads.items() if name == run_id}
        if run_id == ev.CONTROL_RUN_ID:
            return audit.verify(store, [], own, control, announced)
        row = self._runtime.row(run_id)
        store.last(run_id)  # raises if its events were evicted, of which a whole store says how many
        return audit.verify_one(store, row, own)

    def diff(self, run_a: str, run_b: str) -> RunDiff:
        """See `Guard.diff`."""
        store = self._runtime.components.store
        a, b = self._runtime.row(run_a), self._runtime.row(run_b)
        left, right = (whole(origin_log(store, row.run_id), row.salt) for row in (a, b))
        return diff(a.run_id, left, b.run_id, right)

    def what_if(self, run_id: str, budget: Budget) -> WhatIf:
        """See `Guard.what_if`."""
        check_budget(budget)
        return what_if(origin_log(self._runtime.components.store, self._runtime.row(run_id).run_id), budget)

    # --- what waits, stops and limits ----------------------------------------------------------

    def approvals(self) -> list[Approval]:
        """See `Guard.approvals`."""
        store = self._runtime.components.store
        rows = [row for state in ("RUNNING", "PAUSED") for row in store.rows(state=state, limit=_ALL)]
        run_ids = dict.fromkeys(row.run_id for row in rows)  # one may have been paused in between
        return [asked for run_id in run_ids for asked in self._waiting(run_id)]

    def _waiting(self, run_id: str) -> list[Approval]:
        try:
            return approvals_in(live_run_of(self._runtime, run_id).fold)
        except LogIntegrityError:  # a log that was altered takes no decision, and hides no other run's
            return []

    def kills(self) -> list[Kill]:
        """See `Guard.kills`."""
        return self._runtime.components.switch.kills()

    def account(self, name: str, tenant: str) -> SharedAccount | None:
        """See `Guard.account`."""
        key = named_account_id(check_id(name, "account"), check_id(tenant, "tenant"))
        found = self._runtime.components.store.accounts([key]).get(key)
        if found is None:
            return None
        spent, reserved = Usage.from_amounts(found.spent), Usage.from_amounts(found.reserved)
        return SharedAccount(name, tenant, found.budget, spent, reserved, Remaining(found.remaining()))

    def tenants(self) -> list[TenantAccount]:
        """See `Guard.tenants`."""
        components = self._runtime.components
        components.refresh()
        found = []
        tenants = components.tenants.tenants()
        now = 0
        if tenants:
            check_no_ledger(components.store)
            now = components.store_time()
        for tenant in tenants:
            for per, budget in components.tenants.budgets(tenant).items():
                name = account_id(tenant, per, now)
                account = components.store.accounts([name]).get(name) or Account(f"tenant:{tenant}", budget)
                found.append(TenantAccount(tenant, per, budget, Usage.from_amounts(account.spent)))
        return found

    # --- files ---------------------------------------------------------------------------------

    def export(self, run_id: str | None, path: str | os.PathLike[str] | Sink) -> Exported:
        """See `Guard.export`."""
        components = self._runtime.components
        return export(components.store, components.switch.read, run_id, path, components.clock.wall())

    def checkpoint(
        self, path: str | os.PathLike[str], *, key: Any, run_id: str | None, tenant: str | None
    ) -> dict[str, Head]:
        """See `Guard.checkpoint`."""
        components = self._runtime.components
        heads = checkpoint.heads(components.store, components.switch, run_id=run_id, tenant=tenant)
        checkpoint.write_checkpoint(path, heads, key=key, at_ns=components.clock.wall())
        return heads


def _check_count(value: object, field: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{field} must be an int, not {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{field} must be 0 or more, not {value}")


def _heads(anchors: object) -> dict[str, Head]:
    if not isinstance(anchors, Mapping):
        raise TypeError(f"anchors must be heads by run id, not {type(anchors).__name__}")
    return {run_id: _head(run_id, head) for run_id, head in anchors.items()}


def _head(run_id: str, head: object) -> Head:
    match head:
        case (int(seq), str(digest)) if not isinstance(seq, bool):
            return Head(seq, digest)
    raise TypeError(f"anchors: that of run {run_id} must be a head (seq, hash), not {head!r}")
