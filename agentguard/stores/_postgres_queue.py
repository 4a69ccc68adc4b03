"""The queue of submitted runs in PostgreSQL: the tables of Procrastinate, in a schema of their own.

Who submits a run needs no package of Procrastinate's: a function of the server puts it there.  The workers
need it, and so does the login that migrates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
from psycopg import errors as pg

from agentguard._loading import LOADING
from agentguard.errors import StoreUnavailableError
from agentguard.protocols import QueueDepth, WorkerSign
from agentguard.stores import _sql
from agentguard.stores._postgres_link import Link, Translation

_NO_QUEUE = (pg.UndefinedTable, pg.InvalidSchemaName, pg.UndefinedFunction)


class PostgresRunQueue:
    """What waits for workers in the database of a store.

    `transaction` opens one of this thread's, which the store's own acts then take part in.
    """

    def __init__(
        self,
        url: str,
        tenant: str | None,
        transaction: Callable[..., AbstractContextManager[Link]],
        errors: Translation,
    ) -> None:
        #: Where workers connect, as the driver takes it.
        self.url = url
        #: The one tenant whose runs are seen, or None.
        self.tenant = tenant
        self._transaction = transaction
        self._errors = errors
        self._sql = _sql.queries("postgres_queue")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make one act of what this thread creates, and puts into the queue, in the block."""
        with self._errors(), self._transaction():
            yield

    def put(self, run_id: str, tenant: str, *, queue: str, priority: int, args: dict[str, Any]) -> None:
        """Put a run into the queue.

        Raises:
            StoreUnavailableError: the database has no queue.
        """
        facts = {"queue": queue, "priority": priority, "run_id": run_id, "tenant": tenant}
        with self._errors(), self._transaction() as link, _explained():
            [[put]] = link.ask(self._sql["submit"], facts | {"args": msgspec.json.encode(args).decode()})
        if not put:
            raise StoreUnavailableError(f"run {run_id} is not there to be put into the queue")

    def depth(self) -> list[QueueDepth]:
        """Return how long each queue is; those that are empty are not there.

        Raises:
            StoreUnavailableError: the database has no queue.
        """
        with self._errors(), self._transaction("READ ONLY") as link, _explained():
            return [QueueDepth(*columns) for columns in link.ask(self._sql["depth"])]

    def workers(self) -> list[WorkerSign]:
        """Return the workers that have begun and not ended, oldest first.

        Raises:
            StoreUnavailableError: the database has no queue.
        """
        with self._errors(), self._transaction("READ ONLY") as link, _explained():
            return [WorkerSign(*columns) for columns in link.ask(self._sql["workers"])]

    def holds(self, job_id: int, worker_id: int) -> bool:
        """Say whether a worker still has a job, and nobody has taken it over."""
        with self._errors(), self._transaction("READ ONLY") as link, _explained():
            [[holds]] = link.ask(self._sql["holds"], {"job_id": job_id, "worker_id": worker_id})
        return bool(holds)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except _NO_QUEUE as error:
        raise StoreUnavailableError(
            "this database has no queue for workers: pip install 'agentguard[workers]' where "
            "`agentguard migrate` is run, and run it once more"
        ) from error


# --- the schema ----------------------------------------------------------------------------------


def make_way(link: Link) -> None:
    """Drop what keeps a migration from changing the table of runs; `migrate` makes it anew."""
    if find_spec("procrastinate") is not None:
        link.ask(_sql.queries("postgres_queue")["make_way"])


def migrate(link: Link) -> list[str]:
    """Bring the queue's tables up to date, as the owner of the schema; gives what was done.

    Where Procrastinate is not installed, nothing is.
    """
    with LOADING:
        if find_spec("procrastinate") is None:
            return []
        from procrastinate.schema import SchemaManager  # noqa: PLC0415 - an extra of its own

    queries = _sql.queries("postgres_queue")
    link.ask(queries["versions"])
    applied = {name for (name,) in link.ask(queries["applied"])}
    scripts = sorted(Path(SchemaManager.get_migrations_path()).glob("*.sql"), key=lambda path: path.name)
    missing = [script for script in scripts if script.name not in applied]
    link.ask(queries["enter"])
    for text in (
        [script.read_text("utf-8") for script in missing] if applied else [SchemaManager.get_schema()]
    ):
        link.execute(text.encode())
    link.ask(queries["leave"])
    for script in missing:
        link.ask(queries["note"], (script.name,))
    link.execute(queries["rights"].encode())
    return [f"queue {missing[-1].stem}"] if missing else []
