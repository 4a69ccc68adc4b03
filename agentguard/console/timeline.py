"""A run's events as a page shows them: how deep each lies, and what was captured with it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from agentguard import _encoding
from agentguard.audit.reading import read_whole
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.model import Event
from agentguard.protocols import EventStore
from agentguard.runs.summary import usage_data

#: How many events a page has.
EVENTS = 200
#: How many events before the first new one are read, for the scopes that are open there.
_BACK = 5000
#: How many new events are given at once.
_AT_ONCE = 1000


class TimelineEntry(NamedTuple):
    """An event, how deep it lies, and what was captured with it."""

    event: Event
    depth: int
    payload: Any


def page(
    store: EventStore, run_id: str, after: int, *, payloads: bool
) -> tuple[list[TimelineEntry], int | None]:
    """Return the events of a run above a sequence, and the one after which the next page begins."""
    depths: dict[str, int] = {}
    found: list[TimelineEntry] = []
    for stored in read_whole(store, run_id) if payloads else store.read(run_id):
        event = codec.to_event(run_id, stored, b"")
        depth = _depth(event, depths)
        if event.seq <= after:
            continue
        if len(found) == EVENTS:
            return found, found[-1].event.seq
        payload = decoded(stored.payload) if payloads and stored.payload is not None else None
        found.append(TimelineEntry(event, depth, payload))
    return found, None


class Timeline:
    """Reads the events of a run above a sequence, as they come; without what was captured."""

    def __init__(self, store: EventStore, run_id: str, after: int) -> None:
        self._store = store
        self._run_id = run_id
        self._after = after
        self._seq = max(after - _BACK, 0)
        self._depths: dict[str, int] = {}

    def read_on(self) -> Iterator[TimelineEntry]:
        """Yield what is new, a part of it if it is much."""
        for stored in islice(self._store.read(self._run_id, self._seq), _BACK + _AT_ONCE):
            event = codec.to_event(self._run_id, stored, b"")
            self._seq = event.seq
            depth = _depth(event, self._depths)
            if event.seq > self._after:
                yield TimelineEntry(event, depth, None)


def entry_data(entry: TimelineEntry) -> dict[str, Any]:
    """Return an event as plain data for JSON."""
    event = entry.event
    data = {name: getattr(event, name) for name in event.__struct_fields__}
    data["usage"] = None if event.usage is None else usage_data(event.usage)
    data["spent"] = None if event.spent is None else usage_data(event.spent)
    return data | {"payload": entry.payload}


def decoded(payload: bytes) -> Any:
    """Return what was captured, as a page shows it."""
    try:
        return _encoding.decode(payload)
    except ValueError:  # the bytes of a codec
        return {"base64": base64.b64encode(payload).decode()}


def _depth(event: Event, depths: dict[str, int]) -> int:
    key = event.key or ""
    if event.type in (ev.STEP_STARTED, ev.SCOPE_OPENED):
        around = event.data.get("parent") or event.data.get("scope") or ""
        depths[key] = depths.get(around, 0) + 1
    return depths.get(key, 1 if key else 0)
