"""What every driver does around a body: the beginning, the last look, the outcome, the end.

Written for code that may block; `aio` waits in its own way and uses the rest.
"""

from __future__ import annotations

import contextlib

from agentguard._reentry import finish
from agentguard._values.names import type_name
from agentguard.errors import AgentGuardError, BudgetExceededError, RunStopped, UnknownCostError
from agentguard.events.data import StepEnded
from agentguard.events.model import STEP_COMPLETED
from agentguard.steps import outcome, spinning, withdrawal
from agentguard.steps.flow import admit, check, prepare
from agentguard.steps.log import WaitingError
from agentguard.steps.model import Step
from agentguard.steps.patience import Patience
from agentguard.steps.spec import Args, Kwargs

_REFUSALS = (BudgetExceededError, UnknownCostError)


def begin(step: Step, args: Args, kwargs: Kwargs) -> None:
    """Do everything before the body; wait out a pause."""
    live_run = step.live_run
    if live_run.in_flight.orphans:
        live_run.in_flight.settle_orphans()
    prepare(step, args, kwargs)
    if live_run.span is not None:
        start_span(step)
    try:
        try:
            admit(step)
        except WaitingError:
            _admit_in_time(step)
    except BaseException as error:
        refuse_span(step, error)
        if isinstance(error, RunStopped):
            spinning.refused(step, error)
        withdrawal.withdraw(step, error)
        raise
    check_before_body(step)


def _admit_in_time(step: Step) -> None:
    """Let the step start once the run is resumed, or the step approved."""
    patience = Patience(step)
    with step.live_run.time.waiting(step):
        while True:
            step.live_run.wait_for_change()
            patience.check()
            with contextlib.suppress(WaitingError):
                return admit(step)


def check_before_body(step: Step) -> None:
    """Check the stop once more, immediately before the body and after any wait."""
    live_run = step.live_run
    if live_run.in_flight.pending_warnings:
        live_run.in_flight.tell_warnings()
    try:
        check(live_run, step.scope_key)
    except AgentGuardError as error:
        stops = live_run.stops
        if isinstance(error, _REFUSALS) and not stops.killed:
            return  # of another step, since this one was admitted: what was granted is used up to the limit
        if stops.draining is not None and not stops.draining.released and error is stops.draining.stop:
            return  # a drain that began since: it lets what is in flight finish
        close(step, outcome.failed(step, error) if step.entered else outcome.unentered(error))
        raise


def rescue(step: Step, error: BaseException) -> None:
    """Settle a step that is still in flight though its driver is on the way out with an error.

    What `error` is may have come between two lines of the driver, also of what settles steps, and capture
    may fail: then the outcome says no more than what raised.
    """
    if not step.at_ns or not is_open(step):
        return
    try:
        done = outcome.failed(step, error) if step.entered else outcome.unentered(error)
    except BaseException:  # noqa: BLE001 - of a user's redact= or metaclass; the step must not stay open
        done = outcome.untold(step, error)
    finish(lambda: close(step, done), step.live_run.log.is_owned)


def is_open(step: Step) -> bool:
    """Return whether the step is in flight, as far as this process knows.

    So is one whose outcome was accepted and is not committed: it is lost where others came first, or
    where the end of its run recalls it.
    """
    log = step.live_run.log
    return log.dirty or step.key in log.fold.open or step.commit is not None


def settled(step: Step, result: object, args: Args, kwargs: Kwargs) -> outcome.Outcome:
    """Return the outcome of a body that returned.

    Raises:
        BaseException: what `usage=` and capture raise; it fails the step.
    """
    usage = outcome.usage_of(step, result, args, kwargs)
    try:
        payload, told = step.recorder.result(result)
    except BaseException as error:  # a signal, or a `redact=` that ends the program: the body has run
        data: StepEnded = {"unreplayable": f"capturing it raised {type_name(type(error))}"}
        close(step, outcome.Outcome(STEP_COMPLETED, usage, None, data))
        raise
    return outcome.Outcome(STEP_COMPLETED, usage, payload, told)


def close(step: Step, done: outcome.Outcome) -> None:
    """Put an outcome on record and end the span."""
    try:
        outcome.leave(step, done)
    finally:
        if step.span is not None:
            end_span(step, done)
    if step.live_run.in_flight.pending_warnings:
        step.live_run.in_flight.tell_warnings()


def start_span(step: Step) -> None:
    """Start the step's span, where telemetry is on."""
    span = step.live_run.span
    if span is not None:
        spec = step.spec
        step.span = span.start_step(spec.name, spec.kind, step.key, step.attempt, step.attributes)


def refuse_span(step: Step, error: BaseException) -> None:
    """End the span of a step that never started."""
    if step.span is not None:
        step.span.refused(error)


def end_span(step: Step, done: outcome.Outcome) -> None:
    """End the step's span with what the log says."""
    if step.span is not None:
        took = step.live_run.clock.monotonic() - step.started_ns
        step.span.end(done.error, done.usage, took)
