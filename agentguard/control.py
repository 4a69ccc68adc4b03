"""What an operator does: kill and revive, pause and resume, budgets of tenants, approvals."""

from __future__ import annotations

from typing import Any, NamedTuple

from msgspec import structs

from agentguard.budget.account import Account
from agentguard.budget.model import Budget, Usage, check_budget
from agentguard.budget.tenant import PERIODS, account_id
from agentguard.errors import (
    InvalidStateTransitionError,
)
from agentguard.events import model as ev
from agentguard.events.model import Record
from agentguard.held import Held
from agentguard.killswitch import kill_requests
from agentguard.killswitch.model import Acknowledgements, Kill
from agentguard.ownership import bury_all
from agentguard.runs.state import RunState, check_move
from agentguard.steps import approvals
from agentguard.steps.levels import check_no_ledger
from agentguard.tenancy import check_id


class TenantAccount(NamedTuple):
    """A tenant's budget, and what was spent of it in the present window."""

    tenant: str
    per: str | None
    budget: Budget
    spent: Usage


class Approval(NamedTuple):
    """A step that waits for an operator."""

    run_id: str
    key: str
    name: str


class Control(Held):
    """The operator's side of a guard."""

    def pause(self, run_id: str, *, reason: str = "") -> None:
        """Admit no further step of a run until it is resumed; durable, from any process.

        Raises:
            InvalidStateTransitionError: the run is not RUNNING.
        """
        self._move(run_id, Record(0, ev.RUN_PAUSED, 0, data={"reason": reason}))

    def resume(self, run_id: str) -> None:
        """Lift a pause, and nothing else.

        Raises:
            InvalidStateTransitionError: the run is not PAUSED.
        """
        self._move(run_id, Record(0, ev.RUN_RESUMED, 0))

    def _move(self, run_id: str, record: Record) -> None:
        journal = self.journal(run_id)
        target = RunState.PAUSED if record.type == ev.RUN_PAUSED else RunState.RUNNING
        with journal.deciding():
            if target is RunState.RUNNING and journal.fold.state is not RunState.PAUSED:
                raise InvalidStateTransitionError(run_id, journal.fold.state, target)
            check_move(run_id, journal.fold.state, target)
            data = dict(record.data or {}) | {"running_ns": journal.time.elapsed()}
            journal.act([structs.replace(record, at_ns=journal.clock.wall(), data=data)])

    def kill(
        self,
        *,
        reason: str,
        tenant: Any = kill_requests.UNSET,
        run: Any = kill_requests.UNSET,
        actor: str | None = None,
    ) -> int:
        """Stop a run, a tenant's runs, or (neither given) everything under this home.

        Gives the kill's generation, for `acknowledged`.  It is durable when this returns, and every
        process of the host sees it at its next check.

        Raises:
            ValueError: `None` or `""` for tenant or run, or no reason.
        """
        kind, data = kill_requests.kill_data(reason, tenant=tenant, run=run, actor=actor)
        generation = self.parts.switch.record(kind, data)
        self.observe()
        bury_all(self)
        return generation

    def revive(
        self,
        *,
        tenant: Any = kill_requests.UNSET,
        run: Any = kill_requests.UNSET,
        reason: str = "revived",
        actor: str | None = None,
    ) -> int:
        """Let later runs start again: clears the kills of exactly this scope.

        A run that was killed stays killed.
        """
        kind, data = kill_requests.revive_data(reason, tenant=tenant, run=run, actor=actor)
        return self.parts.switch.record(kind, data)

    def set_tenant_budget(
        self, tenant: str, budget: Budget, per: str | None = None, *, actor: str | None = None
    ) -> None:
        """Limit what all runs of a tenant may use together; on record in the control log.

        Args:
            tenant: whose runs.
            budget: the limits; one without any lifts the budget.
            per: None for ever, or a UTC `"day"` or `"month"`, which begins anew each time.
            actor: who says so; by default `user@host`.

        Raises:
            ValueError: `per` is something else, or the budget limits what a tenant cannot have.
        """
        check_id(tenant, "tenant")
        check_budget(budget)
        if per not in PERIODS:
            raise ValueError(f"per must be None, 'day' or 'month', not {per!r}")
        if budget["seconds"] is not None:
            raise ValueError("a tenant's budget cannot limit seconds; limit them for each run")
        if budget.repeats is not None:
            raise ValueError("a tenant's budget cannot limit repeats; limit them for each run")
        data = {"tenant": tenant, "per": per, "budget": budget.to_fields()}
        data["actor"] = actor or kill_requests.default_actor()
        self.parts.switch.record(ev.TENANT_BUDGET_SET, data)
        self.parts.refresh()
        self.observe()

    def tenants(self) -> list[TenantAccount]:
        """The tenants with a budget, and what they have spent of it in the present window.

        Raises:
            StoreUnavailableError: that was kept apart from the store, by an earlier version.
        """
        parts = self.parts
        parts.refresh()
        now = parts.clock.wall()
        found = []
        tenants = parts.tenants.tenants()
        if tenants:
            check_no_ledger(parts.store)
        for tenant in tenants:
            for per, budget in parts.tenants.budgets(tenant).items():
                name = account_id(tenant, per, now)
                account = parts.store.accounts([name]).get(name) or Account(f"tenant:{tenant}", budget)
                found.append(TenantAccount(tenant, per, budget, Usage.from_amounts(account.spent)))
        return found

    def approvals(self) -> list[Approval]:
        """The steps that wait for an approval, in all runs."""
        found = []
        for row in self.parts.store.rows(state="RUNNING", limit=2**31):
            for key, asked in self.journal(row.run_id).fold.approvals.items():
                if asked["state"] == ev.APPROVAL_REQUESTED:
                    found.append(Approval(row.run_id, key, asked["name"]))
        return found

    def approve(self, run_id: str, key: str, *, reason: str | None = None, actor: str | None = None) -> None:
        """Let a waiting step run.

        Raises:
            AgentGuardError: no step of that key waits.
        """
        who = actor or kill_requests.default_actor()
        approvals.decide(self.journal(run_id), key, granted=True, reason=reason, actor=who)

    def deny(self, run_id: str, key: str, *, reason: str | None = None, actor: str | None = None) -> None:
        """Refuse a waiting step: it raises `ApprovalDeniedError`; the run goes on.

        Raises:
            AgentGuardError: no step of that key waits.
        """
        who = actor or kill_requests.default_actor()
        approvals.decide(self.journal(run_id), key, granted=False, reason=reason, actor=who)

    def kills(self) -> list[Kill]:
        """All kills ever ordered here, oldest first; `cleared` marks those revived since."""
        return self.parts.switch.kills()

    def acknowledged(self, generation: int, timeout: float = 1.0) -> Acknowledgements:
        """Wait, at most `timeout` seconds, until every live process has acted on a kill."""
        return self.parts.switch.acknowledgements(generation, timeout)
