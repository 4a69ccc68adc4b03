"""A worker whose activities are guarded steps: `worker.py ADDRESS`."""

import asyncio
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

from letters_workflow import Letters
from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

from agentguard import Budget, Guard, Usage, current_step
from agentguard_temporal import GuardPlugin, step_options

FOLDER = Path(os.environ["LETTERS_FOLDER"])


@activity.defn
@step_options(usage=Usage(letters=1), effect="idempotent")
def send(letter: str) -> str:
    (FOLDER / "sending").write_text(str(os.getpid()))
    for _ in range(3):
        time.sleep(0.1)
        activity.heartbeat()  # where a kill is met
    with (FOLDER / "outbox").open("a") as outbox:  # a mail server would drop the second letter with one key
        outbox.write(f"{current_step().idempotency_key} {letter}\n")
    return letter


async def main(address: str) -> None:
    client = await Client.connect(address)
    with Guard.open() as guard:
        worker = Worker(
            client,
            task_queue="letters",
            workflows=[Letters],
            activities=[send],
            activity_executor=ThreadPoolExecutor(8),
            plugins=[GuardPlugin(guard, budget=Budget(letters=8), end_every=1)],
            sticky_queue_schedule_to_start_timeout=timedelta(seconds=1),  # a dead worker is soon found out
        )
        await worker.run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
