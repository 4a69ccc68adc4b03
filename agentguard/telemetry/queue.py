"""How long the queues of submitted runs are, as metrics: for dashboards and autoscalers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from agentguard.protocols import QueueDepth
from agentguard.telemetry import attributes as a
from agentguard.telemetry._harmless import swallow


def watch_queue(provider: MeterProvider, version: str, depth: Callable[[], Iterable[QueueDepth]]) -> None:
    """Make the gauges; every worker has them, and all tell the same.

    `agentguard.queue.depth` counts runs by queue and state: `waiting` (a worker could take it now), `delayed`
    (it comes again later) and `running`.  `agentguard.queue.oldest_age` is how long, in seconds, the run
    that waits longest could have been running.
    """

    def asked() -> list[QueueDepth]:
        try:
            return list(depth())
        except Exception as error:  # noqa: BLE001 - telemetry never harms the worker
            swallow(error)
            return []

    def depths(_: CallbackOptions) -> Iterable[Observation]:
        for queue in asked():
            for state in ("waiting", "delayed", "running"):
                yield Observation(getattr(queue, state), {a.QUEUE: queue.queue, a.QUEUE_STATE: state})

    def ages(_: CallbackOptions) -> Iterable[Observation]:
        for queue in asked():
            yield Observation(queue.oldest_seconds, {a.QUEUE: queue.queue})

    meter = provider.get_meter("agentguard", version)
    meter.create_observable_gauge(
        "agentguard.queue.depth", [depths], unit="{run}", description="Submitted runs that have not ended."
    )
    meter.create_observable_gauge(
        "agentguard.queue.oldest_age", [ages], unit="s", description="How long a run has waited for a worker."
    )
