"""One span for each run and one for each step, with the metrics that belong to them.

Needs the OpenTelemetry API alone.  Where the application has set up no SDK, a run and its steps
cost next to nothing and have no ids; an SDK that is set up later is used from the next run on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from opentelemetry import metrics, trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    TraceFlags,
    Tracer,
    get_current_span,
    set_span_in_context,
)

from agentguard.protocols import QueueDepth
from agentguard.telemetry import attributes as a
from agentguard.telemetry import facts
from agentguard.telemetry._current import CurrentSpan
from agentguard.telemetry._harmless import harmless, swallow
from agentguard.telemetry._live import is_live, version
from agentguard.telemetry._step import NO_STEP, StepSpan, shape_of
from agentguard.telemetry.metrics import Instruments
from agentguard.telemetry.queue import watch_queue

__all__ = ["RunSpan", "ScopeSpan", "StepSpan", "Telemetry"]

#: What `error.type` says of a run that was ended from outside, with no exception at hand.
_ENDED_WITHOUT_ERROR: Final = {"KILLED": "agentguard.killed", "FAILED": "_OTHER"}


class Telemetry:
    """Where runs and steps are traced and measured.

    Args:
        tracer_provider: where spans go; the process's own provider if left out.
        meter_provider: where metrics go; the process's own provider if left out.
        tenant_on_metrics: put the tenant on `agentguard.spend`.  An SDK keeps 2000 attribute sets
            of an instrument, so this is for tens of tenants, not for thousands.

    Example:
        >>> from opentelemetry.trace import NoOpTracerProvider
        >>> telemetry = Telemetry(NoOpTracerProvider())
        >>> run = telemetry.start_run(name="triage", run_id="r1", tenant="acme")
        >>> step = run.start_step("search", "tool", "search#1", 1)
        >>> step.end(None, {"nano_usd": 2_000_000}, duration_ns=5_000)
        >>> run.end(error=None, state="COMPLETED", head=(4, "9f2c"), usage={}, steps=1)
        >>> run.trace_id is None  # nobody listens
        True
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        *,
        tenant_on_metrics: bool = False,
    ) -> None:
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        self._tenant_on_metrics = tenant_on_metrics
        self._tracer: Tracer | None = None
        self._instruments: Instruments | None = None

    def start_run(
        self,
        *,
        name: str,
        run_id: str,
        tenant: str,
        metadata: Mapping[str, Any] | None = None,
        origin: tuple[str, str] | None = None,
    ) -> RunSpan:
        """Open `invoke_agent {name}` below the current span, and make it the current one.

        Scalars of `metadata` become attributes, so keep secrets out of it; a key that starts with
        `gen_ai.`, such as `gen_ai.conversation.id`, keeps its name.  `origin` is the span in which the run
        began, by trace id and span id, where that was elsewhere: the new span is linked to it.
        """
        with harmless:
            self._find_tracer()
        with harmless:
            self._find_instruments()
        tracer, instruments = self._tracer, self._instruments  # another thread may find them from here on
        shared: facts.Attributes = {a.AGENT_NAME: name, a.RUN_ID: run_id, a.TENANT: tenant}
        outside = get_current()
        run = RunSpan(None, tracer, instruments, shared, tenant)
        with harmless:
            if tracer is not None:
                span = tracer.start_span(
                    f"invoke_agent {name}",
                    outside,
                    SpanKind.INTERNAL,
                    {a.OPERATION: "invoke_agent", **shared, **facts.of_metadata(metadata or {})},
                    () if origin is None else (_link(origin),),
                    record_exception=False,
                    set_status_on_exception=False,
                )
                run = RunSpan(span, tracer, instruments, shared, tenant)
                run._enter(outside)
        if instruments is not None:
            with harmless:
                instruments.runs_changed(+1)
        return run

    def current_span(self) -> tuple[str, str] | None:
        """Return the trace id and the span id of the current span, in hex; None where there is none."""
        with harmless:
            ids = get_current_span().get_span_context()
            if ids.is_valid:
                return f"{ids.trace_id:032x}", f"{ids.span_id:016x}"
        return None

    def observe_queue(self, depth: Callable[[], Iterable[QueueDepth]]) -> None:
        """Report how long the queues of submitted runs are, each time that metrics are collected."""
        with harmless:
            provider = self._meter_provider
            watch_queue(metrics.get_meter_provider() if provider is None else provider, version(), depth)

    def _find_tracer(self) -> None:
        if self._tracer is None:
            provider = self._tracer_provider
            if provider is None:
                provider = trace.get_tracer_provider()
            if is_live(provider):
                self._tracer = provider.get_tracer("agentguard", version())

    def _find_instruments(self) -> None:
        if self._instruments is None:
            provider = self._meter_provider
            if provider is None:
                provider = metrics.get_meter_provider()
            if is_live(provider):
                self._instruments = Instruments(
                    provider, version(), tenant_on_metrics=self._tenant_on_metrics
                )


