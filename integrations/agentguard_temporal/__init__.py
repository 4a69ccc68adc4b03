"""Temporal: an activity is a guarded step, and a workflow execution is a run over all its workers.

Example:
    >>> from temporalio import activity
    >>> from agentguard import Budget, Guard, Usage
    >>> from agentguard_temporal import GuardPlugin, step_options
    >>> @activity.defn
    ... @step_options(usage=Usage(mails=1), effect="idempotent")
    ... async def send_mail(to: str) -> str:
    ...     return f"sent to {to}"
    >>> plugin = GuardPlugin(Guard.in_memory(), budget=Budget(mails=10))
    >>> # Worker(client, task_queue="office", workflows=[...], activities=[send_mail], plugins=[plugin])
"""

from agentguard_temporal.activities import GuardedActivities
from agentguard_temporal.ends import WorkflowEndedError, end_finished_runs
from agentguard_temporal.options import step_options
from agentguard_temporal.plugin import GuardPlugin

__all__ = ["GuardPlugin", "GuardedActivities", "WorkflowEndedError", "end_finished_runs", "step_options"]
