"""Server-sent events, whole, out of bytes that come in pieces."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")


class Events:
    """Splits a stream of bytes at the ends of its events; every byte comes out again."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the events that `data` completes, their ends included."""
        self._buffer += data
        start = 0
        for found in _END.finditer(self._buffer):
            yield self._buffer[start : found.end()]
            start = found.end()
        self._buffer = self._buffer[start:]

    def rest(self) -> bytes:
        """Return what came after the last whole event."""
        rest, self._buffer = self._buffer, b""
        return rest


def is_done(event: bytes) -> bool:
    r"""Return whether it is the event that ends a stream of OpenAI's kind.

    Example:
        >>> is_done(b"data: [DONE]\n\n")
        True
    """
    return event.startswith(b"data:") and event[5:].strip() == b"[DONE]"


def event_data(event: bytes) -> dict[str, Any] | None:
    r"""Return the JSON object of an event, or None where it has none.

    Example:
        >>> event_data(b'event: ping\ndata: {"type": "ping"}\n\n')
        {'type': 'ping'}
    """
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    try:
        data = json.loads(b"\n".join(lines))
    except ValueError:
        return None
    return data if isinstance(data, dict) else None
