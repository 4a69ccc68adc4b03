"""The stored form of an event and the chain.

A body is JSON text, so that `sqlite3`, `jq` and a stranger's verifier can read it.  Hashing covers
the stored bytes as they are; nothing is ever re-encoded to be verified:

    hash(n) = SHA-256(hash(n-1) || body(n))        hash(0) = SHA-256("agentguard/log/v1/" + run_id)

Payloads (captured arguments and results) lie beside the body, which holds only their salted digest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import NamedTuple

import msgspec

from agentguard.budget.model import Usage
from agentguard.errors import LogIntegrityError
from agentguard.events.data import RunForked, data_of
from agentguard.events.model import SCHEMA_VERSION, Event, Record

encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Record)


class Stored(NamedTuple):
    """One event as a store holds it; `payload` is None where nothing was captured, or it was erased."""

    seq: int
    body: bytes
    hash: bytes
    payload: bytes | None = None
    position: int = 0


def genesis(run_id: str) -> bytes:
    """What the first event of a run is chained to, which binds the log to its run."""
    return sha256(b"agentguard/log/v1/" + run_id.encode()).digest()


def chain(prev_hash: bytes, body: bytes) -> bytes:
    """The hash of an event."""
    return sha256(prev_hash + body).digest()


def decode(body: bytes) -> Record:
    """The record in a stored body.

    Raises:
        LogIntegrityError: it is no record, or of a schema newer than this library.
    """
    try:
        record = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LogIntegrityError("?", 0, f"body is not a record: {error}") from error
    if record.v > SCHEMA_VERSION:
        raise LogIntegrityError(
            "?", record.seq, f"schema {record.v} is newer than {SCHEMA_VERSION}; upgrade agentguard"
        )
    return record


def origin(log: Iterable[Stored]) -> str | None:
    """The run that a run was forked from, by the first events of its log; None if it was not."""
    for stored in log:
        if b'"type":"run_forked"' in stored.body[:64]:
            return data_of(decode(stored.body), RunForked)["origin"]
    return None


def to_event(run_id: str, stored: Stored, prev_hash: bytes) -> Event:
    """The event that a user reads."""
    try:
        record = decode(stored.body)
    except LogIntegrityError as error:
        raise LogIntegrityError(run_id, stored.seq, error.problem) from error
    return Event(
        run_id=run_id,
        seq=record.seq,
        type=record.type,
        key=record.key,
        name=record.name,
        kind=record.kind,
        attempt=record.attempt,
        at_ns=record.at_ns,
        duration_ns=record.duration_ns,
        usage=None if record.usage is None else Usage.from_amounts(record.usage),
        spent=None if record.spent is None else Usage.from_amounts(record.spent),
        data=dict(record.data or {}),
        trace_id=record.trace_id,
        span_id=record.span_id,
        prev_hash=prev_hash.hex(),
        hash=stored.hash.hex(),
        position=stored.position,
    )


def payload_digest(salt: bytes, payload: bytes) -> str:
    """What an event says of a payload; without the run's salt it cannot be guessed."""
    return sha256(salt + payload).hexdigest()


def digester(salt: bytes) -> Callable[[bytes], str]:
    """`payload_digest` for the payloads of one run: the salt, with which all begin, is hashed once."""
    begun = sha256(salt)

    def digest(payload: bytes) -> str:
        hashed = begun.copy()
        hashed.update(payload)
        return hashed.hexdigest()

    return digest
