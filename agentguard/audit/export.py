"""Logs as JSON Lines that a stranger can verify from the file alone; the format is in docs/export-format.md.

    {"agentguard_export":1,...}                      the first line
    {"run":{"run_id":...,"salt":...,...}}            a log begins: a run's, or the control log
    {"hash":"...","payload":"...","event":{...}}     its events: the stored bytes as they are
    {"end":{"runs":1,"events":9}}                    the last line

Each log is read from one snapshot and written as it is read, so its size does not matter.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any, BinaryIO, Final, NamedTuple, Protocol

import msgspec

from agentguard.audit._files import written
from agentguard.audit.verify import watched
from agentguard.errors import LogIntegrityError, RunNotFoundError
from agentguard.events import codec
from agentguard.events.codec import Stored
from agentguard.events.model import CONTROL_RUN_ID
from agentguard.protocols import EventStore, RunRow
from agentguard.runs.summary import from_row

FORMAT: Final = 1
_encode = msgspec.json.Encoder().encode


class Exported(NamedTuple):
    """How much an export holds."""

    runs: int
    events: int


class Sink(Protocol):
    """Where bytes can be written."""

    def write(self, data: bytes, /) -> Any:
        """Take all of it."""


def export(
    store: EventStore,
    control: Callable[[], Iterable[Stored]],
    run_id: str | None,
    target: str | os.PathLike[str] | Sink,
    now_ns: int,
    *,
    say: Callable[[LogIntegrityError], object] = bool,
) -> Exported:
    """Write a run, the control log (`"control"`), or everything (None) to a path or an open binary file.

    A path is replaced only when the export is complete, and is private to its user.  A log that was
    altered is written as it is, so that whoever verifies the export finds it; `say` is told of it.

    Raises:
        RunNotFoundError: there is no such run.
        LogIntegrityError: a row or an event was garbled so that the format cannot hold it.
        OSError: it cannot be written.
    """
    opened: contextlib.AbstractContextManager[BinaryIO | Sink]
    opened = written(target) if isinstance(target, str | os.PathLike) else contextlib.nullcontext(target)
    with opened as sink:
        return _write(sink, _logs(store, control, run_id), now_ns, say)


def _write(
    sink: Sink,
    logs: Iterable[tuple[dict[str, Any], Iterable[Stored]]],
    now_ns: int,
    say: Callable[[LogIntegrityError], object],
) -> Exported:
    at = datetime.fromtimestamp(now_ns / 1e9, UTC).isoformat()
    sink.write(_encode({"agentguard_export": FORMAT, "at": at}) + b"\n")
    runs = events = 0
    for facts, log in logs:
        runs += 1
        sink.write(_encode({"run": facts}) + b"\n")
        for stored in watched(facts["run_id"], log, say):
            events += 1
            sink.write(_line(facts["run_id"], stored))
    sink.write(_encode({"end": {"runs": runs, "events": events}}) + b"\n")
    return Exported(runs, events)


def _logs(
    store: EventStore, control: Callable[[], Iterable[Stored]], run_id: str | None
) -> Iterator[tuple[dict[str, Any], Iterable[Stored]]]:
    """The logs with what stands before each; a log is to be read before the next is asked for."""
    if run_id is None:
        for listed in reversed(store.rows(limit=2**62)):
            yield from _run(store, listed.run_id)
    elif run_id != CONTROL_RUN_ID:
        found = False
        for member in family(store, run_id):
            for log in _run(store, member):
                found = True
                yield log
        if not found:
            raise RunNotFoundError(run_id)
        return
    yield {"run_id": CONTROL_RUN_ID, "salt": None}, control()


def family(store: EventStore, run_id: str) -> Iterator[str]:
    """A run, the runs inside it, and the run that it was forked from with its own: what a replay needs."""
    seen: set[str] = set()
    left = [run_id]
    while left:
        member = left.pop(0)
        if member in seen:
            continue
        seen.add(member)
        yield member
        left += [row.run_id for row in store.children(member)]
        if (origin := codec.origin(islice(store.read(member), 3))) is not None:
            left.append(origin)


def _run(store: EventStore, run_id: str) -> Iterator[tuple[dict[str, Any], Iterable[Stored]]]:
    with store.snapshot():
        row = store.row(run_id)
        if row is not None:
            yield _facts(row), store.read(run_id)


def _facts(row: RunRow) -> dict[str, Any]:
    """The run's row, but for the process that ran it."""
    from_row(row)  # a row that was garbled cannot be read back
    return {
        "run_id": row.run_id,
        "salt": None if row.salt is None else row.salt.hex(),
        "name": row.name,
        "tenant": row.tenant,
        "state": row.state,
        "created_ns": row.created_ns,
        "ended_ns": row.ended_ns,
        "parent_id": row.parent_id,
        "epoch": row.epoch,
        "summary": row.summary,
    }


def _line(run_id: str, stored: Stored) -> bytes:
    """An event.  The body comes last and as it is: it is what the hash covers."""
    if not stored.body.startswith(b'{"seq":') or b"\n" in stored.body or not stored.body.endswith(b"}"):
        raise LogIntegrityError(run_id, stored.seq, "its body is no event, and cannot be exported")
    payload = b""
    if stored.payload is not None:
        try:
            payload = b'"payload":%s,' % _encode(stored.payload.decode())
        except UnicodeDecodeError:  # a codec's bytes
            payload = b'"payload_base64":"%s",' % base64.b64encode(stored.payload)
    return b'{"hash":"%s",%s"event":%s}\n' % (stored.hash.hex().encode(), payload, stored.body)
