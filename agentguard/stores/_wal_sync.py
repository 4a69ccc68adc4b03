"""Making commits survive a loss of power, many with one fsync."""

from __future__ import annotations

import os
import queue
import sys
import threading
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from agentguard.errors import StoreUnavailableError

if sys.platform != "win32":
    import fcntl


class WalSync:
    """Waits for the disk on behalf of all who committed to one WAL file.

    SQLite commits with `synchronous=NORMAL`, which leaves the frames in the system's cache; a sync
    of the WAL that begins after the commit makes it as durable as `synchronous=FULL` would.  So
    the store's lock need not be held while the disk works, and one sync serves every commit made
    before it began.  The WAL of an open database is never replaced, and SQLite syncs a WAL before
    it moves frames out of it, and the database before it writes over them.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd: int | None = None
        self._thread: threading.Thread | None = None
        self.reset()

    def reset(self) -> None:
        """Begin anew in a forked child, where neither the thread nor those who wait exist."""
        self._thread = None
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        self.close()
        self._commits = 0
        self._synced = 0
        self._failure: OSError | None = None
        self._waiting: queue.SimpleQueue[Future[None] | None] = queue.SimpleQueue()

    def note(self) -> None:
        """Count a commit that somebody wants on disk; called under the store's lock."""
        self._commits += 1

    def settle(self) -> None:
        """Return when every commit noted so far is on disk.

        Raises:
            StoreUnavailableError: the disk refused; from then on nothing can be promised.
        """
        target = self._commits
        while self._synced < target:
            with self._lock:
                # Who waited here finds that the one before has synced its commit too.
                if self._synced < target:
                    self._sync()

    def durable(self) -> Future[None] | None:
        """What resolves when `settle` would return, or None if it would return at once."""
        if self._synced >= self._commits:
            return None
        future: Future[None] = Future()
        self._waiting.put(future)
        if self._thread is None:
            self._start()
        return future

    def close(self) -> None:
        """Let go of the file and the thread."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread = None
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def _sync(self) -> None:
        commits = self._commits
        try:
            if self._failure is not None:
                raise self._failure
            if self._fd is None:
                self._fd = self._open()
            _sync_file(self._fd)
        except OSError as error:
            # After a failed sync the system may drop the pages and report success the next time.
            self._failure = error
            raise StoreUnavailableError(
                f"{self._path}: the disk refused to sync it ({error.strerror}); what was written "
                "last may not survive a loss of power; look at the disk, then restart"
            ) from error
        self._synced = commits

    def _open(self) -> int:
        with suppress(OSError):  # Windows opens no folders, and needs no sync of them.
            folder = os.open(Path(self._path).parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        # SQLite holds its locks on the database and the -shm file, so that this descriptor may be
        # closed at any time.
        return os.open(f"{self._path}-wal", os.O_RDWR)

    def _start(self) -> None:
        with self._starting:  # not the lock that is held for as long as the disk takes
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_resolve, args=(self,), name="agentguard-sync", daemon=True
                )
                self._thread.start()


def _sync_file(fd: int) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync leaves it in the drive's cache there
    else:
        os.fsync(fd)


def _resolve(sync: WalSync) -> None:
    """Settle for those who wait, for all of them at once, until the store is closed."""
    waiting = sync._waiting
    closed = False
    while not closed:
        batch = [waiting.get()]
        with suppress(queue.Empty):
            while True:
                batch.append(waiting.get_nowait())
        closed = None in batch
        futures = [each for each in batch if each and each.set_running_or_notify_cancel()]
        if futures:
            _settle_for(sync, futures)


def _settle_for(sync: WalSync, futures: list[Future[None]]) -> None:
    try:
        sync.settle()
    except BaseException as error:  # noqa: BLE001  # those who wait must hear of it in any case
        for future in futures:
            future.set_exception(error)
    else:
        for future in futures:
            future.set_result(None)
