"""Whether and where another budget would have stopped a recorded run, without running anything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from agentguard.budget import resources as r
from agentguard.budget.account import ONE_STEP, Account, Refusal, Request
from agentguard.budget.model import Budget
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.codec import Stored
from agentguard.events.data import StepEnded, StepStarted, data_of
from agentguard.events.model import Record
from agentguard.runs.fold import repeat_of

_ENDS = (ev.STEP_COMPLETED, ev.STEP_FAILED, ev.STEP_RESOLVED)
_STOPS = (ev.STEP_REFUSED, ev.RUN_FAILED, ev.RUN_KILLED)


class WhatIf(msgspec.Struct, frozen=True, kw_only=True):
    """What another budget would have done; true when it would have stopped the run.

    `seq` and `key` name the first step that it would have refused (or whose cost it would not have
    borne), `limit` and the amounts say by which limit.  `unknown_beyond` is the event after which
    nobody can tell, because the recorded run was itself stopped there.  `seconds` is judged by the
    recorded wall clock, so only roughly.
    """

    would_stop: bool
    seq: int | None = None
    key: str | None = None
    resource: str | None = None
    limit: Any = None
    spent: Any = None
    requested: Any = None
    unknown_beyond: int | None = None

    def __bool__(self) -> bool:
        return self.would_stop

    def __str__(self) -> str:
        if self.would_stop:
            return (
                f"stops at event {self.seq} ({self.key}): {self.resource} limit {self.limit}, "
                f"{self.spent} spent, {self.requested} more requested"
            )
        if self.unknown_beyond is not None:
            return f"does not stop; unknown beyond seq {self.unknown_beyond}"
        return "does not stop"


def what_if(log: Iterable[Stored], budget: Budget) -> WhatIf:
    """Fold the recorded reservations and settlements under another budget, in log order."""
    account = Account("run", budget)
    open_steps: dict[str, Request] = {}
    started_ns: int | None = None
    for stored in log:
        record = codec.decode(stored.body)
        if record.type == ev.RUN_STARTED:
            started_ns = record.at_ns
        refusal = _apply(account, open_steps, record)
        if refusal is None and record.type == ev.STEP_STARTED:
            refusal = _out_of_time(budget, started_ns, record.at_ns)
        if refusal is not None:
            return _stopped(record, refusal)
        if record.type in _STOPS and not ev.withdrawn(record):
            return WhatIf(would_stop=False, unknown_beyond=record.seq)
    return WhatIf(would_stop=False)


def _apply(account: Account, open_steps: dict[str, Request], record: Record) -> Refusal | None:
    key = record.key or ""
    if record.type == ev.STEP_STARTED:
        name = record.name or ""
        data = data_of(record, StepStarted)
        reserve = data.get("reserve", ONE_STEP)
        request = Request(reserve, name, record.kind or "", bool(data.get("unbounded")), repeat_of(record))
        refusal = account.refusal(request)
        if refusal is None:
            account.reserve(request)
            open_steps[key] = request
        return refusal
    if record.type in _ENDS and key in open_steps:
        request = open_steps.pop(key)
        if data_of(record, StepEnded).get("body_ran") is False:
            account.release(request)
        else:
            account.settle(request.reserve, record.usage or {})
        return account.overdrawn()
    if record.type == ev.SCOPE_CLOSED and record.usage:
        account.charge(record.usage)
        return account.overdrawn()
    return None


def _out_of_time(budget: Budget, started_ns: int | None, at_ns: int) -> Refusal | None:
    limit = budget.limits.get(r.SECONDS)
    if limit is None or started_ns is None or at_ns - started_ns < limit:
        return None
    return Refusal(r.SECONDS, at_ns - started_ns, 0, 0, limit)


def _stopped(record: Record, refusal: Refusal) -> WhatIf:
    def shown(amount: int) -> Any:
        return r.public_amount(refusal.resource, amount)

    return WhatIf(
        would_stop=True,
        seq=record.seq,
        key=record.key,
        resource=r.public_name(refusal.resource),
        limit=shown(refusal.limit),
        spent=shown(refusal.spent),
        requested=shown(refusal.requested),
    )
