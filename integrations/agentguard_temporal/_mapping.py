"""What Temporal says of an activity, in agentguard's words, and errors the other way."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from temporalio.exceptions import ApplicationError

from agentguard import (
    AgentGuardError,
    ApprovalDeniedError,
    NoActiveRunError,
    ReplayDivergenceError,
    RunStopped,
    StepOutcomeUnknownError,
)
from agentguard.errors import DuplicateKeyError, RecordedError

if TYPE_CHECKING:
    from temporalio.activity import Info

#: What the metadata of a run says of its workflow execution.
NAMESPACE, WORKFLOW_ID, EXECUTION = "temporal.namespace", "temporal.workflow_id", "temporal.run_id"
#: Until Temporal tries again what an operator has to decide first.
LATER = timedelta(seconds=15)
#: The same where an earlier attempt, which Temporal has given up, still runs in this worker.
SOON = timedelta(seconds=1)
#: What no further attempt changes.
_FINAL = (RunStopped, ApprovalDeniedError, NoActiveRunError, ReplayDivergenceError, RecordedError)


def run_id_of(info: Info) -> str:
    """Return the id of the run that a workflow execution is."""
    return f"temporal-{info.workflow_run_id}"


def key_of(info: Info) -> str:
    """Return the key of an activity in its run, which is the same for each of its attempts.

    Temporal numbers activities, and a number is given once in an execution; a name that the workflow gives
    may be given again, so that the time of its scheduling belongs to it.
    """
    if info.activity_id.isdecimal():
        return f"{info.activity_type}@{info.activity_id}"
    scheduled = "" if info.is_local else f"@{info.scheduled_time.timestamp():.6f}"
    return f"{info.activity_type}@{info.activity_id}{scheduled}".replace("/", "|")


def metadata_of(info: Info) -> dict[str, str]:
    """Return what a run says of its workflow execution."""
    return {
        NAMESPACE: info.namespace,
        WORKFLOW_ID: info.workflow_id or "",
        EXECUTION: info.workflow_run_id or "",
        "temporal.workflow": info.workflow_type or "",
        "temporal.task_queue": info.task_queue,
    }


def failure_of(error: AgentGuardError) -> ApplicationError | None:
    """Return how an activity fails with an error of agentguard's; None: with the error itself."""
    again = _tried_again_after(error)
    if again is None and not isinstance(error, _FINAL):
        return None
    return ApplicationError(
        str(error),
        {name: None if value is None else str(value) for name, value in error.facts().items()},
        type=type(error).__name__,
        non_retryable=again is None,
        next_retry_delay=again,
    )


def _tried_again_after(error: AgentGuardError) -> timedelta | None:
    """Return when another attempt may have another answer; None where none will."""
    if isinstance(error, DuplicateKeyError):
        return SOON
    if isinstance(error, StepOutcomeUnknownError):
        return LATER
    # A result that does not come back, which an operator can supply.
    supplied = isinstance(error, ReplayDivergenceError) and error.kind == "not_replayable"
    return LATER if supplied else None
