"""The parts of a replay that write nothing: a store that refuses to, and a switch that nobody pulls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from agentguard.errors import StoreUnavailableError
from agentguard.events.codec import Stored
from agentguard.killswitch.model import Acknowledgements, Kill
from agentguard.protocols import EventStore, RunLock


class SealedStore:
    """Reads from a store, and refuses whatever would change it."""

    #: The store that this one reads from.
    sealed: EventStore

    def __init__(self, store: EventStore) -> None:
        if isinstance(store, SealedStore):
            store = store.sealed
        self._store = store
        self.sealed = store
        self.url = store.url
        self._lock = threading.RLock()
        self.row, self.rows, self.children = store.row, store.rows, store.children
        self.neighbours = store.neighbours
        self.read, self.last, self.tail = store.read, store.last, store.tail
        self.accounts = store.accounts

    def lock_for(self, run_id: str) -> RunLock:
        """Return a lock of this replay's own."""
        return self._lock

    def _refuse(self, *args: Any, **options: Any) -> NoReturn:
        raise StoreUnavailableError("a replay writes nothing")

    create = append = settle = durable = exclusive = snapshot = _refuse
    update_row = erase = prune = _refuse

    def close(self) -> None:
        """Do nothing: nothing was opened."""


class _Absent:
    def acknowledge(self, generation: int) -> None: ...

    def leave(self) -> None: ...


class StillSwitch:
    """No kill is in force, and none will come."""

    def __init__(self) -> None:
        self.signal = memoryview(bytearray(16)).cast("Q")

    def find(self, tenant: str, run_id: str, since: int) -> Kill | None:
        """None."""
        return None

    def kills(self) -> list[Kill]:
        """Return no kills."""
        return []

    def record(self, type: str, data: dict[str, Any], after: int | None = None) -> int:
        """Refuse: a replay writes nothing."""
        raise StoreUnavailableError("a replay writes nothing")

    def read(self, after: int = 0) -> Iterator[Stored]:
        """Return no events."""
        return iter(())

    def join(self, on_change: Callable[[int], None]) -> _Absent:
        """Return a participant that is told nothing."""
        return _Absent()

    def acknowledgements(self, generation: int, timeout: float) -> Acknowledgements:
        """Return that no process is there."""
        return Acknowledgements(0, 0, 0.0)

    def close(self) -> None:
        """Do nothing: nothing was opened."""
