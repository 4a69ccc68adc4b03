"""Approvals: a step that waits until an operator has granted or denied it.

A decision binds to the step's key and to the digest of its arguments, is on record, and survives a
crash.  Only the step itself waits; the run stays RUNNING.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentguard.errors import AgentGuardError, ApprovalDeniedError
from agentguard.events import model as ev
from agentguard.events.data import Approval, Said, put_said
from agentguard.events.model import Head, Record
from agentguard.steps import limit_questions

if TYPE_CHECKING:
    from agentguard.runs.fold import ApprovalState, RunFold
    from agentguard.steps.live import LiveRun
    from agentguard.steps.model import Step


class WaitingError(Exception):
    """Internal: the run is paused, or the step waits for an approval; wait, and try again."""


def require(step: Step) -> None:
    """Let the step pass if it was granted; ask, if nobody was asked yet.  The lock is held.

    Raises:
        WaitingError: nobody has decided yet.
        ApprovalDeniedError: it was denied.
    """
    live_run = step.live_run
    if not step.needs_approval:
        return
    decision = live_run.log.fold.approvals.get(step.key)
    if decision is None or (decision["args"], decision.get("unknown")) != (step.digest, step.unknown):
        _ask(step)
        raise WaitingError
    if decision["state"] == ev.APPROVAL_REQUESTED:
        raise WaitingError
    if decision["state"] == ev.APPROVAL_DENIED:
        raise ApprovalDeniedError(step.key, decision.get("reason"), decision.get("actor"), live_run.run_id)


def timeout_of(step: Step) -> float | None:
    """Return how many seconds a step waits for its approval; None where it waits for ever."""
    return step.spec.approval_timeout or step.live_run.components.approval_timeout


def _ask(step: Step) -> None:
    live_run = step.live_run
    data: Approval = {"args": step.digest}
    if (timeout := timeout_of(step)) is not None:
        data["timeout"] = timeout
    if step.unknown is not None:
        data["unknown"] = step.unknown
    if step.payload is not None:  # so that its deletion is found
        data["captured"] = True
    record = Record(
        0,
        ev.APPROVAL_REQUESTED,
        live_run.clock.wall(),
        step.key,
        step.pos,
        step.spec.name,
        step.spec.kind,
        step.attempt,
        data=data,
    )
    live_run.log.decide(lambda: live_run.log.act([record], [step.payload]))


def waiting(fold: RunFold) -> dict[str, ApprovalState]:
    """Return the requests of the steps that wait for an approval, by their keys."""
    found = {key: asked(fold, key) for key in list(fold.approvals)}
    return {key: request for key, request in found.items() if request is not None}


def asked(fold: RunFold, key: str) -> ApprovalState | None:
    """Return the request for an approval that a step waits with; None where it waits for none."""
    found = fold.approvals.get(key)
    if found is None or fold.state.final or found["state"] != ev.APPROVAL_REQUESTED:
        return None
    return found


def decide(live_run: LiveRun, key: str, *, granted: bool, said: Said, asked: int | None = None) -> Head:
    """Put an operator's decision on record, with who made it and why, and return where.

    `asked` is the number of the event that asks: then no later question of that step is answered.

    Raises:
        AgentGuardError: no step of that key waits, it waits for a higher limit and not for an approval, or
            the question was another.
    """
    log = live_run.log

    def put() -> Head:
        limit = limit_questions.question(log.fold)
        if limit is not None and limit.key == key:
            limit_questions.check_same(live_run.run_id, key, limit.seq, asked)
            if granted:
                raise AgentGuardError(f"{key} waits for a higher limit: {limit.way_out}")
            return limit_questions.deny(live_run, limit, said)
        request = _asked_now(live_run, key)
        limit_questions.check_same(live_run.run_id, key, request["seq"], asked)
        data: Approval = {"args": request["args"]}
        if "unknown" in request:
            data["unknown"] = request["unknown"]
        put_said(data, said)
        kind = ev.APPROVAL_GRANTED if granted else ev.APPROVAL_DENIED
        log.act([Record(0, kind, live_run.clock.wall(), key, name=request["name"], data=data)])
        return log.head

    return log.decide(put)


def _asked_now(live_run: LiveRun, key: str) -> ApprovalState:
    fold = live_run.log.fold
    found = asked(fold, key)
    if found is not None:
        return found
    problem = f"no step {key!r} of run {live_run.run_id} waits for an approval or a higher limit"
    decided, others = fold.approvals.get(key), waiting(fold)
    if fold.state.final:
        problem += f": the run is {fold.state}"
    elif decided is not None:
        how = "granted" if decided["state"] == ev.APPROVAL_GRANTED else "denied"
        problem += f": it was {how}{limit_questions.said_by(decided)}"
    else:
        problem += limit_questions.how_answered(fold, key)
    if others:
        problem += f"; waiting are {', '.join(others)}"
    raise AgentGuardError(problem)
