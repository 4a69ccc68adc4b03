"""Events that were accepted and are not in the file yet: `durability="buffered"`."""

from __future__ import annotations

import sqlite3
import threading
import time
from itertools import groupby
from typing import TYPE_CHECKING

from agentguard.errors import StoreUnavailableError
from agentguard.protocols import HeadMovedError, StoreBusyError
from agentguard.stores import _sql

if TYPE_CHECKING:
    from agentguard.events.codec import Stored
    from agentguard.stores._database import Database
    from agentguard.stores._patience import Wait

#: Half of the 50 ms after which an event is on its way, whatever else happens.
_DELAY = 0.025
#: More than this many are not held back.
_FULL = 4096
#: Rows of one statement.  SQLite gives up the interpreter's lock at each statement, not each row.
_ROWS = 64

_Entry = tuple[int, int, bytes, bytes, bytes | None]


class Buffer:
    """Accepted events in order, and a thread that writes them soon.

    Everything is called under the database's lock.  An event is accepted only as the next one of its
    run, so what waits here is what the file will hold, as long as no other process appends to the
    same run.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = _sql.queries("sqlite")
        self.reset()

    def reset(self) -> None:
        """Begin anew in a forked child: what waits is the parent's to write."""
        self.queue: list[_Entry] = []
        self._heads: dict[int, int] = {}
        self._lost: dict[int, str] = {}
        self._failed = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def append(self, number: int, event: Stored, wait: Wait) -> None:
        """Accept an event of a run."""
        if self._failed or len(self.queue) >= _FULL:
            self.flush(wait)
        if number in self._lost:
            raise StoreUnavailableError(self._lost[number])
        head = self._heads.get(number)
        if head is None:
            head = self._load_head(number, wait)
        if event.seq != head + 1:
            raise HeadMovedError(number, event.seq)
        key = number << 32 | event.seq
        self.queue.append((key, time.time_ns(), event.body, event.hash, event.payload))
        self._heads[number] = event.seq
        self.wake()

    def wake(self) -> None:
        """Have the thread write and commit what there is, before long."""
        if not self._wake.is_set():
            self._wake.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="agentguard-flush", daemon=True)
                self._thread.start()

    def flush(self, wait: Wait) -> None:
        """Write what waits; on an error it goes on waiting."""
        if not self.queue:
            return
        entries, self.queue = self.queue, []
        # Once nothing waits here, others may append; the heads are read anew.
        self._heads.clear()
        self._failed = True
        try:
            with self._database.errors:
                self._write(entries, wait)
        except BaseException:
            self.queue = entries
            raise
        self._failed = False

    def close(self) -> None:
        """End the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._wake.set()

    def _load_head(self, number: int, wait: Wait) -> int:
        row = self._database.run(self._sql["head"], (number,), wait=wait).fetchone()
        if row is None:
            raise HeadMovedError(number)
        head: int = row[0] or 0
        return head

    def _write(self, entries: list[_Entry], wait: Wait) -> None:
        try:
            self._insert(entries, wait)
        except sqlite3.IntegrityError:
            # Another process appended to one of the runs.  Its log is right and what waits here
            # for that run is lost, but not what waits for the others.
            for number, group in groupby(sorted(entries, key=_run), key=_run):
                try:
                    self._insert(list(group), wait)
                except sqlite3.IntegrityError:
                    self._lost[number] = (
                        f"{self._database.path}: another process appended to this run while its "
                        "events were buffered, and they are lost; use durability='process' for "
                        "runs that several processes write to"
                    )

    def _insert(self, entries: list[_Entry], wait: Wait) -> None:
        statement = self._sql["insert_event"]
        many = statement.rstrip(";") + ", (?, ?, ?, ?, ?)" * (_ROWS - 1)
        database = self._database
        with database.transaction(wait):
            whole = len(entries) // _ROWS * _ROWS
            for start in range(0, whole, _ROWS):
                rows = entries[start : start + _ROWS]
                database.run(many, [value for row in rows for value in row], wait=wait)
            for row in entries[whole:]:
                database.run(statement, row, wait=wait)

    def _work(self) -> None:
        while self._thread is threading.current_thread():
            self._wake.wait()
            time.sleep(_DELAY)
            self._wake.clear()
            try:
                self._database.settle_down(_DELAY)
            except (StoreBusyError, StoreUnavailableError):
                # The next append tries again and raises what it meets; a lock that another process
                # holds may be free before that.
                self._wake.set()


def _run(entry: _Entry) -> int:
    return entry[0] >> 32
