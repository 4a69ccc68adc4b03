"""The event store in a SQLite file: the default, for the processes of one host."""

from __future__ import annotations

import math
import os
import sqlite3
import weakref
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from agentguard._clock import SYSTEM_CLOCK, Clock
from agentguard._home import sqlite_url
from agentguard._process import ProcessLock
from agentguard.budget import ledger
from agentguard.durability import Durability
from agentguard.errors import RunExistsError, StoreUnavailableError
from agentguard.events.codec import Stored
from agentguard.protocols import HeadMovedError, RunLock, RunRow
from agentguard.stores import (
    _accounts,
    _registry,
    _sql,
    _sqlite_feed,
    _sqlite_indexes,
    _sqlite_removal,
    _sqlite_rows,
)

if TYPE_CHECKING:
    from agentguard.budget.account import Account
    from agentguard.budget.ledger import Movement
    from agentguard.stores._busy_retry import Wait
    from agentguard.stores._database import Database
    from agentguard.stores._sqlite_writer import Writer

_LEVELS: Final[dict[str, int]] = {"process": 1, "power": 2}
_PROCESS: Final = 1
_POWER: Final = 2
#: Above the number of any run.
_NEWER_THAN_ALL: Final = 2**63 - 1

# `Stored._make` is a Python function that does the same.
_to_stored: Any = partial(tuple.__new__, Stored)


