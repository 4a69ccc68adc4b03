"""The one place that knows the OpenTelemetry SDK: providers and exporters for an application."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import requests
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    MetricReader,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
)

from agentguard.errors import AgentGuardError
from agentguard.telemetry._live import is_live

DEFAULT_SERVICE = "agentguard"
#: What a receiver answers that has no metrics: not found, not allowed, not implemented.
_NO_METRICS = (404, 405, 501)

_log = logging.getLogger("agentguard.telemetry")


class Providers:
    """The process's providers, as `setup` made them.  Leaving its block shuts them down."""

    def __init__(self, tracer_provider: TracerProvider, meter_provider: MeterProvider) -> None:
        self.tracer_provider = tracer_provider
        self.meter_provider = meter_provider

    def force_flush(self, timeout: float = 10.0) -> bool:
        """Export what is queued; tells whether all of it went out within `timeout` seconds each."""
        millis = int(timeout * 1000)
        spans = self.tracer_provider.force_flush(millis)
        return self.meter_provider.force_flush(millis) and spans

    def shutdown(self) -> None:
        """Export what is queued and stop.  Doing nothing is fine too: it happens at exit."""
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.shutdown()


def install(
    *,
    endpoint: str | None,
    service_name: str,
    console: bool,
    headers: Mapping[str, str] | None,
    sent: Mapping[str, str | bool],
) -> Providers:
    """Do what `agentguard.telemetry.setup` says, once the packages are known to be there."""
    _refuse_second()
    resource = _resource(service_name)
    spans = TracerProvider(resource=resource)
    readers: list[MetricReader] = []
    if endpoint is not None or not console:
        extra = dict(headers) if headers else None
        if sent["traces"]:
            exporter = OTLPSpanExporter(_address(endpoint, "traces", sent), headers=extra)
            spans.add_span_processor(BatchSpanProcessor(exporter))
        if sent["metrics"]:
            address = _address(endpoint, "metrics", sent)
            metric_exporter = OTLPMetricExporter(address, headers=extra, session=_MetricsSession())
            readers.append(PeriodicExportingMetricReader(metric_exporter))
    if console:
        spans.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=sys.stderr)))
        readers.append(PeriodicExportingMetricReader(ConsoleMetricExporter(out=sys.stderr)))
    providers = Providers(spans, MeterProvider(metric_readers=readers, resource=resource))
    trace.set_tracer_provider(spans)
    metrics.set_meter_provider(providers.meter_provider)
    return providers


def _refuse_second() -> None:
    for kind, provider in (
        ("tracer", trace.get_tracer_provider()),
        ("meter", metrics.get_meter_provider()),
    ):
        if is_live(provider):
            raise AgentGuardError(
                f"this process has a {kind} provider already ({type(provider).__name__}), and "
                "OpenTelemetry takes one for good; agentguard uses it without setup(), or call "
                "setup() first"
            )


def _resource(service_name: str) -> Resource:
    resource = Resource.create()
    named = not str(resource.attributes["service.name"]).startswith("unknown_service")
    if named and service_name == DEFAULT_SERVICE:
        return resource  # OTEL_SERVICE_NAME said it
    return resource.merge(Resource({"service.name": service_name}))


def _address(endpoint: str | None, signal: str, sent: Mapping[str, str | bool]) -> str | None:
    own = sent[signal]
    if isinstance(own, str):
        return own
    return None if endpoint is None else f"{endpoint.rstrip('/')}/v1/{signal}"


class _MetricsSession(requests.Session):
    """Asks a receiver that knows no metrics once, and not again at every export."""

    _refused = False

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send metrics, or only say that they were taken where nobody takes them."""
        response = _taken() if self._refused else super().send(request, **kwargs)
        if response.status_code not in _NO_METRICS:
            return response
        self._refused = True
        _log.info("%s takes no metrics (HTTP %d); none are sent there", request.url, response.status_code)
        return _taken()


def _taken() -> requests.Response:
    response = requests.Response()
    response.status_code = 200
    return response
