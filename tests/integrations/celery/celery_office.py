"""Tasks of the tests with a real Celery: what they do they tell to a file, and they wait for other files."""

import os
import time
from pathlib import Path

from celery import Celery

from agentguard import Budget, Guard, guarded_step
from agentguard_celery import GuardedTask

BROKER = os.environ["OFFICE_BROKER"]
FOLDER = Path(os.environ["OFFICE_FOLDER"])

app = Celery("celery_office", broker=BROKER, backend=BROKER)
app.conf.update(worker_prefetch_multiplier=1, task_track_started=True, result_expires=600)
app.conf.broker_transport_options = {
    "visibility_timeout": int(os.environ.get("OFFICE_VISIBLE_AFTER", "3600")),
    "unacked_restore_throttle": 1,  # look for unconfirmed tasks at each tick, and not at each tenth
}
guard = Guard.open(telemetry=False)


@guarded_step(effect="read")
def step(name: str) -> str:
    with (FOLDER / "told").open("a") as told:
        told.write(f"{name} {os.getpid()}\n")
    return name


@guarded_step(effect="read")
def waits(name: str) -> str:
    with (FOLDER / "told").open("a") as told:
        told.write(f"waits {os.getpid()}\n")
    deadline = time.monotonic() + 60
    while not (FOLDER / name).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return name


@app.task(base=GuardedTask, guard=guard, budget=Budget(steps=10), tenant=lambda before, *_: f"of-{before}")
def letters(before: str, gate: str, after: str) -> list[str]:
    return [step(before), waits(gate), step(after)]


@app.task(base=GuardedTask, guard=guard, budget=Budget(steps=2), autoretry_for=(Exception,), max_retries=3)
def greedy() -> None:
    for number in range(5):
        step(f"greedy-{number}")


@app.task(base=GuardedTask, guard=guard, bind=True, max_retries=2)
def retried(self: GuardedTask) -> str:
    if step(f"try-{self.request.retries}") != "try-1":
        raise self.retry(countdown=0)
    return "done"
