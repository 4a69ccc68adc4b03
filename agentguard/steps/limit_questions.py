"""Limits that ask: at the limit the run pauses, and an operator raises it or refuses.

The question is the pause: `run_paused` says which step asks, and which limit has no room for it.  An answer
is one act: another budget and the end of the pause, or the refusal and the end of the run.  A later answer,
by another operator or by the time-out, finds no question any more.  Nothing is admitted without room.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from agentguard.budget import resources as r
from agentguard.budget.account import Account, Request
from agentguard.budget.model import Budget
from agentguard.errors import AgentGuardError, LimitAskedError
from agentguard.events import model as ev
from agentguard.events.data import (
    LimitAsked,
    RefusedFields,
    RunPaused,
    RunResumed,
    Said,
    StepRefused,
    StepRequest,
    Termination,
    data_of,
    put_said,
)
from agentguard.events.model import Head, Record
from agentguard.runs.fold import RunFold
from agentguard.runs.state import RunState
from agentguard.runs.termination import stop_from, termination
from agentguard.steps.budget_levels import Refused

if TYPE_CHECKING:
    from agentguard.steps.live import LiveRun
    from agentguard.steps.model import Step


class LimitQuestion(NamedTuple):
    """A step that waits for a higher limit of its run.

    `termination` is what ends the run if the limit is not raised: the facts of a `BudgetExceededError`.
    """

    key: str
    name: str
    termination: Termination
    request: StepRequest
    #: The `step_refused` of a refusal, where the step is one of this run and not of one inside it.
    refusal: RefusedFields | None
    #: The number of the event that asks.
    seq: int

    @property
    def way_out(self) -> str:
        """What can be done, in words."""
        return (
            f"raise it for {self.name} ({self.termination['message']}) with set_budget or "
            f"`agentguard set-budget`, or deny {self.key}"
        )


def question(fold: RunFold) -> LimitQuestion | None:
    """Return what a run asks at its limit; None where it asks nothing."""
    asks = fold.pause.get("asks")
    if asks is None or fold.state is not RunState.PAUSED:
        return None
    return LimitQuestion(**asks, seq=fold.paused_seq)


def asks(live_run: LiveRun, refused: Refused) -> bool:
    """Whether a limit of a run asks before it stops the run.  A deadline does not: its time goes on."""
    budget = live_run.log.fold.budget
    return budget.on_limit == "ask" and not refused.scope and refused.refusal.resource != r.SECONDS


def ask(live_run: LiveRun, step: Step, refused: Refused, refusal: Record) -> None:
    """Pause a run whose limit has no room for a step, unless it is paused, or has room by now."""
    error = refused.refusal.error(refused.path, live_run.run_id)
    own = step.live_run is live_run
    request = step.request
    found = LimitQuestion(
        key=step.key,
        name=step.name,
        termination=termination(error),
        request={
            "reserve": request.reserve,
            "name": request.name,
            "kind": request.kind,
            "postpaid": request.postpaid,
            "repeat": request.repeat if own else request.shared().repeat,
        },
        refusal=_refusal_fields(refusal) if own else None,
        seq=0,
    )

    def pause() -> None:
        fold = live_run.log.fold
        if (
            fold.state is RunState.RUNNING
            and _account(live_run).refusal(Request(**found.request)) is not None
        ):
            asks: LimitAsked = {
                "key": found.key,
                "name": found.name,
                "termination": found.termination,
                "request": found.request,
                "refusal": found.refusal,
            }
            reason = f"{step.name} asks for a higher limit of {error.resource}"
            data: RunPaused = {"reason": reason, "running_ns": live_run.time.elapsed(), "asks": asks}
            live_run.log.act([Record(0, ev.RUN_PAUSED, live_run.clock.wall(), data=data)])

    live_run.log.decide(pause)


def check_same(run_id: str, key: str, now: int, asked: int | None) -> None:
    """Raise unless the question that a step asks `now` is the one that was `asked`, by its event.

    Raises:
        AgentGuardError: it is another: the one that was asked has been answered.
    """
    if asked not in {None, now}:
        raise AgentGuardError(
            f"the question of event {asked} of run {run_id} has been answered; {key} asks another by now, "
            f"with event {now}: look at it first"
        )


def how_answered(fold: RunFold, asked: str | int) -> str:
    """Return how the question of a step, or of an event, was answered, to go on with; empty if it was not."""
    asks = fold.pause.get("asks")
    if asks is None or asked not in {asks["key"], fold.paused_seq} or fold.state is not RunState.RUNNING:
        return ""
    return f": that was answered{said_by(fold.resumed)}"


def said_by(said: Said) -> str:
    """Return who gave an answer, and why, as far as that is on record."""
    actor, reason = said.get("actor"), said.get("reason")
    return (f" by {actor}" if actor else "") + (f" ({reason})" if reason else "")


def asked_of_caller(step: Step, refused: Refused) -> LimitAskedError:
    """Return the error that has a step's caller get the answer."""
    error = refused.refusal.error(refused.path, step.live_run.run_id)
    amounts = (error.spent, error.reserved, error.requested, error.limit)
    spent, reserved, requested, limit = (str(a) if isinstance(a, Decimal) else a for a in amounts)
    return LimitAskedError(
        step.key, step.name, error.resource, spent, reserved, requested, limit, run_id=error.run_id
    )


