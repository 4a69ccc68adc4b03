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
from agentguard.steps.decision import Decision
from agentguard.steps.log import WaitingError

if TYPE_CHECKING:
    from agentguard.runs.fold import ApprovalState, RunFold
    from agentguard.steps.live import LiveRun
    from agentguard.steps.model import Step


def require(step: Step) -> None:
    """Let the step pass if it was granted; ask, if nobody was asked yet.  The lock is held.

    What the program itself has granted passes, and goes on record with `grant`.

    Raises:
        WaitingError: nobody has decided yet.
        ApprovalDeniedError: it was denied.
        AgentGuardError: it was granted before the program itself had it denied.
    """
    if not step.needs_approval:
        return
    found, given = _found(step), _given(step)
    if found is None or found["state"] == ev.APPROVAL_REQUESTED:
        if given is not None and given.granted:
            return
        if given is not None or found is None:
            _put(step, given)
        found = _found(step)
    if found is None or found["state"] == ev.APPROVAL_REQUESTED:
        raise WaitingError
    if found["state"] == ev.APPROVAL_DENIED:
        run_id = step.live_run.run_id
        raise ApprovalDeniedError(step.key, found.get("reason"), found.get("actor"), run_id)
    if given is not None and not given.granted:
        raise AgentGuardError(
            f"{step.key} was granted{limit_questions.said_by(found)} before {given.actor} denied it: "
            "it is not run"
        )


def grant(step: Step) -> bool:
    """Put on record that the program itself has granted a step that has room; return whether it was not yet.

    Then the step is to be decided on anew.
    """
    given, found = _given(step), _found(step)
    if given is None or (found is not None and found["state"] != ev.APPROVAL_REQUESTED):
        return False
    _put(step, given)
    return True


def _given(step: Step) -> Decision | None:
    return step.spec.approval if isinstance(step.spec.approval, Decision) else None


def _found(step: Step) -> ApprovalState | None:
    """Return what is on record of the approval of a step, unless that was of other arguments."""
    found = step.live_run.log.fold.approvals.get(step.key)
    if found is None or (found["args"], found.get("unknown")) != (step.digest, step.unknown):
        return None
    return found


def timeout_of(step: Step) -> float | None:
    """Return how many seconds a step waits for its approval; None where it waits for ever."""
    return step.spec.approval_timeout or step.live_run.components.approval_timeout


def _put(step: Step, given: Decision | None) -> None:
    """Put the request on record, and what was `given` as its answer, unless they are there."""
    live_run = step.live_run
    data: Approval = {"args": step.digest}
    if step.unknown is not None:
        data["unknown"] = step.unknown
    request = data.copy()
    if given is None and (timeout := timeout_of(step)) is not None:
        request["timeout"] = timeout
    if step.asked is not None:
        request["captured"] = True  # so that its deletion is found
        if step.asked is not step.payload:
            request["shown"] = live_run.log.digest(step.asked)
    now = live_run.clock.wall()
    key, spec = step.key, step.spec
    records = [
        Record(0, ev.APPROVAL_REQUESTED, now, key, step.pos, spec.name, spec.kind, step.attempt, data=request)
    ]
    if given is not None:
        put_said(data, given.said())
        kind = ev.APPROVAL_GRANTED if given.granted else ev.APPROVAL_DENIED
        records.append(Record(0, kind, now, key, name=spec.name, data=data))

    def put() -> None:
        found = _found(step)
        if found is None:
            live_run.log.act(records, [step.asked])
        elif given is not None and found["state"] == ev.APPROVAL_REQUESTED:
            live_run.log.act(records[1:])

    live_run.log.decide(put)


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
