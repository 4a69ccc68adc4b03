"""What becomes of a run in a forked child: it is joined, not owned, in a branch of its own.

The child keeps the shared kill page, takes the store's new lock and connections at its next step, and
never writes the run's end: only the process that opened a run does.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any, NoReturn

from agentguard.errors import AgentGuardError

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


class _Refusing:
    """Stands in for the lock of a run whose newest events lie in the memory of the parent alone."""

    def __init__(self, run_id: str) -> None:
        self._message = (
            f"run {run_id} is buffered in the memory of process {os.getppid()}, so a forked child cannot go "
            "on with it; give its guard durability='process'"
        )

    def acquire(self, *_: Any, **__: Any) -> NoReturn:
        raise AgentGuardError(self._message)

    __enter__ = acquire

    def __exit__(self, *exc: object) -> None:
        """Never entered."""

    def release(self) -> None:
        """Never held."""


def watch(journal: Journal) -> None:
    """Have a run joined anew in children that are forked from here on."""
    _journals.add(journal)


def _before() -> None:
    for journal in list(_journals):
        journal.forks += 1


def _in_child() -> None:
    for journal in list(_journals):
        buffered = journal.parts.abilities.durability == "buffered"
        buffered = buffered and not journal.fold.state.final
        journal.lock = _Refusing(journal.run_id) if buffered else _FirstUse(journal)
        journal.owner = False
        journal.fork = f"{journal.fork}/fork#{journal.forks}"
        journal.forks = 0
        journal.seen = -1
        journal.bodies.clear()
        journal.children.clear()
        journal.generators.clear()
        journal.span = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_in_child)
