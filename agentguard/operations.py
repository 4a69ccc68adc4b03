"""What an operator does: kill and revive, pause and resume, approvals, budgets of tenants, erasure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentguard.audit import erasure
from agentguard.budget.ledger import check_shared
from agentguard.budget.model import Budget, BudgetChange, Usage, check_budget
from agentguard.budget.tenant import PERIODS
from agentguard.errors import KillSwitchUnavailableError
from agentguard.events import model as ev
from agentguard.events.data import AlertTold, Said
from agentguard.events.model import Head
from agentguard.killswitch import kill_requests
from agentguard.killswitch.model import Acknowledgements
from agentguard.replay import resolving
from agentguard.runs.state import RunState
from agentguard.runtime import Runtime
from agentguard.sessions import alerting, base, joined
from agentguard.steps import approvals
from agentguard.tenancy import UNSET, Id, check_id, check_text


class Operations:
    """What is done to runs from outside; `Guard` has the same methods, with their documentation."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def kill(self, *, reason: str, tenant: Id, run: Id, actor: str | None) -> int:
        """See `Guard.kill`."""
        return base.kill(self._runtime, *kill_requests.kill_data(reason, tenant=tenant, run=run, actor=actor))

    def revive(self, *, reason: str, tenant: Id, run: Id, actor: str | None) -> int:
        """See `Guard.revive`."""
        kind, data = kill_requests.revive_data(reason, tenant=tenant, run=run, actor=actor)
        return self._runtime.components.switch.record(kind, data)

    def acknowledged(self, generation: int, timeout: float) -> Acknowledgements:
        """See `Guard.acknowledged`."""
        return self._runtime.components.switch.acknowledgements(generation, timeout)

    def pause(self, run_id: str, *, reason: str, actor: str | None) -> None:
        """See `Guard.pause`."""
        said = self._authorship(reason, actor)
        self._ordered("pause", run_id, base.pause(self._runtime, run_id, said), said)

    def resume(self, run_id: str, *, reason: str, actor: str | None) -> None:
        """See `Guard.resume`."""
        said = self._authorship(reason, actor)
        self._ordered("resume", run_id, base.resume(self._runtime, run_id, said), said)

    def end(self, run_id: str, error: BaseException | None, *, reason: str, actor: str | None) -> RunState:
        """See `Guard.end`."""
        by_hand = actor is not None or reason != ""
        said: Said = self._authorship(reason, actor) if by_hand else {}
        state, head = joined.end(self._runtime, run_id, error, said)
        if by_hand and head is not None:
            self._ordered("end", run_id, head, said)
        return state

    def set_budget(
        self,
        run_id: str,
        budget: BudgetChange,
        *,
        asked: str | int | None,
        reason: str,
        actor: str | None,
    ) -> None:
        """See `Guard.set_budget`."""
        said = self._authorship(reason, actor)
        head, data = base.set_budget(self._runtime, run_id, budget, said, asked)
        self._ordered("set_budget", run_id, head, data)

    def decide(
        self,
        run_id: str,
        key: str,
        *,
        granted: bool,
        asked: int | None,
        reason: str | None,
        actor: str | None,
    ) -> None:
        """See `Guard.approve` and `Guard.deny`."""
        said = self._authorship(reason, actor)
        live_run = base.live_run_of(self._runtime, run_id)
        head = approvals.decide(live_run, key, granted=granted, said=said, asked=asked)
        self._ordered("approve" if granted else "deny", run_id, head, {"key": key, **said})

    def _authorship(self, reason: str | None, actor: str | None) -> Said:
        """Return who orders and why; without a control log to record it in, nothing may be ordered.

        Raises:
            KillSwitchUnavailableError: the control log cannot be used.
        """
        said = kill_requests.authorship(reason, actor)
        self._runtime.components.switch.kills()
        return said

    def _ordered(self, action: str, run_id: str, head: Head, data: Mapping[str, object]) -> None:
        """Record in the control log what was done to a run, and at which event of its log it stands.

        Raises:
            KillSwitchUnavailableError: it stands in the log of the run alone.
        """
        facts = {
            "action": action,
            "run": run_id,
            "tenant": self._runtime.row(run_id).tenant,
            **data,
            **head._asdict(),
        }
        try:
            self._runtime.components.switch.record(ev.OPERATOR_ACTION, facts)
        except KillSwitchUnavailableError as error:
            raise KillSwitchUnavailableError(
                f"{action} is done, and on record as event {head.seq} of run {run_id}, "
                f"but not in the control log: {error}"
            ) from error

    def record_alert(
        self, kind: str, message: str, *, run: Id, subject: str, firing: bool, facts: Mapping[str, object]
    ) -> bool:
        """See `Guard.record_alert`."""
        if (run is UNSET) == (subject == ""):
            raise ValueError("an alert is of a run or of a subject: give run=, or subject=")
        state = alerting.FIRING if firing else alerting.RESOLVED
        data: AlertTold = {"kind": check_text(kind, "kind"), "state": state, "message": message}
        if facts:
            data["facts"] = dict(facts)
        if run is not UNSET:
            return alerting.record_alert(base.live_run_of(self._runtime, check_id(run, "run")), data)
        data["subject"] = subject
        return alerting.record_alert_of_others(self._runtime.components.switch, data)

    def resolve(
        self, run_id: str, key: str, outcome: str, *, result: Any, usage: Usage | None, actor: str | None
    ) -> None:
        """See `Guard.resolve`."""
        live_run = base.live_run_of(self._runtime, run_id)
        resolving.resolve(live_run, key, outcome, result=result, usage=usage, actor=_who(actor))

    def set_tenant_budget(self, tenant: str, budget: Budget, *, per: str | None, actor: str | None) -> None:
        """See `Guard.set_tenant_budget`."""
        check_id(tenant, "tenant")
        check_budget(budget)
        if per not in PERIODS:
            raise ValueError(f"per must be None, 'day' or 'month', not {per!r}")
        check_shared(budget, "a tenant's budget")
        data = {"tenant": tenant, "per": per, "budget": budget.to_fields(), "actor": _who(actor)}
        components = self._runtime.components
        components.switch.record(ev.TENANT_BUDGET_SET, data)
        components.refresh()
        self._runtime.observe()

    def erase(self, run_id: str, *, actor: str | None) -> int:
        """See `Guard.erase`."""
        live_run = base.live_run_of(self._runtime, run_id)
        return erasure.erase(live_run, self._runtime.components.switch, _who(actor))

    def prune(self, older_than: Any, *, actor: str | None) -> list[str]:
        """See `Guard.prune`."""
        components = self._runtime.components
        before = erasure.cut_off(older_than, components.clock.wall())
        return erasure.prune(components.store, components.switch, before, _who(actor))


def _who(actor: str | None) -> str:
    return actor or kill_requests.default_actor()
