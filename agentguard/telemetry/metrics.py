"""The instruments of agentguard.  Money of record is in the log; these are for dashboards.

No `gen_ai.client.*` metric is written: instrumentations of models own those and would be counted
twice.  Attributes are of low cardinality, since an SDK folds everything past 2000 sets of an
instrument into one without a word: ids never, the tenant only where it was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from agentguard.budget.resources import NANO, NANO_USD
from agentguard.telemetry import attributes as a

if TYPE_CHECKING:
    from opentelemetry import metrics

STEP_BUCKETS: Final = tuple(2**n / 100 for n in range(14))


class Instruments:
    """What agentguard measures, on one meter provider."""

    __slots__ = (
        "_active",
        "_decisions",
        "_duration",
        "_spend",
        "_with_tenant",
    )

    def __init__(self, provider: metrics.MeterProvider, version: str, *, tenant_on_metrics: bool) -> None:
        meter = provider.get_meter("agentguard", version)
        self._with_tenant = tenant_on_metrics
        self._spend = meter.create_counter(
            "agentguard.spend", unit="{USD}", description="Money that guarded steps used."
        )
        self._decisions = meter.create_counter(
            "agentguard.decisions",
            unit="{decision}",
            description="Steps that were allowed, refused, or would have been refused.",
        )
        self._duration = meter.create_histogram(
            "agentguard.step.duration",
            unit="s",
            description="How long the bodies of steps took.",
            explicit_bucket_boundaries_advisory=STEP_BUCKETS,
        )
        self._active = meter.create_up_down_counter(
            "agentguard.runs.active", unit="{run}", description="Runs under way in this process."
        )

    def runs_changed(self, by: int) -> None:
        """Count a run in or out."""
        self._active.add(by)

    def refused(self, kind: str, reason: str) -> None:
        """Count a step that did not run."""
        self._decisions.add(1, {a.DECISION: "deny", a.DENY_REASON: reason, a.STEP_KIND: kind})

    def ended(
        self,
        labels: Mapping[str, str],
        *,
        tenant: str,
        usage: Mapping[str, int] | None,
        duration_ns: int,
        decision: str,
        reason: str | None,
        error_type: str | None,
    ) -> None:
        """Count a step that ran; `labels` are its kind, and its tool or its model."""
        kind = labels[a.STEP_KIND]
        decided = {a.DECISION: decision, a.STEP_KIND: kind}
        if reason is not None:
            decided[a.DENY_REASON] = reason
        self._decisions.add(1, decided)
        self._duration.record(
            duration_ns / NANO,
            labels if error_type is None else {**labels, a.ERROR_TYPE: error_type},
        )
        if usage and (money := usage.get(NANO_USD)):
            spent = {a.STEP_KIND: kind}
            if (model := labels.get(a.REQUEST_MODEL)) is not None:
                spent[a.REQUEST_MODEL] = model
            if self._with_tenant:
                spent[a.TENANT] = tenant
            self._spend.add(money / NANO, spent)
