"""How this process lets go of a run: forgotten after its end, given back, or drained."""

from __future__ import annotations

import asyncio
import contextlib
import time

from msgspec import structs

from agentguard.errors import AgentGuardError, RunOwnedError
from agentguard.runtime import Runtime
from agentguard.steps.draining import allows
from agentguard.steps.generators import GuardedAsyncGenerator, GuardedGenerator
from agentguard.steps.live import LiveRun
from agentguard.steps.stops import Draining

#: How often, in seconds, a drain looks whether the steps in flight have finished.
_POLL = 0.01
_GENERATORS = GuardedGenerator, GuardedAsyncGenerator


def forget(runtime: Runtime, live_run: LiveRun) -> None:
    """Leave nothing of a run behind in the runtime and in event loops."""
    if runtime.live.get(live_run.run_id) is live_run:
        del runtime.live[live_run.run_id]
    for factory in live_run.in_flight.factories():
        factory.release(id(live_run))


def give_back(runtime: Runtime, live_run: LiveRun) -> None:
    """Leave a run without an owner, in the state that it is in, for another process to carry on."""
    components = runtime.components
    log = live_run.log

    def release() -> None:
        if not log.fold.state.final:
            row = structs.replace(log.row, owner={}, heartbeat_ns=components.clock.wall())
            components.store.update_row(row)
            log.row = row

    log.decide(release)
    forget(runtime, live_run)


# --- draining ------------------------------------------------------------------------------------


def drain(runtime: Runtime, live_run: LiveRun, timeout: float | None) -> bool:
    """See `Run.drain`."""
    deadline = _deadline(timeout)
    draining = _begin(runtime, live_run)
    try:
        while _goes_on(runtime, live_run) and time.monotonic() < deadline:
            draining.over.wait(_POLL)
    finally:
        _release(runtime, live_run)
    return not draining.left


async def adrain(runtime: Runtime, live_run: LiveRun, timeout: float | None) -> bool:
    """See `Run.adrain`."""
    deadline = _deadline(timeout)
    draining = _begin(runtime, live_run)
    try:
        while _goes_on(runtime, live_run) and time.monotonic() < deadline:  # noqa: ASYNC110 - threads end too
            await asyncio.sleep(_POLL)
    finally:
        _release(runtime, live_run)
    return not draining.left


def finish(runtime: Runtime, live_run: LiveRun) -> None:
    """Return when a drain during which the run's block is left is over."""
    draining = live_run.draining
    if draining is None or draining.run_id != live_run.run_id:
        return
    if _in_a_loop():
        _release(runtime, live_run)  # to wait would keep the steps of this loop from finishing
    for each in _family(runtime, live_run):
        # The program no longer iterates them.  Blocks may have been begun in a thread that is still at work.
        draining.cut_off |= {
            (each.run_id, step.key)
            for step, holder in each.in_flight.holders()
            if isinstance(holder, _GENERATORS) and holder.state == "open"
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


def _begin(runtime: Runtime, live_run: LiveRun) -> Draining:
    """Close admission; a second drain joins the first."""
    run_id = live_run.run_id
    if live_run.draining is not None and live_run.draining.run_id == run_id:
        return live_run.draining
    if live_run.around:
        around = live_run.around[-1].live_run.run_id
        raise AgentGuardError(f"run {run_id} is nested in run {around}: drain that one, and both are let go")
    draining = Draining(run_id)
    if live_run.fold.state.final:
        draining.over.set()
        return draining
    if not live_run.owner:
        raise AgentGuardError(f"only the process that opened or recovered run {run_id} can drain it")

    def close_admission() -> None:
        if live_run.draining is None:
            for each in _family(runtime, live_run):
                each.stops.drain_with(draining)
            if allows(draining):
                for each in _family(runtime, live_run):
                    each.stops.drain_with(None)
                raise AgentGuardError(
                    f"run {run_id} was to be drained inside one of its steps, which could not finish then: "
                    "call drain() between steps, or in another thread"
                )

    live_run.log.hold(close_admission)
    return live_run.draining or draining


def _family(runtime: Runtime, live_run: LiveRun) -> list[LiveRun]:
    """Return a run and the runs nested in it that live in this process, the innermost first."""
    nested = [each for each in runtime.live_runs() if each.owner and _is_in(each, live_run)]
    nested.sort(key=lambda each: len(each.around), reverse=True)
    return [*nested, live_run]


def _is_in(live_run: LiveRun, around: LiveRun) -> bool:
    return any(outer.live_run.run_id == around.run_id for outer in live_run.around)


def _goes_on(runtime: Runtime, live_run: LiveRun) -> bool:
    """Whether a drain still waits for something."""
    draining = live_run.draining
    if draining is None or draining.over.is_set() or live_run.fold.state.final:
        return False
    family = _family(runtime, live_run)
    for each in family:
        each.in_flight.settle_orphans()  # generators that the agent has dropped on its way out
    return bool(_in_flight(family) - draining.cut_off)


def _in_flight(family: list[LiveRun]) -> set[tuple[str, str]]:
    """Return the steps that this process has in flight, by run and key."""
    return {
        (each.run_id, key) for each in family for key in list(each.fold.open) if key not in each.log.elsewhere
    }


def _release(runtime: Runtime, live_run: LiveRun) -> None:
    """Give up the run, and the runs in it; bodies still in flight are stopped where that can be done.

    Raises:
        StoreUnavailableError: the store cannot be told; nothing more is written all the same.
    """
    draining = live_run.draining
    if draining is None:
        return
    family = live_run.log.hold(_release_family, runtime, live_run, draining)
    if draining.released:
        for each in family:
            for body in tuple(each.in_flight.bodies):
                body.stop(draining.stop)


def _release_family(runtime: Runtime, live_run: LiveRun, draining: Draining) -> list[LiveRun]:
    if draining.over.is_set():
        return []
    family = _family(runtime, live_run)
    try:
        if not live_run.fold.state.final:
            with contextlib.suppress(RunOwnedError):  # somebody has claimed it meanwhile
                for each in family:
                    give_back(runtime, each)
    finally:
        if not live_run.fold.state.final:
            draining.left = frozenset(_in_flight(family))
            draining.released = True
            for each in family:
                each.let_go()
        draining.over.set()
    return family
