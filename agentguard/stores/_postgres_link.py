"""A connection to PostgreSQL that never waits for ever, and what its errors say to people."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import errors, generators
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus, Format
from psycopg.rows import TupleRow

from agentguard._secrets.urls import public_url
from agentguard.errors import StoreUnavailableError
from agentguard.stores._busy_retry import jitter

if TYPE_CHECKING:
    from psycopg.abc import Params, PQGen
    from psycopg.pq.abc import PGconn, PGresult

    from agentguard.stores._postgres_calls import Call

_T = TypeVar("_T")

#: Of one attempt to connect, in seconds.
_CONNECT_TIMEOUT = 5
#: What goes to the server at once, below the 1 GB of a message and of a value.
_MOST_BYTES = 1_000_000_000
_FIRST_PAUSE = 0.01
#: What the URL may say otherwise.
_KEEPALIVES: dict[str, Any] = {"keepalives_idle": 60, "keepalives_interval": 10, "keepalives_count": 3}
_LONGEST_PAUSE = 0.5

_ADVICE: dict[type[psycopg.Error], str] = {
    errors.InsufficientPrivilege: "this login may not do that; agentguard_agent may read and append, "
    "agentguard_worker take runs from the queue, agentguard_operator erase, prune, publish and bind logins",
    errors.ReadOnlySqlTransaction: "nothing can be written here: the server is a replica (name the primary, "
    "or write target_session_attrs=read-write into the URL), or default_transaction_read_only is set",
    errors.DiskFull: "the server's disk is full; make room, and the next step goes through",
    errors.LockNotAvailable: "another writer holds it; end that, or raise store_timeout",
    errors.DeadlockDetected: "two writers waited for each other; try again",
    errors.UndefinedFunction: "its schema is another one; run `agentguard migrate`",
    errors.UndefinedTable: "its schema is another one; run `agentguard migrate`",
}
#: Errors after which the same thing may be tried again, besides a lost connection.
_PASSING = (
    errors.DeadlockDetected,
    errors.SerializationFailure,
    errors.UniqueViolation,  # by a login whose transactions see no more than there was as they began
    errors.LockNotAvailable,
    errors.ReadOnlySqlTransaction,  # a server that is about to become the primary
    errors.InsufficientResources,
    errors.ObjectNotInPrerequisiteState,
)
#: Errors that psycopg counts among those of a lost connection, and that are here to stay.
_LASTING = (errors.QueryCanceled, errors.ProgramLimitExceeded)
#: What is said where a login, a right or an option in the URL is wrong.
_HERE_TO_STAY = (
    "password authentication failed",
    "no password supplied",
    "is not permitted to log in",
    "permission denied for database",
    "does not exist",
    "no pg_hba.conf entry",
    "connection is bad: invalid",
    "definition of service",
    "does not support SSL, but SSL was required",
    "certificate verify failed",
)


class Link(psycopg.Connection[TupleRow]):
    """A connection that is given up when the server does not answer for `patience` seconds."""

    patience: float = 30.0
    #: How many positions the open transaction has given.
    placed: int = 0
    #: Whether statements can be prepared, once it is known.
    _prepares: bool | None = None

    def __init__(self, pgconn: PGconn, *given: Any) -> None:
        super().__init__(pgconn, *given)
        self._named: set[bytes] = set()

    def wait(self, gen: PQGen[_T], interval: float = 0.1, timeout: float | None = None) -> _T:
        """`Connection.wait`, but not for ever; the connection is closed where it gives up."""
        try:
            return super().wait(gen, interval, self.patience if timeout is None else timeout)
        except errors._WaitTimeout as error:
            self.pgconn.finish()
            raise psycopg.OperationalError(f"no answer for {self.patience:g} s") from error

    def ask(self, query: str, parameters: Params | None = None) -> list[TupleRow]:
        """Carry out a statement in one round trip and give its rows."""
        cursor = self.execute(query.encode(), parameters, binary=True)
        return cursor.fetchall() if cursor.description is not None else []

    def change(self, query: str, parameters: Params | None = None) -> int:
        """Carry out a statement and give how many rows it changed."""
        return self.execute(query.encode(), parameters).rowcount

    def call(self, call: Call, *values: object) -> PGresult:
        """Carry out one call in one round trip and give its result."""
        return self.together([(call, values)])[-1]

    def together(self, calls: Sequence[tuple[Call, Sequence[object]]]) -> list[PGresult]:
        """Carry out calls in one round trip, each with its values, and give their results.

        Raises:
            psycopg.Error: that of the first which failed; those after it were not carried out.
        """
        pgconn = self.pgconn
        packed = [call.packed(values) for call, values in calls]
        if sum(len(value) for values in packed for value in filter(None, values)) > _MOST_BYTES:
            raise psycopg.DataError(f"more than {_MOST_BYTES:,} bytes at once: too large for PostgreSQL")
        sends = deque([self._send(call, values) for (call, _), values in zip(calls, packed, strict=True)])
        if len(sends) < 2:
            for send in sends:
                send()
                return self._checked(self.wait(generators.execute(pgconn)))
            return []
        sends.append(pgconn.pipeline_sync)
        count = len(sends)
        try:
            pgconn.enter_pipeline_mode()
            answers = self.wait(generators.pipeline_communicate(pgconn, sends))
            self.wait(generators.send(pgconn))  # the rest of what is more than a socket takes at once
            while len(answers) < count:
                answers.append(self.wait(generators.fetch_many(pgconn)))
            pgconn.exit_pipeline_mode()
        except BaseException:
            pgconn.finish()
            raise
        return self._checked([result for answer in answers[:-1] for result in answer])

    def _checked(self, results: list[PGresult]) -> list[PGresult]:
        for result in results:
            if result.status == ExecStatus.FATAL_ERROR:
                raise errors.error_from_result(result, encoding=self.info.encoding)
        return results

    def _send(self, call: Call, packed: list[bytes | None]) -> Callable[[], None]:
        pgconn = self.pgconn
        if self._prepare(call):
            return partial(pgconn.send_query_prepared, call.name, packed, call.formats, Format.BINARY)
        return partial(pgconn.send_query_params, call.query, packed, None, call.formats, Format.BINARY)

    def _prepare(self, call: Call) -> bool:
        """See that a call is prepared, unless this is a pool, where the next may go to another session."""
        if self._prepares is None:
            self._prepares = self.ask("SELECT pg_backend_pid()") == [(self.info.backend_pid,)]
        if self._prepares and call.name not in self._named:
            try:
                self.pgconn.send_prepare(call.name, call.query)
                self._checked(self.wait(generators.execute(self.pgconn)))
                self._named.add(call.name)
            except BaseException:  # whether it is prepared is not known
                self.pgconn.finish()
                raise
        return self._prepares

    def rows(self, result: PGresult) -> list[tuple[Any, ...]]:
        """The rows of a result."""
        transformer = Transformer(self)
        transformer.set_pgresult(result)
        return transformer.load_rows(0, result.ntuples, tuple)


def connect(url: str, patience: float) -> Link:
    """A connection in autocommit mode.

    psycopg prepares no statement by name, which a PgBouncer in transaction mode does not stand.
    """
    link = Link.connect(
        url,
        autocommit=True,
        prepare_threshold=None,
        client_encoding="UTF8",  # as `_postgres_calls` packs texts, whatever the host or the URL asks for
        connect_timeout=max(1, min(_CONNECT_TIMEOUT, round(patience))),
        application_name="agentguard",
        tcp_user_timeout=round(patience * 1000),
        # So that firewalls in between do not forget what is idle, which a step would find out.
        **{name: seconds for name, seconds in _KEEPALIVES.items() if name not in url},
    )
    try:
        link.patience = patience
        return link  # noqa: TRY300 - or a signal handler raises here
    except BaseException:
        link.close()
        raise


def is_passing(error: psycopg.Error) -> bool:
    """Whether the same may succeed if it is tried again: the server is away, busy or starting."""
    lost = isinstance(error, psycopg.OperationalError) and not isinstance(error, _LASTING)
    return lost or isinstance(error, _PASSING)


def retry(deadline: float, attempt: Callable[[], _T]) -> _T:
    """Return what `attempt` does, tried until it succeeds or the time is over.

    Raises:
        psycopg.Error: that of the last attempt, or one that is here to stay.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            return attempt()
        except psycopg.Error as error:
            if not is_passing(error) or _is_hopeless(error) or time.monotonic() + pause > deadline:
                raise
        time.sleep(jitter(pause))
        pause = min(2 * pause, _LONGEST_PAUSE)


