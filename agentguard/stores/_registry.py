"""The SQLite files that are open in this process, by real path, and what a fork does to them."""

from __future__ import annotations

import os
import threading
from weakref import WeakValueDictionary

from agentguard.stores._database import Database

_databases: WeakValueDictionary[str, Database] = WeakValueDictionary()
# Re-entrant: a store that is collected while this is held gives its database back.
_lock = threading.RLock()

_held_for_fork: list[Database] = []
_standing_still: list[Database] = []

#: A writer that is at work is waited for this long before a fork.
_FORK_WAIT = 1.0


def share(path: str) -> Database:
    """The database at a path, counted as used once more; opens nothing."""
    real = os.path.realpath(path)
    with _lock:
        database = _databases.get(real)
        if database is None or database.writer.refusal is not None:
            database = _databases[real] = Database(real)
        database.users += 1
        return database


def give_back(database: Database) -> None:
    """Take back what `share` gave; the last one closes it."""
    with _lock:
        database.users -= 1
        last = not database.users
        if last and _databases.get(database.path) is database:
            del _databases[database.path]
    if last:
        database.close()
    else:
        database.finish()


def _is_mine() -> bool:
    """Return whether `_before_fork` was called: not where this was loaded while the fork waited for that."""
    mine: bool = _lock._is_owned()  # type: ignore[attr-defined]
    return mine


def _before_fork() -> None:
    # A thread that is inside SQLite while another one forks leaves SQLite's own mutexes locked in
    # the child for ever.  Writers and checkpoints are kept out; only a reader can still be caught.
    _lock.acquire()
    for _, database in sorted(_databases.items()):
        if database.lock.acquire(timeout=_FORK_WAIT):
            _held_for_fork.append(database)
        if database.checkpointer.stand_still(_FORK_WAIT):
            _standing_still.append(database)


def _after_fork_in_parent() -> None:
    while _standing_still:
        _standing_still.pop().checkpointer.go_on()
    while _held_for_fork:
        _held_for_fork.pop().lock.release()
    if _is_mine():
        _lock.release()


def _after_fork_in_child() -> None:
    for database in list(_databases.values()):
        database.abandon()
        if database in _held_for_fork:
            database.lock.release()
        else:
            database.lock._at_fork_reinit()  # type: ignore[attr-defined]  # as `logging` does
    _held_for_fork.clear()
    _standing_still.clear()
    if _is_mine():
        _lock.release()
    else:
        _lock._at_fork_reinit()  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
