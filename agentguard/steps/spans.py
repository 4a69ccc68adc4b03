"""What telemetry is told of a run, its scopes and its steps; `agentguard.telemetry` has the spans."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from agentguard.budget.account import Amounts
from agentguard.protocols import QueueDepth


class StepSpan(Protocol):
    """The span of a step."""

    trace_id: str | None
    span_id: str | None

    def suspend(self) -> None:
        """Leave it, between two items of a generator."""

    def resume(self) -> None:
        """Make it current again."""

    def would_refuse(self, error: BaseException) -> None:
        """Say that a limit which only observes had no room for the step."""

    def refused(self, error: BaseException) -> None:
        """End the span of a step that never started."""

    def end(self, error: BaseException | None, usage: Amounts | None, duration_ns: int) -> None:
        """End the span with what the log says."""


class ScopeSpan(Protocol):
    """The span of a scope."""

    def end(self, error: BaseException | None) -> None:
        """End the span."""


class RunSpan(Protocol):
    """The span of a run."""

    trace_id: str | None
    span_id: str | None

    def start_step(
        self, name: str, kind: str, key: str, attempt: int, attributes: Mapping[str, object] | None
    ) -> StepSpan:
        """Start the span of a step."""
        ...

    def start_scope(self, name: str, path: str) -> ScopeSpan:
        """Start the span of a scope."""
        ...

    def end_part(self, error: BaseException | None) -> None:
        """End the span of a part of the run, which goes on elsewhere."""

    def end(
        self,
        *,
        error: BaseException | None,
        state: str,
        head: tuple[int, str] | None,
        usage: Amounts,
        steps: int,
    ) -> None:
        """End the span, with the head of the run's log."""


class Telemetry(Protocol):
    """Where the spans of runs begin."""

    def start_run(
        self,
        *,
        name: str,
        run_id: str,
        tenant: str,
        metadata: Mapping[str, object],
        origin: tuple[str, str] | None = None,
    ) -> RunSpan:
        """Start the span of a run, linked to the one in which it began."""
        ...

    def current_span(self) -> tuple[str, str] | None:
        """Return the trace id and the span id of the current span."""
        ...

    def observe_queue(self, depth: Callable[[], Iterable[QueueDepth]]) -> None:
        """Measure the queue of submitted runs."""
