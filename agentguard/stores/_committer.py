"""The thread that commits what was staged and nobody has settled: other processes wait meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from agentguard._reentry import is_begun
from agentguard.errors import StoreUnavailableError
from agentguard.protocols import StoreBusyError

#: Half of the 50 ms after which an event is on its way, whatever else happens.
_DELAY = 0.025


class Committer:
    """Commits before long.  Everything is called under the database's lock.

    `commit(wait)` waits at most so many seconds for other writers.
    """

    def __init__(self, commit: Callable[[float], None]) -> None:
        self._commit = commit
        self.reset()

    def reset(self) -> None:
        """Begin anew in a forked child: what is staged is the parent's to commit."""
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Have the thread commit what there is, before long."""
        if not self._wake.is_set() or not is_begun(self._thread):
            self._wake.set()
            if not is_begun(self._thread):
                self._thread = threading.Thread(target=self._work, name="agentguard-flush", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._wake.set()

    def _work(self) -> None:
        while self._thread is threading.current_thread():
            self._wake.wait()
            time.sleep(_DELAY)
            self._wake.clear()
            try:
                self._commit(_DELAY)
            except (StoreBusyError, StoreUnavailableError):
                # The next append tries again and raises what it meets; a lock that another process
                # holds may be free before that.
                self._wake.set()
