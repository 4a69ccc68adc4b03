"""The control log on PostgreSQL: a table that is only added to, and an empty NOTIFY for each record.

The tables come with `agentguard migrate`.  A login of one tenant has no right to them, since the chain
is of all tenants' records: where such logins run agents, run the relay by itself with another.  Channels have
no rights: every login of the database may listen and notify, so nothing is told there, and nothing believed.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from agentguard._optional import require
from agentguard._secrets.urls import public_url, url_parts, with_options
from agentguard.errors import ControlLogDeniedError, KillSwitchUnavailableError
from agentguard.events.codec import Stored
from agentguard.killswitch.remote import REPORT_KEPT, HostReport, holds, parse_report

#: Seconds that the server is given for a connection (whole ones), and for an answer.
CONNECTING = 2
TIMEOUT = 2.0
#: Options of a store's URL, which are not the driver's.
_OF_STORES = ("store_timeout", "connections", "tenant", "prefix")

_READ = "SELECT seq, body, hash FROM agentguard.control_records(%s)"
_APPEND = "SELECT agentguard.add_control_record(%s, %s, %s, %s)"
_REPORT = "SELECT agentguard.report_host(%s, %s)"
_REPORTS = "SELECT host, report, silent FROM agentguard.host_reports()"
_PRUNE = "SELECT agentguard.forget_hosts(NULL, %s)"


class PostgresLog:
    """A `RemoteLog` on PostgreSQL.

    Args:
        url: as libpq takes it; options of the event store's URL may stand in it too.

    Raises:
        MissingExtraError: psycopg is not installed.
    """

    def __init__(self, url: str) -> None:
        self._psycopg: Any = require("psycopg", extra="postgres", feature="a kill switch on PostgreSQL")
        parts = url_parts(url)
        options = [pair for pair in parse_qsl(parts.query) if pair[0] not in _OF_STORES]
        self.url = public_url(url)
        self._server = with_options(parts, options)
        self._lock = threading.RLock()
        self._connection: Any = None
        self._listening: Any = None

    def read(self, after: int = 0) -> Sequence[Stored]:
        """The records above `after`."""
        return [
            Stored(seq, bytes(body), bytes(digest), None, seq)
            for seq, body, digest in self._ask(_READ, after)
        ]

    def append(self, stored: Stored, previous: bytes) -> bool:
        """Add a record unless its sequence is taken, or the one it follows is not there."""
        [[added]] = self._ask(_APPEND, stored.seq, stored.body, stored.hash, previous)
        return bool(added) or holds(self, stored)

    def told_with(self, generation: int) -> Sequence[HostReport]:
        """Nothing: what this server was told it keeps."""
        return ()

    def wait(self, seconds: float) -> bool:
        """Wait for a notification, whatever it says."""
        with self._explained():
            if self._listening is None:
                self._listening = self._connect()
                self._listening.execute("LISTEN agentguard_kill")
            return any(self._listening.notifies(timeout=seconds, stop_after=1))

    def report(self, report: HostReport) -> None:
        """Put a report in the place of the last one."""
        self._ask(_REPORT, report.host, msgspec.json.encode(report).decode())

    def reports(self) -> Sequence[HostReport]:
        """Return the reports, with their age by the server's clock."""
        return [parse_report(host, report, silent) for host, report, silent in self._ask(_REPORTS)]

    def knows(self, host: str) -> bool:
        """Yes: what this server was told it keeps, or the connection ends."""
        return True

    def prune(self) -> None:
        """Remove reports that are old by the server's clock."""
        self._ask(_PRUNE, REPORT_KEPT)

    def after_fork(self) -> None:
        """In a forked child: never close the parent's connections, and make others."""
        self._lock = threading.RLock()
        for connection in (self._connection, self._listening):
            if connection is not None:
                connection.pgconn.finish = lambda: None  # or the parent's session would be ended
        self._connection = self._listening = None

    def close(self) -> None:
        """Close both connections; the next use opens them."""
        with self._lock:
            for connection in (self._connection, self._listening):
                if connection is not None:
                    with suppress(self._psycopg.Error, OSError):
                        connection.close()
            self._connection = self._listening = None

    def _ask(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Carry out a statement, on another connection where the one in use turns out to have been cut."""
        with self._lock, self._explained():
            kept = self._connection
            if kept is not None:
                with suppress(self._psycopg.OperationalError, OSError):
                    return self._answer(kept, query, parameters)
                if not kept.closed:
                    kept.close()
            self._connection = self._connect()
            return self._answer(self._connection, query, parameters)

    def _answer(self, connection: Any, query: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        """Give the rows of a statement; the connection is cut where the server does not answer in time."""
        with _deadline(connection.fileno()):
            while True:  # until the connection is cut
                with suppress(self._psycopg.errors.SerializationFailure):  # of a login's own isolation level
                    rows: list[tuple[Any, ...]] = connection.execute(query, parameters).fetchall()
                    return rows

    def _connect(self) -> Any:
        # No prepared statements: a pooler in between may not keep them.
        return self._psycopg.connect(
            self._server, autocommit=True, connect_timeout=CONNECTING, prepare_threshold=None
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (self._psycopg.Error, OSError) as error:
            text = str(error).partition("\nCONTEXT:")[0]  # where in a function, which helps nobody
            said = f"{type(error).__name__}: {' '.join(text.split())}"
            denied = isinstance(error, self._psycopg.errors.InsufficientPrivilege)
            raise (ControlLogDeniedError if denied else KillSwitchUnavailableError)(
                f"the control log at {self.url} cannot be read or written ({said}){self._hint(error)}"
            ) from error

    def _hint(self, error: Exception) -> str:
        errors = self._psycopg.errors
        if isinstance(error, errors.UndefinedTable | errors.UndefinedFunction | errors.InvalidSchemaName):
            return "; run `agentguard migrate --store URL` as its owner"
        if isinstance(error, errors.InsufficientPrivilege):
            return "; a login of one tenant has no right to it: run `agentguard relay` with another"
        if isinstance(error, errors.ReadOnlySqlTransaction):
            return (
                "; the server is a replica (name the primary, or write target_session_attrs=read-write into "
                "the URL), or default_transaction_read_only is set"
            )
        return ""


@contextmanager
def _deadline(descriptor: int) -> Iterator[None]:
    """Cut a connection unless the block ends in time: libpq waits for an answer for ever."""
    copy = socket.socket(fileno=os.dup(descriptor))

    def cut() -> None:
        with suppress(OSError):
            copy.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(TIMEOUT, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        copy.close()
