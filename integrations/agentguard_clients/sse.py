"""Server-sent events, whole, out of bytes that come in pieces."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
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


def output_tokens(event: Mapping[str, Any]) -> int:
    """Return about how many tokens of an answer an event brings: at least one, where it brings any.

    Example:
        >>> output_tokens({"type": "response.output_text.delta", "delta": "The answer"})
        4
        >>> output_tokens({"choices": [{"delta": {"content": "The"}}]}), output_tokens({"type": "ping"})
        (1, 0)
    """
    said = [event.get("delta"), *(choice.get("delta") for choice in event.get("choices") or [])]
    return -(-_size(said) // 3)


def answer_tokens(answer: Mapping[str, Any]) -> int:
    """Return about how many tokens a whole answer is, on the high side.

    Example:
        >>> answer_tokens({"id": "c_1", "choices": [{"message": {"content": "The answer"}}]})
        4
    """
    return -(-_size([answer.get(name) for name in ("choices", "output", "content")]) // 3)


def _size(value: object) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return sum(map(_size, items))


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
