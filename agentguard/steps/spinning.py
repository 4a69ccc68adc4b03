"""A program that swallows its stop and calls again is slowed down, then cancelled.

Refusing costs next to nothing, so a loop that retries every error for ever would take a whole core, and
in an event loop the turn of every other task.  A branch that was refused `PATIENCE` times in a row is
slowed down, a little more each time; from `LAST` on it is cancelled as well, by an exception that no
`except Exception` takes.  Both are on record in the run's log, as `stop_swallowed`, also after the run's end.
All of this lies behind a refusal: a run that is not stopped never comes here.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from agentguard.errors import AgentGuardError, RunStopped
from agentguard.events import model as ev
from agentguard.events.data import StopSwallowed
from agentguard.events.model import Record
from agentguard.steps.exit_rule import StopSwallowedError
from agentguard.steps.flow import check
from agentguard.steps.stops import Refusals

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
#: Of so many branches of a run, a process puts on record that they spin.
_MOST_ON_RECORD = 20
SLOWED, CANCELLED = "slowed", "cancelled"


class _Threads(threading.local):
    """The number of a thread, which no other gets when this one has ended."""

    _numbers = itertools.count(1)

    def __init__(self) -> None:
        self.number = next(self._numbers)


_threads = _Threads()
_log = logging.getLogger("agentguard")


_NONE = Refusals(0, 0, -1)


class _Spin(NamedTuple):
    """How many refusals in a row there were, and in which branch."""

    refusals: int
    branch: str


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
    spin = _spins(step.live_run, branch, stop, step.pos, _branch_of(step))
    if spin.refusals >= PATIENCE:
        if (news := _news(step.live_run, spin)) is not None:
            await asyncio.to_thread(_put_on_record, step.live_run, news)
        await asyncio.sleep(_delay(spin.refusals))
    _cancel(branch, spin.refusals, stop)


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
    spin = _spins(live_run, place, stop, pos, branch)
    if spin.refusals >= PATIENCE:
        if (news := _news(live_run, spin)) is not None:
            _put_on_record(live_run, news)
        in_loop = asyncio._get_running_loop() is not None
        time.sleep(min(_delay(spin.refusals), _LONGEST_IN_LOOP) if in_loop else _delay(spin.refusals))
    _cancel(place, spin.refusals, stop)


def _branch_of(step: Step) -> str:
    """The path of the branch that a step was called in."""
    return step.path if step.spec.key is not None else step.key.rpartition("/")[0]


def _spins(live_run: LiveRun, place: str, stop: RunStopped, pos: int | None, branch: str) -> _Spin:
    """Return how many refusals in a row this one makes, for its place or for its branch."""
    spin = _Spin(_count(live_run, place, stop, pos), branch)
    if spin.refusals == PATIENCE:
        _tell(live_run, place, stop)
    if live_run.stops.stop is None:
        return spin
    # A task, a thread, or a branch, for each try: the code that makes them one after the other spins.
    outer = branch.rpartition("/")[0]
    return max(spin, *(_Spin(_spins_in(live_run, each, stop), each) for each in (branch, outer)))


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
    """Say it once for each place, in the program's own log and as a note on the stop."""
    said = (
        f"{branch} was refused {PATIENCE} times in a row after this stop: its code swallows RunStopped and "
        "calls again; it is slowed down, then cancelled"
    )
    stop.add_note(said)
    _log.warning("run %s: %s", live_run.run_id, said)


def _news(live_run: LiveRun, spin: _Spin) -> StopSwallowed | None:
    """Return what is to be put on record of a branch that spins, once for each branch and action."""
    action = CANCELLED if spin.refusals >= LAST else SLOWED
    noted = live_run.stops.swallowed
    if (spin.branch, action) in noted or len(noted) >= 2 * _MOST_ON_RECORD:
        return None
    noted.add((spin.branch, action))
    if live_run.components.abilities.sealed is not None:  # a replay writes nothing
        return None
    return {"branch": spin.branch, "refusals": spin.refusals, "action": action}


def _put_on_record(live_run: LiveRun, data: StopSwallowed) -> None:
    """Append it to the run's log; where that cannot be done, the stop holds all the same."""
    with suppress(AgentGuardError):
        live_run.log.decide(lambda: _append(live_run, data))


def _append(live_run: LiveRun, data: StopSwallowed) -> None:
    log, refusals = live_run.log, live_run.stops.refusals
    seq = log.fold.seq
    log.act([Record(0, ev.STOP_SWALLOWED, live_run.clock.wall(), data=data)])
    for place, last in list(refusals.items()):
        if last.seq == seq:  # it is no call that has succeeded in between
            refusals[place] = last._replace(seq=log.fold.seq)


def _cancel(branch: str, count: int, stop: RunStopped) -> None:
    if count >= LAST:
        raise StopSwallowedError(
            f"{branch} was refused {count} times in a row after its run was stopped; "
            "let RunStopped pass, or leave it out of what is retried"
        ) from stop
