"""The sync driver: a plain function as a guarded step.

The other drivers use its beginning and end too, where they need not wait.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from agentguard._values.names import type_name
from agentguard.errors import AgentGuardError, BudgetExceededError, UnknownCostError
from agentguard.events.model import STEP_COMPLETED
from agentguard.runs.current import CURRENT
from agentguard.steps import outcome
from agentguard.steps.approvals import WaitingError
from agentguard.steps.flow import admit, check, open_step, prepare
from agentguard.steps.interrupt import SyncBody, in_a_body, spared
from agentguard.steps.model import Step, StepSpec

_REFUSALS = (BudgetExceededError, UnknownCostError)


def call(
    spec: StepSpec,
    place: Any,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    attributes: Mapping[str, Any] | None = None,
) -> Any:
    """Run one guarded call of `fn`."""
    if place.journal.interrupt and in_a_body():
        with spared():
            return call(spec, place, fn, args, kwargs, attributes=attributes)
    step = open_step(spec, place, args, kwargs)
    if attributes is not None:
        step.attributes = attributes
    journal = step.journal
    if journal.player is not None:
        prepare(step, args, kwargs)
        if (served := journal.player.serve(step)) is not None:
            return served.result()
    begin(step, args, kwargs)
    token = CURRENT.set(step)
    try:
        result = SyncBody(step).run(fn, args, kwargs) if journal.interrupt else fn(*args, **kwargs)
    except BaseException as error:
        close(step, outcome.failed(step, error))
        raise
    finally:
        CURRENT.reset(token)
    close(step, settled(step, result, args, kwargs))
    return result


def begin(step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Everything before the body, waiting out a pause."""
    journal = step.journal
    if journal.interrupt and in_a_body():
        with spared():
            begin(step, args, kwargs)
        return
    if journal.orphans:
        journal.drain()
    prepare(step, args, kwargs)
    if journal.span is not None:
        start_span(step)
    try:
        try:
            admit(step)
        except WaitingError:
            _admit_in_time(step)
    except BaseException as error:
        refuse_span(step, error)
        raise
    look(step)


def _admit_in_time(step: Step) -> None:
    """Let the step start once the run is resumed, or the step approved."""
    with step.journal.time.waiting(step):
        while True:
            step.journal.wait_for_change()
            with contextlib.suppress(WaitingError):
                return admit(step)


def look(step: Step) -> None:
    """The last look at the stop, immediately before the body and after any wait."""
    journal = step.journal
    if journal.pending_warnings:
        journal.tell_warnings()
    try:
        check(journal, step.scope_key)
    except AgentGuardError as error:
        if isinstance(error, _REFUSALS) and not journal.killed:
            return  # of another step, since this one was admitted: what was granted is used up to the limit
        if journal.draining is not None and not journal.draining.released and error is journal.draining.stop:
            return  # a drain that began since: it lets what is in flight finish
        close(step, outcome.unentered(error))
        raise


def settled(step: Step, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> outcome.Outcome:
    """The outcome of a body that returned; a bad `usage=` fails the step instead, and is raised."""
    try:
        usage = outcome.usage_of(step, result, args, kwargs)
    except BaseException as error:
        close(step, outcome.failed(step, error))
        raise
    try:
        payload, data = step.keeper.result(result)
    except BaseException as error:  # a signal, or a `redact=` that ends the program: the body has run
        data = {"unreplayable": f"capturing it raised {type_name(type(error))}"}
        close(step, outcome.Outcome(STEP_COMPLETED, usage, None, data))
        raise
    return outcome.Outcome(STEP_COMPLETED, usage, payload, data)


def close(step: Step, done: outcome.Outcome) -> None:
    """Put an outcome on record and end the span."""
    if step.journal.interrupt and in_a_body():
        with spared():
            close(step, done)
        return
    try:
        outcome.leave(step, done)
    finally:
        if step.span is not None:
            end_span(step, done)
    if step.journal.pending_warnings:
        step.journal.tell_warnings()


def start_span(step: Step) -> None:
    """Start the step's span, where telemetry is on."""
    span = step.journal.span
    if span is not None:
        spec = step.spec
        attributes = step.attributes or spec.attributes
        step.span = span.start_step(spec.name, spec.kind, step.key, step.attempt, attributes)


def refuse_span(step: Step, error: BaseException) -> None:
    """End the span of a step that never started."""
    if step.span is not None:
        step.span.refused(error)


def end_span(step: Step, done: outcome.Outcome) -> None:
    """End the step's span with what the log says."""
    if step.span is not None:
        took = step.journal.clock.monotonic() - step.started_ns
        step.span.end(done.error, done.usage, took)
