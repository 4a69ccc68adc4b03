"""A run's log for people: with the conversations of its calls in their payloads."""

from __future__ import annotations

from collections.abc import Iterator

from agentguard.events import codec, conversations
from agentguard.events.codec import Stored
from agentguard.events.model import APPROVAL_REQUESTED
from agentguard.protocols import EventStore


def read_whole(store: EventStore, run_id: str) -> Iterator[Stored]:
    """Yield a run's events as they are, but for the arguments of calls, whose conversations are in them."""
    row = store.row(run_id)
    return conversations.whole(store.read(run_id), None if row is None else row.salt)


def asked_arguments(store: EventStore, run_id: str, key: str) -> bytes | None:
    """Return the arguments of the newest request to approve a step, as JSON `[[...], {...}]`."""
    found = None
    for stored in read_whole(store, run_id):
        if stored.payload is not None and APPROVAL_REQUESTED.encode() in stored.body[:64]:
            found = stored.payload if codec.decode(stored.body).key == key else found
    return found