def answer(live_run: LiveRun, budget: Budget, said: Said, asked: str | int | None = None) -> list[Record]:
    """Return what ends the pause of a run that asks, once `budget` has room; nothing where it does not ask.

    Raises:
        AgentGuardError: the budget has no room for the step either, or what was `asked`, the key of a step
            or the number of the event that asks, is not asked now.
    """
    found = question(live_run.log.fold)
    if asked is not None and (found is None or asked not in {found.key, found.seq}):
        which = f"event {asked}" if isinstance(asked, int) else f"step {asked!r}"
        answered = how_answered(live_run.log.fold, asked)
        raise AgentGuardError(f"{which} of run {live_run.run_id} asks for no higher limit{answered}")
    if found is None:
        return []
    account = _account(live_run)
    account.limit_by(budget)
    refusal = account.refusal(Request(**found.request)) if budget.enforce else None
    if refusal is not None:
        error = refusal.error(account.path, live_run.run_id)
        raise AgentGuardError(
            f"run {live_run.run_id} would ask again, since {found.name} still has no room ({error}): "
            "set a higher limit, or deny it"
        )
    data: RunResumed = {**said, "running_ns": live_run.time.elapsed()}
    return [Record(0, ev.RUN_RESUMED, live_run.clock.wall(), data=data)]


def deny(live_run: LiveRun, found: LimitQuestion, said: Said) -> Head:
    """Refuse the step that asks, which ends the run.  Inside `decide`, where the question was found."""
    stop = stop_from(found.termination)
    assert stop is not None  # noqa: S101 - it was made of a stop
    live_run.stops.set(stop)
    before = []
    if found.refusal is not None:
        data: StepRefused = {**found.refusal["data"], "asked": found.seq}
        put_said(data, said)
        before = [
            Record(
                0,
                ev.STEP_REFUSED,
                live_run.clock.wall(),
                found.key,
                found.refusal["pos"],
                found.name,
                found.refusal["kind"],
                found.refusal["attempt"],
                data=data,
            )
        ]
    live_run.record_end(found.termination, before)
    return live_run.log.head


def take_back(step: Step) -> None:
    """Let a run go on whose limit is asked to be raised for a step that was given up."""
    for live_run in (step.live_run, *(around.live_run for around in step.live_run.around)):
        if _is_of(step, live_run):
            live_run.log.decide(lambda live_run=live_run: _take_back(step, live_run))  # type: ignore[misc]


def _is_of(step: Step, live_run: LiveRun) -> bool:
    found = question(live_run.log.fold)
    own = live_run is step.live_run
    return found is not None and found.key == step.key and (found.refusal is not None) is own


def _take_back(step: Step, live_run: LiveRun) -> None:
    if _is_of(step, live_run):
        data: RunResumed = {"reason": f"{step.name} was given up", "running_ns": live_run.time.elapsed()}
        live_run.log.act([Record(0, ev.RUN_RESUMED, live_run.clock.wall(), data=data)])


def _refusal_fields(record: Record) -> RefusedFields:
    return {
        "pos": record.pos,
        "kind": record.kind,
        "attempt": record.attempt,
        "data": data_of(record, StepRefused),
    }


def _account(live_run: LiveRun) -> Account:
    """Return a copy of the run's account as it is now: of the store, where runs inside it charge it too."""
    fold = live_run.log.fold
    account = fold.account
    if fold.scopes[""].shared:
        name = live_run.levels.account_name("")
        account = live_run.log.store.accounts([name]).get(name, account)
    return Account.from_data(account.to_data())
