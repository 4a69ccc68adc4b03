"""The runs that were forked from a run, found among the newest without looking at one twice."""

from __future__ import annotations

import threading
from collections import defaultdict

from agentguard.protocols import EventStore

#: How many of the newest runs are looked at.
LOOKED_AT = 5000
_PAGE = 100


class Forks:
    """Which runs were forked from which, as far as the newest `LOOKED_AT` runs tell; safe between threads."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self._forks: dict[str, list[str]] = defaultdict(list)

    def of(self, run_id: str) -> list[str]:
        """Return the ids of the forks of a run, the oldest first."""
        with self._lock:
            self._read_on()
            return list(self._forks.get(run_id, ()))

    def _read_on(self) -> None:
        """Look at the runs that are newer than those known; at first, at the newest ones."""
        new: list[tuple[str, str]] = []
        before: str | None = None
        looked = 0
        while looked < LOOKED_AT:
            rows = self._store.rows(limit=_PAGE, before=before)
            unknown = [row for row in rows if row.run_id not in self._seen]
            new += [
                (row.summary["forked_from"], row.run_id) for row in unknown if row.summary.get("forked_from")
            ]
            self._seen.update(row.run_id for row in unknown)
            if not unknown or len(rows) < _PAGE:
                break
            before, looked = rows[-1].run_id, looked + len(rows)
        for origin, fork in reversed(new):
            self._forks[origin].append(fork)
