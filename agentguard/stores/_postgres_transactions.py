"""Where the statements of a thread run: in its transaction, or on any connection of the store.

A thread is in one transaction at a time, and all that it does meanwhile is a part of that one, also the acts
of a signal handler.  With a tenant each transaction sees that tenant's rows alone, so reads need one too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from psycopg.pq import TransactionStatus

from agentguard.stores import _sql
from agentguard.stores._postgres_link import Link, Translation, rollback
from agentguard.stores._postgres_pool import Pool

#: After so many milliseconds the server ends a transaction whose client was paused in the middle of it.
_PAUSED: Final = 10_000
#: As the statements need it that wait for each other's locks, whatever the login's default is.
WRITES: Final = "ISOLATION LEVEL READ COMMITTED"
_SNAPSHOT: Final = "ISOLATION LEVEL REPEATABLE READ READ ONLY"
_ENTER: Final = "SELECT agentguard.enter()"

_TABLES: Final = {"run": "agentguard.run", "account": "agentguard.account"}
_FUNCTIONS: Final = {"run": "agentguard.tenant_runs()", "account": "agentguard.tenant_accounts()"}


class Transactions:
    """The transactions of the threads that use one store, which wait `busy_ms` milliseconds for a lock."""

    def __init__(self, pool: Pool, errors: Translation, busy_ms: int, tenant: str | None) -> None:
        self._pool = pool
        self._errors = errors
        self._busy_ms = busy_ms
        self._tenant = tenant
        self._sql = _sql.queries("postgres")
        self.reset()

    def reset(self) -> None:
        """Begin anew in a forked child, where the transactions are the parent's."""
        self._local = threading.local()

    def link(self) -> Link | None:
        """The connection of the transaction that this thread is in."""
        link: Link | None = getattr(self._local, "link", None)
        return link

    @contextmanager
    def begin(self, mode: str = "") -> Iterator[Link]:
        """A transaction of this thread, or a part of the one that it is in; an exception undoes it.

        Without a `mode` it enters among the writers of events, for which the tail and others wait.

        Raises:
            psycopg.Error: the server cannot be reached, or refuses.
        """
        outer = self.link()
        if outer is not None:
            with outer.transaction():
                yield outer
            return
        try:
            link, _ = self._pool.fresh(lambda link: self._begin(link, mode))
            yield link
            link.execute("COMMIT")
            self._let_go()
        except BaseException:  # of a signal handler, perhaps, at any line of the above
            self._let_go()
            raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let this thread's reads in the block see one moment, or those of the transaction that it is in."""
        if self.link() is not None:
            yield
            return
        with self._errors(), self.begin(_SNAPSHOT):
            yield

    def select(self, query: str, parameters: Any = None, which: str = "") -> list[tuple[Any, ...]]:
        """The rows that a query of `postgres.sql` finds; `which` is its condition, where it takes one."""
        with self._errors():
            link = self.link()
            if link is not None:
                return self._ask(link, query, parameters, which)
            if self._tenant is not None:
                with self.begin() as narrowed:
                    return self._ask(narrowed, query, parameters, which)
            return self._pool.reading(lambda lent: self._ask(lent, query, parameters, which))

    def _ask(self, link: Link, query: str, parameters: Any, which: str) -> list[tuple[Any, ...]]:
        """Carry out a query; a tenant's own login asks functions and sees no table."""
        text = self._sql[query]
        tables = _TABLES
        if self._pool.tenant_login:
            tables = _FUNCTIONS
            text = self._sql.get(f"tenant_{query}", text)
        for name, table in (("which", which), *tables.items()):
            text = text.replace(f"{{{name}}}", table)
        return link.ask(text, parameters)

    def _begin(self, link: Link, mode: str) -> None:
        self._local.link = link
        enter = "" if mode else f"; SET LOCAL idle_in_transaction_session_timeout = {_PAUSED}; {_ENTER}"
        link.execute(f"BEGIN {mode or WRITES}; SET LOCAL lock_timeout = {self._busy_ms}{enter}".encode())
        link.placed = 0
        if self._tenant is not None:
            link.ask(self._sql["narrow"], (self._tenant,))

    def _let_go(self) -> None:
        """End the transaction of this thread: what is not committed is rolled back."""
        link = self.link()
        if link is None:
            return
        if not link.closed and link.info.transaction_status != TransactionStatus.IDLE:
            rollback(link)
        self._pool.give_back(link)
        self._local.link = None
