"""Activities of the tests with a real Temporal, and a worker: `office.py ADDRESS QUEUE BUDGET`.

What activities do they tell to a file; they wait for files, and die by SIGKILL where a file `die-<name>` says
so, once.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

from agentguard import Budget, Guard, Usage, current_run, current_step, guarded_step
from agentguard_temporal import GuardPlugin, step_options

sys.path.insert(0, str(Path(__file__).parent))
from office_workflows import WORKFLOWS


def say(what: str) -> str:
    folder = Path(os.environ["OFFICE_FOLDER"])
    with (folder / "told").open("a") as told:
        told.write(f"{what} {os.getpid()}\n")
    die = folder / f"die-{what}"
    if die.exists():
        die.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return what


def opened(name: str) -> bool:
    return (Path(os.environ["OFFICE_FOLDER"]) / name).exists()


@activity.defn
@step_options(effect="read")
async def tell(what: str) -> str:
    return say(what)


@activity.defn
@step_options(effect="read")
def tell_in_thread(what: str) -> str:
    return say(what)


@activity.defn
async def once(what: str) -> str:
    return say(what)


@activity.defn
@step_options(usage=Usage(mails=1), effect="idempotent")
async def mail(to: str) -> str:
    return f"{say(to)} {current_step().idempotency_key}"


@activity.defn
@step_options(effect="read")
async def fails_twice(what: str) -> str:
    say(what)
    if activity.info().attempt < 3:
        raise OSError(f"attempt {activity.info().attempt}")
    return what


@activity.defn
@step_options(effect="read")
async def waits(name: str) -> str:
    say("waits")
    while not opened(name):
        await asyncio.sleep(0.01)
        activity.heartbeat()
    return name


@activity.defn
@step_options(effect="read")
def waits_in_thread(name: str) -> str:
    say("waits")
    try:
        while not opened(name):
            time.sleep(0.01)
            activity.heartbeat()
    except BaseException as error:
        say(type(error).__name__)
        raise
    return name


@activity.defn(no_thread_cancel_exception=True)
def waits_deaf(name: str) -> str:
    """Goes on, whatever Temporal thinks of it."""
    say("deaf")
    while not opened(name):
        time.sleep(0.01)
    return name


@guarded_step(effect="idempotent")
async def slow_inside(name: str) -> str:
    say("slow")
    while not opened(name):
        await asyncio.sleep(0.01)
    return name


@activity.defn
@step_options(effect="idempotent")
async def slow_after_one(name: str) -> list[str]:
    return [await asyncio.to_thread(inner, "one"), await slow_inside(name)]


@guarded_step(effect="idempotent")
def slow_inside_thread(name: str) -> str:
    say("slow")
    while not opened(name):
        time.sleep(0.01)
    return name


@activity.defn
@step_options(effect="idempotent")
def slow_after_one_in_thread(name: str) -> list[str]:
    return [inner("one"), slow_inside_thread(name)]


@activity.defn
async def once_slow(name: str) -> str:
    say("once")
    while not opened(name):
        await asyncio.sleep(0.01)
    return name


@activity.defn
@step_options(effect="read")
async def swallows(name: str) -> str:
    say("swallows")
    while not opened(name):
        await asyncio.sleep(0.01)
    try:
        await asyncio.to_thread(inner, "inside")
    except Exception:
        return "all is well"
    return "went through"


@guarded_step
def inner(what: str) -> str:
    return say(what)


@activity.defn
@step_options(effect="idempotent")
def two_inside(what: str) -> list[str]:
    return [inner(f"{what}-1"), inner(f"{what}-2"), say(f"{what}-3")]


@activity.defn
@step_options(approval=True, effect="read")
async def asks(what: str) -> str:
    return say(what)


@activity.defn
async def where(_: str) -> list[str]:
    run = current_run()
    return [run.id, run.name, run.tenant] if run is not None else []


ACTIVITIES: list[Any] = [
    tell, tell_in_thread, once, mail, fails_twice, waits, waits_in_thread, waits_deaf, slow_after_one, slow_after_one_in_thread, once_slow, swallows, two_inside, asks, where,
]  # fmt: skip


def worker(
    client: Client, guard: Guard, queue: str, *, in_worker: dict[str, Any] | None = None, **options: Any
) -> Worker:
    return Worker(
        client,
        task_queue=queue,
        workflows=WORKFLOWS,
        activities=ACTIVITIES,
        **({"activity_executor": ThreadPoolExecutor(16)} | (in_worker or {})),
        plugins=[GuardPlugin(guard, **{"end_every": 0.2, "grace": 0.2, **options})],
        max_heartbeat_throttle_interval=timedelta(milliseconds=50),
        default_heartbeat_throttle_interval=timedelta(milliseconds=50),
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=0.5),
        graceful_shutdown_timeout=timedelta(seconds=0.2),
    )


async def main(address: str, queue: str, budget: str) -> None:
    client = await Client.connect(address)
    with Guard.open(telemetry=False) as guard:
        await worker(client, guard, queue, budget=Budget(**json.loads(budget))).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
