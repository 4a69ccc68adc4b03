"""How this process lets go of a run: forgotten after its end, given back, or drained."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from msgspec import structs

from agentguard.errors import AgentGuardError, RunOwnedError
from agentguard.runtime import Runtime
from agentguard.steps.draining import Draining
from agentguard.steps.generators import GuardedAsyncGenerator, GuardedGenerator
from agentguard.steps.live import LiveRun

#: How often, in seconds, a drain looks whether the steps in flight have finished.
_POLL = 0.01
_GENERATORS = GuardedGenerator, GuardedAsyncGenerator


def forget(runtime: Runtime, journal: LiveRun) -> None:
    """Leave nothing of a run behind in the runtime and in event loops."""
    if runtime.live.get(journal.run_id) is journal:
        del runtime.live[journal.run_id]
    for ref in journal.in_flight.loops.keyrefs():  # a list: other threads may meet their loops meanwhile
        loop = ref()
        if loop is not None and (factory := journal.in_flight.loops.get(loop)) is not None:
            factory.leave(id(journal))


def still_open(journal: LiveRun) -> list[Any]:
    """Return the generators and blocks of a run that are open."""
    while True:
        try:
            return list(journal.in_flight.generators)
        except RuntimeError:  # another thread opened or closed one meanwhile
            continue


def give_back(runtime: Runtime, journal: LiveRun) -> None:
    """Leave a run without an owner, in the state that it is in, for another process to carry on."""
    components = runtime.components
    log = journal.log

    def release() -> None:
        if not log.fold.state.final:
            row = structs.replace(log.row, owner={}, heartbeat_ns=components.clock.wall())
            components.store.update_row(row)
            log.row = row

    log.decide(release)
    forget(runtime, journal)


# --- draining ------------------------------------------------------------------------------------


def drain(runtime: Runtime, journal: LiveRun, timeout: float | None) -> bool:
    """See `Run.drain`."""
    deadline = _deadline(timeout)
    draining = _begin(runtime, journal)
    try:
        while _goes_on(runtime, journal) and time.monotonic() < deadline:
            draining.over.wait(_POLL)
    finally:
        _release(runtime, journal)
    return not draining.left


async def adrain(runtime: Runtime, journal: LiveRun, timeout: float | None) -> bool:
    """See `Run.adrain`."""
    deadline = _deadline(timeout)
    draining = _begin(runtime, journal)
    try:
        while _goes_on(runtime, journal) and time.monotonic() < deadline:  # noqa: ASYNC110 - threads end too
            await asyncio.sleep(_POLL)
    finally:
        _release(runtime, journal)
    return not draining.left


def finish(runtime: Runtime, journal: LiveRun) -> None:
    """Return when a drain during which the run's block is left is over."""
    draining = journal.draining
    if draining is None or draining.run_id != journal.run_id:
        return
    if _in_a_loop():
        _release(runtime, journal)  # to wait would keep the steps of this loop from finishing
    for each in _family(runtime, journal):
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


def _begin(runtime: Runtime, journal: LiveRun) -> Draining:
    """Close admission; a second drain joins the first."""
    run_id = journal.run_id
    if journal.draining is not None and journal.draining.run_id == run_id:
        return journal.draining
    if journal.around:
        around = journal.around[-1].live.run_id
        raise AgentGuardError(f"run {run_id} is nested in run {around}: drain that one, and both are let go")
    draining = Draining(run_id)
    if journal.fold.state.final:
        draining.over.set()
        return draining
    if not journal.owner:
        raise AgentGuardError(f"only the process that opened or recovered run {run_id} can drain it")

    def close_admission() -> None:
        if journal.draining is None:
            for each in _family(runtime, journal):
                each.stops.drain_with(draining)
            if draining.lets_on():
                for each in _family(runtime, journal):
                    each.stops.drain_with(None)
                raise AgentGuardError(
                    f"run {run_id} was to be drained inside one of its steps, which could not finish then: "
                    "call drain() between steps, or in another thread"
                )

    journal.log.hold(close_admission)
    return journal.draining or draining


def _family(runtime: Runtime, journal: LiveRun) -> list[LiveRun]:
    """Return a run and the runs nested in it that live in this process, the innermost first."""
    nested = [each for each in runtime.journals() if each.owner and _is_in(each, journal)]
    nested.sort(key=lambda each: len(each.around), reverse=True)
    return [*nested, journal]


def _is_in(journal: LiveRun, around: LiveRun) -> bool:
    return any(outer.live.run_id == around.run_id for outer in journal.around)


def _goes_on(runtime: Runtime, journal: LiveRun) -> bool:
    """Whether a drain still waits for something."""
    draining = journal.draining
    if draining is None or draining.over.is_set() or journal.fold.state.final:
        return False
    family = _family(runtime, journal)
    for each in family:
        each.in_flight.settle_orphans()  # generators that the agent has dropped on its way out
    return bool(_in_flight(family) - draining.cut_off)


def _in_flight(family: list[LiveRun]) -> set[tuple[str, str]]:
    """Return the steps that this process has in flight, by run and key."""
    return {
        (each.run_id, key) for each in family for key in list(each.fold.open) if key not in each.log.elsewhere
    }


def _release(runtime: Runtime, journal: LiveRun) -> None:
    """Give up the run, and the runs in it; bodies still in flight are stopped where that can be done.

    Raises:
        StoreUnavailableError: the store cannot be told; nothing more is written all the same.
    """
    draining = journal.draining
    if draining is None:
        return
    family = journal.log.hold(_release_family, runtime, journal, draining)
    if draining.released:
        for each in family:
            for body in tuple(each.in_flight.bodies):
                body.stop(draining.stop)


def _release_family(runtime: Runtime, journal: LiveRun, draining: Draining) -> list[LiveRun]:
    if draining.over.is_set():
        return []
    family = _family(runtime, journal)
    try:
        if not journal.fold.state.final:
            with contextlib.suppress(RunOwnedError):  # somebody has claimed it meanwhile
                for each in family:
                    give_back(runtime, each)
    finally:
        if not journal.fold.state.final:
            draining.left = frozenset(_in_flight(family))
            draining.released = True
            for each in family:
                each.let_go()
        draining.over.set()
    return family
