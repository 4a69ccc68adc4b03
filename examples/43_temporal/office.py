"""Two workers of a Temporal: one dies in the middle of a letter; a limit is met, and a workflow is killed.

pip install 'agentguard[temporal]'
temporal server start-dev &
python examples/43_temporal/office.py localhost:7233
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from letters_workflow import Letters
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle

from agentguard import Guard, RunState

HERE = Path(__file__).parent
NAMES = ["ann", "bob", "cid", "dee", "eve", "fay"]


def start_worker(address: str, folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "workers.log").open("ab") as log:
        command = [sys.executable, str(HERE / "worker.py"), address]
        return subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - our own command


async def start(client: Client, names: list[str]) -> WorkflowHandle:
    return await client.start_workflow(Letters.run, names, id=f"letters-{uuid.uuid4()}", task_queue="letters")


async def until(condition) -> None:
    while not condition():  # noqa: ASYNC110 - other processes make it true
        await asyncio.sleep(0.05)


def sent(folder: Path) -> list[str]:
    outbox = folder / "outbox"
    return outbox.read_text().splitlines() if outbox.exists() else []


async def outcome(handle: WorkflowHandle) -> str:
    try:
        return f"{len(await handle.result())} letters"
    except WorkflowFailureError as failure:
        return str(failure.cause.cause)


async def story(address: str, folder: Path, guard: Guard) -> None:
    client = await Client.connect(address)
    workers = [start_worker(address, folder) for _ in range(2)]
    try:
        handle = await start(client, NAMES)
        run_id = f"temporal-{handle.first_execution_run_id}"
        await until(lambda: len(sent(folder)) == 2 and guard.summary(run_id).open_steps)
        victim = int((folder / "sending").read_text())
        next(worker for worker in workers if worker.pid == victim).kill()
        print("killed -9: the worker that was sending a letter")
        print("the workflow:", await outcome(handle))
        print("letters, by idempotency key:", len({line.split()[0] for line in sent(folder)}))
        await until(lambda: guard.summary(run_id).state.final)
        print(
            f"its run: {guard.summary(run_id).state}, log {'intact' if guard.verify(run_id) else 'altered'}"
        )

        handle = await start(client, [*NAMES, *NAMES])
        print("twelve letters:", (await outcome(handle)).partition(" limit")[0])

        handle = await start(client, NAMES)
        run_id = f"temporal-{handle.first_execution_run_id}"
        await until(lambda: any(run.run_id == run_id and run.steps for run in guard.runs()))
        guard.kill(run=run_id, reason="that will do", actor="ann")
        print("killed:", (await outcome(handle)).partition(":")[0])
        print("on record:", guard.summary(run_id).state is RunState.KILLED)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def main(address: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"LETTERS_FOLDER": folder, "AGENTGUARD_HOME": f"{folder}/home"}
        with Guard.open() as guard:
            asyncio.run(story(address, Path(folder), guard))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "localhost:7233")
