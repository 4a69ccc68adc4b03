"""What a Prometheus server reads, in its text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from decimal import Decimal

from agentguard.console.data import Snapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]


def text(now: Snapshot) -> str:
    """Return the metrics of the present.

    Example:
        >>> text(Snapshot([], [], [], [])).splitlines()[:3]
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
    families: tuple[tuple[str, str, Mapping[Labels, object]], ...] = (
        ("runs_live", "Runs that have not ended.", runs),
        ("live_usd", "Spent by the live runs, in USD.", spent),
        ("live_usd_per_minute", "Spent by the live runs in the last minute, in USD.", rate),
        ("owners_gone", "Live runs whose process is gone.", {none: gone}),
        ("approvals_waiting", "Steps that wait for an operator.", {none: len(now.waiting)}),
        (
            "kills_in_force",
            "Kills that were not cleared.",
            {(("scope", scope),): count for scope, count in kills.items()},
        ),
        ("tenant_usd", "Spent of a tenant's budget in its present window, in USD.", accounts),
    )
    return "".join(_family(f"agentguard_{name}", said, values) for name, said, values in families)


def _family(name: str, said: str, values: Mapping[Labels, object]) -> str:
    lines = [f"# HELP {name} {said}", f"# TYPE {name} gauge"]
    for labels, value in sorted(values.items()):
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
        lines.append(f"{name}{{{inside}}} {value}" if inside else f"{name} {value}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
