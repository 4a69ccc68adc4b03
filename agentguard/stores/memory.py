"""The event store in this process's memory: fast, shared with nobody, gone with the process."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from agentguard._clock import SYSTEM_CLOCK, Clock
from agentguard.budget import ledger
from agentguard.errors import RunExistsError, StoreUnavailableError
from agentguard.events.codec import Stored
from agentguard.protocols import HeadMovedError, StoreBusyError
from agentguard.stores._memory_log import Log, closes_something, copy_account, is_final
from agentguard.stores._memory_table import LogTable
from agentguard.stores._memory_undo import Undo

if TYPE_CHECKING:
    from agentguard.budget.account import Account
    from agentguard.budget.ledger import Movement
    from agentguard.durability import Durability
    from agentguard.protocols import RunLock, RunRow


class MemoryEventStore:
    """Logs, run rows and shared accounts in dicts and lists.

    Holds `max_events`.  Over that, whole ended runs are evicted, the one that ended first before
    the others, and only their rows stay.  If live runs alone fill it, new steps are refused, and
    the outcomes of those that have started are still taken.  In a forked child it refuses
    everything, since the parent would not see what is done there.

    Example:
        >>> from agentguard.events.codec import Stored, chain, genesis
        >>> from agentguard.protocols import RunRow
        >>> store = MemoryEventStore()
        >>> row = RunRow(run_id="r1", name="n", tenant="t", state="RUNNING", created_ns=1)
        >>> number = store.create(row, [Stored(1, b"{}", chain(genesis("r1"), b"{}"))])
        >>> [event.seq for event in store.read("r1")]
        [1]
    """

    url = "memory://"
    private = True

    def __init__(self, *, max_events: int = 1_000_000, clock: Clock = SYSTEM_CLOCK) -> None:
        if max_events < 1:
            raise ValueError(f"max_events must be at least 1, not {max_events!r}")
        self.max_events = max_events
        #: By which the windows of tenants are cut.
        self.clock = clock
        self._lock = threading.RLock()
        self._acquire = self._lock.acquire
        self._release = self._lock.release
        self._shut: str | None = None
        self._empty()
        _stores.add(self)

    def _empty(self) -> None:
        self._table = LogTable(self.max_events)
        self._accounts: dict[str, Account] = {}
        self._undo = Undo()
        #: Who ended inside `exclusive`.
        self._ending: dict[int, Log] = {}

    def lock_for(self, run_id: str) -> RunLock:
        """Return the store's lock, which all runs share."""
        return self._lock

    # --- writing -------------------------------------------------------------------------------

    def create(self, row: RunRow, events: Sequence[Stored], movements: Sequence[Movement] = ()) -> int:
        """Add a run with its first events and return its number."""
        with self._lock:
            self._check()
            table = self._table
            if row.run_id in table.by_id:
                raise RunExistsError(row.run_id)
            if table.position + len(events) > table.full_at:
                table.make_room(len(events), needed=False)
            log = Log(next(table.next_number), row)
            log.check_next(events)
            with self._undo.block():  # what is cut short in the middle is taken back
                self._move(movements)
                self._undo.note(table.remove, log)
                table.put(log)
                self._add(log, events)
                self._note_end(log, row)
            self._note_ends()
            return log.number

    def append(
        self,
        number: int,
        events: Sequence[Stored],
        *,
        movements: Sequence[Movement] = (),
        row: RunRow | None = None,
        durability: Durability | None = None,
        wait: bool = True,
        deferred: bool = False,  # there is nothing to wait for
    ) -> dict[str, Account]:
        """Append events with consecutive sequences, and give the moved accounts as they are now."""
        if durability is not None:
            raise ValueError(f"memory:// survives nothing, so it cannot promise {durability!r}")
        if not self._acquire(wait):
            raise StoreBusyError(self.url)
        try:
            table = self._table
            log = table.logs.get(number)
            if log is None:
                self._check()
                if not events and row is None:
                    return self._move(movements)
                raise HeadMovedError(number)
            if table.position + len(events) > table.full_at:
                table.make_room(len(events), needed=row is not None or closes_something(events))
            if self._undo.active or (row is None and not movements and len(events) == 1):
                return self._append(log, events, movements, row)
            with self._undo.block():  # what is cut short in the middle is taken back
                moved = self._append(log, events, movements, row)
            self._note_ends()
            return moved
        finally:
            self._release()

    def append_one(  # noqa: PLR0917 - called for each step, and keywords cost
        self,
        number: int,
        seq: int,
        body: bytes,
        digest: bytes,
        payload: bytes | None,
        wait: bool = True,  # noqa: FBT001, FBT002 - who holds the lock waits for nobody
    ) -> None:
        """`append` of one event and nothing else, by a caller who holds the lock: the hot path."""
        table = self._table
        log = table.logs.get(number)
        position = table.position + 1
        if log is None or position > table.full_at or self._undo.active:
            self.append(number, (Stored(seq, body, digest, payload),))
            return
        entries = log.events
        if seq - 1 and seq - 1 not in entries:
            log.refuse(seq)
        table.position = position
        entry = (seq, body, digest, payload, position)
        if entries.setdefault(seq, entry) is not entry:
            log.refuse(seq)

    def _append(
        self, log: Log, events: Sequence[Stored], movements: Sequence[Movement], row: RunRow | None
    ) -> dict[str, Account]:
        log.check_next(events)
        if row is not None and row.epoch < log.row.epoch:
            raise HeadMovedError(log.number, row.epoch)
        found, moved = self._moved(movements)
        self._add(log, events)
        self._keep(found, moved)
        if row is not None:
            self._undo.note(setattr, log, "row", log.row)
            log.change(row)
            self._note_end(log, row)
        return moved

    def _add(self, log: Log, events: Sequence[Stored]) -> None:
        for event in events:
            entry = self._table.entry(event)
            self._undo.note(self._table.take_back, log, entry)
            if not self._table.add(log, entry):
                log.refuse(event.seq)

    def _note_end(self, log: Log, row: RunRow) -> None:
        if is_final(row.state) and log.number not in self._table.ended:
            # What ends inside `exclusive` may be taken back, and must not be evicted before.
            ended = self._ending if self._undo.active else self._table.ended
            self._undo.note(ended.pop, log.number, None)
            ended[log.number] = log

    def _move(self, movements: Sequence[Movement]) -> dict[str, Account]:
        found, moved = self._moved(movements)
        self._keep(found, moved)
        return moved

    def _moved(self, movements: Sequence[Movement]) -> tuple[dict[str, Account], dict[str, Account]]:
        """Return the accounts as they are, and as the movements would leave them."""
        # An account in the store is replaced and never changed, so that it can be given away.
        names = {movement.account for movement in movements} & self._accounts.keys()
        found = {name: self._accounts[name] for name in names}
        moved = {name: copy_account(account) for name, account in found.items()}
        ledger.apply(movements, moved)
        return found, moved

    def _keep(self, found: dict[str, Account], moved: dict[str, Account]) -> None:
        for name, account in moved.items():
            if self._accounts.get(name) is not found.get(name):  # a signal handler has moved it meanwhile
                raise HeadMovedError(name)
            self._undo.note(self._put_back, name, found.get(name))
            self._accounts[name] = account

    @contextmanager
    def exclusive(self, run_id: str) -> Iterator[None]:
        """Keep other writers out; an exception takes back everything that was done inside."""
        with self._lock:
            self._check()
            with self._undo.block():
                yield
            self._note_ends()

    def _note_ends(self) -> None:
        if not self._undo.active:
            self._table.ended |= self._ending
            self._ending.clear()

    def update_row(self, row: RunRow) -> bool:
        """Write owner, heartbeat and epoch of a claim, or of the owner that holds the run."""
        with self._lock:
            self._check()
            log = self._table.by_id.get(row.run_id)
            if log is None:
                return False
            self._undo.note(setattr, log, "row", log.row)
            return log.claim(row)

    def erase(self, run_id: str) -> int:
        """Drop the payloads and the salt of a run; gives how many payloads there were."""
        with self._lock:
            self._check()
            log = self._table.by_id.get(run_id)
            if log is None:
                return 0
            self._undo.note(setattr, log, "row", log.row)
            self._undo.note(setattr, log, "events", log.events)
            return log.erase()

    def prune(self, ended_before_ns: int, keep: Collection[str] = ()) -> list[str]:
        """Drop runs that ended before a time, but for those in `keep`, whole, and give their ids.

        Raises:
            RuntimeError: inside `exclusive`, which could not take it back.
        """
        with self._lock:
            self._check()
            if self._undo.active:
                raise RuntimeError("memory:// cannot prune inside exclusive()")
            pruned = []
            for log in list(self._table.logs.values()):
                row = log.row
                if row.run_id in keep:
                    continue
                if is_final(row.state) and (row.ended_ns or 0) < ended_before_ns:
                    self._table.drop(log)
                    self._table.remove(log)
                    pruned.append(row.run_id)
            self._drop_accounts(pruned)
            return pruned

    def _drop_accounts(self, pruned: Collection[str]) -> None:
        """Drop the accounts of runs and their scopes, but for those of a run whose id begins like one."""
        owners = {f"run:{run_id}" for run_id in pruned}
        others = {f"run:{run_id}" for run_id in self._table.by_id}
        gone = {f"attach:{run_id}" for run_id in pruned}
        for name in self._accounts:
            parts = name.split("/")
            ways = ["/".join(parts[:end]) for end in range(len(parts), 0, -1)]
            owner = next((way for way in ways if way in owners or way in others), None)
            if owner in owners:
                gone.add(name)
        for name in gone:
            self._accounts.pop(name, None)

    def mend(self) -> None:
        """Take back what an interrupted `exclusive` has left; the lock is held, and nobody is inside."""
        self._undo.mend()
        self._ending.clear()

    def settle(self) -> None:
        """Return at once: nothing here can be made durable."""

    def durable(self) -> None:
        """None: nothing here can be made durable."""

    # --- reading -------------------------------------------------------------------------------

    def row(self, run_id: str) -> RunRow | None:
        """The run's row, or None."""
        with self._lock:
            self._check()
            log = self._table.by_id.get(run_id)
            return None if log is None else log.row

    def rows(
        self,
        *,
        tenant: str | None = None,
        state: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> list[RunRow]:
        """The newest runs first; with `before`, those older than that run."""
        with self._lock:
            self._check()
            limiting = None if before is None else self._table.by_id.get(before)
            if before is not None and limiting is None:
                return []
            below = None if limiting is None else limiting.number
            logs = reversed(self._table.logs.values())
            rows = (log.row for log in logs if below is None or log.number < below)
            found = (
                row
                for row in rows
                if (tenant is None or row.tenant == tenant) and (state is None or row.state == state)
            )
            return list(islice(found, limit))

    def neighbours(self, run_id: str) -> tuple[str | None, str | None]:
        """The ids just before and after an id, in the order of their characters."""
        with self._lock:
            self._check()
            ids = self._table.by_id
            before = max((other for other in ids if other < run_id), default=None)
            return before, min((other for other in ids if other > run_id), default=None)

    def children(self, run_id: str) -> list[RunRow]:
        """The runs nested directly in a run, oldest first."""
        with self._lock:
            self._check()
            rows = (log.row for log in self._table.logs.values())
            return [row for row in rows if row.parent_id == run_id]

    def read(self, run_id: str, after: int = 0) -> Iterator[Stored]:
        """The run's events with a sequence above `after`, in order, as of now.

        Raises:
            StoreUnavailableError: the run was evicted.
        """
        with self._lock:
            log = self._kept(run_id)
            return iter(()) if log is None else log.after(after)

    def last(self, run_id: str) -> Stored | None:
        """The run's newest event."""
        with self._lock:
            log = self._kept(run_id)
            return None if log is None else next(log.after(len(log.events) - 1), None)

    def tail(self, after: int = 0, tenant: str | None = None, limit: int = 1000) -> list[tuple[str, Stored]]:
        """Events of all runs with a position above `after`, in commit order, with their run ids.

        Those of evicted runs are not there any more.
        """
        with self._lock:
            self._check()
            found = self._table.after(after, tenant, limit)
            return [(log.run_id, event) for _, log, event in found]

    def accounts(self, ids: Sequence[str]) -> dict[str, Account]:
        """The shared accounts that exist among `ids`."""
        with self._lock:
            self._check()
            return {name: self._accounts[name] for name in ids if name in self._accounts}

    def account_ids(self) -> list[str]:
        """The names of all shared accounts."""
        with self._lock:
            self._check()
            return list(self._accounts)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let this thread's reads in the block see one moment; writers wait meanwhile."""
        with self._lock:
            self._check()
            yield

    def close(self) -> None:
        """Drop everything."""
        with self._lock:
            self._shut = self._shut or "this memory:// store is closed; open another one"
            self._empty()

    # --- helpers -------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._shut is not None:
            raise StoreUnavailableError(self._shut)

    def _kept(self, run_id: str) -> Log | None:
        self._check()
        log = self._table.by_id.get(run_id)
        if log is not None:
            log.check_kept()
        return log

    def _put_back(self, name: str, account: Account | None) -> None:
        if account is None:
            self._accounts.pop(name, None)
        else:
            self._accounts[name] = account


_stores: weakref.WeakSet[MemoryEventStore] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for store in list(_stores):
        store._lock._at_fork_reinit()  # type: ignore[attr-defined]  # as `logging` does
        store._shut = "memory:// is not shared with a forked process; use sqlite://"
        store._empty()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
