"""Opening an event store's SQLite file: rights, pragmas, and the schema it must have."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from agentguard._home import make_private
from agentguard.errors import StoreUnavailableError
from agentguard.stores import _busy_retry, _sql
from agentguard.stores._busy_retry import Wait
from agentguard.stores._checkpointer import WAIT_FROM

#: "agrd" in the file's header; tells our files from other SQLite databases.
APPLICATION_ID = 0x61677264

Execute = Callable[[str], sqlite3.Cursor]


def connect(path: str, *, busy_timeout: float = 0.0) -> sqlite3.Connection:
    """A connection in autocommit mode that any thread may use."""
    return sqlite3.connect(path, timeout=busy_timeout, isolation_level=None, check_same_thread=False)


def create(path: str) -> None:
    """Make the folders (0700) and an empty file (0600), where they are missing."""
    file = Path(path)
    if file.exists():
        return
    make_private(file.parent)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        # Another process was first.  Opening the file a second time is avoided on purpose: closing
        # any descriptor of a file drops all the locks that this process has on it.
        return


def open_writer(path: str, wait: Wait) -> sqlite3.Connection:
    """A connection to write with, to a file that is there and up to date.

    Raises:
        StoreUnavailableError: the file is another program's, or newer than this library.
    """
    create(path)
    writer = connect(path)
    try:
        prepare(path, lambda sql: _busy_retry.execute(writer, path, sql, (), wait))
    except BaseException:
        writer.close()
        raise
    return writer


def prepare(path: str, execute: Execute) -> None:
    """Set the pragmas of a writer, on which `execute` runs, and bring the schema up to date."""
    # A file that is up to date is only read here, so that one without write access can be.
    if _schema_now(path, execute) != known_schema():
        _use_wal(path, execute)
        _migrate(path, execute)
    elif execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        _use_wal(path, execute)
    execute("PRAGMA synchronous = NORMAL")
    execute("PRAGMA secure_delete = ON")
    # Checkpoints are the work of `_checkpointer`, in no commit; who begins the WAL anew cuts its file.
    execute("PRAGMA wal_autocheckpoint = 0")
    execute(f"PRAGMA journal_size_limit = {WAIT_FROM}")


def is_older(path: str, execute: Execute) -> bool:
    """Whether the schema is older than that of this library, which can read it as it is.

    Raises:
        StoreUnavailableError: the file is another program's, or newer than this library.
    """
    return 0 < _schema_now(path, execute) < known_schema()


def known_schema() -> int:
    """The schema that this library writes."""
    return len(_sql.migrations("sqlite"))


def _use_wal(path: str, execute: Execute) -> None:
    mode = execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreUnavailableError(
            f"{path}: SQLite cannot share memory between processes here; use a folder on a local disk"
        )


def _migrate(path: str, execute: Execute) -> None:
    execute("BEGIN IMMEDIATE")
    try:
        # Another process may have done it meanwhile.
        version = _schema(path, execute)
        for number, script in _sql.migrations("sqlite")[version:]:
            for statement in _statements(script):
                execute(statement)
            execute(f"PRAGMA user_version = {number}")
        execute(f"PRAGMA application_id = {APPLICATION_ID}")
    except BaseException:
        execute("ROLLBACK")
        raise
    execute("COMMIT")


def _schema_now(path: str, execute: Execute) -> int:
    """`_schema` of one moment: another process may be making the file."""
    execute("BEGIN")
    try:
        return _schema(path, execute)
    finally:
        with suppress(sqlite3.OperationalError):  # an error has ended it already
            execute("ROLLBACK")


def _schema(path: str, execute: Execute) -> int:
    """The file's schema version, 0 for an empty file."""
    version: int = execute("PRAGMA user_version").fetchone()[0]
    known = known_schema()
    if execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        if version or execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            raise StoreUnavailableError(f"{path} is the database of another program; name another file")
    elif version > known:
        raise StoreUnavailableError(
            f"{path} has schema {version} and this agentguard knows {known}; upgrade agentguard"
        )
    return version


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one: `executescript` would commit in between."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
