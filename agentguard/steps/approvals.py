"""Approvals: a step that waits until an operator has granted or denied it.

A decision binds to the step's key and to the digest of its arguments, is on record, and survives a
crash.  Only the step itself waits; the run stays RUNNING.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agentguard.errors import AgentGuardError, ApprovalDeniedError
from agentguard.events import model as ev
from agentguard.events.model import Head, Record
from agentguard.steps import limit_questions

if TYPE_CHECKING:
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


def _ask(step: Step) -> None:
    live_run = step.live_run
    data: dict[str, Any] = {"args": step.digest}
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


def decide(live_run: LiveRun, key: str, *, granted: bool, said: Mapping[str, str]) -> Head:
    """Put an operator's decision on record, with who made it and why, and return where.

    Raises:
        AgentGuardError: no step of that key waits, or it waits for a higher limit and not for an approval.
    """
    log = live_run.log

    def put() -> Head:
        asked_limit = limit_questions.question(log.fold)
        if asked_limit is not None and asked_limit.key == key:
            if granted:
                raise AgentGuardError(f"{key} waits for a higher limit: {asked_limit.way_out}")
            return limit_questions.deny(live_run, asked_limit, said)
        approvals = log.fold.approvals
        asked = approvals.get(key)
        if asked is None or asked["state"] != ev.APPROVAL_REQUESTED:
            waiting = [k for k, a in approvals.items() if a["state"] == ev.APPROVAL_REQUESTED]
            raise AgentGuardError(
                f"no step {key!r} of run {live_run.run_id} waits for an approval"
                + (f"; waiting are {', '.join(waiting)}" if waiting else "")
            )
        data: dict[str, Any] = {name: asked[name] for name in ("args", "unknown") if name in asked}
        data |= said
        kind = ev.APPROVAL_GRANTED if granted else ev.APPROVAL_DENIED
        log.act([Record(0, kind, live_run.clock.wall(), key, name=asked["name"], data=data)])
        return log.head

    return log.decide(put)
