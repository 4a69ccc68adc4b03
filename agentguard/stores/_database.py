"""One SQLite file as this process sees it: one writer, one lock, readers beside it.

Nothing is opened before it is used.  `_registry` lets the stores of one real path share a
`Database`, and has a forked child open its own connections.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType

from agentguard._loading import LOADING
from agentguard.errors import StoreUnavailableError
from agentguard.protocols import StoreBusyError
from agentguard.stores import _busy_retry, _sqlite_file
from agentguard.stores._busy_retry import Wait
from agentguard.stores._checkpointer import Checkpointer
from agentguard.stores._committer import Committer
from agentguard.stores._readers import Readers
from agentguard.stores._sqlite_errors import Translation, held_for_too_long
from agentguard.stores._sqlite_writer import Writer, identity
from agentguard.stores._wal_sync import WalSync

#: How many seconds other writers are waited for when a store is closed.
_LAST_WAIT = 5.0
#: For how many seconds, about, a thread leaves the lock to those that wait for it.
_YIELD = 100e-6


class Database:
    """The writer connection and its lock, the readers, the syncs and who commits what is staged.

    Whoever writes holds `lock`.  Inside `transaction` the thread's own reads see what it wrote.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.errors = Translation(path)
        self.lock = threading.RLock()
        self.readers = Readers(path)
        self.sync = WalSync(path, self.commit_staged)
        self.committer = Committer(self.settle_down)
        self.checkpointer = Checkpointer(path, _sqlite_file.connect)
        self.writer = Writer(path, self.errors, self.sync, self.committer, self.checkpointer)
        #: How many stores use it.
        self.users = 0
        #: The threads that wait for the lock.
        self._queue: set[int] = set()
        #: Whether the file has a schema that is older than that of this library.
        self._older = False

    def abandon(self) -> None:
        """Begin anew in a forked child; the connections are the parent's."""
        self._queue.clear()
        self._strand()
        self.sync.reset()
        self.committer.reset()

    def _strand(self) -> None:
        """Let go of all connections without closing them."""
        connections = list(self.readers.opened)
        if self.writer.connection is not None:
            connections.append(self.writer.connection)
        _never_close(connections)
        _never_close(self.checkpointer.abandon())
        self.writer.forget()
        self.readers.reset()
        self._older = False

    def close(self) -> None:
        """Commit what is staged and close."""
        with self.lock:
            try:
                self.finish()
            finally:
                self.writer.refusal = f"{self.path}: the store is closed; open another one"
                self.committer.close()
                self.checkpointer.close()
                self.sync.close()
                self.readers.close()
                if self.writer.connection is not None:
                    self.writer.connection.close()
                self.writer.forget()
                self._older = False

    def check_file(self) -> None:
        """Refuse everything from here on if the file was deleted, moved or replaced meanwhile.

        SQLite would go on writing to a file that nobody can read any more.

        Raises:
            StoreUnavailableError: it was.
        """
        with self.lock:
            if self.writer.file is None or self.writer.file == identity(self.path):
                return
            self.writer.refusal = lost = (
                f"{self.path} is not the file any more that was opened: it was deleted, moved or replaced, "
                "and what was written since is not in it; put it back and open the store again"
            )
            # When a connection is closed, SQLite may delete a -wal by its name: that of the file that is
            # there now.
            self._strand()
            self.sync.fail(lost)
            raise StoreUnavailableError(lost)

    # --- writing -------------------------------------------------------------------------------

    def acquire(self, wait: Wait) -> None:
        """Take the lock."""
        if self.lock.acquire(blocking=False):
            return
        if wait is None:
            raise StoreBusyError(self.path)
        thread = threading.get_ident()
        self._queue.add(thread)
        try:
            acquired = self.lock.acquire(timeout=min(wait, threading.TIMEOUT_MAX))
        finally:
            self._queue.discard(thread)
        if not acquired:
            raise held_for_too_long(self.path, wait)

    @contextmanager
    def transaction(
        self, wait: Wait, *, durable: bool = False, deferred: bool = False, user: FrameType | None = None
    ) -> Iterator[Writer]:
        """One act on the writer: committed at the end, undone by an exception.

        Inside another one of the same thread it is a part of that.  `user` is the frame whose block this is.
        """
        user = user or sys._getframe(2)
        self.acquire(wait)
        writer = self.writer
        level = writer.depth
        try:
            try:
                if writer.depth:
                    writer.mend()
                level = writer.depth
                if not level:
                    self.check_file()
                writer.begin(level, user, wait)
                yield writer
                with self.errors:
                    due = writer.commit(level, wait, durable=durable)
            except BaseException:
                writer.undo(level)
                raise
        finally:
            self.lock.release()
        if due and not deferred:
            self.sync.settle()

    @contextmanager
    def exclusive(self, wait: Wait, *, durable: bool) -> Iterator[None]:
        """A transaction after which the threads that wait for the lock go first."""
        with self.transaction(wait, durable=durable, user=sys._getframe(2)):
            yield
        # Locks are not fair: a thread in a loop would have it again before another one wakes up.
        if self._queue and not self.writer.depth:
            time.sleep(_busy_retry.jitter(_YIELD))

    def commit_staged(self, wait: Wait) -> None:
        """Commit what is staged, if there is any."""
        if self.writer.staged:
            self.acquire(wait)
            try:
                with self.errors:
                    self.writer.ready(wait)
            finally:
                self.lock.release()

    def finish(self) -> None:
        """Commit what is staged, if there is any, when a store is closed."""
        self.commit_staged(_LAST_WAIT)

    def settle_down(self, wait: float) -> None:
        """Commit everything that this process has accepted."""
        self.acquire(wait)
        try:
            with self.errors:
                if not self.writer.depth:
                    self.writer.ready(wait)
        finally:
            self.lock.release()

    # --- reading -------------------------------------------------------------------------------

    def reading(self, wait: float) -> AbstractContextManager[sqlite3.Connection]:
        """A connection to read with: that of this thread's transaction or snapshot, or a spare."""
        if self.writer.connection is not None and self.is_writing():
            return nullcontext(self.writer.connection)
        snapshot = self.readers.snapshot_of_thread()
        if snapshot is not None:
            return nullcontext(snapshot)
        self._catch_up(wait)
        return self.readers.lend(wait)

    def snapshot(self, wait: float) -> AbstractContextManager[None]:
        """Let all reads of this thread in the block see one moment."""
        if self.is_writing() or self.readers.snapshot_of_thread() is not None:
            return nullcontext()
        self._catch_up(wait)
        return self.readers.snapshot(wait)

    def in_snapshot(self) -> bool:
        """Whether this thread's reads see a past moment."""
        return self.readers.snapshot_of_thread() is not None

    def is_writing(self) -> bool:
        """Whether this thread is inside a transaction."""
        return self.writer.thread == threading.get_ident()

    def _catch_up(self, wait: float) -> None:
        if self.writer.staged or (self.writer.connection is None and not self._is_older(wait)):
            self.settle_down(wait)

    def _is_older(self, wait: float) -> bool:
        """Look whether the file has an older schema; it keeps that until this process writes."""
        if not self._older and self.writer.refusal is None:
            file = identity(self.path)
            if file is not None:
                with self.errors, self.readers.lend(wait) as connection:
                    self._older = _sqlite_file.is_older(self.path, connection.execute)
            if self._older:
                self.writer.file = file
        return self._older

    @property
    def reads_older(self) -> bool:
        """Whether this process only reads so far, from a file that agents of an older version write."""
        return self._older and self.writer.connection is None


#: For ever: what keeps them while `_never_close` is cut short.
_stranded: list[sqlite3.Connection] = []


def _never_close(connections: Sequence[sqlite3.Connection]) -> None:
    """Keep connections from ever being closed, also when the interpreter ends.

    In a forked child, closing one would undo a transaction that the parent has open, in the memory that both
    share.
    """
    _stranded.extend(connections)
    with LOADING:
        import ctypes  # noqa: PLC0415  # costs milliseconds and is seldom needed

    for connection in connections:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
