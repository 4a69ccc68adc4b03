"""A drain: this process lets go of a run that is to go on elsewhere ("Ownership" in docs/semantics.md).

Admission closes for the agent; a body in flight, and all that is called in it, goes on until the run is
released.  After that this process writes nothing more to it.  What unwinds the agent meanwhile is no
outcome of the steps it meets: they stay in flight on record, as in a crash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentguard.errors import RunStopped
from agentguard.steps.current import CURRENT
from agentguard.steps.exit_rule import PASSES

if TYPE_CHECKING:
    from agentguard.events.data import StepEnded
    from agentguard.steps.model import Step
    from agentguard.steps.stops import Draining


def allows(draining: Draining) -> bool:
    """Whether the code that asks is inside a body in flight, which may finish."""
    if draining.released:
        return False
    position = CURRENT.get()
    while position is not None:
        step, live = position.step, position.live_run
        if step is not None and live.stops.draining is draining and step.key in live.log.fold.open:
            return True
        position = position.run.session.around
    return False


def is_unwinding(draining: Draining, error: BaseException | None) -> bool:
    """Whether an error comes of a drain, or of what cancels and ends a program around it."""
    return error is not None and (isinstance(error, PASSES) or _holds(error, draining.stop))


def discards(draining: Draining, step: Step, error: BaseException | None, data: StepEnded | None) -> bool:
    """Whether a step's outcome is none of its own: then it stays in flight on record.

    A generator that the agent leaves on its way out would be closed early, which it was not.
    """
    closed_early = error is None and step.parent is None and bool(data) and "closed_early" in (data or {})
    # A nested run inside a body that may finish closes its own generators.
    if not (closed_early and not allows(draining)) and not is_unwinding(draining, error):
        return False
    draining.cut_off.add((step.live_run.run_id, step.key))
    return True


def _holds(error: BaseException, stop: RunStopped) -> bool:
    """Whether an error is the stop, or has it among its causes or members."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        each = pending.pop()
        if each is stop:
            return True
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            pending += [each.__cause__, each.__context__]
            if isinstance(each, BaseExceptionGroup):
                pending += each.exceptions
    return False
