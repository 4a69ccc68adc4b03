"""HTTP answers as the log keeps them, and back, for httpx and httpx2 alike."""

from __future__ import annotations

import base64
import sys
from typing import Any

import msgspec

#: Of one connection, or secret; and the body is kept as it is after decoding.
_DROPPED = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "keep-alive",
        "set-cookie",
        "strict-transport-security",
        "transfer-encoding",
    }
)


class Head(msgspec.Struct, frozen=True):
    """The status and the headers of an answer."""

    status: int
    headers: list[list[str]]

    @classmethod
    def of(cls, response: Any) -> Head:
        """Return the head of a response, without what belongs to its connection alone."""
        pairs = response.headers.multi_items()
        return cls(response.status_code, [[k, v] for k, v in pairs if k.lower() not in _DROPPED])


class _Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """An answer on record: its body as text, or in base64."""

    head: Head
    text: str = ""
    base64: str = ""


class _Streamed(msgspec.Struct, frozen=True):
    """A streamed answer on record: its parts as text, or in base64 where one is no text."""

    head: Head | None
    parts: list[str]
    binary: bool = False


_ANSWERS = msgspec.json.Decoder(_Answer)
_STREAMS = msgspec.json.Decoder(_Streamed)


class AnswerCodec:
    """A whole answer: a response with its body."""

    def encode(self, value: Any) -> bytes:
        """Return the response as JSON."""
        content: bytes = value.content
        try:
            answer = _Answer(Head.of(value), text=content.decode())
        except UnicodeDecodeError:
            answer = _Answer(Head.of(value), base64=base64.b64encode(content).decode())
        return msgspec.json.encode(answer)

    def decode(self, data: bytes) -> RecordedAnswer:
        """Return what the log has of it."""
        answer = _ANSWERS.decode(data)
        body = base64.b64decode(answer.base64) if answer.base64 else answer.text.encode()
        return RecordedAnswer(answer.head, body)


class RecordedAnswer(msgspec.Struct, frozen=True):
    """An answer that was read from the log: no network was used."""

    head: Head
    body: bytes


class StreamCodec:
    """A streamed answer: its head, then its parts."""

    def encode(self, value: list[Any]) -> bytes:
        """Return head and parts as JSON."""
        head, parts = (value[0], value[1:]) if value else (None, [])
        try:
            streamed = _Streamed(head, [part.decode() for part in parts])
        except UnicodeDecodeError:
            streamed = _Streamed(head, [base64.b64encode(part).decode() for part in parts], binary=True)
        return msgspec.json.encode(streamed)

    def decode(self, data: bytes) -> list[Any]:
        """Return head and parts again."""
        streamed = _STREAMS.decode(data)
        if streamed.head is None:
            return []
        return [
            streamed.head,
            *(base64.b64decode(p) if streamed.binary else p.encode() for p in streamed.parts),
        ]


def library_of(request: Any) -> Any:
    """Return the HTTP library that made a request: httpx or httpx2."""
    return sys.modules[type(request).__module__.partition(".")[0]]


def as_response(http: Any, head: Head, body: bytes) -> Any:
    """Return a whole response of an HTTP library."""
    return http.Response(head.status, headers=[tuple(pair) for pair in head.headers], content=body)


def text_of(response: Any) -> str:
    """Return the text of a response that has been read."""
    return str(response.content.decode("utf-8", "replace"))
