"""What becomes of a run in a forked child: it is joined, not owned, in a branch of its own.

The child keeps the shared kill page, takes the store's new lock and connections at its next step, and
never writes the run's end: only the process that opened a run does.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentguard.steps.journal import Journal

_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


class _FirstUse:
    """Stands in for the lock of an inherited run, which a thread that is gone may have held."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002
        lock: Any = self._journal.store.lock_for(self._journal.outermost)
        self._journal.lock = lock
        return bool(lock.acquire(blocking, timeout))

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc: object) -> None:
        self._journal.lock.release()

    def release(self) -> None:
        self._journal.lock.release()


def watch(journal: Journal) -> None:
    """Have a run joined anew in children that are forked from here on."""
    _journals.add(journal)


def _before() -> None:
    for journal in list(_journals):
        journal.forks += 1


def _in_child() -> None:
    for journal in list(_journals):
        journal.lock = _FirstUse(journal)
        journal.owner = False
        journal.fork = f"{journal.fork}/fork#{journal.forks}"
        journal.forks = 0
        journal.seen = -1
        journal.stale = journal.stale or journal.commit is not None  # whose outcome the parent alone learns
        journal.commit = None
        journal.doubtful.clear()
        journal.bodies.clear()
        journal.children.clear()
        journal.generators.clear()
        journal.span = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_in_child)
