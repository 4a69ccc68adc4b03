"""OpenTelemetry: spans and metrics of runs and steps, and a set-up for applications without one.

The log never depends on a span, and the library itself never sets a global provider.  Importing
this room imports no OpenTelemetry, which would cost 100 ms; `agentguard.telemetry.spans` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from agentguard._loading import LOADING
from agentguard._optional import require

if TYPE_CHECKING:
    from agentguard.telemetry._sdk import Providers

__all__ = ["setup"]


def setup(
    *,
    endpoint: str | None = None,
    service_name: str = "agentguard",
    console: bool = False,
    headers: Mapping[str, str] | None = None,
    traces: str | bool = True,
    metrics: str | bool = True,
) -> Providers:
    """Send this process's spans and metrics somewhere: for applications, once, at their start.

    Not needed where OpenTelemetry is set up already.  With neither `endpoint` nor `console`, the
    exporters' own defaults hold: `OTEL_EXPORTER_OTLP_ENDPOINT`, else http://localhost:4318.

    Args:
        endpoint: where an OTLP/HTTP receiver listens, without a path: `http://127.0.0.1:4318`.
        service_name: the service's name; `OTEL_SERVICE_NAME` goes before the default.
        console: print spans and metrics to standard error, alone or besides `endpoint`.
        headers: HTTP headers for the receiver, such as an API key.
        traces: whether spans are sent; an address of their own, path included, goes before `endpoint`.
        metrics: the same for metrics.  A receiver that takes no metrics, as Jaeger, is told once in the
            log of this process (`agentguard.telemetry`, INFO), and asked no more.

    Returns:
        The providers, with `force_flush()` and `shutdown()`.  What is queued goes out at exit.

    Raises:
        MissingExtraError: the packages of `agentguard[otel]` are not installed.
        AgentGuardError: a global provider is set already.
        ValueError: `endpoint`, `traces` or `metrics` is no http or https address.

    Example:
        ```python
        import agentguard.telemetry

        agentguard.telemetry.setup(endpoint="http://127.0.0.1:4318", service_name="triage")
        ```
    """
    for name, address in (("endpoint", endpoint), ("traces", traces), ("metrics", metrics)):
        if isinstance(address, str) and not address.startswith(("http://", "https://")):
            raise ValueError(f"{name} must be an http:// or https:// address, not {address!r}")
    for package in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        require(package, extra="otel", feature="agentguard.telemetry.setup()")
    with LOADING:
        from agentguard.telemetry import _sdk  # noqa: PLC0415 - see the module's docstring

    sent = {"traces": traces, "metrics": metrics}
    return _sdk.install(
        endpoint=endpoint, service_name=service_name, console=console, headers=headers, sent=sent
    )
