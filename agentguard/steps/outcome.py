"""The end of a step: what it is charged, and its outcome on record."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agentguard.budget.account import Account, Amounts
from agentguard.budget.ledger import Movement
from agentguard.budget.model import Usage
from agentguard.errors import ReplayDivergenceError, StepOutcomeUnknownError
from agentguard.events import model as ev
from agentguard.events.model import Record
from agentguard.protocols import HeadMovedError, StoreBusyError
from agentguard.runs.fold import ONE_STEP
from agentguard.steps import exceptions
from agentguard.steps.flow import needs_care, stop_level, wait_for_commit, warn
from agentguard.steps.journal import MOMENT, Journal
from agentguard.steps.levels import Refused
from agentguard.steps.model import Step, with_step
from agentguard.steps.unknown_cost import charged


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """How a step ended.  `usage` is None where the body never ran: everything is given back."""

    type: str
    usage: Amounts | None
    payload: bytes | None = None
    data: dict[str, Any] | None = None
    error: BaseException | None = None


def unentered(error: BaseException) -> Outcome:
    """The outcome of a step that started and whose body never ran: it gives everything back."""
    data = {"error": exceptions.capture(error), "body_ran": False}
    return Outcome(ev.STEP_FAILED, None, data=data, error=error)


def completed(usage: Amounts, payload: bytes | None, data: dict[str, Any]) -> Outcome:
    """The outcome of a body that returned."""
    return Outcome(ev.STEP_COMPLETED, usage, payload, data)


def failed(step: Step, error: BaseException, how: str | None = None) -> Outcome:
    """The outcome of a body that raised, was cancelled, or was abandoned.

    It is charged what it settled, else its reservation; an exception in `free_on` proves that
    nothing but the step itself was used.
    """
    if step.settled is not None:
        usage = charged(step, step.settled)
    else:
        usage = ONE_STEP if isinstance(error, step.spec.free_on) else step.request.reserve
    data = exceptions.on_record(error, step.journal.redactor(step.spec))
    if how is None and isinstance(error, asyncio.CancelledError):
        how = "cancelled"
    if how is not None:
        data["outcome"] = how
    return Outcome(ev.STEP_FAILED, usage, data=data, error=error)


def usage_of(step: Step, result: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Amounts:
    """What a body that returned has used: settled, else by `usage=`, else its reservation.

    Raises:
        TypeError: `usage=` gave no `Usage`; and whatever it raises itself.
    """
    if step.settled is not None:
        return charged(step, step.settled)
    spec = step.spec
    if not spec.postpaid:
        return step.request.reserve
    given: Any = spec.usage
    usage = given(result, *args, **kwargs) if spec.usage_takes_arguments else given(result)
    if not isinstance(usage, Usage):
        raise TypeError(f"{spec.name}: usage must give a Usage, not {type(usage).__name__}")
    return charged(step, with_step(usage))


#: What ends a recovery without ending the run, nor the steps around it.
_IN_DOUBT = (StepOutcomeUnknownError, ReplayDivergenceError)


def leave(step: Step, outcome: Outcome, *, wait: bool = True) -> None:
    """Settle the step and put its outcome on record, in one act.

    Raises:
        StoreBusyError: with `wait=False`, this would have to wait for another writer.
        StoreUnavailableError: the outcome could not be recorded; the start is on record.
    """
    journal = step.journal
    if (outcome.error is not None or journal.draining is not None) and _stays_open(step, outcome):
        return
    acquire = journal.acquire
    if not acquire(wait) and not acquire(timeout=MOMENT):
        raise StoreBusyError
    release = journal.release
    try:
        _leave(step, journal, outcome, wait)
    except HeadMovedError:
        if not wait:
            raise StoreBusyError from None
        with journal.deciding():
            _leave(step, journal, outcome, wait)
    finally:
        release()
    if step.commit is not None:
        if wait:
            confirm_outcome(step, outcome)
    elif (journal.power or step.spec.durability) and wait and journal.shares_disk(step.spec.durability):
        journal.store.settle()


def confirm_outcome(step: Step, outcome: Outcome) -> None:
    """Return when the outcome that was accepted is committed; append it again where others came first.

    Raises:
        StoreUnavailableError: it could not be recorded, or nobody knows; the start is on record.
    """
    journal = step.journal
    try:
        accounts = wait_for_commit(step)
    except (HeadMovedError, StoreBusyError):
        with journal.deciding():
            _leave(step, journal, outcome, True)  # noqa: FBT003
    else:
        if outcome.usage is not None and needs_care(journal, outcome.usage, accounts):
            with journal.lock:
                warn(journal, step.scope_key, outcome.usage, accounts)
                _stop_overdrawn(journal, accounts)


def _stays_open(step: Step, outcome: Outcome) -> bool:
    """Whether what the step came to is for the next process to say: this one's program goes no further."""
    journal = step.journal
    if journal.draining is not None and journal.draining.cuts_off(step, outcome.error, outcome.data):
        return True
    return isinstance(outcome.error, _IN_DOUBT) and journal.player is not None


