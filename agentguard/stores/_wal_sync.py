"""Making commits survive a loss of power, many with one fsync."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from agentguard._reentry import is_begun
from agentguard.errors import StoreUnavailableError

if sys.platform != "win32":
    import fcntl

#: How many seconds other writers are waited for.
_PATIENCE = 30.0


class WalSync:
    """Waits for the disk on behalf of all who committed to one WAL file.

    SQLite commits with `synchronous=NORMAL`, which leaves the frames in the system's cache; a sync
    of the WAL that begins after the commit makes it as durable as `synchronous=FULL` would.  So
    the store's lock need not be held while the disk works, and one sync serves every commit made
    before it began.  The WAL of an open database is never replaced, and SQLite syncs a WAL before
    it moves frames out of it, and the database before it writes over them.
    """

    def __init__(self, path: str, commit: Callable[[float], None]) -> None:
        self._path = path
        #: Commits what was accepted and waits for a commit; called without a lock of this class.
        self._commit = commit
        self._fd: int | None = None
        self._thread: threading.Thread | None = None
        self.reset()

    def reset(self) -> None:
        """Begin anew in a forked child, where neither the thread nor those who wait exist."""
        self._thread = None
        self._lock = threading.Lock()
        self._future_lock = threading.Lock()
        self.close()
        #: How many events or acts there were that somebody wants on disk: accepted, committed, there.
        self._noted = 0
        self._written = 0
        self._synced = 0
        self._failure: str | None = None
        #: How often something that was accepted got lost before it was committed, and the last time's reason.
        self._losses = 0
        self._loss = ""
        #: For each thread, `_losses` at the first thing it noted since it last settled.
        self._owed = threading.local()
        self._next: Future[None] | None = None
        self._next_since = 0
        self._requests: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def note(self) -> None:
        """Count something that was accepted; called under the store's lock, like `written`.

        The thread that notes it is the one that will call `settle` or `durable`.
        """
        if getattr(self._owed, "since", None) is None:
            self._owed.since = self._losses
        self._noted += 1

    def written(self) -> None:
        """Say that everything noted is committed."""
        self._written = self._noted

    def lose(self, problem: str) -> None:
        """Say that what is noted and not committed is lost; what is noted later is not concerned."""
        self._losses += 1
        self._loss = problem
        self._written = self._noted

    def fail(self, problem: str) -> None:
        """Promise nothing any more: what somebody waits for may be lost, and so may what comes."""
        self._failure = problem

    def check(self) -> None:
        """Raise what `fail` was told."""
        if self._failure is not None:
            raise StoreUnavailableError(f"{self._failure}; look at the disk, then restart")

    def _begin_settling(self) -> int:
        """How many losses there were before this thread noted what it now settles."""
        since: int | None = getattr(self._owed, "since", None)
        self._owed.since = None
        return self._losses if since is None else since

    def _check_lost(self, since: int) -> None:
        if self._losses != since:
            raise StoreUnavailableError(self._loss)

    def settle(self, wait: float = _PATIENCE) -> None:
        """Return when everything noted so far is on disk.

        Raises:
            StoreUnavailableError: some of it is lost, or the disk refused to sync.
        """
        self._settle(self._begin_settling(), wait)

    def _settle(self, since: int, wait: float) -> None:
        target = self._noted
        if self._synced < target:
            self._commit(wait)
        while self._synced < target:
            with self._lock:
                # Who waited here finds that the one before has synced its commit too.
                if self._synced < target:
                    self._sync()
        self._check_lost(since)

    def durable(self) -> Future[None] | None:
        """What resolves when `settle` would return, or None if it would return at once.

        It is the same future for all who come before a thread takes it up, and cannot be cancelled.
        """
        since = self._begin_settling()
        if self._losses != since:
            return self._failed()
        if self._synced >= self._noted:
            return None
        with self._future_lock:
            before = self._next
            if before is None or self._next_since != since:
                if before is not None:  # what it is for got lost meanwhile
                    before.set_exception(StoreUnavailableError(self._loss))
                self._next = Future()
                self._next_since = since
                self._next.set_running_or_notify_cancel()
                self._requests.put(True)  # noqa: FBT003
            if not is_begun(self._thread):
                self._thread = threading.Thread(target=self._work, name="agentguard-sync", daemon=True)
                self._thread.start()
            return self._next

    def _failed(self) -> Future[None]:
        future: Future[None] = Future()
        future.set_exception(StoreUnavailableError(self._loss))
        return future

    def close(self) -> None:
        """Let go of the file and the thread."""
        if self._thread is not None:
            self._requests.put(False)  # noqa: FBT003
            self._thread = None
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def _sync(self) -> None:
        self.check()
        written = self._written
        try:
            if self._fd is None:
                self._fd = self._open()
            _sync_file(self._fd)
        except OSError as error:
            # After a failed sync the system may drop the pages and report success the next time.
            self.fail(f"{self._path}: the disk refused to sync it ({error.strerror})")
            raise StoreUnavailableError(f"{self._failure}; look at the disk, then restart") from error
        self._synced = written

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

    def _work(self) -> None:
        while self._requests.get():
            with self._future_lock:
                future, self._next = self._next, None
                since = self._next_since
            if future is None:
                continue
            try:
                self._settle(since, _PATIENCE)
            except BaseException as error:  # noqa: BLE001  # who waits must hear of it in any case
                future.set_exception(error)
            else:
                future.set_result(None)


def _sync_file(fd: int) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync leaves it in the drive's cache there
    else:
        os.fsync(fd)
