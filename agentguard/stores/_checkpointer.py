"""Keeping a WAL small: its pages go to the database in a thread of their own, never in a step.

SQLite's own checkpoints run inside a commit, and begin the WAL anew only at a moment without any writer
and reader: two busy writers never leave one, so it grows without end.  And while a reader stays at an old
moment, SQLite tries, in vain, at every commit.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress

#: How many commits of this process lie between two looks at the file's size.
COMMITS = 256
#: From here on, in bytes, pages are moved; from there on, the WAL is made to begin anew.
MOVE_FROM = 8 << 20
BEGIN_ANEW_FROM = 24 << 20
#: How long, in milliseconds, other writers may have to stand aside so that the WAL can begin anew.
PATIENCE_MS = 40
#: A try in vain is followed by a pause so many times as long as it took, and of so many seconds at least.
BACK_OFF = 20
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0


class Checkpointer:
    """Moves pages of one file's WAL whenever it is told that there may be many.

    `wake` costs next to nothing, and starts the thread at its first call.
    """

    def __init__(self, path: str, connect: Callable[[str], sqlite3.Connection]) -> None:
        self._path = path
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._begin()

    def _begin(self) -> None:
        self._thread: threading.Thread | None = None
        self._wanted = threading.Event()
        self._closed = threading.Event()

    def wake(self) -> None:
        """Let the thread look at the size of the WAL, soon."""
        self._wanted.set()
        if self._thread is None:
            # Daemon: a process that ends is not kept; the next one that opens the file finds the WAL.
            arguments = (self._closed, self._wanted)
            self._thread = threading.Thread(
                target=self._work, args=arguments, name="agentguard-checkpoint", daemon=True
            )
            self._thread.start()

    def abandon(self) -> list[sqlite3.Connection]:
        """Begin anew, in a forked child or for another file; return the connection, not to be closed."""
        self._closed.set()
        connection, self._connection = self._connection, None
        self._begin()
        return [] if connection is None else [connection]

    def close(self) -> None:
        """End the thread, and let go of the file."""
        self._closed.set()
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()
        for connection in self.abandon():
            connection.close()

    def _work(self, closed: threading.Event, wanted: threading.Event) -> None:
        pause = 0.0
        while True:
            wanted.wait()
            closed.wait(pause)
            wanted.clear()
            if closed.is_set():
                return
            began = time.monotonic()
            if self._move(closed):
                pause = 0.0
                continue
            took = time.monotonic() - began
            pause = min(max(_SHORTEST_PAUSE, BACK_OFF * took, 2 * pause), _LONGEST_PAUSE)
            wanted.set()

    def _move(self, closed: threading.Event) -> bool:
        """Move pages if there are many; return whether there is nothing left to do."""
        size = wal_size(self._path)
        if size < MOVE_FROM:
            return True
        with suppress(sqlite3.Error):  # of a damaged or a full disk, the writers tell
            connection = self._connection
            if connection is None:
                connection = self._connect(self._path)
                if closed.is_set():
                    connection.close()
                    return True
                self._connection = connection
            # Most of it without keeping anybody out.
            busy, pages, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if size < BEGIN_ANEW_FROM:
                return bool(not busy and moved == pages)
            connection.execute(f"PRAGMA busy_timeout = {PATIENCE_MS}")
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
            return not busy
        return False


def wal_size(path: str) -> int:
    """Return the size of a database's WAL in bytes; 0 where there is none."""
    with suppress(OSError):
        return os.stat(f"{path}-wal").st_size  # noqa: PTH116 - asked for often, and a Path costs more
    return 0
