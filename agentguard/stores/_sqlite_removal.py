"""The two ways in which something leaves a SQLite log: erased payloads and pruned runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from agentguard.errors import StoreUnavailableError
from agentguard.protocols import StoreBusyError

if TYPE_CHECKING:
    from agentguard.stores._database import Database

_log = logging.getLogger("agentguard.stores")
#: How long readers are waited for before the WAL is emptied; it is tried again the next time.
_PATIENCE = 1.0
_PAUSE = 0.005


def erase(database: Database, sql: Mapping[str, str], run_id: str, wait: float) -> int:
    """Drop the payloads and the salt of a run; gives how many payloads there were."""
    with database.transaction(wait, durable=True) as writer, database.errors:
        dropped = writer.run(sql["erase_payloads"], {"run_id": run_id}, wait=wait).rowcount
        writer.run(sql["erase_salt"], (run_id,), wait=wait)
    # Also if there was nothing: it was dropped in a larger act, which could not empty the WAL.
    empty_wal(database)
    return dropped


def prune(
    database: Database, sql: Mapping[str, str], ended_before_ns: int, keep: Collection[str], wait: float
) -> list[str]:
    """Drop ended runs, each in an act of its own so that writers get their turns."""
    with database.errors, database.reading(wait) as connection:
        ended = connection.execute(sql["prunable"], (ended_before_ns,)).fetchall()
    pruned = []
    for number, run_id in ended:
        if run_id in keep:
            continue
        with database.transaction(wait) as writer, database.errors:
            if not writer.run(sql["mark_pruning"], (number,), wait=wait).rowcount:
                continue
            writer.run(sql["delete_places"], {"number": number}, wait=wait)
            writer.run(sql["delete_events"], {"number": number}, wait=wait)
            writer.run(sql["delete_run"], (number,), wait=wait)
            writer.run(sql["delete_accounts"], {"run_id": run_id}, wait=wait)
        pruned.append(run_id)
    if pruned:
        empty_wal(database)
    return pruned


def empty_wal(database: Database) -> None:
    """Have nothing of what was dropped linger in the WAL, unless readers hold on to it."""
    deadline = time.monotonic() + _PATIENCE
    done = database.is_writing()
    while not done:
        with suppress(StoreBusyError, StoreUnavailableError), database.errors:
            database.acquire(_PATIENCE)
            try:
                busy, _, _ = database.writer.run("PRAGMA wal_checkpoint(TRUNCATE)", wait=None).fetchone()
            finally:
                database.lock.release()
            done = not busy
        if not done and time.monotonic() > deadline:
            _log.warning("readers hold %s-wal: what was dropped stays in it until they let go", database.path)
            return
        if not done:
            time.sleep(_PAUSE)