class RunSpan(CurrentSpan):
    """The span of a run, under which its steps lie."""

    __slots__ = ("_instruments", "_shared", "_tenant", "_tracer")

    def __init__(
        self,
        span: Span | None,
        tracer: Tracer | None,
        instruments: Instruments | None,
        shared: facts.Attributes,
        tenant: str,
    ) -> None:
        super().__init__(span)
        self._tracer = tracer
        self._instruments = instruments
        self._shared = shared
        self._tenant = tenant

    def start_step(
        self,
        name: str,
        kind: str,
        key: str,
        attempt: int,
        attributes: Mapping[str, Any] | None = None,
    ) -> StepSpan:
        """Open a step's span and make it the current one.

        It lies below the current span, else, in a thread that was given no context, below the run.  Where
        the current span is of another trace, as a server's span of a request, it is linked to the run.  What
        is known now goes into `attributes`, since a sampler sees nothing later: `gen_ai.request.model` above
        all.
        """
        tracer = self._tracer
        if tracer is None and self._instruments is None:
            return NO_STEP
        try:
            shape = shape_of(name, kind, attributes)
            if tracer is None:
                return StepSpan(None, shape, self._instruments, self._tenant)
            # Allowed until it is refused: one set of attributes at the start is half the price of two.
            start = {
                **self._shared,
                **shape.attributes,
                a.STEP_ID: key,
                a.STEP_ATTEMPT: attempt,
                a.DECISION: facts.ALLOW,
            }
            if attributes:
                start.update(attributes)
            outside = get_current()
            above, links = self._above_step(outside)
            span = tracer.start_span(
                shape.span_name,
                above,
                shape.span_kind,
                start,
                links,
                record_exception=False,
                set_status_on_exception=False,
            )
            step = StepSpan(span, shape, self._instruments, self._tenant, self)
            step._enter(outside)
        except Exception as problem:  # noqa: BLE001 - telemetry never harms the agent
            swallow(problem)
            return NO_STEP
        return step

    def start_scope(self, name: str, path: str) -> ScopeSpan:
        """Open the span of a scope, `invoke_agent {name}`, and make it the current one."""
        scope = ScopeSpan(None)
        with harmless:
            if self._tracer is not None:
                outside = get_current()
                above, links = self._above_step(outside)
                span = self._tracer.start_span(
                    f"invoke_agent {name}",
                    above,
                    SpanKind.INTERNAL,
                    {**self._shared, a.OPERATION: "invoke_agent", a.AGENT_NAME: name, a.SCOPE_PATH: path},
                    links,
                    record_exception=False,
                    set_status_on_exception=False,
                )
                scope = ScopeSpan(span, self)
                scope._enter(outside)
        return scope

    def _above_step(self, outside: Context) -> tuple[Context, Sequence[Link]]:
        """Return what a step lies below, and the run as a link where that is in another trace."""
        # In a run without steps around, which is the usual place, nothing needs to be looked up.
        if outside is self._inside or self._span is None:
            return outside, ()
        around = get_current_span(outside).get_span_context()
        if not around.is_valid:
            return set_span_in_context(self._span, outside), ()
        if around.trace_id == self._trace_number:
            return outside, ()
        return outside, (Link(self._span.get_span_context()),)

    def end_part(self, error: BaseException | None) -> None:
        """End the span of a part of the run; the run goes on, and its totals are told elsewhere."""
        if self._is_first_end():
            with harmless:
                self._finish({}, error, facts.error_type(error))

    def end(
        self,
        *,
        error: BaseException | None,
        state: str,
        head: tuple[int, str] | None,
        usage: Mapping[str, int],
        steps: int,
    ) -> None:
        """Write the run's totals, and end its span.  Ending twice does nothing."""
        if not self._is_first_end():
            return
        with harmless:
            error_type = facts.error_type(error)
            if error is None:
                error_type = _ENDED_WITHOUT_ERROR.get(str(state))
            totals = facts.of_totals(usage, steps)
            totals[a.RUN_STATE] = str(state)
            if head is not None:
                totals[a.LOG_HEAD] = f"{head[0]}:{head[1]}"
            self._finish(totals, error, error_type)

    def _is_first_end(self) -> bool:
        """Whether the span ends now, and has not before; then the run is counted off."""
        if self._ended:
            return False
        self._ended = True
        self._leave()
        if self._instruments is not None:
            with harmless:
                self._instruments.runs_changed(-1)
        return True


class ScopeSpan(CurrentSpan):
    """The span of a scope; the steps inside lie below it."""

    __slots__ = ()

    def end(self, error: BaseException | None) -> None:
        """End the span, with what left the scope's block.  Ending twice does nothing."""
        if self._ended:
            return
        self._ended = True
        self._leave()
        with harmless:
            self._finish({}, error, facts.error_type(error))


def _link(origin: tuple[str, str]) -> Link:
    trace_id, span_id = (int(part, 16) for part in origin)
    return Link(SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
