"""The connection that writes to one SQLite file, and what is open on it.

Everything here is called under the file's lock.  Three ways lead to a commit: an event that is appended alone
is one by itself, events that are staged share one, and a transaction has one for all blocks inside its own.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import suppress
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
from agentguard.stores._sqlite_errors import RAISED, Translation, is_busy
from agentguard.stores._wal_sync import WalSync


class Writer:
    """One connection, opened when it is needed first, and the transactions on it."""

    def __init__(
        self, path: str, errors: Translation, sync: WalSync, committer: Committer, checkpointer: Checkpointer
    ) -> None:
        self._path = path
        self._errors = errors
        self._sync = sync
        self._committer = committer
        self._checkpointer = checkpointer
        self._insert = _sql.queries("sqlite")["insert_event"]
        #: About how many bytes were written since the size of the WAL was looked at.
        self._written = 0
        #: Whether the next that may wait has to, since the WAL is too large.
        self._late = False
        #: Why nothing can be done with the file any more.
        self.refusal: str | None = None
        self.forget()

    def forget(self) -> None:
        """Begin anew without the connection, which stays open."""
        self.connection: sqlite3.Connection | None = None
        #: For the event that is appended alone: a new one each time would cost.
        self._cursor: sqlite3.Cursor | None = None
        #: Device and inode of the file that was opened.
        self.file: tuple[int, int] | None = None
        #: How many blocks of transactions are open, and the frames whose they are, the outermost first.
        self.depth = 0
        self._blocks: list[FrameType] = []
        #: Whether the transaction of the outermost block has begun.
        self._begun = False
        #: The thread that is inside a transaction.
        self.thread: int | None = None
        self._sync_at_commit = False
        #: Whether there is something that `stage` has left to be committed.
        self.staged = False

    def ready(self, wait: Wait) -> sqlite3.Connection:
        """The connection, opened if need be and outside of any transaction."""
        if self.depth:
            raise StoreUnavailableError(
                f"{self._path}: the transaction was rolled back after an error and nothing of it "
                "is stored; leave the block and try again"
            )
        if self.refusal is not None:
            raise StoreUnavailableError(self.refusal)
        if self.connection is None:
            self.connection = _sqlite_file.open_writer(self._path, wait)
            self._cursor = self.connection.cursor()
            self.file = identity(self._path)
        elif self.staged:
            self._commit_staged(self.connection, wait)
        elif self.connection.in_transaction:
            self.connection.execute("ROLLBACK")
        return self.connection

    def run(self, sql: str, parameters: Parameters = (), *, wait: Wait) -> sqlite3.Cursor:
        """Carry out one statement, when other processes let it."""
        writer = self.connection
        if writer is None or writer.in_transaction is not (self.depth > 0):
            writer = self.ready(wait)
        return _busy_retry.execute(writer, self._path, sql, parameters, wait)

    # --- an event alone ----------------------------------------------------------------------------

    def insert(self, number: int, event: Stored, wait: Wait) -> None:
        """Append an event, as the next one of its run.

        Outside of a transaction this is the commit too: twice per step, so it is kept short.
        """
        if self.depth:
            self.mend()
        writer = self.connection
        if writer is None or writer.in_transaction is not (self.depth > 0):
            with self._errors:
                writer = self.ready(wait)
        if self._late and not self.depth:
            self._make_up(wait)
        self._put(writer, number, event, wait)
        if self._written >= LOOK_AFTER and not self.depth:
            self._look_at_wal(wait)

    def insert_alone(  # noqa: PLR0917 - called for each step, and keywords cost
        self, number: int, seq: int, body: bytes, digest: bytes, payload: bytes | None, wait: Wait
    ) -> None:
        """`insert` of an event that is not one of several: the hot path."""
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
        with self._errors:
            try:
                if not is_busy(error):
                    raise error
                _busy_retry.execute(writer, self._path, self._insert, columns, wait)
            except sqlite3.IntegrityError as conflict:
                raise HeadMovedError(*divmod(columns[0], 1 << 32)) from conflict

    # --- events that share a commit ----------------------------------------------------------------

    def stage(self, number: int, event: Stored, wait: Wait) -> None:
        """Append an event and leave the commit, which many share, to `settle`.

        Whatever else this process reads or writes commits it before, and so does the committer's
        thread before long: other processes are kept out meanwhile.
        """
        if self.depth:
            self.insert(number, event, wait)
            self._sync_at_commit = True
            return
        self._sync.check()
        if not self.staged:
            if self._late:
                self._make_up(wait)
            with self._errors:
                self.run("BEGIN IMMEDIATE", wait=wait)
            self.staged = True
            self._committer.wake()
        writer = self.connection
        assert writer is not None  # noqa: S101  # `run` has opened it
        try:
            self._put(writer, number, event, wait)
            self._sync.note()
        finally:
            if not writer.in_transaction:  # SQLite has rolled back, as it does after some errors
                self.staged = False
                self._sync.lose(f"{self._path}: events that were not yet committed are lost")

    def _commit_staged(self, writer: sqlite3.Connection, wait: Wait) -> None:
        self.staged = False
        try:
            writer.execute("COMMIT")
        except sqlite3.Error as error:
            self._sync.lose(f"{self._path}: events could not be committed and are lost ({error})")
            with suppress(sqlite3.Error):
                writer.execute("ROLLBACK")
            raise
        self._sync.written()
        if self._written >= LOOK_AFTER:
            self._look_at_wal(wait)

    def committed(self, *, durable: bool) -> bool:
        """Take note that a statement was carried out; gives whether the caller has to settle."""
        if not durable:
            return False
        if self.depth:
            self._sync_at_commit = True
            return False
        self._sync.note()
        self._sync.written()
        return True

    # --- transactions ------------------------------------------------------------------------------

    def begin(self, level: int, block: FrameType, wait: Wait) -> None:
        """Begin a transaction, or a part of one, with `level` open blocks around it; `block` is its frame."""
        with self._errors:
            if not level:
                writer = self.ready(wait)
                if self._late:
                    self._make_up(wait)
            elif self.connection is None or (self._begun and not self.connection.in_transaction):
                writer = self.ready(wait)
            else:
                writer = self.connection
            # First: a signal handler may come in from here on, and its acts are parts of this one.
            self._blocks.append(block)
            self.depth = level + 1
            if not level:
                self._begun = False
            if not self._begun:
                self._begin_outermost(writer, wait)
            if level:
                _busy_retry.execute(writer, self._path, f"SAVEPOINT level_{level}", (), wait)
        if not level:
            self.thread = threading.get_ident()
            self._sync_at_commit = False

    def _begin_outermost(self, writer: sqlite3.Connection, wait: Wait) -> None:
        """Begin the transaction that all others are parts of; a signal handler's act may have done it."""
        try:
            _busy_retry.execute(writer, self._path, "BEGIN IMMEDIATE", (), wait)
        except sqlite3.OperationalError:
            if not writer.in_transaction:
                raise
        self._begun = True

    def mend(self) -> None:
        """Roll back the transaction of a block that an exception has cut short.

        Raised between two lines by a signal handler, it may have come before the block could do that.
        """
        if not self._blocks or standing(lambda frame: frame is self._blocks[0]) == "left":
            self.undo(0)

    def commit(self, level: int, wait: Wait, *, durable: bool) -> bool:
        """End the block with `level` around it, the outermost with a commit; gives whether to settle."""
        if not self.depth:
            raise StoreUnavailableError(
                f"{self._path}: this process was forked inside a transaction, which is its parent's"
            )
        self.run(f"RELEASE level_{level}" if level else "COMMIT", wait=wait)
        self.depth = level
        del self._blocks[level:]
        if level:
            self._sync_at_commit |= durable
            return False
        self.thread = None
        due = self.committed(durable=durable or self._sync_at_commit)
        self._written += EVENT
        if self._written >= LOOK_AFTER:
            self._look_at_wal(wait)
        return due

    def undo(self, level: int) -> None:
        """Roll back to where `level` transactions were under way."""
        del self._blocks[level:]  # of which there may be one more than `depth` says
        if self.depth <= level:
            return
        self.depth = level
        if not level:
            self.thread = None
        # SQLite has rolled back by itself after some errors, and `ready` clears what is left.
        if self.connection is not None and self.connection.in_transaction:
            with suppress(sqlite3.Error):
                if level:
                    self.connection.execute(f"ROLLBACK TO level_{level}")
                    self.connection.execute(f"RELEASE level_{level}")
                else:
                    self.connection.execute("ROLLBACK")

    # --- the size of the WAL -----------------------------------------------------------------------

    def _look_at_wal(self, wait: Wait) -> None:
        """Have the WAL kept small; outside of a transaction, since a writer may be made to wait."""
        self._written = 0
        self._late = not self._checkpointer.look(wait=wait is not None)

    def _make_up(self, wait: Wait) -> None:
        """Wait for what one that may not wait, as on an event loop, has left to others."""
        if wait is None:
            raise StoreBusyError(self._path)
        self._look_at_wal(wait)


def identity(path: str) -> tuple[int, int] | None:
    """Device and inode of the file at a path, where there is one."""
    try:
        file = os.stat(path)  # noqa: PTH116  # one system call, no object
    except OSError:
        return None
    return file.st_dev, file.st_ino