def _is_hopeless(error: psycopg.Error) -> bool:
    # libpq's errors of connecting have no SQLSTATE; those of the server in its text stay what they are.
    text = str(error)
    return any(phrase in text for phrase in _HERE_TO_STAY)


class Translation:
    """Blocks in which whatever the driver raises becomes `StoreUnavailableError`."""

    def __init__(self, url: str) -> None:
        self._place = public_url(url)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Such a block."""
        try:
            yield
        except psycopg.Error as error:
            raise self.of(error) from error

    def of(self, error: psycopg.Error) -> StoreUnavailableError:
        """What people are told of an error, without a value of theirs."""
        advice = next((text for kind, text in _ADVICE.items() if isinstance(error, kind)), None)
        said = (error.diag.message_primary or str(error)).strip().partition("\n")[0]
        return StoreUnavailableError(f"{self._place}: {f'{advice} ({said})' if advice else said}")

    def unforeseen(self, error: Exception) -> StoreUnavailableError:
        """The same of an error that is not the driver's, whose text may show a value."""
        return StoreUnavailableError(f"{self._place}: an append failed with {type(error).__name__}")

    def closed(self) -> StoreUnavailableError:
        """What a closed store says."""
        return StoreUnavailableError(f"{self._place}: the store is closed; open another one")


def rollback(link: psycopg.Connection[Any]) -> None:
    """End a transaction that failed; a connection that cannot is closed."""
    try:
        link.rollback()
    except psycopg.Error:
        link.close()
