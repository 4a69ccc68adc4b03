"""Keeping a WAL small: its pages go to the database in a thread of their own.

SQLite's own checkpoints run inside a commit, and begin the WAL anew only at a moment without any writer
and reader: two busy writers never leave one, so it grows without end.  And while a reader stays at an old
moment, SQLite tries, in vain, at every commit.

Where the thread does not keep up, writers wait for it from `WAIT_FROM` on, so that the WAL stays below
64 MB.  That is enough beside readers that come and go: who begins to read once all pages are in the
database reads them there, and is not in the way.  For a reader that stays nobody waits: while there is
one, nothing bounds the WAL.
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
#: From here on, in bytes, the WAL is made to begin anew; from there on, writers wait, and the file is cut
#: when it begins anew.  A smaller one is kept, since SQLite writes over it faster than it makes it longer.
BEGIN_ANEW_FROM = 32 << 20
WAIT_FROM = 54 << 20
#: How long, in milliseconds, other writers may have to stand aside so that the WAL can begin anew.
PATIENCE_MS = 40
#: After how many seconds at one moment a reader is one that stays.
STAYS = 0.25
#: How many seconds a writer waits at each look at most, no more than the size of a file being at stake, and
#: how many between two tries.
_LONGEST_WAIT, _BETWEEN_TRIES = 2.0, 0.005
#: A try in vain is followed by a pause so many times as long as it took, and of so many seconds at least;
#: the pauses grow to a second by themselves.
BACK_OFF = 20
_SHORTEST_PAUSE, _GROWN_PAUSE, _LONGEST_PAUSE = 0.05, 1.0, 5.0
#: The length of a WAL's header, and of that of a page in it.
_HEAD, _FRAME_HEAD = 32, 24
#: For how many pages that are not moved yet writers are kept out.
_FEW = 2048


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
        #: Which WAL it was at the last try and how many of its pages were moved, and since when so many.
        self._moved = b"", 0
        self._since = 0.0
        #: Held while the thread is inside SQLite.
        self._moving = threading.Lock()

    def look(self, *, wait: bool) -> bool:
        """Have pages moved if there are many, and wait for it a while if there are too many.

        A writer calls this about each `LOOK_AFTER` bytes, outside of any transaction.  Return False where it
        would have had to wait, and may not.
        """
        if not reaches(self._path, BEGIN_ANEW_FROM):
            return True
        self._want()
        if not wait:
            return self._pinned or not reaches(self._path, WAIT_FROM)
        latest = time.monotonic() + _LONGEST_WAIT
        while reaches(self._path, WAIT_FROM) and not self._pinned and time.monotonic() < latest:
            self._tried.clear()
            self._hurry.set()
            self._want()
            if self._tried.wait(_LONGEST_WAIT) and self._done:
                break
            # Whoever moves pages, in this process or another, must not be kept from it.
            time.sleep(_BETWEEN_TRIES)
        return True

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
            hurry.wait(pause)
            wanted.clear()
            hurry.clear()
            if closed.is_set():
                tried.set()
                return
            began = time.monotonic()
            with self._moving:
                done = self._move(closed)
            self._done = done
            tried.set()
            if done:
                pause = 0.0
                continue
            took = time.monotonic() - began
            grown = min(2 * pause, _GROWN_PAUSE)
            pause = min(max(_SHORTEST_PAUSE, BACK_OFF * took, grown), _LONGEST_PAUSE)
            wanted.set()

    def _move(self, closed: threading.Event) -> bool:
        """Have the WAL begin anew if it is large; return whether there is nothing left to do."""
        if not reaches(self._path, BEGIN_ANEW_FROM):
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
            if busy:  # another process is at it
                return False
            now = time.monotonic()
            if self._moved != (which := _salt(_read(self._path, 0, _HEAD)), moved):
                self._moved, self._since = (which, moved), now
            self._pinned = now - self._since >= STAYS
            if pages - moved > _FEW:
                return False
            connection.execute(f"PRAGMA busy_timeout = {0 if self._pinned else PATIENCE_MS}")
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
            if not busy:
                self._moved, self._pinned = (b"", 0), False
            return not busy
        return False


def wal_size(path: str) -> int:
    """Return the size of a database's WAL in bytes; 0 where there is none."""
    with suppress(OSError):
        return os.stat(f"{path}-wal").st_size  # noqa: PTH116 - asked for often, and a Path costs more
    return 0


def reaches(path: str, size: int) -> bool:
    """Return whether so many bytes of a database's WAL count; what is behind them is of an earlier one."""
    if wal_size(path) < size:
        return False
    head = _read(path, 0, _HEAD)
    frame = _FRAME_HEAD + int.from_bytes(head[8:12], "big")
    return bool(head) and _read(path, _HEAD + (size - _HEAD - 1) // frame * frame + 8, 8) == _salt(head)


def _salt(head: bytes) -> bytes:
    """Return what a WAL's header and its pages have in common, until it begins anew."""
    return head[16:24]


def _read(path: str, at: int, count: int) -> bytes:
    with suppress(OSError), open(f"{path}-wal", "rb", buffering=0) as wal:  # noqa: PTH123 - as above
        wal.seek(at)
        return wal.read(count)
    return b""
