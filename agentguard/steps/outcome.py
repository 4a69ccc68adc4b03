"""The end of a step: what it is charged, and its outcome on record."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import msgspec

from agentguard._reentry import finish
from agentguard._values.names import type_name
from agentguard.budget.account import ONE_STEP, Account, Amounts
from agentguard.budget.ledger import Movement
from agentguard.budget.model import Usage
from agentguard.errors import (
    AgentGuardError,
    ReplayDivergenceError,
    StepOutcomeUnknownError,
    ThreadCancellation,
)
from agentguard.events import model as ev
from agentguard.events.data import StepEnded
from agentguard.events.model import Record
from agentguard.protocols import HeadMovedError, StoreBusyError
from agentguard.steps import exceptions
from agentguard.steps.budget_levels import Refused
from agentguard.steps.draining import discards
from agentguard.steps.flow import append_in_turn, wait_for_commit
from agentguard.steps.live import LiveRun
from agentguard.steps.model import Step
from agentguard.steps.refusing import needs_care, stop_level, warn
from agentguard.steps.spec import name_option, with_step
from agentguard.steps.unknown_cost import charged

#: What the log calls the outcome of a step that somebody cancelled.
CANCELLED = "cancelled"
#: What it calls that of a step that was open at the end of its run.
ABANDONED = "abandoned"


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """How a step ended.  `usage` is None where the body never ran: everything is given back."""

    type: str
    usage: Amounts | None
    payload: bytes | None = None
    data: StepEnded | None = None
    error: BaseException | None = None

    @property
    def cancelled(self) -> bool:
        """Whether the step was cancelled."""
        return self.data is not None and self.data.get("outcome") == CANCELLED


def is_cancellation(error: BaseException) -> bool:
    """Return whether the exception comes from a cancellation of the task that runs here.

    A CancelledError that nobody asked for, of a task inside the body or of an executor's future, is an
    error of the step like any other: a replay must raise it by itself.
    """
    if not isinstance(error, asyncio.CancelledError):
        return isinstance(error, ThreadCancellation)
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return False  # no event loop runs here
    return task is None or task.cancelling() > 0  # without a task, what drives the step has thrown it in


def unentered(error: BaseException) -> Outcome:
    """Return the outcome of a step whose body never ran: it gives everything back."""
    data: StepEnded = {"error": exceptions.capture(error), "body_ran": False}
    if is_cancellation(error):
        data["outcome"] = CANCELLED
    return Outcome(ev.STEP_FAILED, None, data=data, error=error)


def completed(usage: Amounts, payload: bytes | None, data: StepEnded) -> Outcome:
    """Return the outcome of a body that returned."""
    return Outcome(ev.STEP_COMPLETED, usage, payload, data)


def failed(step: Step, error: BaseException, how: str | None = None) -> Outcome:
    """Return the outcome of a body that raised, was cancelled, or was abandoned.

    It is charged what it settled, else its reservation; an exception in `free_on` proves that
    nothing but the step itself was used.
    """
    free = step.settled is None and isinstance(error, step.spec.free_on)
    usage = ONE_STEP if free else settled_or_reserved(step)
    data: StepEnded = {}
    exceptions.put_on_record(data, error, step.live_run.redactor(step.spec))
    if how is None and is_cancellation(error):
        how = CANCELLED
    if how is not None:
        data["outcome"] = how
    return Outcome(ev.STEP_FAILED, usage, data=data, error=error)


def untold(step: Step, error: BaseException) -> Outcome:
    """Return the outcome of a step whose error cannot be recorded beyond its type."""
    usage = step.request.reserve if step.entered else None
    data: StepEnded = {"error": {"type": type_name(type(error)), "message": "(it could not be recorded)"}}
    if not step.entered:
        data["body_ran"] = False
    return Outcome(ev.STEP_FAILED, usage, data=data, error=error)


def settled_or_reserved(step: Step) -> Amounts:
    """Return what a body settled itself, else its reservation."""
    return step.request.reserve if step.settled is None else charged(step, step.settled)


def usage_of(step: Step, result: object, args: Sequence[object], kwargs: Mapping[str, object]) -> Amounts:
    """Return what a body that returned has used: settled, else by `usage=`, else its reservation.

    Raises:
        TypeError: `usage=` gave no `Usage`; and whatever it raises itself.
    """
    if step.settled is not None:
        return charged(step, step.settled)
    spec = step.spec
    given = spec.usage
    if given is None or not spec.postpaid:
        return step.request.reserve
    if isinstance(given, Usage):
        return charged(step, with_step(given))
    try:
        usage = given(result, *args, **kwargs) if spec.usage_takes_arguments else given(result)
    except Exception as error:
        name_option(error, spec.name, "usage")
        raise
    if not isinstance(usage, Usage):
        raise TypeError(f"{spec.name}: usage must give a Usage, not {type(usage).__name__}")
    return charged(step, with_step(usage))


def at_least(reserve: Amounts, usage: Amounts) -> Amounts:
    """Return the larger of both amounts of each resource: what was counted before the end is not all."""
    return {**reserve, **{name: max(n, reserve.get(name, 0)) for name, n in usage.items()}}


#: What ends a recovery without ending the run, nor the steps around it.
_IN_DOUBT = (StepOutcomeUnknownError, ReplayDivergenceError)


def leave(step: Step, outcome: Outcome, *, wait: bool = True) -> None:
    """Settle the step and put its outcome on record, in one act.

    Raises:
        StoreBusyError: with `wait=False`, this would have to wait for another writer.
        StoreUnavailableError: the outcome could not be recorded; the start is on record.
    """
    if step.continuations:
        outcome = msgspec.structs.replace(outcome, data={**(outcome.data or {}), "came": step.continuations})
    live_run = step.live_run
    told = outcome.error is not None or live_run.stops.draining is not None
    if not (told and _stays_open(step, outcome)):
        append_in_turn(step, _leave, outcome, wait)
        if step.commit is not None and wait:
            confirm_outcome(step, outcome)
    if live_run.in_flight.held:
        live_run.in_flight.held.pop(step, None)


def confirm_outcome(step: Step, outcome: Outcome) -> None:
    """Return when the outcome that was accepted is committed; append it again where others came first.

    Raises:
        StoreUnavailableError: it could not be recorded, or nobody knows; the start is on record.
    """
    log = step.live_run.log
    try:
        accounts = wait_for_commit(step)
    except (HeadMovedError, StoreBusyError):
        log.decide(lambda: _leave(step, outcome, True))  # noqa: FBT003
    except AgentGuardError:
        raise
    except BaseException:  # of a signal handler: what it accepted may be lost, and is put on record here then
        finish(lambda: log.decide(lambda: _leave(step, outcome, True)), log.is_owned)  # noqa: FBT003
        raise
    else:
        if outcome.usage is not None and needs_care(step.live_run, outcome.usage, accounts):
            log.hold(_care, step, outcome.usage, accounts)


def _care(step: Step, usage: Amounts, accounts: Mapping[str, Account]) -> None:
    warn(step.live_run, step.scope_key, usage, accounts)
    _stop_overdrawn(step.live_run, accounts)


def _stays_open(step: Step, outcome: Outcome) -> bool:
    """Return whether the step stays in flight on record, because another process will carry the run on."""
    live_run = step.live_run
    draining = live_run.stops.draining
    if draining is not None and discards(draining, step, outcome.error, outcome.data):
        return True
    player = live_run.player
    if player is None:
        return False
    if isinstance(outcome.error, _IN_DOUBT):
        live_run.log.elsewhere.add(step.key)  # no body of this process settles it any more
        return True
    # A step in doubt makes the program cancel the steps beside it; those cancellations are no outcome.
    return outcome.cancelled and player.halted


def _leave(step: Step, outcome: Outcome, wait: bool) -> None:  # noqa: FBT001
    live_run = step.live_run
    log = live_run.log
    fold = log.fold
    seq = fold.seq + 1
    if live_run.time.waiters:
        live_run.time.count_idle()
    held = fold.open.get(step.key)
    if held is None or held.attempt != step.attempt:  # it was resolved, and perhaps tried again elsewhere
        _too_late(live_run, outcome)
        return
    usage = outcome.usage
    over, data = None, outcome.data
    if usage is not None and usage is not step.request.reserve:
        over, data = _excess(step, live_run, usage, data)
    movements: Sequence[Movement] = ()
    if not live_run.levels.only_this_run or step.account is not None:
        movements = live_run.levels.settling(step.key, usage)
    spec, span = step.spec, step.span
    monotonic = live_run.clock.monotonic
    took = monotonic() - step.started_ns
    record = Record(
        seq,
        outcome.type,
        step.at_ns + took,
        step.key,
        step.pos,
        spec.name,
        spec.kind,
        step.attempt,
        took,
        usage,
        None if usage is None else fold.spent_after(usage),
        data or None,
        None if span is None else span.trace_id,
        None if span is None else span.span_id,
    )
    step.seq = record.seq
    if fold.ended_ns is not None:
        _settle_late(step, live_run, record, outcome.payload, movements)
        return
    digest = log.write(record, outcome.payload, movements, spec.durability, wait)
    step.commit = log.commit
    fold.close(record, digest)
    log.written(fold)
    if usage is not None and data is not outcome.data:
        # What was reserved has been warned of already.
        warn(live_run, step.scope_key, usage, log.moved)
    if over is not None or step.unpriced is not None:
        _stop(step, live_run, over)
    if movements:
        _stop_overdrawn(live_run, log.moved)


def _stop(step: Step, live_run: LiveRun, over: Refused | None) -> None:
    """Stop the level that went over its limit, or the run whose cost is unknown."""
    if live_run.stops.stop is None and over is not None:
        stop_level(live_run, over, None)
    if live_run.stops.stop is None and step.unpriced is not None:
        live_run.end(step.unpriced)


def _too_late(live_run: LiveRun, outcome: Outcome) -> None:
    """Raise the drain's stop if the run was released; else ignore the outcome."""
    draining = live_run.stops.draining
    if draining is not None and draining.released and outcome.error is None:
        raise draining.stop.with_traceback(None)  # a result that is on no record is not handed out


