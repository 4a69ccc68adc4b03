"""An edited copy of a database, as somebody would make it who has something to hide."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from agentguard.events.model import STEP_COMPLETED


def copy(database: Path, target: Path) -> None:
    """Copy a database through SQLite's own backup, which misses nothing that is still in the WAL."""
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(target)) as copied:
        source.backup(copied)


def edit(database: Path, run_id: str, seq: int, old: bytes, new: bytes) -> None:
    """Replace something in the body of one event.

    Raises:
        sqlite3.IntegrityError: the database refuses.
    """
    with closing(sqlite3.connect(database)) as connection, connection:
        query = "SELECT key, body FROM event WHERE key = (SELECT number FROM run WHERE run_id = ?) << 32 | ?"
        key, body = connection.execute(query, (run_id, seq)).fetchone()
        changed = bytes(body).replace(old, new)
        if changed == body:
            raise ValueError(f"event {seq} has no {old!r}")
        connection.execute("UPDATE event SET body = ? WHERE key = ?", (changed, key))


def drop_triggers(database: Path) -> int:
    """Remove what keeps events as they are, and give how many triggers there were."""
    with closing(sqlite3.connect(database)) as connection, connection:
        names = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        ]
        for name in names:
            connection.execute(f'DROP TRIGGER "{name}"')
        return len(names)


def middle_outcome(log: list[tuple[int, str]]) -> int:
    """The sequence of a completed step in the middle of a log of sequences and types."""
    completed = [seq for seq, kind in log if kind == STEP_COMPLETED]
    return completed[len(completed) // 2]
