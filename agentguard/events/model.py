"""What one entry of a run's log is: `Record`, as it is hashed and stored, and `Event`, as it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from agentguard.budget.model import Usage

RUN_CREATED: Final = "run_created"
RUN_STARTED: Final = "run_started"
RUN_PAUSED: Final = "run_paused"
RUN_RESUMED: Final = "run_resumed"
RUN_RECOVERED: Final = "run_recovered"
RUN_COMPLETED: Final = "run_completed"
RUN_FAILED: Final = "run_failed"
RUN_KILLED: Final = "run_killed"
RUN_FORKED: Final = "run_forked"
RUN_BUDGET_SET: Final = "run_budget_set"
STEP_STARTED: Final = "step_started"
STEP_COMPLETED: Final = "step_completed"
STEP_FAILED: Final = "step_failed"
STEP_REFUSED: Final = "step_refused"
STEP_RESOLVED: Final = "step_resolved"
STOP_SWALLOWED: Final = "stop_swallowed"
VALUE: Final = "value"
BUDGET_WARNING: Final = "budget_warning"
ALERT: Final = "alert"
APPROVAL_REQUESTED: Final = "approval_requested"
APPROVAL_GRANTED: Final = "approval_granted"
APPROVAL_DENIED: Final = "approval_denied"
SCOPE_OPENED: Final = "scope_opened"
SCOPE_CLOSED: Final = "scope_closed"
KILL_SET: Final = "kill_set"
KILL_CLEARED: Final = "kill_cleared"
TENANT_BUDGET_SET: Final = "tenant_budget_set"
OPERATOR_ACTION: Final = "operator_action"
PROCESSES_SIGNALLED: Final = "processes_signalled"
PAYLOAD_ERASED: Final = "payload_erased"

#: The run id under which the control log (kills, revives, tenant budgets, orders, erasures) is read.
CONTROL_RUN_ID: Final = "control"

#: Why a result of which only the digest is kept cannot be handed out again.
ONLY_A_DIGEST: Final = "only a digest was captured"

#: The version of `Record`; every stored body carries the one it was written with.
SCHEMA_VERSION: Final = 1


def withdrawn(record: Record) -> bool:
    """Whether a step was given up before it started: cancelled, say, while it waited for an approval."""
    return record.type == STEP_REFUSED and "error" in (record.data or {})


class Record(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The hashed part of an event, in the order in which it is encoded.

    Amounts are internal ones: money in 1e-9 USD under `nano_usd`.  `at_ns` is the writer's wall
    clock, for information; the order of a log is `seq`.  `pos` is the place of the call among all calls
    of its branch, which replay holds a program against.  What `data` says goes by the type: `events/data.py`.
    """

    seq: int
    type: str
    at_ns: int
    key: str | None = None
    pos: int = 0
    name: str | None = None
    kind: str | None = None
    attempt: int = 0
    duration_ns: int | None = None
    usage: dict[str, int] | None = None
    spent: dict[str, int] | None = None
    data: Mapping[str, object] | None = None
    trace_id: str | None = None
    span_id: str | None = None
    v: int = SCHEMA_VERSION


class Head(NamedTuple):
    """An anchor: event `seq` of a log has hash `hash` (hex).  It does not say that the log ends there."""

    seq: int
    hash: str


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One immutable record of a run's log.

    `usage` is what the step used, `spent` the run's total after it.  `at_ns` is wall-clock
    nanoseconds since the epoch, `duration_ns` is measured by a monotonic clock.  `data` holds
    what is special to the type.  `hash` is SHA-256 over `prev_hash` and the stored bytes.
    `position` is the event's place among all events of its store, in `Guard.events`; 0 where it is not known.
    """

    run_id: str
    seq: int
    type: str
    key: str | None
    name: str | None
    kind: str | None
    attempt: int
    at_ns: int
    duration_ns: int | None
    usage: Usage | None
    spent: Usage | None
    data: dict[str, Any]
    trace_id: str | None
    span_id: str | None
    prev_hash: str
    hash: str
    position: int = 0
