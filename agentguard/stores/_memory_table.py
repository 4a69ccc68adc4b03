"""All runs of the memory store: and how many events there is room for."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count, islice
from typing import TYPE_CHECKING

from agentguard.errors import StoreUnavailableError
from agentguard.stores._memory_log import Entry, Log

if TYPE_CHECKING:
    from agentguard.events.codec import Stored


class LogTable:
    """The runs by number and by id, and how many events there may be."""

    __slots__ = ("by_id", "ended", "full_at", "logs", "max_events", "next_number", "position")

    def __init__(self, max_events: int) -> None:
        self.max_events = max_events
        self.logs: dict[int, Log] = {}
        self.by_id: dict[str, Log] = {}
        self.next_number = count(1)
        #: Runs that may be evicted, the one that ended first before the others.
        self.ended: dict[int, Log] = {}
        #: The newest position, and that at which the table is full: what is gone makes room.
        self.position = 0
        self.full_at = max_events

    def put(self, log: Log) -> None:
        """Take in a run."""
        self.logs[log.number] = self.by_id[log.run_id] = log

    def remove(self, log: Log) -> None:
        """Forget a run."""
        self.logs.pop(log.number, None)
        self.by_id.pop(log.run_id, None)
        self.ended.pop(log.number, None)

    def entry(self, event: Stored) -> Entry:
        """Return what stands for an event, at the next position."""
        self.position += 1
        return (*event[:4], self.position)

    def add(self, log: Log, entry: Entry) -> bool:
        """Add the next event of a run; return whether nobody else was first, such as a signal handler."""
        if log.events.setdefault(entry[0], entry) is entry:
            return True
        self.full_at += 1  # the position is not given again
        return False

    def take_back(self, log: Log, entry: Entry) -> None:
        """Drop an event, if it was added, and those after it; their positions are not given again."""
        if log.events.get(entry[0]) is not entry:
            return
        while not log.evicted and len(log.events) >= entry[0]:
            log.events.popitem()
            self.full_at += 1

    def make_room(self, events: int, *, needed: bool) -> None:
        """Evict ended runs; where that is not enough, let in only what is `needed`.

        Raises:
            StoreUnavailableError: live runs alone fill the store.
        """
        while self.ended and self.position + events > self.full_at:
            self.drop(self.ended.pop(next(iter(self.ended))))
        if not needed and self.position + events > self.full_at:
            raise StoreUnavailableError(
                f"memory:// is full: live runs hold {self.max_events} events; end some, raise "
                "max_events or use sqlite://"
            )

    def drop(self, log: Log) -> None:
        """Let go of the events of a run."""
        self.full_at += log.drop()

    def after(self, position: int, tenant: str | None, limit: int) -> Iterator[tuple[int, Log, Stored]]:
        """The first `limit` events above a position, in order, with their positions and logs."""
        logs = (log for log in self.logs.values() if tenant is None or log.tenant == tenant)
        # Positions are unique, so that logs and events are never compared.
        return islice(heapq.merge(*(log.placed_after(position, limit) for log in logs)), limit)
