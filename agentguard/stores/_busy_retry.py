"""Waiting for other processes that write to the same SQLite file."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

from agentguard.protocols import StoreBusyError
from agentguard.stores._sqlite_errors import held_for_too_long, is_busy

#: How many seconds a call waits for other writers; None is not at all.
Wait = float | None
Parameters = Sequence[Any] | Mapping[str, Any]

#: Seconds between two tries: so busy processes take turns of some milliseconds.  One whose own commit was the
#: last has its pages at hand, and two that commit one by one read all of them again each time.
_FIRST_PAUSE = 3e-3
_LONGEST_PAUSE = 10e-3


def execute(
    connection: sqlite3.Connection, path: str, sql: str, parameters: Parameters, wait: Wait
) -> sqlite3.Cursor:
    """Carry out a statement, as often as it takes while the file is locked.

    SQLite's own busy handler is not fair: its pauses grow to 100 ms, and it gives up at once where it
    sees a deadlock coming.

    Raises:
        StoreBusyError: it is locked and `wait` is None.
        StoreUnavailableError: it was locked for `wait` seconds.
    """
    deadline: float | None = None
    pause = _FIRST_PAUSE
    while True:
        try:
            return connection.execute(sql, parameters)
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            if wait is None:
                raise StoreBusyError(path) from error
            now = time.monotonic()
            deadline = now + wait if deadline is None else deadline
            if now >= deadline:
                raise held_for_too_long(path, wait) from error
        time.sleep(jitter(pause))
        pause = min(2 * pause, _LONGEST_PAUSE)


def jitter(seconds: float) -> float:
    """Half of the time up to all of it."""
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311  # no secret is drawn here
