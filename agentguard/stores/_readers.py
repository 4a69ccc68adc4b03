"""Connections that only read, so that a long read never holds up a writer."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from agentguard.stores import _sqlite_file

_IDLE = 4


class Readers:
    """A few idle connections to one file, more while they are in use."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.reset()

    def reset(self) -> None:
        """Forget all connections; in a forked child they must not be closed."""
        #: All that are open, also those in use.
        self.opened: list[sqlite3.Connection] = []
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        self._local = threading.local()

    def snapshot_of_thread(self) -> sqlite3.Connection | None:
        """The connection of the `snapshot` block that this thread is in."""
        return getattr(self._local, "snapshot", None)

    @contextmanager
    def lend(self, busy_timeout: float) -> Iterator[sqlite3.Connection]:
        """A connection of the caller's own, for the length of the block."""
        connection = self._take(busy_timeout)
        try:
            yield connection
        finally:
            self._give_back(connection)

    @contextmanager
    def snapshot(self, busy_timeout: float) -> Iterator[None]:
        """Let this thread read from one moment."""
        with self.lend(busy_timeout) as connection:
            try:
                connection.execute("BEGIN")
                self._local.snapshot = connection
                yield
            finally:
                self._local.snapshot = None
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close what is idle now, and the rest when it is given back."""
        self._closed = True
        while self._idle:
            self._drop(self._idle.pop())

    def _take(self, busy_timeout: float) -> sqlite3.Connection:
        with suppress(IndexError):
            return self._idle.pop()
        connection = _sqlite_file.connect(self._path, busy_timeout=busy_timeout)
        self.opened.append(connection)
        connection.execute("PRAGMA query_only = ON")
        return connection

    def _give_back(self, connection: sqlite3.Connection) -> None:
        if connection not in self.opened:  # opened before this process was forked
            return
        if self.snapshot_of_thread() is connection:  # a signal handler has cut the block short
            self._local.snapshot = None
        if self._closed or connection.in_transaction or len(self._idle) >= _IDLE:
            self._drop(connection)
        else:
            self._idle.append(connection)

    def _drop(self, connection: sqlite3.Connection) -> None:
        self.opened.remove(connection)
        connection.close()