def _settle_late(
    step: Step, live_run: LiveRun, record: Record, payload: bytes | None, movements: Sequence[Movement]
) -> None:
    """Settle a step after its run has ended: the run's row takes the spending in."""
    log = live_run.log

    def settle() -> None:
        if step.key in log.fold.open:
            spent = None if record.usage is None else log.fold.spent_after(record.usage)
            log.act([msgspec.structs.replace(record, spent=spent)], [payload], movements)

    log.decide(settle)


def _excess(
    step: Step, live_run: LiveRun, usage: Amounts, data: StepEnded | None
) -> tuple[Refused | None, StepEnded | None]:
    """Return the level over its limit, and the event's data with the excess."""
    reserve = step.request.reserve
    excess = {k: n - reserve.get(k, 0) for k, n in usage.items() if n > reserve.get(k, 0)}
    if not excess:
        return None, data
    over = live_run.levels.overdrawn(step.scope_key, usage, reserve)
    told: StepEnded = {}
    if data is not None:
        told |= data
    told["excess"] = excess
    return over, told


def _stop_overdrawn(live_run: LiveRun, shared: Mapping[str, Account]) -> None:
    """Stop the shared levels that an excess took over their limits."""
    for name, account in shared.items():
        refusal = account.overdrawn()
        if refusal is not None and account.budget.enforce and live_run.stops.stop is None:
            stop_level(live_run, live_run.levels.whose(name, account.path, refusal), None)
