"""How this process lets go of a run: forgotten after its end, given back, or drained."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from msgspec import structs

from agentguard.errors import AgentGuardError, RunOwnedError
from agentguard.steps.draining import Draining
from agentguard.steps.generators import GuardedAsyncGenerator, GuardedGenerator
from agentguard.steps.journal import Journal

if TYPE_CHECKING:
    from agentguard.guard import Guard

#: How often, in seconds, a drain looks whether the steps in flight have finished.
_POLL = 0.01
_GENERATORS = GuardedGenerator, GuardedAsyncGenerator


def forget(guard: Guard, journal: Journal) -> None:
    """This process is done with a run: nothing of it stays behind in the guard and in event loops."""
    if guard.live.get(journal.run_id) is journal:
        del guard.live[journal.run_id]
    for ref in journal.loops.keyrefs():  # a list: other threads may meet their loops meanwhile
        loop = ref()
        if loop is not None and (factory := journal.loops.get(loop)) is not None:
            factory.leave(id(journal))


def still_open(journal: Journal) -> list[Any]:
    """The generators and blocks of a run that are open."""
    while True:
        try:
            return list(journal.generators)
        except RuntimeError:  # another thread opened or closed one meanwhile
            continue


def give_back(guard: Guard, journal: Journal) -> None:
    """Leave a run without an owner, in the state that it is in, for another process to carry on."""
    parts = guard.parts
    with journal.deciding():
        if not journal.fold.state.final:
            row = structs.replace(journal.row, owner={}, heartbeat_ns=parts.clock.wall())
            parts.store.update_row(row)
            journal.row = row
    forget(guard, journal)


# --- draining ------------------------------------------------------------------------------------


def drain(guard: Guard, journal: Journal, timeout: float | None) -> bool:
    """See `Run.drain`."""
    deadline = _deadline(timeout)
    draining = _begin(guard, journal)
    try:
        while _goes_on(guard, journal) and time.monotonic() < deadline:
            draining.over.wait(_POLL)
    finally:
        _release(guard, journal)
    return not draining.left


async def adrain(guard: Guard, journal: Journal, timeout: float | None) -> bool:
    """See `Run.adrain`."""
    deadline = _deadline(timeout)
    draining = _begin(guard, journal)
    try:
        while _goes_on(guard, journal) and time.monotonic() < deadline:  # noqa: ASYNC110 - threads end too
            await asyncio.sleep(_POLL)
    finally:
        _release(guard, journal)
    return not draining.left


def finish(guard: Guard, journal: Journal) -> None:
    """The run's block is left during a drain: return when that is over."""
    draining = journal.draining
    if draining is None or draining.run_id != journal.run_id:
        return
    if _in_a_loop():
        _release(guard, journal)  # to wait would keep the steps of this loop from finishing
    for each in _family(guard, journal):
        # Nobody asks them on any more.  Blocks may have been begun in a thread that is still at work.
        draining.cut_off |= {
            (each.run_id, held.step.key) for held in still_open(each) if isinstance(held, _GENERATORS)
        }
    draining.over.wait()


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _deadline(timeout: float | None) -> float:
    if timeout is None:
        return float("inf")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout must be a number of seconds or None, not {timeout!r}")
    if not timeout >= 0:
        raise ValueError(f"timeout must not be negative, not {timeout!r}")
    return time.monotonic() + timeout


def _begin(guard: Guard, journal: Journal) -> Draining:
    """Close admission; a second drain joins the first."""
    run_id = journal.run_id
    if journal.draining is not None and journal.draining.run_id == run_id:
        return journal.draining
    if journal.levels.outer:
        around = journal.levels.outer[-1].journal.run_id
        raise AgentGuardError(f"run {run_id} is nested in run {around}: drain that one, and both are let go")
    draining = Draining(run_id)
    if journal.fold.state.final:
        draining.over.set()
        return draining
    if not journal.owner:
        raise AgentGuardError(f"only the process that opened or recovered run {run_id} can drain it")
    with journal.lock:
        if journal.draining is None:
            for each in _family(guard, journal):
                each.drain_with(draining)
            if draining.lets_on():
                for each in _family(guard, journal):
                    each.drain_with(None)
                raise AgentGuardError(
                    f"run {run_id} was to be drained inside one of its steps, which could not finish then: "
                    "call drain() between steps, or in another thread"
                )
    return journal.draining or draining


def _family(guard: Guard, journal: Journal) -> list[Journal]:
    """A run and the runs nested in it that live in this process, the innermost first."""
    live = [alive for ref in guard.live.valuerefs() if (alive := ref()) is not None and alive.owner]
    nested = [each for each in live if _is_in(each, journal)]
    nested.sort(key=lambda each: len(each.levels.outer), reverse=True)
    return [*nested, journal]


def _is_in(journal: Journal, around: Journal) -> bool:
    return any(outer.journal.run_id == around.run_id for outer in journal.levels.outer)


def _goes_on(guard: Guard, journal: Journal) -> bool:
    """Whether a drain still waits for something."""
    draining = journal.draining
    if draining is None or draining.over.is_set() or journal.fold.state.final:
        return False
    family = _family(guard, journal)
    for each in family:
        each.drain()  # generators that the agent has dropped on its way out
    return bool(_in_flight(family) - draining.cut_off)


def _in_flight(family: list[Journal]) -> set[tuple[str, str]]:
    """The steps that this process has in flight, by run and key."""
    return {
        (each.run_id, key) for each in family for key in list(each.fold.open) if key not in each.elsewhere
    }


def _release(guard: Guard, journal: Journal) -> None:
    """Give up the run, and the runs in it; bodies still in flight are stopped where that can be done.

    Raises:
        StoreUnavailableError: the store cannot be told; nothing more is written all the same.
    """
    draining = journal.draining
    if draining is None:
        return
    with journal.lock:
        if draining.over.is_set():
            return
        family = _family(guard, journal)
        try:
            if not journal.fold.state.final:
                with contextlib.suppress(RunOwnedError):  # somebody has claimed it meanwhile
                    for each in family:
                        give_back(guard, each)
        finally:
            if not journal.fold.state.final:
                draining.left = frozenset(_in_flight(family))
                draining.released = True
                for each in family:
                    each.let_go()
            draining.over.set()
    if draining.released:
        for each in family:
            for body in tuple(each.bodies):
                body.stop(draining.stop)
