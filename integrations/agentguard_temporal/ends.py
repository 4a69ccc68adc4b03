"""Ending the runs of workflow executions that have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from agentguard import AgentGuardError, Guard, RunSummary
from agentguard_temporal._mapping import EXECUTION, NAMESPACE, WORKFLOW_ID

#: Seconds that activities which outlive their workflow have to end by themselves.
GRACE = 60.0
_MOST = 10_000
#: How many executions the server is asked about at once.
_BATCH = 100
_LIVE = ("CREATED", "RUNNING", "PAUSED")
_WELL = (WorkflowExecutionStatus.COMPLETED, WorkflowExecutionStatus.CONTINUED_AS_NEW)


class WorkflowEndedError(AgentGuardError):
    """Why a run FAILED: its workflow execution did, was cancelled, terminated or timed out, or is gone."""


async def end_finished_runs(guard: Guard, client: Client, *, grace: float = GRACE) -> list[str]:
    """End the runs of workflow executions that have ended, and return their ids.

    `GuardPlugin` does it now and then; without it, call it from time to time.

    Args:
        guard: the Guard of the workers.
        client: a client of their namespace.
        grace: seconds that activities which outlive their workflow have to end by themselves; after that
            they are charged what they reserved.

    Raises:
        RPCError: the server cannot be asked.
        StoreUnavailableError: the store cannot be read.
    """
    ended = []
    runs = await asyncio.to_thread(lambda: list(_live_runs(guard, client.namespace)))
    for start in range(0, len(runs), _BATCH):
        batch = runs[start : start + _BATCH]
        executions = await _executions(client, batch)
        for run in batch:
            execution = executions.get(run.metadata[EXECUTION])
            error = None if execution is not None else _GONE
            if execution is not None and execution.close_time is None:
                continue
            if execution is not None:
                age = (datetime.now(UTC) - (execution.close_time or datetime.now(UTC))).total_seconds()
                if run.open_steps and age < grace:
                    continue
                error = _why(execution)
            await asyncio.to_thread(guard.end, run.run_id, error=error)
            ended.append(run.run_id)
    return ended


_GONE = WorkflowEndedError("the workflow execution is no longer known to the server")


def _live_runs(guard: Guard, namespace: str) -> Iterator[RunSummary]:
    for state in _LIVE:
        for run in guard.runs(state=state, limit=_MOST):
            if run.metadata.get(NAMESPACE) == namespace and EXECUTION in run.metadata:
                yield run


async def _executions(client: Client, runs: Sequence[RunSummary]) -> dict[str, WorkflowExecution]:
    """Return the executions of runs by their ids, as far as the server knows them."""
    ids = ", ".join(f"'{run.metadata[EXECUTION]}'" for run in runs)
    found = {execution.run_id: execution async for execution in client.list_workflows(f"RunId IN ({ids})")}
    for run in runs:  # the list lags behind
        execution = run.metadata[EXECUTION]
        if execution not in found:
            handle = client.get_workflow_handle(run.metadata[WORKFLOW_ID], run_id=execution)
            try:
                found[execution] = await handle.describe()
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:
                    raise
    return found


def _why(execution: WorkflowExecution) -> WorkflowEndedError | None:
    status = execution.status
    if status is None or status in _WELL:
        return None
    return WorkflowEndedError(f"workflow {execution.id} has ended: {status.name}")
