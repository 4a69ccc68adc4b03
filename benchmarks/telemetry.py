"""What a step costs with OpenTelemetry: with the API alone, and with an SDK over a raw span."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry import context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import set_span_in_context

from agentguard import Guard, guarded_step
from agentguard.telemetry.spans import Telemetry
from benchmarks import _measure as m
from benchmarks._rows import Row
from benchmarks.overhead import in_a_run

_STEPS = 200


class _Nowhere(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def measure(*, quick: bool) -> list[Row]:
    """The rows with telemetry on.  The SDK exports in batches to nowhere."""
    rounds = 12 if quick else 40
    step = guarded_step(m.work)
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(_Nowhere(), max_queue_size=1_000_000))
    raw = _raw_span(provider, _span_of_a_step(step))
    with (
        Guard.in_memory(telemetry=False) as dark,
        Guard.in_memory() as api,
        Guard.in_memory(telemetry=Telemetry(provider)) as sdk,
    ):
        taken = m.least(
            {
                "U": m.unit,
                "dark": lambda: in_a_run(dark, step),
                "api": lambda: in_a_run(api, step),
                "sdk": lambda: in_a_run(sdk, step),
                "raw": lambda: _in_a_span(provider, raw),
                "turns": lambda: _by_turns(dark, step, raw),
            },
            rounds,
        )
    provider.shutdown()
    turns = taken["turns"] / taken["raw"]
    return [
        Row(
            name="otel-api",
            what="the same with the OpenTelemetry API, no SDK set up",
            value=taken["api"] / taken["U"],
            unit="U",
            facts={"ns a step": taken["api"], "telemetry off, ns": taken["dark"]},
        ),
        Row(
            name="otel-sdk",
            what="with the SDK: step over a raw span of the same attributes",
            value=taken["sdk"] / taken["raw"],
            unit="x",
            limit=1.8,
            facts={
                "ns a step": taken["sdk"],
                "ns a raw span": taken["raw"],
                "a raw span and a step without telemetry by turns, over a raw span": turns,
            },
        ),
    ]


def _span_of_a_step(step: Callable[..., Any]) -> ReadableSpan:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with Guard.in_memory(telemetry=Telemetry(provider)) as guard, guard.run("like"):
        step(1, b=2, c=3)
    return exporter.get_finished_spans()[0]


def _in_a_span(provider: TracerProvider, raw: Callable[..., Any]) -> float:
    """One repetition, below a span as the steps of a run are."""
    with provider.get_tracer("raw").start_as_current_span("around"):
        m.calls(raw, 20)
        return m.calls(raw, _STEPS)


def _by_turns(guard: Guard, step: Callable[..., Any], raw: Callable[..., Any]) -> float:
    """The two that a step with telemetry is made of, with nothing between them: the least that it can cost.

    They take more than the sum of both, since each drives the other out of the processor's caches.
    """

    def both(*args: Any, **kwargs: Any) -> None:
        raw(*args, **kwargs)
        step(*args, **kwargs)

    return in_a_run(guard, both)


def _raw_span(provider: TracerProvider, like: ReadableSpan) -> Callable[..., Any]:
    """The body in a span such as a careful user would write it: all attributes at once, attached."""
    tracer = provider.get_tracer("raw")
    name, kind = like.name, like.kind
    attributes = dict(like.attributes or {})

    def call(*args: Any, **kwargs: Any) -> Any:
        span = tracer.start_span(name, kind=kind, attributes=attributes)
        token = context.attach(set_span_in_context(span))
        try:
            return m.work(*args, **kwargs)
        finally:
            context.detach(token)
            span.end()

    return call
