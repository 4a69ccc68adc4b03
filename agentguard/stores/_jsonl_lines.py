"""The lines of an export, as docs/export-format.md says."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

import msgspec

from agentguard.errors import LogIntegrityError
from agentguard.events.codec import Stored

#: The newest format that is understood.
FORMAT = 1
_EVENT = b',"event":'
_SEQ = re.compile(rb'\{"seq":(\d{1,18}),')
_CRLF = b"\r\n"
#: What editors and shells put before a text; the longer marks first, since one begins like another.
_BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "UTF-8"),
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_AGAIN = "copy the file again as binary, as `agentguard export` wrote it"


class Run(msgspec.Struct, kw_only=True):
    """What stands before a log."""

    run_id: str
    salt: str | None = None
    name: str = ""
    tenant: str = ""
    state: str = ""
    created_ns: int = 0
    ended_ns: int | None = None
    parent_id: str | None = None
    epoch: int = 1
    summary: dict[str, Any] = {}


class RunLine(msgspec.Struct, forbid_unknown_fields=True):
    """The line before a log."""

    run: Run


class End(msgspec.Struct):
    """How much a whole export holds."""

    runs: int
    events: int


class EndLine(msgspec.Struct, forbid_unknown_fields=True):
    """The last line."""

    end: End


class EventLine(msgspec.Struct, forbid_unknown_fields=True):
    """An event's line, but for the body."""

    hash: str
    payload: str | None = None
    payload_base64: str | None = None


_event_line = msgspec.json.Decoder(EventLine).decode


class Header(msgspec.Struct):
    """The first line."""

    agentguard_export: int


def rewritten(first_line: bytes) -> str | None:
    """Return how a program has rewritten a whole export as a text of its own, if the first line shows it."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if first_line.startswith(mark):
            return f"begins with a byte order mark ({encoding}), which is no part of an export; {_AGAIN}"
    if first_line.endswith(_CRLF):
        return f"has CRLF line endings, and the lines of an export end in LF; {_AGAIN}"
    return None


def event(line: bytes, run_id: str, number: int, position: int) -> Stored:
    """The event in a line of a log: its body is taken as it stands, and never encoded again.

    Raises:
        LogIntegrityError: there is none; `number` counts the lines of the log.
    """
    if line.endswith(_CRLF):
        raise LogIntegrityError(
            run_id, number, f"its line ends in CRLF, and those of an export in LF; {_AGAIN}"
        )
    head, mark, rest = line.removesuffix(b"\n").partition(_EVENT)
    seq = _SEQ.match(rest)
    try:
        facts = _event_line(head + b"}")
        digest, payload = bytes.fromhex(facts.hash), _payload(facts)
    except (ValueError, binascii.Error) as error:
        raise LogIntegrityError(run_id, number, "its line is no event of an export") from error
    if not mark or seq is None:
        raise LogIntegrityError(run_id, number, "its line has no event")
    return Stored(int(seq[1]), rest[:-1], digest, payload, position)


def _payload(facts: EventLine) -> bytes | None:
    if facts.payload_base64 is not None:
        return base64.b64decode(facts.payload_base64, validate=True)
    return None if facts.payload is None else facts.payload.encode()
