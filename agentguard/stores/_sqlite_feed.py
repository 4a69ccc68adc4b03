"""The one order of the events of all runs; each reader that asks for it carries it on.

A second key on every event would cost each step half as much again.  So an event gets its position
not when it is appended but when a reader first comes by: in one act, so that positions never change
and no event ever appears below one that has been read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from agentguard.protocols import StoreBusyError
from agentguard.stores import _busy_retry, _sqlite_file
from agentguard.stores._busy_retry import jitter

if TYPE_CHECKING:
    import sqlite3

    from agentguard.stores._database import Database

#: How many events get their positions in one act, so that writers get their turns.
_MOST = 20_000
#: How long writers are waited for; reading does not depend on them.
_PATIENCE = 1.0
_PAUSE = 0.002


def place(database: Database, sql: Mapping[str, str], wait: float) -> bool:
    """Give positions to events that have none yet; whether there may be more of them.

    While somebody else keeps the file locked they stay without, and are found later.
    """
    deadline = time.monotonic() + min(wait, _PATIENCE)
    while _is_behind(database, sql, wait):
        try:
            return _add(database, sql) >= _MOST
        except StoreBusyError:
            if time.monotonic() > deadline:
                return False
        time.sleep(jitter(_PAUSE))
    return False


def _is_behind(database: Database, sql: Mapping[str, str], wait: float) -> bool:
    with database.errors, database.reading(wait) as connection:
        return any(head > placed for _, placed, head in connection.execute(sql["not_fed"]))


def _add(database: Database, sql: Mapping[str, str]) -> int:
    if not database.reads_older:
        with database.transaction(None) as writer, database.errors:
            return _give(partial(writer.run, wait=None), sql)
    # The writer would bring the schema up to date, and the agents that write there could not go on.
    with database.errors, closing(_sqlite_file.connect(database.path)) as connection:
        _busy_retry.execute(connection, database.path, "BEGIN IMMEDIATE", (), None)
        added = _give(connection.execute, sql)
        connection.execute("COMMIT")
    return added


def _give(run: Callable[..., sqlite3.Cursor], sql: Mapping[str, str]) -> int:
    last = _up_to(run(sql["not_fed"]).fetchall())
    added = run(sql["feed"], {"last": last, "most": _MOST}).rowcount
    run(sql["feed_is_complete"])
    return added


def _up_to(runs: Sequence[tuple[int, int, int]]) -> int:
    """The number of the run whose events make it enough for one act."""
    left = _MOST
    for number, placed, head in runs:
        left -= head - placed
        if left <= 0:
            return number
    return runs[-1][0] if runs else 0
