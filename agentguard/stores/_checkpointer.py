"""Keeping a WAL small: its pages go to the database in a thread of their own.

SQLite's own checkpoints run inside a commit, and begin the WAL anew only at a moment without any writer
and reader: two busy writers never leave one, so it grows without end.  And while a reader stays at an old
moment, SQLite tries, in vain, at every commit.

Where the thread cannot keep up, as on a loaded machine, writers wait for it from `WAIT_FROM` on, so that
the WAL stays below 64 MB.  They do not wait for a reader that stays: while there is one, nothing bounds it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from agentguard._reentry import is_begun

#: How many bytes this process writes, about, between two looks at the file's size.
LOOK_AFTER = 1 << 20
#: What an event takes of the WAL beside its payload, about.
EVENT = 12 << 10
#: From here on, in bytes, pages are moved; from there on, the WAL is made to begin anew; from there on,
#: writers wait.
MOVE_FROM = 8 << 20
BEGIN_ANEW_FROM = 24 << 20
WAIT_FROM = 40 << 20
#: How long, in milliseconds, other writers may have to stand aside so that the WAL can begin anew.
PATIENCE_MS = 40
#: The same while a writer waits, and for how many seconds it waits at each look at most: no more than the
#: size of a file is at stake.
URGENT_PATIENCE_MS = 250
_LONGEST_WAIT = 5.0
#: A try in vain is followed by a pause so many times as long as it took, and of so many seconds at least;
#: the pauses grow to a second by themselves.
BACK_OFF = 20
_SHORTEST_PAUSE, _GROWN_PAUSE, _LONGEST_PAUSE = 0.05, 1.0, 5.0
_PAGE = 4096


class Checkpointer:
    """Moves pages of one file's WAL whenever there are many.

    `look` costs next to nothing while the WAL is small; the thread starts when it is not, for the first time.
    """

    def __init__(self, path: str, connect: Callable[[str], sqlite3.Connection]) -> None:
        self._path = path
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._begin()

    def _begin(self) -> None:
        self._thread: threading.Thread | None = None
        self._wanted = threading.Event()
        #: Ends a pause: a writer waits, or the store is closed.
        self._hurry = threading.Event()
        self._tried = threading.Event()
        #: Whether the last try left nothing to do.
        self._done = False
        self._closed = threading.Event()
        #: Whether a reader stays at an old moment, so that nothing can be done.
        self._pinned = False
        #: How many pages of the WAL were moved at the last look.
        self._moved = -1
        #: Held while the thread is inside SQLite.
        self._moving = threading.Lock()

    def look(self) -> None:
        """Have pages moved if there are many, and wait for it a while if there are too many.

        A writer calls this about each `LOOK_AFTER` bytes, outside of any transaction.
        """
        size = wal_size(self._path)
        if size < MOVE_FROM:
            return
        self._want()
        if size < WAIT_FROM:
            return
        latest = time.monotonic() + _LONGEST_WAIT
        while not self._pinned and (left := latest - time.monotonic()) > 0:
            self._tried.clear()
            self._hurry.set()
            self._want()
            if self._tried.wait(left) and self._done:
                return

    def _want(self) -> None:
        self._wanted.set()
        if not is_begun(self._thread):
            self._start()

    def _start(self) -> None:
        # Daemon: a process that ends is not kept; the next one that opens the file finds the WAL.
        arguments = (self._closed, self._wanted, self._hurry, self._tried)
        self._thread = threading.Thread(
            target=self._work, args=arguments, name="agentguard-checkpoint", daemon=True
        )
        self._thread.start()

    def stand_still(self, timeout: float) -> bool:
        """Keep the thread out of SQLite until `go_on`, before a fork; return whether it is out."""
        return self._moving.acquire(timeout=timeout)

    def go_on(self) -> None:
        """Let the thread go on after `stand_still`."""
        self._moving.release()

    def abandon(self) -> list[sqlite3.Connection]:
        """Begin anew, in a forked child or for another file; return the connection, not to be closed."""
        self._closed.set()
        connection, self._connection = self._connection, None
        self._begin()
        return [] if connection is None else [connection]

    def close(self) -> None:
        """End the thread, and let go of the file."""
        self._closed.set()
        self._hurry.set()
        self._wanted.set()
        if self._thread is not None and is_begun(self._thread):
            self._thread.join()
        for connection in self.abandon():
            connection.close()

    def _work(
        self,
        closed: threading.Event,
        wanted: threading.Event,
        hurry: threading.Event,
        tried: threading.Event,
    ) -> None:
        pause = 0.0
        while True:
            wanted.wait()
            urgent = hurry.wait(pause)
            wanted.clear()
            hurry.clear()
            if closed.is_set():
                tried.set()
                return
            began = time.monotonic()
            with self._moving:
                done = self._move(closed, URGENT_PATIENCE_MS if urgent else PATIENCE_MS)
            self._done = done
            tried.set()
            if done:
                pause = 0.0
                continue
            took = time.monotonic() - began
            grown = min(2 * pause, _GROWN_PAUSE)
            pause = min(max(_SHORTEST_PAUSE, BACK_OFF * took, grown), _LONGEST_PAUSE)
            wanted.set()

    def _move(self, closed: threading.Event, patience_ms: int) -> bool:
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
            # A reader that stays lets no more be moved than last time; what busy writers added is moved next.
            behind = (pages - moved) * _PAGE
            self._pinned = not busy and behind >= MOVE_FROM and moved == self._moved
            self._moved = moved
            if size < BEGIN_ANEW_FROM or self._pinned:
                return bool(not busy and moved == pages)
            connection.execute(f"PRAGMA busy_timeout = {patience_ms}")
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
            return not busy
        return False


def wal_size(path: str) -> int:
    """Return the size of a database's WAL in bytes; 0 where there is none."""
    with suppress(OSError):
        return os.stat(f"{path}-wal").st_size  # noqa: PTH116 - asked for often, and a Path costs more
    return 0
