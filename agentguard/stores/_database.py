"""One SQLite file as this process sees it: one writer, one lock, readers beside it.

Nothing is opened before it is used.  `_registry` lets the stores of one real path share a
`Database`, and has a forked child open its own connections.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from time import time_ns
from types import FrameType
from typing import Any

from agentguard._reentry import standing
from agentguard.errors import StoreUnavailableError
from agentguard.events.codec import Stored
from agentguard.protocols import HeadMovedError, StoreBusyError
from agentguard.stores import _busy_retry, _sql, _sqlite_file
from agentguard.stores._busy_retry import Parameters, Wait
from agentguard.stores._checkpointer import EVENT, LOOK_AFTER, Checkpointer
from agentguard.stores._committer import Committer
from agentguard.stores._readers import Readers
from agentguard.stores._sqlite_errors import RAISED, Translation, held_for_too_long, is_busy
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
        #: About how many bytes were written since the size of the WAL was looked at.
        self._written = 0
        #: Whether the next that may wait has to, since the WAL is too large.
        self._late = False
        self.users = 0
        self._insert = _sql.queries("sqlite")["insert_event"]
        self._closed = False
        #: Why nothing can be done with the file any more, once it is not the one that was opened.
        self.lost: str | None = None
        #: Connections to a file that is gone, not to be closed.
        self._stranded: list[sqlite3.Connection] = []
        self._forget_writer()

    def _forget_writer(self) -> None:
        self._writer: sqlite3.Connection | None = None
        #: Of the writer, for the event that is appended alone: a new one each time would cost.
        self._cursor: sqlite3.Cursor | None = None
        #: Device and inode of the file that the writer has opened.
        self._file: tuple[int, int] | None = None
        self._older = False
        self._depth = 0
        #: Whether the outermost of them has begun.
        self._begun = False
        #: The frames whose blocks the transactions are, the outermost first.
        self._users: list[FrameType] = []
        self._staged = False
        self._writing_thread: int | None = None
        self._sync_at_commit = False
        self._queue: set[int] = set()

    def abandon(self) -> list[sqlite3.Connection]:
        """Begin anew in a forked child, and give the parent's connections, not to be closed."""
        inherited = list(self.readers.opened)
        if self._writer is not None:
            inherited.append(self._writer)
        self._forget_writer()
        self.readers.reset()
        self.sync.reset()
        self.committer.reset()
        inherited += self.checkpointer.abandon()
        return inherited

    def close(self) -> None:
        """Commit what is staged and close."""
        with self.lock:
            try:
                self.finish()
            finally:
                self._closed = True
                self.committer.close()
                self.checkpointer.close()
                self.sync.close()
                self.readers.close()
                if self._writer is not None:
                    self._writer.close()
                self._forget_writer()

    def check_file(self) -> None:
        """Refuse everything from here on if the file was deleted, moved or replaced meanwhile.

        SQLite would go on writing to a file that nobody can read any more.

        Raises:
            StoreUnavailableError: it was.
        """
        with self.lock:
            if self._file is None or self._file == _identity(self.path):
                return
            self.lost = (
                f"{self.path} is not the file any more that was opened: it was deleted, moved or replaced, "
                "and what was written since is not in it; put it back and open the store again"
            )
            # When a connection is closed, SQLite may delete a -wal by its name: that of the file that is
            # there now.
            self._stranded += self.readers.opened
            if self._writer is not None:
                self._stranded.append(self._writer)
            self._stranded += self.checkpointer.abandon()
            self._forget_writer()
            self.readers.reset()
            self.sync.fail(self.lost)
            never_close(self._stranded)
            raise StoreUnavailableError(self.lost)

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

    def run(self, sql: str, parameters: Parameters = (), *, wait: Wait) -> sqlite3.Cursor:
        """Carry out one statement on the writer, under the lock, when other processes let it."""
        writer = self._writer
        if writer is None or writer.in_transaction is not (self._depth > 0):
            writer = self._ready(wait)
        return _busy_retry.execute(writer, self.path, sql, parameters, wait)

    def insert(self, number: int, event: Stored, wait: Wait) -> None:
        """Append an event, as the next one of its run, under the lock.

        Outside `transaction` this is the commit too: twice per step, so it is kept short.
        """
        if self._depth:
            self.mend()
        writer = self._writer
        if writer is None or writer.in_transaction is not (self._depth > 0):
            with self.errors:
                writer = self._ready(wait)
        if self._late and not self._depth:
            self._make_up(wait)
        self._put(writer, number, event, wait)
        if self._written >= LOOK_AFTER and not self._depth:
            self._look_at_wal(wait)

    def insert_alone(  # noqa: PLR0917 - called for each step, and keywords cost
        self, number: int, seq: int, body: bytes, digest: bytes, payload: bytes | None, wait: Wait
    ) -> None:
        """`insert` of an event that is not one of several, under the lock: the hot path."""
        cursor = self._cursor
        if cursor is None or self._late or cursor.connection.in_transaction:
            self.insert(number, Stored(seq, body, digest, payload), wait)
            return
        columns = (number << 32 | seq, time_ns(), body, digest, payload)
        try:
            cursor.execute(self._insert, columns)
        except RAISED as error:
            self._put_after(error, cursor.connection, columns, wait)
        self._written += EVENT if payload is None else EVENT + len(payload)
        if self._written >= LOOK_AFTER:
            self._look_at_wal(wait)

    def _look_at_wal(self, wait: Wait) -> None:
        """Have the WAL kept small; outside of a transaction, since a writer may be made to wait."""
        self._written = 0
        self._late = not self.checkpointer.look(wait=wait is not None)

    def _make_up(self, wait: Wait) -> None:
        """Wait for what one that may not wait, as on an event loop, has left to others."""
        if wait is None:
            raise StoreBusyError(self.path)
        self._look_at_wal(wait)

    def _put(self, writer: sqlite3.Connection, number: int, event: Stored, wait: Wait) -> None:
        seq, body, digest, payload, _ = event
        columns = (number << 32 | seq, time_ns(), body, digest, payload)
        try:
            writer.execute(self._insert, columns)
        except RAISED as error:
            self._put_after(error, writer, columns, wait)
        self._written += EVENT + len(payload or b"")

    def _put_after(
        self,
        error: sqlite3.Error | UnicodeDecodeError,
        writer: sqlite3.Connection,
        columns: tuple[Any, ...],
        wait: Wait,
    ) -> None:
        with self.errors:
            try:
                if not is_busy(error):
                    raise error
                _busy_retry.execute(writer, self.path, self._insert, columns, wait)
            except sqlite3.IntegrityError as conflict:
                raise HeadMovedError(*divmod(columns[0], 1 << 32)) from conflict

    def stage(self, number: int, event: Stored, wait: Wait) -> None:
        """Append an event and leave the commit, which many share, to `settle`; under the lock.

        Whatever else this process reads or writes commits it before, and so does the committer's
        thread before long: other processes are kept out meanwhile.
        """
        if self._depth:
            self.insert(number, event, wait)
            self._sync_at_commit = True
            return
        self.sync.check()
        if not self._staged:
            if self._late:
                self._make_up(wait)
            with self.errors:
                self.run("BEGIN IMMEDIATE", wait=wait)
            self._staged = True
            self.committer.wake()
        writer = self._writer
        assert writer is not None  # noqa: S101  # `run` has opened it
        try:
            self._put(writer, number, event, wait)
            self.sync.note()
        finally:
            if not writer.in_transaction:  # SQLite has rolled back, as it does after some errors
                self._staged = False
                self.sync.lose(f"{self.path}: events that were not yet committed are lost")

    def commit_staged(self, wait: Wait) -> None:
        """Commit what `stage` has left to be committed."""
        if self._staged:
            self.acquire(wait)
            try:
                with self.errors:
                    self._ready(wait)
            finally:
                self.lock.release()

    def _commit_staged(self, writer: sqlite3.Connection, wait: Wait) -> None:
        self._staged = False
        try:
            writer.execute("COMMIT")
        except sqlite3.Error as error:
            self.sync.lose(f"{self.path}: events could not be committed and are lost ({error})")
            with suppress(sqlite3.Error):
                writer.execute("ROLLBACK")
            raise
        self.sync.written()
        if self._written >= LOOK_AFTER:
            self._look_at_wal(wait)

    def committed(self, *, durable: bool) -> bool:
        """Take note that a statement was carried out; gives whether the caller has to settle."""
        if not durable:
            return False
        if self._depth:
            self._sync_at_commit = True
            return False
        self.sync.note()
        self.sync.written()
        return True

    @contextmanager
    def transaction(
        self, wait: Wait, *, durable: bool = False, deferred: bool = False, user: FrameType | None = None
    ) -> Iterator[None]:
        """One act: committed at the end, undone by an exception.

        Inside another one of the same thread it is a part of that.  `user` is the frame whose block this is.
        """
        user = user or sys._getframe(2)
        self.acquire(wait)
        level = self._depth
        try:
            try:
                level = self._begin(user, wait)
                yield
                with self.errors:
                    due = self._commit(level, wait, durable=durable)
            except BaseException:
                self._undo(level)
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
        if self._queue and not self._depth:
            time.sleep(_busy_retry.jitter(_YIELD))

    def _begin(self, user: FrameType, wait: Wait) -> int:
        """Begin a transaction, or a part of one; return how many are around it."""
        if self._depth:
            self.mend()
        level = self._depth
        with self.errors:
            if not level:
                self.check_file()
                writer = self._ready(wait)
                if self._late:
                    self._make_up(wait)
            elif self._writer is None or (self._begun and not self._writer.in_transaction):
                writer = self._ready(wait)
            else:
                writer = self._writer
            # First: a signal handler may come in from here on, and its acts are parts of this one.
            self._users.append(user)
            self._depth = level + 1
            if not level:
                self._begun = False
            if not self._begun:
                self._begin_outermost(writer, wait)
            if level:
                _busy_retry.execute(writer, self.path, f"SAVEPOINT level_{level}", (), wait)
        if not level:
            self._writing_thread = threading.get_ident()
            self._sync_at_commit = False
        return level

    def _begin_outermost(self, writer: sqlite3.Connection, wait: Wait) -> None:
        """Begin the transaction that all others are parts of; a signal handler's act may have done it."""
        try:
            _busy_retry.execute(writer, self.path, "BEGIN IMMEDIATE", (), wait)
        except sqlite3.OperationalError:
            if not writer.in_transaction:
                raise
        self._begun = True

    def mend(self) -> None:
        """Roll back the transaction of a block that an exception has cut short; under the lock.

        Raised between two lines by a signal handler, it may have come before the block could do that.
        """
        if not self._users or standing(lambda frame: frame is self._users[0]) == "left":
            self._undo(0)

    def _commit(self, level: int, wait: Wait, *, durable: bool) -> bool:
        if not self._depth:
            raise StoreUnavailableError(
                f"{self.path}: this process was forked inside a transaction, which is its parent's"
            )
        self.run(f"RELEASE level_{level}" if level else "COMMIT", wait=wait)
        self._depth = level
        del self._users[level:]
        if level:
            self._sync_at_commit |= durable
            return False
        self._writing_thread = None
        due = self.committed(durable=durable or self._sync_at_commit)
        self._written += EVENT
        if self._written >= LOOK_AFTER:
            self._look_at_wal(wait)
        return due

    def _undo(self, level: int) -> None:
        """Roll back to where `level` transactions were under way."""
        del self._users[level:]  # of which there may be one more than `_depth` says
        if self._depth <= level:
            return
        self._depth = level
        if not level:
            self._writing_thread = None
        # SQLite has rolled back by itself after some errors, and `_ready` clears what is left.
        if self._writer is not None and self._writer.in_transaction:
            with suppress(sqlite3.Error):
                if level:
                    self._writer.execute(f"ROLLBACK TO level_{level}")
                    self._writer.execute(f"RELEASE level_{level}")
                else:
                    self._writer.execute("ROLLBACK")

    def _ready(self, wait: Wait) -> sqlite3.Connection:
        """The writer, opened if need be and outside of any transaction."""
        if self._depth:
            raise StoreUnavailableError(
                f"{self.path}: the transaction was rolled back after an error and nothing of it "
                "is stored; leave the block and try again"
            )
        if self._closed:
            raise StoreUnavailableError(f"{self.path}: the store is closed; open another one")
        if self.lost is not None:
            raise StoreUnavailableError(self.lost)
        if self._writer is None:
            self._writer = _sqlite_file.open_writer(self.path, wait)
            self._cursor = self._writer.cursor()
            self._file = _identity(self.path)
        elif self._staged:
            self._commit_staged(self._writer, wait)
        elif self._writer.in_transaction:
            self._writer.execute("ROLLBACK")
        return self._writer

    # --- reading -------------------------------------------------------------------------------

    def reading(self, wait: float) -> AbstractContextManager[sqlite3.Connection]:
        """A connection to read with: that of this thread's transaction or snapshot, or a spare."""
        if self._writer is not None and self.is_writing():
            return nullcontext(self._writer)
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
        return self._writing_thread == threading.get_ident()

    def _catch_up(self, wait: float) -> None:
        if self._staged or (self._writer is None and not self._is_older(wait)):
            self.settle_down(wait)

    def _is_older(self, wait: float) -> bool:
        """Look whether the file has an older schema; it keeps that until this process writes."""
        if not self._older and not self._closed and self.lost is None:
            file = _identity(self.path)
            if file is not None:
                with self.errors, self.readers.lend(wait) as connection:
                    self._older = _sqlite_file.is_older(self.path, connection.execute)
            if self._older:
                self._file = file
        return self._older

    @property
    def reads_older(self) -> bool:
        """Whether this process only reads so far, from a file that agents of an older version write."""
        return self._older and self._writer is None

    def finish(self) -> None:
        """Commit what is staged, if there is any."""
        if self._staged:
            self.settle_down(_LAST_WAIT)

    def settle_down(self, wait: float) -> None:
        """Commit everything that this process has accepted."""
        self.acquire(wait)
        try:
            with self.errors:
                if not self._depth:
                    self._ready(wait)
        finally:
            self.lock.release()


def never_close(connections: Iterable[sqlite3.Connection]) -> None:
    """Keep connections from ever being closed, also when the interpreter ends."""
    import ctypes  # noqa: PLC0415  # costs milliseconds and is seldom needed

    for connection in connections:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def _identity(path: str) -> tuple[int, int] | None:
    try:
        file = os.stat(path)  # noqa: PTH116  # one system call, no object
    except OSError:
        return None
    return file.st_dev, file.st_ino