def _leave(step: Step, journal: Journal, outcome: Outcome, wait: bool) -> None:  # noqa: FBT001 - as above
    fold = journal.fold
    if step.key not in fold.open:
        _too_late(journal, outcome)
        return
    usage = outcome.usage
    over, data = None, outcome.data
    if usage is not None and usage is not step.request.reserve:
        over, data = _excess(step, journal, usage, data)
    movements = () if journal.levels.solo else journal.levels.settling(step.key, usage)
    spec, span = step.spec, step.span
    monotonic = journal.clock.monotonic
    took = monotonic() - step.started_ns
    record = Record(
        fold.seq + 1,
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
        _settle_late(step, journal, record, outcome.payload, movements)
        return
    digest = journal.write(record, outcome.payload, movements, spec.durability, wait)
    step.commit = journal.commit
    if journal.waiters:
        journal.time.count_idle()
    fold.close(record, digest)
    if usage is not None and data is not outcome.data:
        # What was reserved has been warned of already.
        warn(journal, step.scope_key, usage, journal.moved)
    if over is not None or step.unpriced is not None:
        _stop(step, journal, over)
    if movements:
        _stop_overdrawn(journal, journal.moved)


def _stop(step: Step, journal: Journal, over: Refused | None) -> None:
    """Stop the level that an excess took over its limit, or the run whose spending nobody knows now."""
    if journal.stop is None and over is not None:
        stop_level(journal, over, None)
    if journal.stop is None and step.unpriced is not None:
        journal.end(step.unpriced)


def _too_late(journal: Journal, outcome: Outcome) -> None:
    """The step is settled already: abandoned at the run's end, fenced by another owner, or let go."""
    draining = journal.draining
    if draining is not None and draining.released and outcome.error is None:
        raise draining.stop.with_traceback(None)  # a result that is on no record is not handed out


def _settle_late(
    step: Step, journal: Journal, record: Record, payload: bytes | None, movements: Sequence[Movement]
) -> None:
    """Settle a step after its run has ended: the run's row takes the spending in."""
    with journal.deciding():
        if step.key in journal.fold.open:
            if record.usage is not None:
                record = msgspec.structs.replace(record, spent=journal.fold.spent_after(record.usage))
            journal.act([record], [payload], movements)


def _excess(
    step: Step, journal: Journal, usage: Amounts, data: dict[str, Any] | None
) -> tuple[Refused | None, dict[str, Any] | None]:
    """What goes beyond the reservation: logged, charged, and a stop where it passes a limit."""
    reserve = step.request.reserve
    excess = {k: n - reserve.get(k, 0) for k, n in usage.items() if n > reserve.get(k, 0)}
    if not excess:
        return None, data
    over = journal.levels.overdrawn(step.scope_key, usage, reserve)
    return over, dict(data or {}) | {"excess": excess}


def _stop_overdrawn(journal: Journal, shared: Mapping[str, Account]) -> None:
    """Stop the shared levels that an excess took over their limits."""
    for name, account in shared.items():
        refusal = account.overdrawn()
        if refusal is not None and account.budget.enforce and journal.stop is None:
            stop_level(journal, journal.levels.whose(name, account.path, refusal), None)
