"""The sync driver: a plain function as a guarded step."""

from __future__ import annotations

from collections.abc import Mapping

from agentguard.errors import RunStopped
from agentguard.steps import outcome, spinning
from agentguard.steps.current import CURRENT
from agentguard.steps.flow import open_step, prepare
from agentguard.steps.following import follow, replayed
from agentguard.steps.interrupt import SyncBody
from agentguard.steps.kinds import is_value, kind_of
from agentguard.steps.model import InRun, Step
from agentguard.steps.phases import begin, close, rescue, settled
from agentguard.steps.served import RecordedOutcome, ReplaySource
from agentguard.steps.spec import Args, Function, Kwargs, StepSpec


def call(
    spec: StepSpec,
    position: InRun,
    fn: Function,
    args: Args,
    kwargs: Kwargs,
    *,
    attributes: Mapping[str, object] | None = None,
) -> object:
    """Run one guarded call of `fn`."""
    step = open_step(spec, position, args, kwargs)
    if attributes is not None:
        step.attributes = attributes
    live_run = step.live_run
    if live_run.player is not None:
        prepare(step, args, kwargs)
        if (served := _served(step, live_run.player, args, kwargs)) is not None:
            return served.result()
    before = CURRENT.get()
    # Whatever raises, wherever: the inner handler settles what the body raised, the outer one what came
    # between two lines, of the inner handler too.
    try:
        try:
            begin(step, args, kwargs)
            CURRENT.set(step)
            step.entered = True
            result = SyncBody(step).run(fn, args, kwargs) if live_run.interrupt else fn(*args, **kwargs)
            CURRENT.set(before)
            if kind_of(type(result)) is not None and not is_value(result, spec.kind):
                return follow(step, result, args, kwargs)
            done = settled(step, result, args, kwargs)
        except BaseException as error:
            CURRENT.set(before)
            if step.entered:
                close(step, outcome.failed(step, error))
            raise
        close(step, done)
    except BaseException as error:
        CURRENT.set(before)
        rescue(step, error)
        raise
    return result


def _served(step: Step, player: ReplaySource, args: Args, kwargs: Kwargs) -> RecordedOutcome | None:
    """Return what the log has of a step, or None to run it; a stop that is swallowed again spins here too."""
    try:
        continued = player.continuations(step)
        served = None if continued else player.serve(step)
    except RunStopped as stop:
        spinning.refused(step, stop)
        raise
    if continued:
        return RecordedOutcome(replayed(step, continued, args, kwargs))
    if served is not None and (refusal := served.refusal) is not None:
        spinning.refused(step, refusal)
    return served
