"""The event store in PostgreSQL: for the processes of many hosts."""

from __future__ import annotations

import math
import os
import secrets
import weakref
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from agentguard._clock import SYSTEM_CLOCK, Clock
from agentguard._secrets.urls import public_url
from agentguard.durability import Durability
from agentguard.errors import RunExistsError
from agentguard.events.codec import Stored
from agentguard.protocols import Commit, RunLock, RunRow, StoreBusyError
from agentguard.stores import _accounts, _postgres_removal, _postgres_rows, _sql
from agentguard.stores import _postgres_acts as acts_
from agentguard.stores._postgres_acts import Act
from agentguard.stores._postgres_commits import Commits
from agentguard.stores._postgres_link import Link, Translation
from agentguard.stores._postgres_listener import Listener
from agentguard.stores._postgres_pool import Pool
from agentguard.stores._postgres_queue import PostgresRunQueue
from agentguard.stores._postgres_time import ServerTime
from agentguard.stores._postgres_transactions import Transactions
from agentguard.stores._run_locks import RunLocks

if TYPE_CHECKING:
    from agentguard.budget.account import Account
    from agentguard.budget.ledger import Movement

#: How many events are read at a time.
_CHUNK: Final = 1000
_NO_END: Final = 2**31 - 1


class PostgresEventStore:
    """Logs, run rows and shared accounts in a PostgreSQL database that `agentguard migrate` has prepared.

    Every commit is as durable as the server makes it: `durability` is `"power"`.  What threads and tasks
    append at about the same time is committed together, see `_postgres_commits`.  A call that meets a
    server that is away, starting or out of connections tries again, up to `store_timeout` seconds.

    With `tenant` every transaction sees and writes that tenant's rows alone.

    Example:
        >>> store = PostgresEventStore("postgresql://agents@db.example/agentguard")
        >>> store.url
        'postgresql://db.example/agentguard'
        >>> store.close()
    """

    durability: Durability = "power"

    def __init__(
        self,
        url: str,
        *,
        store_timeout: float = 30.0,
        connections: int = 16,
        tenant: str | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not 0 < store_timeout < math.inf:
            raise ValueError(f"store_timeout must be seconds above 0, not {store_timeout!r}")
        if connections < 1:
            raise ValueError(f"connections must be at least 1, not {connections!r}")
        self.url = public_url(url)
        #: Where the kills of those who share this store lie, if nobody says otherwise.
        self.kill_switch_url = url
        #: The clock of this host.
        self.clock = clock
        self._tenant = tenant
        timeout = float(store_timeout)
        self._busy_ms = round(store_timeout * 1000)
        self._errors = Translation(url)
        self._pool = Pool(url, self._errors, timeout, connections, narrow=tenant is not None)
        self._transactions = Transactions(self._pool, self._errors, self._busy_ms, tenant)
        self._server = ServerTime(clock, lambda: int(self._transactions.select("server_time")[0][0]))
        self._commits = Commits(self._pool.open, self._errors, timeout, tenant)
        self._listener = Listener(self._pool.open, timeout)
        self._locks = RunLocks()
        self._sql = _sql.queries("postgres")
        #: The runs that wait for workers.
        self.queue = PostgresRunQueue(url, tenant, self._transactions.begin, self._errors)
        _stores.add(self)

    def lock_for(self, run_id: str) -> RunLock:
        """Return the lock of a run in this process."""
        return self._locks.of(run_id)

    def now(self, *, wait: bool = True) -> int:
        """Return what time it is by the server's clock, in nanoseconds; exact in `exclusive` alone.

        Raises:
            StoreBusyError: with `wait=False`, the server would have to be asked.
        """
        link = self._transactions.link()
        if link is not None:
            return int(link.ask(self._sql["server_time"])[0][0])
        if not wait and not self._server.is_known:
            raise StoreBusyError
        return self._server.now()

    # --- writing -------------------------------------------------------------------------------

    def create(self, row: RunRow, events: Sequence[Stored], movements: Sequence[Movement] = ()) -> int:
        """Add a run with its first events and return its number."""
        columns = _postgres_rows.parameters(row, self._server.ahead())
        with self._errors(), self._transactions.begin() as link:
            columns |= {"random": secrets.randbits(47), "placed": link.placed}
            found = link.ask(self._sql["create_run"], columns)
            if not found:
                raise RunExistsError(row.run_id)
            link.placed += 1
            number: int = found[0][0]
            self._carry_out(link, Act(number, events, movements), self._busy_ms)
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
        deferred: bool = False,  # `accept` is what defers here
    ) -> dict[str, Account]:
        """Append events with consecutive sequences, and give the moved accounts as they are now."""
        if not events and not movements and row is None:
            return {}
        columns = None if row is None else _postgres_rows.parameters(row, self._server.ahead())
        act = Act(number, events, movements, columns)
        link = self._transactions.link()
        if link is not None:
            with self._errors():
                return self._carry_out(link, act, self._busy_ms)
        if not wait:
            return self._alone(act, 0)
        self._commits.put(act)
        try:
            return self._commits.wait(act.future)
        except StoreBusyError:
            return self._alone(Act(number, events, movements, columns), self._busy_ms)

    def accept(
        self,
        number: int,
        event: Stored,
        previous: bytes,
        movements: Sequence[Movement],
        after: Commit | None,
    ) -> Commit:
        """Accept an append, to be committed with others; inside `exclusive` it is carried out at once."""
        act = Act(number, (event,), movements, previous=previous, after=after)
        link = self._transactions.link()
        if link is None:
            self._commits.put(act)
        else:
            with self._errors():
                self._carry_out(link, act, self._busy_ms)
        return act

    def commit_soon(self) -> None:
        """Commit what was accepted, in a background thread."""
        self._commits.start()

    def wait_for(self, commit: Commit) -> dict[str, Account]:
        """Return or raise the outcome of an append that was accepted."""
        return self._commits.wait(commit.future)

    def recall(self, number: int) -> None:
        """Return when nothing of a run is under way; what was not sent yet fails with `StoreBusyError`."""
        self._commits.recall(number)

    def _alone(self, act: Act, patience: int) -> dict[str, Account]:
        with self._errors(), self._transactions.begin() as link:
            return self._carry_out(link, act, patience)

    def _carry_out(self, link: Link, act: Act, patience: int) -> dict[str, Account]:
        """Carry out one act in an open transaction."""
        if acts_.transact(link, [act], patience, self._tenant):
            raise StoreBusyError(act.number)
        act.resolve()
        return act.future.result()

    @contextmanager
    def exclusive(self, run_id: str) -> Iterator[None]:
        """Keep other writers of a run out; leaving commits, an exception undoes everything.

        The runs around it are locked before it, so that two processes never wait for each other.
        """
        with self._errors(), self._transactions.begin() as link:
            self._lock(link, run_id)
            yield

    def _lock(self, link: Link, run_id: str) -> None:
        chain = [run_id]
        while (found := link.ask(self._sql["parent"], (chain[-1],))) and found[0][0] is not None:
            chain.append(found[0][0])
        for name in reversed(chain):
            link.ask(self._sql["lock_run"], (name,))

    def update_row(self, row: RunRow) -> bool:
        """Write owner, heartbeat and epoch of a claim, or of the owner that holds the run."""
        columns = _postgres_rows.parameters(row, self._server.ahead())
        with self._errors(), self._transactions.begin() as link:
            return bool(link.change(self._sql["update_owner"], columns))

    def erase(self, run_id: str) -> int:
        """Drop the payloads and the salt of a run; gives how many payloads there were."""
        with self._errors():
            return _postgres_removal.erase(self._transactions, self._sql, run_id)

    def prune(self, ended_before_ns: int, keep: Collection[str] = ()) -> list[str]:
        """Drop runs that ended before a time, but for those in `keep`, whole, and give their ids."""
        with self._errors():
            return _postgres_removal.prune(self._transactions, self._sql, ended_before_ns, keep)

    def settle(self) -> None:
        """Return at once: what `append` has returned from is on the server's disk."""

    def durable(self) -> Future[None] | None:
        """None, for the same reason."""

    # --- reading -------------------------------------------------------------------------------

    def row(self, run_id: str) -> RunRow | None:
        """The run's row, or None."""
        found = self._rows("run", {"run_id": run_id})
        return found[0] if found else None

    def rows(
        self,
        *,
        tenant: str | None = None,
        state: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> list[RunRow]:
        """The newest runs first; with `before`, those older than that run."""
        wanted = {"tenant": tenant, "state": state}
        which = [f"{name} = %({name})s" for name, value in wanted.items() if value is not None]
        if before is not None:
            which.append("born < (SELECT older.born FROM {run} AS older WHERE older.run_id = %(before)s)")
        parameters = wanted | {"limit": limit, "before": before}
        return self._rows("runs", parameters, which=" AND ".join(which) or "true")

    def neighbours(self, run_id: str) -> tuple[str | None, str | None]:
        """The ids just before and after an id, in the order of their characters."""
        [(before, after)] = self._transactions.select("neighbours", {"run_id": run_id})
        return before, after

    def children(self, run_id: str) -> list[RunRow]:
        """The runs nested directly in a run, oldest first."""
        return self._rows("children", {"run_id": run_id})

    def _rows(self, query: str, parameters: Any, which: str = "") -> list[RunRow]:
        ahead = self._server.ahead()
        found = self._transactions.select(query, parameters, which=which)
        return [_postgres_rows.run_row(columns, ahead) for columns in found]

    def read(self, run_id: str, after: int = 0) -> Iterator[Stored]:
        """The run's events with a sequence above `after`, in order, from one snapshot."""
        for columns in self.scan(run_id, after):
            yield Stored(*columns)

    def scan(self, run_id: str, after: int = 0) -> Iterator[tuple[Any, ...]]:
        """`read` from the first event, as plain tuples."""
        upto = _NO_END
        while after < upto:
            wanted = {"run_id": run_id, "after": after, "upto": upto, "limit": _CHUNK}
            found = self._transactions.select("events", wanted)
            if not found:
                return
            yield from (columns[:5] for columns in found)
            after, upto = found[-1][0], min(upto, found[0][5])

    def last(self, run_id: str) -> Stored | None:
        """The run's newest event."""
        found = self._transactions.select("last_event", {"run_id": run_id})
        return Stored(*found[0]) if found else None

    def tail(self, after: int = 0, tenant: str | None = None, limit: int = 1000) -> list[tuple[str, Stored]]:
        """Events of all runs with a position above `after`, in commit order, with their run ids.

        Only those below the oldest transaction in flight are given: what is committed later has a higher
        position.  A transaction that is held open holds up the tail, and nothing else.
        """
        found = self._transactions.select("tail", {"after": after, "tenant": tenant, "limit": limit})
        return [(columns[0], Stored(*columns[1:])) for columns in found]

    def position(self, reader: str) -> int:
        """How far a reader of `tail` has come; 0 where none was saved."""
        found = self._transactions.select("position", (reader,))
        return found[0][0] if found else 0

    def positions(self) -> dict[str, int]:
        """The saved position of every reader, by its name."""
        return dict(self._transactions.select("positions", ()))

    def save_position(self, reader: str, position: int) -> None:
        """Save how far a reader has come, durably; a lower position changes nothing."""
        with self._errors(), self._transactions.begin() as link:
            link.execute(self._sql["save_position"].encode(), (reader, position))

    def wait_for_news(self, timeout: float) -> None:
        """Return when something may have been appended, at most after `timeout` seconds.

        It listens on a connection of its own; through a PgBouncer in transaction mode it hears nothing.
        """
        with self._errors():
            self._listener.wait(timeout)

    def accounts(self, ids: Sequence[str]) -> dict[str, Account]:
        """The shared accounts that exist among `ids`."""
        found = self._transactions.select("accounts", (list(ids),))
        return {name: _accounts.account(name, data) for name, data in found}

    def account_ids(self) -> list[str]:
        """The names of all shared accounts that this login sees."""
        return [name for (name,) in self._transactions.select("account_ids")]

    def own_budgets(self) -> list[tuple[str, str | None, dict[str, Any]]]:
        """The budgets set for the tenant of this login: tenant, period and limits, oldest first."""
        found = self._transactions.select("own_budgets")
        return [(tenant, per, msgspec.json.decode(budget)) for tenant, per, budget in found]

    def snapshot(self) -> AbstractContextManager[None]:
        """Let this thread's reads in the block see one moment, without holding up writers."""
        return self._transactions.snapshot()

    def close(self) -> None:
        """Commit what was accepted, and close the connections."""
        try:
            self._commits.close()
        finally:
            self._pool.close()
            self._listener.close()

    def _abandon(self) -> None:
        """Begin anew in a forked child."""
        self._locks.reset()
        self._listener.reset()
        self._transactions.reset()
        self._pool.reset()
        self._commits.reset()


_stores: weakref.WeakSet[PostgresEventStore] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for store in list(_stores):
        store._abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
