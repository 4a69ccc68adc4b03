"""What is worth an alert: thresholds, and what lies beyond them.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final, NamedTuple

from agentguard.killswitch.model import Kill
from agentguard.monitoring import Approval, RunStatus
from agentguard.queries import TenantAccount

BUDGET: Final = "budget"
TENANT_BUDGET: Final = "tenant_budget"
RATE: Final = "rate"
OWNER_GONE: Final = "owner_gone"
KILL_UNANSWERED: Final = "kill_unanswered"
RELAY_STALE: Final = "relay_stale"
UNAVAILABLE: Final = "unavailable"
WAITING: Final = "waiting"
TEST: Final = "test"

#: Every kind of alert, and what it means.
KINDS: Final = {
    BUDGET: "a run has used most of a limit",
    TENANT_BUDGET: "a tenant has used most of its money",
    RATE: "a run spends fast",
    OWNER_GONE: "the process of a live run is gone",
    KILL_UNANSWERED: "a run goes on though a kill covers it",
    RELAY_STALE: "the relay of the kill switch is silent, so steps are refused",
    UNAVAILABLE: "the store or the kill switch cannot be used",
    WAITING: "a step waits for an operator",
    TEST: "somebody tries whether alerts arrive",
}


class Alert(NamedTuple):
    """Something that an operator is to be told.

    `subject` is the run, tenant or component that it is about; `kind` and `subject` make an alert one.
    """

    kind: str
    subject: str
    tenant: str
    message: str
    facts: dict[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        """What makes it one alert, however often it is seen."""
        return self.kind, self.subject


class Thresholds(NamedTuple):
    """From where on an alert is given.

    Args:
        budget_share: the part of a limit, of a run or of a tenant's money; None for never.
        usd_per_minute: of one run; None for never.
        kill_grace: how long a run may go on that a kill covers.

    Raises:
        ValueError: from `check`: one of them cannot be meant.

    Example:
        >>> Thresholds(budget_share=0.5).check().budget_share
        0.5
    """

    budget_share: float | None = 0.9
    usd_per_minute: Decimal | None = None
    kill_grace: timedelta = timedelta(seconds=10)

    def check(self) -> Thresholds:
        """Return these, if all can be meant."""
        if self.budget_share is not None and not 0 < self.budget_share <= 1:
            raise ValueError(f"budget_share must be above 0 and at most 1, not {self.budget_share!r}")
        if self.usd_per_minute is not None and not 0 < self.usd_per_minute < Decimal("Infinity"):
            raise ValueError(f"usd_per_minute must be above 0, not {self.usd_per_minute!r}")
        if self.kill_grace < timedelta(0):
            raise ValueError(f"kill_grace must be 0 or more, not {self.kill_grace!r}")
        return self


class Present(NamedTuple):
    """The present, as far as it could be read; `trouble` says by component what could not."""

    live: list[RunStatus]
    waiting: list[Approval]
    kills: list[Kill]
    tenants: list[TenantAccount]
    relay_silent: bool
    trouble: dict[str, str]
    now_ns: int


def alerts(present: Present, thresholds: Thresholds) -> list[Alert]:
    """Return what an operator is to be told of the present."""
    return [
        *_unavailable(present),
        *(alert for status in present.live for alert in _of_run(status, present, thresholds)),
        *_of_tenants(present.tenants, thresholds),
        *_waiting(present),
    ]


def _unavailable(present: Present) -> Iterator[Alert]:
    for component, problem in present.trouble.items():
        yield Alert(UNAVAILABLE, component, "", f"{component} cannot be used: {problem}", {})
    if present.relay_silent:
        message = "the relay of the kill switch is silent: steps on this host are refused"
        yield Alert(RELAY_STALE, "relay", "", message, {})


def _of_run(status: RunStatus, present: Present, thresholds: Thresholds) -> Iterator[Alert]:
    summary = status.summary
    name = f"run {summary.run_id} ({summary.name})"

    def alert(kind: str, message: str, **facts: Any) -> Alert:
        facts |= {"name": summary.name, "host": status.host, "pid": status.pid}
        return Alert(kind, summary.run_id, summary.tenant, f"{name} {message}", facts)

    limit, share = status.nearest_limit, thresholds.budget_share
    if limit is not None and share is not None and limit.share >= share:
        said = f"has used {limit.share:.0%} of its limit of {limit.resource}"
        yield alert(BUDGET, said, resource=limit.resource, share=round(limit.share, 4))
    rate = status.usd_per_minute
    if thresholds.usd_per_minute is not None and rate >= thresholds.usd_per_minute:
        yield alert(RATE, f"spent ${rate} in the last minute", usd_per_minute=str(rate))
    if status.alive is False:
        yield alert(OWNER_GONE, f"has lost its process: agentguard recover {summary.run_id}")
    kill = _covering(status, present.kills, present.now_ns, thresholds.kill_grace)
    if kill is not None and status.alive is not False:
        said = f"goes on though {kill.actor} has killed it ({kill.reason})"
        yield alert(KILL_UNANSWERED, said, generation=kill.generation)


def _covering(status: RunStatus, kills: Iterable[Kill], now_ns: int, grace: timedelta) -> Kill | None:
    latest = now_ns - int(grace.total_seconds() * 1e9)
    tenant, run_id = status.summary.tenant, status.summary.run_id
    found = (
        kill for kill in kills if not kill.cleared and kill.at_ns <= latest and kill.covers(tenant, run_id)
    )
    return next(found, None)


def _of_tenants(accounts: Iterable[TenantAccount], thresholds: Thresholds) -> Iterator[Alert]:
    for account in accounts:
        limit, spent = account.budget.usd, account.spent.usd
        if thresholds.budget_share is None or limit is None:
            continue
        share = float(spent / limit) if limit else 1.0
        if share >= thresholds.budget_share:
            per = f" per {account.per}" if account.per else ""
            message = f"tenant {account.tenant} has spent ${spent} of ${limit}{per}"
            subject = f"{account.tenant}/{account.per or 'ever'}"
            yield Alert(TENANT_BUDGET, subject, account.tenant, message, {"share": round(share, 4)})


def _waiting(present: Present) -> Iterator[Alert]:
    tenant_of = {status.summary.run_id: status.summary.tenant for status in present.live}
    for asked in present.waiting:
        wants = "an approval" if asked.limit is None else f"a higher limit of {asked.limit['resource']}"
        message = f"run {asked.run_id}: {asked.name} waits for {wants}"
        subject = f"{asked.run_id} {asked.key}"
        yield Alert(WAITING, subject, tenant_of.get(asked.run_id, ""), message, {"key": asked.key})