class SQLiteEventStore:
    """Logs, run rows and shared accounts in one SQLite file, which the first use makes.

    Stores of the same file share a writer and a lock within a process; writers in other processes
    are waited for, up to `store_timeout` seconds.  `durability` says what a commit survives:
    `"process"` a kill -9, `"power"` a loss of power.

    Example:
        >>> import os, tempfile
        >>> from agentguard.events.codec import Stored, chain, genesis
        >>> from agentguard.protocols import RunRow
        >>> folder = tempfile.TemporaryDirectory()
        >>> store = SQLiteEventStore(os.path.join(folder.name, "events.db"))
        >>> row = RunRow(run_id="r1", name="n", tenant="t", state="RUNNING", created_ns=1)
        >>> number = store.create(row, [Stored(1, b"{}", chain(genesis("r1"), b"{}"))])
        >>> [event.seq for event in store.read("r1")]
        [1]
        >>> store.close()
        >>> folder.cleanup()
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Durability = "process",
        store_timeout: float = 30.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not 0 <= store_timeout < math.inf:
            raise ValueError(f"store_timeout must be seconds from 0 up, not {store_timeout!r}")
        self.path = os.path.abspath(path)  # noqa: PTH100  # Path.resolve would follow links
        self.url = sqlite_url(self.path)
        self.durability: Durability = durability
        #: By which the windows of tenants are cut.
        self.clock = clock
        self._level = _level(durability)
        self._timeout = float(store_timeout)
        self._sql = _sql.queries("sqlite")
        self._shared: Database | None = None
        self._give_back: weakref.finalize[Any, Any] | None = None
        self._opening = ProcessLock()

    def lock_for(self, run_id: str) -> RunLock:
        """Return the lock of the file in this process, which all runs share."""
        return self._database().lock

    def _database(self) -> Database:
        if self._shared is not None:
            return self._shared
        with self._opening.here():
            if self._give_back is not None and not self._give_back.alive:
                raise StoreUnavailableError(f"{self.url} is closed; open another store")
            if self._shared is None:
                database = _registry.share(self.path)
                self._give_back = weakref.finalize(self, _registry.give_back, database)
                self._shared = database
            return self._shared

    # --- writing -------------------------------------------------------------------------------

    def create(self, row: RunRow, events: Sequence[Stored], movements: Sequence[Movement] = ()) -> int:
        """Add a run with its first events and return its number."""
        database, wait = self._database(), self._timeout
        with database.transaction(wait, durable=self._level == _POWER) as writer, database.errors:
            columns = _sqlite_rows.parameters(row)
            try:
                number = writer.run(self._sql["insert_run"], columns, wait=wait).lastrowid or 0
            except sqlite3.IntegrityError as error:
                raise RunExistsError(row.run_id) from error
            _sqlite_indexes.check_beside(self._select, row.run_id)
            for event in events:
                writer.insert(number, event, wait)
            self._move(writer, movements, wait)
        return number

    def append(
        self,
        number: int,
        events: Sequence[Stored],
        *,
        movements: Sequence[Movement] = (),
        row: RunRow | None = None,
        durability: Durability | None = None,
        wait: bool = True,
        deferred: bool = False,
    ) -> dict[str, Account]:
        """Append events with consecutive sequences, and give the moved accounts as they are now."""
        database = self._shared or self._database()
        level = self._level if durability is None else max(self._level, _level(durability))
        patience = self._timeout if wait else None
        if len(events) == 1 and row is None and not movements:
            if self._append_one(database, number, events[0], level, patience, deferred=deferred):
                database.sync.settle(self._timeout)
            return {}
        due = level == _POWER
        with database.transaction(patience, durable=due, deferred=deferred) as writer, database.errors:
            for event in events:
                writer.insert(number, event, patience)
            accounts = self._move(writer, movements, patience)
            if row is not None:
                self._change(writer, number, row, patience)
        return accounts

    def append_one(  # noqa: PLR0917 - called for each step, and keywords cost
        self,
        number: int,
        seq: int,
        body: bytes,
        digest: bytes,
        payload: bytes | None,
        wait: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        """`append` of one event and nothing else, by a caller who holds the lock: the hot path."""
        database = self._shared
        if self._level == _PROCESS and database is not None:
            database.writer.insert_alone(number, seq, body, digest, payload, self._timeout if wait else None)
        else:
            self.append(number, (Stored(seq, body, digest, payload),), wait=wait, deferred=True)

    def _append_one(
        self, database: Database, number: int, event: Stored, level: int, wait: Wait, *, deferred: bool
    ) -> bool:
        """One statement is the compare-and-swap, the event and the commit.

        Gives whether the commit has to be settled.
        """
        lock = database.lock
        if not lock.acquire(blocking=False):
            database.acquire(wait)
        try:
            if level == _POWER and deferred:
                database.writer.stage(number, event, wait)
                return False
            database.writer.insert(number, event, wait)
            return level == _POWER and database.writer.committed(durable=True)
        finally:
            lock.release()

    def _change(self, writer: Writer, number: int, row: RunRow, wait: Wait) -> None:
        columns = _sqlite_rows.parameters(row)
        columns["number"] = number
        if not writer.run(self._sql["change_run"], columns, wait=wait).rowcount:
            raise HeadMovedError(number, row.epoch)

    def _move(self, writer: Writer, movements: Sequence[Movement], wait: Wait) -> dict[str, Account]:
        accounts: dict[str, Account] = {}
        for movement in movements:
            if movement.account not in accounts:
                key = (movement.account,)
                found = writer.run(self._sql["account"], key, wait=wait).fetchone()
                if found is not None:
                    accounts[movement.account] = _accounts.account(movement.account, found[0])
        ledger.apply(movements, accounts)
        for name, account in accounts.items():
            columns = (name, _accounts.account_text(account))
            writer.run(self._sql["save_account"], columns, wait=wait)
        return accounts

    def exclusive(self, run_id: str) -> AbstractContextManager[None]:
        """Keep writers of every process out; leaving commits, an exception undoes everything."""
        return self._database().exclusive(self._timeout, durable=self._level == _POWER)

    def update_row(self, row: RunRow) -> bool:
        """Write owner, heartbeat and epoch of a claim, or of the owner that holds the run."""
        database = self._database()
        durable = self._level == _POWER
        with database.transaction(self._timeout, durable=durable) as writer, database.errors:
            columns = _sqlite_rows.parameters(row)
            change = writer.run(self._sql["update_owner"], columns, wait=self._timeout)
            return bool(change.rowcount)

    def erase(self, run_id: str) -> int:
        """Drop the payloads and the salt of a run; gives how many payloads there were."""
        return _sqlite_removal.erase(self._database(), self._sql, run_id, self._timeout)

    def prune(self, ended_before_ns: int, keep: Collection[str] = ()) -> list[str]:
        """Drop runs that ended before a time, but for those in `keep`, whole, and give their ids."""
        database = self._database()
        return _sqlite_removal.prune(database, self._sql, ended_before_ns, keep, self._timeout)

    def settle(self) -> None:
        """Return when everything committed so far is as durable as was asked for."""
        self._database().sync.settle(self._timeout)

    def durable(self) -> Future[None] | None:
        """What resolves when `settle` would return, or None if it would return at once.

        All who ask at about the same time get the same future, which cannot be cancelled.
        """
        return self._database().sync.durable()

    def mend(self) -> None:
        """Roll back what an interrupted act has left open; the lock is held, and nobody is inside."""
        if self._shared is not None:
            self._shared.writer.mend()

    def check_file(self) -> None:
        """Refuse everything from here on if the file was deleted, moved or replaced meanwhile.

        Raises:
            StoreUnavailableError: it was.
        """
        if self._shared is not None:
            self._shared.check_file()

    # --- reading -------------------------------------------------------------------------------

    def row(self, run_id: str) -> RunRow | None:
        """The run's row, or None.

        Raises:
            LogIntegrityError: the index of ids is damaged there, and cannot tell.
        """
        found = self._select("run", (run_id,))
        if not found:
            _sqlite_indexes.check_beside(self._select, run_id)
            return None
        row = _sqlite_rows.run_row(found[0])
        if row.run_id != run_id:
            raise _sqlite_indexes.misfiled_error(row.run_id)
        return row

    def rows(
        self,
        *,
        tenant: str | None = None,
        state: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> list[RunRow]:
        """The newest runs first; with `before`, those older than that run."""
        if before is None:
            below = _NEWER_THAN_ALL
        elif (limiting := self.row(before)) is not None:
            below = limiting.number
        else:
            return []
        if tenant is None:
            query = "runs" if state is None else "runs_in_state"
        else:
            query = "runs_of_tenant" if state is None else "runs_of_tenant_in_state"
        found = self._select(query, {"tenant": tenant, "state": state, "limit": limit, "below": below})
        return [_sqlite_rows.run_row(columns) for columns in found]

    def neighbours(self, run_id: str) -> tuple[str | None, str | None]:
        """The ids just before and after an id, in the order of their characters."""
        [(before, after)] = self._select("neighbours", {"run_id": run_id})
        return _sqlite_rows.optional_text(before), _sqlite_rows.optional_text(after)

    def children(self, run_id: str) -> list[RunRow]:
        """The runs nested directly in a run, oldest first."""
        return [_sqlite_rows.run_row(columns) for columns in self._select("children", (run_id,))]

    def read(self, run_id: str, after: int = 0) -> Iterator[Stored]:
        """The run's events with a sequence above `after`, in order, from one snapshot."""
        return self._stream(self._database(), run_id, after)

    def _stream(self, database: Database, run_id: str, after: int) -> Iterator[Stored]:
        with database.errors, database.reading(self._timeout) as connection:
            cursor = connection.execute(self._sql["events"], {"run_id": run_id, "after": after})
            try:
                # The writer must not be left with an open read, which would hold it to an old
                # moment: inside `exclusive` everything is fetched now.
                yield from map(_to_stored, cursor.fetchall() if database.is_writing() else cursor)
            finally:
                # Of an iterator that nobody has finished, the connection may have been closed before.
                with suppress(sqlite3.ProgrammingError):
                    cursor.close()

    def scan(self, run_id: str) -> Iterator[tuple[Any, ...]]:
        """`read` from the first event, as plain tuples: for who looks at millions of them."""
        database = self._database()
        with database.errors, database.reading(self._timeout) as connection:
            cursor = connection.execute(self._sql["events"], {"run_id": run_id, "after": 0})
            # `chain` has no `close`, which would be called when the connection may be closed already.
            yield from cursor.fetchall() if database.is_writing() else chain(cursor)

    def last(self, run_id: str) -> Stored | None:
        """The run's newest event."""
        found = self._select("last_event", (run_id,))
        return Stored(*found[0]) if found else None

    def orphans(self) -> list[tuple[int, int]]:
        """Number and first sequence of logs whose run has no row: somebody deleted it by hand."""
        return self._select("orphans", ())

    def misfiled(self) -> Iterator[tuple[str, str]]:
        """The runs that an index does not find, and why, by their ids."""
        return _sqlite_indexes.misfiled(self._select)

    def tail(self, after: int = 0, tenant: str | None = None, limit: int = 1000) -> list[tuple[str, Stored]]:
        """Events of all runs with a position above `after`, in commit order, with their run ids.

        Positions are given here, to what was appended since the last call, so the file must be
        writable; what cannot get one now, inside `snapshot` or while others keep the file locked,
        is given by a later call.  A run's events keep their order; between runs it is that of their
        commits in one process, and by the host's clock between processes and in a long backlog.
        """
        query = "tail" if tenant is None else "tail_of_tenant"
        database = self._database()
        more = True
        found: list[tuple[Any, ...]] = []
        while more and len(found) < limit:
            more = not database.in_snapshot() and _sqlite_feed.place(database, self._sql, self._timeout)
            found = self._select(query, {"after": after, "tenant": tenant, "limit": limit})
        return [(columns[0], Stored(*columns[1:])) for columns in found]

    def position(self, reader: str) -> int:
        """How far a reader of `tail` has come; 0 where none was saved."""
        return self.positions().get(reader, 0)

    def positions(self) -> dict[str, int]:
        """The saved position of every reader, by its name."""
        there = self._select("has_positions", ())
        return dict(self._select("positions", ())) if there else {}

    def save_position(self, reader: str, position: int) -> None:
        """Save how far a reader has come, durably; a lower position changes nothing."""
        database = self._database()
        with database.transaction(self._timeout) as writer, database.errors:
            parameters = {"reader": reader, "position": position}
            writer.run(self._sql["save_position"], parameters, wait=self._timeout)

    def accounts(self, ids: Sequence[str]) -> dict[str, Account]:
        """The shared accounts that exist among `ids`."""
        with self.snapshot():
            found = {name: self._select("account", (name,)) for name in ids}
        return {name: _accounts.account(name, rows[0][0]) for name, rows in found.items() if rows}

    def account_ids(self) -> list[str]:
        """The names of all shared accounts."""
        return [name for (name,) in self._select("account_ids", ())]

    def snapshot(self) -> AbstractContextManager[None]:
        """Let this thread's reads in the block see one moment, without holding up writers."""
        return self._database().snapshot(self._timeout)

    def _select(self, query: str, parameters: Any) -> list[tuple[Any, ...]]:
        database = self._database()
        with database.errors, database.reading(self._timeout) as connection:
            return connection.execute(self._sql[query], parameters).fetchall()

    def close(self) -> None:
        """Give the file back; the last store of it in this process closes it."""
        with self._opening.here():
            self._shared = None
            if self._give_back is None:
                self._give_back = weakref.finalize(self, _nothing)
            self._give_back()


def _level(durability: Durability) -> int:
    level = _LEVELS.get(durability)
    if level is None:
        raise ValueError(f"durability must be one of {', '.join(_LEVELS)}, not {durability!r}")
    return level


def _nothing() -> None:
    """What a store that was never used has to give back."""
