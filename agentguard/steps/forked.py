"""What becomes of a run in a forked child: it is joined, not owned, in a branch of its own.

The child keeps the shared kill page, takes the store's new connections at its next step, and never
writes the run's end: only the process that opened a run does.  The lock is the store's to make anew.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from agentguard.steps.in_flight import InFlight
from agentguard.steps.log import RunLog
from agentguard.steps.spans import RunSpan
from agentguard.steps.stops import Stops


class Forked(Protocol):
    """What a run changes in a forked child."""

    owner: bool
    span: RunSpan | None
    fork: str
    forks: int
    stops: Stops
    in_flight: InFlight
    log: RunLog


#: By their ids: a `WeakSet` cannot be gone through while other threads add to it.
_runs: weakref.WeakValueDictionary[int, Forked] = weakref.WeakValueDictionary()


def watch(run: Forked) -> None:
    """Have a run joined anew in children that are forked from here on."""
    _runs[id(run)] = run


def _watched() -> list[Forked]:
    return [run for ref in _runs.valuerefs() if (run := ref()) is not None]


def _before() -> None:
    for run in _watched():
        run.forks += 1


def _in_child() -> None:
    for run in _watched():
        run.owner = False
        run.fork = f"{run.fork}/fork#{run.forks}"
        run.forks = 0
        run.span = None
        run.stops.seen = -1
        run.in_flight.forget()
        run.log.forget_commit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_in_child)
