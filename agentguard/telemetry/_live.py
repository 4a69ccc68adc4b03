"""Whether an SDK is there, and what to tell it."""

from __future__ import annotations

from agentguard._loading import LOADING

_API = ("opentelemetry.trace", "opentelemetry.metrics")


def is_live(provider: object) -> bool:
    """Whether somebody may listen: the API's own providers only stand in for a missing SDK."""
    return not type(provider).__module__.startswith(_API)


def version() -> str:
    """The version of agentguard; empty in a source tree that was not installed."""
    # 40 ms, which an SDK has paid already; so it is asked for only where there is one.
    with LOADING:
        from importlib import metadata  # noqa: PLC0415

        try:
            return metadata.version("agentguard")
        except metadata.PackageNotFoundError:
            return ""
