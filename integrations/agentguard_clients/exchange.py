"""HTTP answers as the log keeps them, and back, for httpx and httpx2 alike."""

from __future__ import annotations

import base64
import sys
from collections.abc import Mapping
from hashlib import sha256
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


class RecordedAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A whole answer on record: its body as text, or in base64."""

    head: Head
    text: str = ""
    base64: str = ""

    @classmethod
    def of(cls, response: Any) -> RecordedAnswer:
        """Return what goes on record of a response that has been read."""
        content: bytes = response.content
        try:
            return cls(Head.of(response), text=content.decode())
        except UnicodeDecodeError:
            return cls(Head.of(response), base64=base64.b64encode(content).decode())

    @property
    def body(self) -> bytes:
        """The body as it came."""
        return base64.b64decode(self.base64) if self.base64 else self.text.encode()


class _Streamed(msgspec.Struct, frozen=True):
    """A streamed answer on record: its parts as text, or in base64 where one is no text."""

    head: Head | None
    parts: list[str]
    binary: bool = False


_ANSWERS = msgspec.json.Decoder(RecordedAnswer)
_STREAMS = msgspec.json.Decoder(_Streamed)


class AnswerCodec:
    """A whole answer: a response with its body."""

    def encode(self, value: Any) -> bytes:
        """Return the response as JSON."""
        return msgspec.json.encode(RecordedAnswer.of(value))

    def decode(self, data: bytes) -> RecordedAnswer:
        """Return what the log has of it."""
        return _ANSWERS.decode(data)


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


def content_of(request: Any) -> bytes | None:
    """Return the body of a request, or None for one that is sent as it is read, as forms with files are."""
    try:
        content: bytes = request.content
    except library_of(request).RequestNotRead:
        return None
    return content


def form_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells one form with files from another: its fields, and each file by name and digest."""
    files = options.get("files") or ()
    parts = files.items() if isinstance(files, Mapping) else files
    fields = options.get("data") or {}
    return {**dict(fields), "files": [[field, *_file(value)] for field, value in parts]}


def _file(value: Any) -> tuple[str | None, str | None]:
    """Return the name of a file in a form, and its digest where it can be read more than once."""
    name, content = value[:2] if isinstance(value, tuple) else (None, value)
    if isinstance(content, str):
        content = content.encode()
    if isinstance(content, bytes):
        return name, sha256(content).hexdigest()
    name = name or str(getattr(content, "name", ""))
    if not (hasattr(content, "seekable") and content.seekable()):
        return name, None
    at = content.tell()
    content.seek(0)  # as the HTTP library does
    try:
        return name, _file((name, content.read()))[1]
    finally:
        content.seek(at)


def as_response(http: Any, head: Head, body: bytes) -> Any:
    """Return a whole response of an HTTP library."""
    return http.Response(head.status, headers=[tuple(pair) for pair in head.headers], content=body)


def text_of(response: Any) -> str:
    """Return the text of a response that has been read."""
    return str(response.content.decode("utf-8", "replace"))
