"""A program that swallows its stop and calls again is slowed down, then cancelled.

Refusing costs next to nothing, so a loop that retries every error for ever would take a whole core, and
in an event loop the turn of every other task.  A branch that was refused `PATIENCE` times in a row is
slowed down, a little more each time; from `LAST` on it is cancelled as well, by an exception that no
`except Exception` takes.  All of this lies behind a refusal: a run that is not stopped never comes here.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from agentguard.errors import RunStopped
from agentguard.steps.exit_rule import StopSwallowedError
from agentguard.steps.flow import check

if TYPE_CHECKING:
    from agentguard.steps.live import LiveRun
    from agentguard.steps.model import Step

#: So many refusals in a row are free: a fan-out or a bounded retry meets its stop without delay.
PATIENCE = 50
#: From this refusal in a row on, each cancels; those before were slowed by a quarter of a second together.
LAST = PATIENCE + 8
#: So many branches that begin in one branch may be refused, once each, after a run's stop: a loop that makes
#: a task or a job for each try is told from a fan-out by their number alone.
BRANCHES = 1_000
#: Seconds: the first delay, which doubles, and the longest.
_FIRST, _LONGEST = 0.001, 0.1
#: The same for sync code inside an event loop, where a delay holds up every other task.
_LONGEST_IN_LOOP = 0.001
_MOST_BRANCHES = 10_000


class _Threads(threading.local):
    """The number of a thread, which no other gets when this one has ended."""

    _numbers = itertools.count(1)

    def __init__(self) -> None:
        self.number = next(self._numbers)


_threads = _Threads()
_log = logging.getLogger("agentguard")


class Refusals(NamedTuple):
    """How often a branch was refused in a row, and where: its last call, and the head of the log."""

    number: int
    pos: int
    seq: int


_NONE = Refusals(0, 0, -1)


def refused(step: Step, stop: RunStopped) -> None:
    """Take note that a step was refused with a stop; slow its caller down where it spins.

    Raises:
        StopSwallowedError: it went on spinning.
    """
    _refused(step.live_run, _branch_of(step), stop, step.pos)


async def refused_async(step: Step, stop: RunStopped) -> None:
    """The same for an async step, without blocking the event loop."""
    # Calls that one branch made at once are awaited in tasks of their own: each of those is asked apart.
    branch = f"{_branch_of(step)} in task {id(asyncio.current_task()):#x}"
    count = _spins(step.live_run, branch, stop, step.pos, _branch_of(step))
    if count >= PATIENCE:
        await asyncio.sleep(_delay(count))
    _cancel(branch, count, stop)


def check_place(live_run: LiveRun, scope: str, branch: str, pos: int | None = None) -> None:
    """Raise the stop that covers a place that is no step's, if there is one; slow it down where it spins.

    Raises:
        RunStopped: the stop.
        StopSwallowedError: the code went on spinning.
    """
    try:
        check(live_run, scope)
    except RunStopped as stop:
        _refused(live_run, branch, stop, pos)
        raise


def _refused(live_run: LiveRun, branch: str, stop: RunStopped, pos: int | None) -> None:
    # Threads in copies of one context share a branch: each of them is asked apart, as tasks are.
    place = f"{branch} in thread {_threads.number}"
    count = _spins(live_run, place, stop, pos, branch)
    if count >= PATIENCE:
        in_loop = asyncio._get_running_loop() is not None
        time.sleep(min(_delay(count), _LONGEST_IN_LOOP) if in_loop else _delay(count))
    _cancel(place, count, stop)


def _branch_of(step: Step) -> str:
    """The path of the branch that a step was called in."""
    return step.path if step.spec.key is not None else step.key.rpartition("/")[0]


def _spins(live_run: LiveRun, place: str, stop: RunStopped, pos: int | None, branch: str) -> int:
    """Return how many refusals in a row this one makes, for its place or for its branch."""
    count = _count(live_run, place, stop, pos)
    if count == PATIENCE:
        _tell(live_run, place, stop)
    if live_run.stops.stop is None:
        return count
    # A task, a thread, or a branch, for each try: the code that makes them one after the other spins.
    outer = branch.rpartition("/")[0]
    return max(count, *(_spins_in(live_run, each, stop) for each in (branch, outer)))


def _spins_in(live_run: LiveRun, branch: str, stop: RunStopped) -> int:
    """Return the same of a branch in which one place after the other begins."""
    if not branch:
        return 0
    count = _count(live_run, f"{branch}/*", stop, None) - BRANCHES
    if count == PATIENCE:
        _tell(live_run, f"one place after the other in {branch}", stop)
    return count


def _count(live_run: LiveRun, branch: str, stop: RunStopped, pos: int | None) -> int:
    """Return how many refusals in a row this one makes for a branch.

    A run that is stopped admits nothing any more.  After a scope's stop other calls may have succeeded in
    between: then something was put on record, and the branch has made other calls than the refused ones.
    """
    stops = live_run.stops
    seq = live_run.log.fold.seq
    last = stops.refusals.get(branch, _NONE)
    in_a_row = stops.stop is not None or seq == last.seq or pos == last.pos + 1
    count = last.number + 1 if in_a_row else 1
    if len(stops.refusals) >= _MOST_BRANCHES:  # of a wide fan-out, each refused once
        stops.refusals.clear()
    stops.refusals[branch] = Refusals(count, last.pos if pos is None else pos, seq)
    return count


def _delay(count: int) -> float:
    """Seconds to wait after so many refusals."""
    return min(_FIRST * (1 << min(count - PATIENCE, 16)), _LONGEST)


def _tell(live_run: LiveRun, branch: str, stop: RunStopped) -> None:
    """Say it once for each branch: in the program's own log, since the run's takes no event after its end."""
    said = (
        f"{branch} was refused {PATIENCE} times in a row after this stop: its code swallows RunStopped and "
        "calls again; it is slowed down, then cancelled"
    )
    stop.add_note(said)
    _log.warning("run %s: %s", live_run.run_id, said)


def _cancel(branch: str, count: int, stop: RunStopped) -> None:
    if count >= LAST:
        raise StopSwallowedError(
            f"{branch} was refused {count} times in a row after its run was stopped; "
            "let RunStopped pass, or leave it out of what is retried"
        ) from stop
