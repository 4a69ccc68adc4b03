"""What a Prometheus server reads, in its text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from decimal import Decimal

from agentguard.alerts.rules import KINDS, TEST, WAITING
from agentguard.console.data import Snapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

PREFIX = "agentguard_"
#: Every metric, and what it is; all are gauges.
FAMILIES = {
    "runs_live": "Runs that have not ended.",
    "live_usd": "Spent by the live runs, in USD.",
    "live_usd_per_minute": "Spent by the live runs in the last minute, in USD.",
    "owners_gone": "Live runs whose process is gone.",
    "approvals_waiting": "Steps that wait for an operator.",
    "kills_in_force": "Kills that were not cleared.",
    "alerts": "What an operator is to be told, by kind.",
    "part_works": "Whether a part of the installation works.",
    "tenant_usd": "Spent of a tenant's budget in its present window, in USD.",
}

Labels = tuple[tuple[str, str], ...]


def text(now: Snapshot) -> str:
    """Return the metrics of the present.

    Example:
        >>> text(Snapshot([], [], [], [], [])).splitlines()[:3]
        ['# HELP agentguard_runs_live Runs that have not ended.', '# TYPE agentguard_runs_live gauge', \
'# HELP agentguard_live_usd Spent by the live runs, in USD.']
    """
    runs: dict[Labels, int] = {}
    spent: dict[Labels, Decimal] = {}
    rate: dict[Labels, Decimal] = {}
    for run in now.live:
        tenant = ("tenant", run.summary.tenant)
        of_state = (tenant, ("state", str(run.summary.state)))
        runs[of_state] = runs.get(of_state, 0) + 1
        spent[(tenant,)] = spent.get((tenant,), Decimal(0)) + run.summary.usage.usd
        rate[(tenant,)] = rate.get((tenant,), Decimal(0)) + run.usd_per_minute
    accounts: dict[Labels, Decimal] = {
        (("tenant", a.tenant), ("per", a.per or "")): a.spent.usd for a in now.tenants
    }
    gone = sum(run.alive is False for run in now.live)
    kills = Counter(kill.scope for kill in now.kills)
    none: Labels = ()
    families: dict[str, Mapping[Labels, object]] = {
        "runs_live": runs,
        "live_usd": spent,
        "live_usd_per_minute": rate,
        "owners_gone": {none: gone},
        "approvals_waiting": {none: len(now.waiting)},
        "kills_in_force": {(("scope", scope),): count for scope, count in kills.items()},
        "alerts": _alerts(now),
        "part_works": {
            (("kind", part.kind), ("name", part.name)): int(part.ok)
            for part in now.health
            if part.ok is not None
        },
        "tenant_usd": accounts,
    }
    return "".join(_family(name, values) for name, values in families.items())


def _alerts(now: Snapshot) -> dict[Labels, int]:
    counted = Counter(alert.kind for alert in now.alerts)
    return {(("kind", kind),): counted[kind] for kind in KINDS if kind not in (TEST, WAITING)}


def _family(family: str, values: Mapping[Labels, object]) -> str:
    name = f"{PREFIX}{family}"
    lines = [f"# HELP {name} {FAMILIES[family]}", f"# TYPE {name} gauge"]
    for labels, value in sorted(values.items()):
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
        lines.append(f"{name}{{{inside}}} {value}" if inside else f"{name} {value}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
