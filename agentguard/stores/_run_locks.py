"""The locks of the runs of one store in a process, each there for as long as somebody has it."""

from __future__ import annotations

import threading
import weakref


class RunLocks:
    """Makes the lock of a run when it is asked for first."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew in a forked child, where locks may be held by threads that it has not got."""
        self._locks: weakref.WeakValueDictionary[str, RunLock] = weakref.WeakValueDictionary()
        self._making = threading.Lock()

    def of(self, run_id: str) -> RunLock:
        """Return the lock of a run, the same one to all who have it at a time."""
        lock = self._locks.get(run_id)
        if lock is None:
            with self._making:
                lock = self._locks.get(run_id)
                if lock is None:
                    lock = self._locks[run_id] = RunLock()
        return lock


class RunLock:
    """A re-entrant lock that can be forgotten, which `threading.RLock` cannot."""

    __slots__ = ("__weakref__", "_lock", "acquire", "release")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.acquire = self._lock.acquire
        self.release = self._lock.release

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()
