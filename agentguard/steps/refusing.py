"""At a limit: the refusal of a step, the stop of the level that has no room, and the warning before that."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from agentguard.budget import resources as r
from agentguard.budget.account import Account, Amounts
from agentguard.errors import LimitAskedError, RunStopped, UnknownCostError
from agentguard.events import model as ev
from agentguard.events.data import BudgetWarning, ScopeStopped, StepRefused, data_of, put_said
from agentguard.events.model import Record
from agentguard.runs.termination import termination
from agentguard.steps import limit_questions
from agentguard.steps.budget_levels import Refused
from agentguard.steps.decision import Decision
from agentguard.steps.live import LiveRun
from agentguard.steps.log import WaitingError
from agentguard.steps.model import Step


def refuse(step: Step, refused: Refused) -> RunStopped | WaitingError | LimitAskedError:
    """Stop the level that has no room, log the one refusal, and return what to raise.

    Where its limit asks, the run pauses instead, and the step waits; or its caller is to get the answer.
    """
    live_run, how = step.live_run, step.spec.asks
    owner = _owner_of(refused, live_run)
    denied: Decision | None = None
    if owner is not None and limit_questions.asks(owner, refused):
        if how == "operator" or owner is not live_run:
            limit_questions.ask(owner, step, refused, refused_record(step))
            return WaitingError()
        if not isinstance(how, Decision):
            return limit_questions.asked_of_caller(step, refused)
        denied = how
    return stop_level(live_run, refused, refused_record(step, denied))


def refused_record(step: Step, denied: Decision | None = None) -> Record:
    """Return the `step_refused` of a step that never started, which the program itself may have denied."""
    data = _refused_data(step)
    if denied is not None:
        data = data or {}
        put_said(data, denied.said())
    return Record(
        0,
        ev.STEP_REFUSED,
        step.live_run.clock.wall(),
        step.key,
        step.pos,
        step.spec.name,
        step.spec.kind,
        step.attempt,
        data=data,
    )


def _refused_data(step: Step) -> StepRefused | None:
    data: StepRefused = {}
    if step.attributes:
        data["attributes"] = step.attributes
    if step.spec.key is not None:
        data["branch"] = step.path
    if step.digest is not None:
        data["args"] = step.digest
    if step.scope_key:
        data["scope"] = step.scope_key
    if step.parent is not None:
        data["parent"] = step.parent.key
    return data or None


def stop_level(live_run: LiveRun, refused: Refused, record: Record | None) -> RunStopped:
    """Make a level's stop stick: a scope's inside it, a run's or the tenant's in the whole run.

    `record` is the `step_refused` to log with it, in the live run of the step.
    """
    error: RunStopped = refused.refusal.error(_public_path(live_run, refused), live_run.run_id)
    owner = _owner_of(refused, live_run)
    if owner is not None and owner is not live_run:
        live_run.end(error, record)
        theirs: RunStopped = refused.refusal.error(refused.path, owner.run_id)  # as its own program has it
        if refused.scope:
            _stop_scope(owner, refused.scope, theirs, None)
        else:
            owner.end(theirs)
    elif owner is not None and refused.scope:
        _stop_scope(live_run, refused.scope, error, record)
    else:
        live_run.end(error, record)
    return error


def _owner_of(refused: Refused, live_run: LiveRun) -> LiveRun | None:
    """Return the run whose level refused: this one or one around it; None for a tenant's."""
    runs = (live_run, *(around.live_run for around in live_run.around))
    return next((live for live in runs if live.log is refused.log), None)


def _stop_scope(live_run: LiveRun, scope: str, error: RunStopped, record: Record | None) -> None:
    facts = termination(error)
    if record is None:
        path = live_run.log.fold.scopes[scope].path
        record = Record(0, ev.STEP_REFUSED, live_run.clock.wall(), name=path)
    data: ScopeStopped = {**data_of(record, StepRefused), "stops": scope, "termination": facts}
    live_run.stops.scopes.setdefault(scope, error)
    log = live_run.log
    refusal = replace_data(record, data)

    def put() -> None:
        if log.fold.scopes[scope].stop is None and not log.fold.state.final:
            log.act([refusal])

    log.decide(put)
    live_run.stops.cancel(error, scope)


def replace_data(record: Record, data: StepRefused) -> Record:
    """The record with other data."""
    return msgspec.structs.replace(record, data=data)


def _public_path(live_run: LiveRun, refused: Refused) -> str:
    if refused.log is None or refused.log is live_run.log:
        return refused.path
    outer = refused.log.run_id
    return f"run:{outer}" if not refused.scope else f"run:{outer}/{refused.path}"


def refuse_unknown_cost(step: Step, error: UnknownCostError) -> None:
    """Stop the run with an llm step whose cost nobody can tell."""
    step.live_run.end(error, refused_record(step))
    raise error


# --- soft limits ---------------------------------------------------------------------------------


def warn(live_run: LiveRun, scope: str, resources: Amounts, shared: Mapping[str, Account]) -> None:
    """Log one `budget_warning` for each level and resource that has just crossed `warn_at`."""
    levels = [(level.key, level.accounts[0]) for level in live_run.log.fold.chain(scope)]
    for level, account in (*levels, *shared.items()):
        for resource, used, limit in account.crossed(resources):
            name = r.public_name(resource)
            if (level, name) not in live_run.log.fold.warned:
                data: BudgetWarning = {
                    "level": level,
                    "path": account.path,
                    "resource": name,
                    "used": str(r.public_amount(resource, used)),
                    "limit": str(r.public_amount(resource, limit)),
                }
                _log_warning(live_run, data)


def needs_care(live_run: LiveRun, amounts: Amounts, accounts: Mapping[str, Account]) -> bool:
    """Return whether a commit left a shared account near or over a limit."""
    warned = live_run.log.fold.warned
    return any(
        account.overdrawn() is not None
        or any((level, r.public_name(name)) not in warned for name, _, _ in account.crossed(amounts))
        for level, account in accounts.items()
    )


def _log_warning(live_run: LiveRun, data: BudgetWarning) -> None:
    log = live_run.log

    def warn_once() -> None:
        if (data["level"], data["resource"]) not in log.fold.warned:
            log.act([Record(0, ev.BUDGET_WARNING, live_run.clock.wall(), data=data)])
            live_run.in_flight.warned(dict(data))

    log.decide(warn_once)
