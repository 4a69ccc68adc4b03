"""Where the trace of a step is shown."""

from __future__ import annotations

from urllib.parse import quote

_PLACE = "{trace_id}"


class TraceLinks:
    """Addresses of traces.

    Args:
        url: the address of a trace, with `{trace_id}` in its place; None where traces are shown nowhere.

    Raises:
        ValueError: it is no such address.

    Example:
        >>> TraceLinks("https://jaeger.example/trace/{trace_id}").to("ab12")
        'https://jaeger.example/trace/ab12'
    """

    def __init__(self, url: str | None) -> None:
        if url is not None and (not url.startswith(("https://", "http://")) or _PLACE not in url):
            raise ValueError(
                f"the address of traces must be as https://jaeger.example/trace/{_PLACE}, not {url!r}"
            )
        self._url = url

    def to(self, trace_id: str) -> str | None:
        """Return the address of a trace; None where traces are shown nowhere."""
        return None if self._url is None else self._url.replace(_PLACE, quote(trace_id, safe=""))
