"""The agents of the tests of workers: what they do they tell to a file, and they wait for other files."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

from agentguard import Budget, Guard, Run, Usage, current_run, current_step, guarded_step
from agentguard.errors import StoreUnavailableError

guard = Guard.open(telemetry=False)


def folder() -> Path:
    return Path(os.environ["OFFICE_FOLDER"])


def tell(text: str) -> None:
    with (folder() / "told").open("a") as told:
        told.write(f"{text} {os.getpid()}\n")


def gate(name: str) -> None:
    """Wait until a test opens a gate."""
    deadline = time.monotonic() + 60
    while not (folder() / f"gate-{name}").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(name)
        time.sleep(0.01)


def failing(name: str) -> bool:
    """Whether something is still to fail; a test says how often."""
    for number in range(int((folder() / f"fails-{name}").read_text())):
        mark = folder() / f"failed-{name}-{number}"
        if not mark.exists():
            mark.touch()
            return True
    return False


@guarded_step(effect="read")
def step(name: str) -> str:
    tell(f"step {name}")
    return f"did {name}"


@guarded_step(effect="read")
def waits(name: str) -> str:
    tell(f"waits {name}")
    gate(name)
    return f"waited {name}"


@guarded_step
def once(name: str) -> str:
    tell(f"once {name}")
    gate(name)
    return name


@guarded_step(effect="read")
def flaky(name: str) -> str:
    tell(f"flaky {name} attempt {current_step().attempt}")
    if failing(name):
        raise ConnectionError(f"{name} is away")
    return name


@guarded_step(effect="read")
def around(name: str) -> str:
    tell(f"around {name}")
    return flaky(name)


@guarded_step(effect="read")
async def aflaky(name: str) -> str:
    tell(f"aflaky {name}")
    if failing(name):
        raise ConnectionError(f"{name} is away")
    return name


@guarded_step(effect="read")
async def slow(name: str) -> str:
    tell(f"slow {name}")
    await asyncio.sleep(60 if (folder() / "slow").exists() else 0)
    return name


@guarded_step(effect="idempotent", usage=Usage(coins=2))
def pay(number: int) -> int:
    tell("pays")
    time.sleep(0.05)
    return number


@guarded_step
def flaky_once(name: str) -> str:
    tell(f"once {name}")
    raise ConnectionError(f"{name} is away")


# --- agents --------------------------------------------------------------------------------------


@guard.run("letters", budget=Budget(steps=100))
def letters(before: list[str], wait: str, after: list[str]) -> list[str]:
    return [*map(step, before), waits(wait), *map(step, after)]


@guard.run("alone")
def alone(name: str = "nobody") -> str:
    return step(name)


def plain(inputs: object) -> None:
    tell(f"plain {inputs}")
    step("plain")


def nothing() -> None:
    step("nothing")


async def asynchronous(run: Run, inputs: str) -> None:
    await asyncio.gather(slow(f"{inputs}-1"), slow(f"{inputs}-2"))
    step(run.name)


def store_is_away(inputs: str) -> None:
    raise StoreUnavailableError("the store is away")


def leaves_a_thread_at_work(inputs: str) -> None:
    at_work = threading.Event()

    @guarded_step(effect="read")
    def waits_on() -> None:
        at_work.set()
        gate("left")

    threading.Thread(target=current_run().bind(waits_on), name="left").start()
    at_work.wait(60)
    flaky(inputs)


def retried(inputs: str) -> None:
    step("first")
    flaky(inputs)
    step("last")


def retried_inside(inputs: str) -> None:
    step("first")
    around(inputs)
    step("last")


async def retried_beside(inputs: str) -> None:
    step("first")
    async with asyncio.TaskGroup() as group:
        group.create_task(slow("beside"))
        group.create_task(aflaky(inputs))
    step("last")


async def retried_beside_slow(inputs: str) -> None:
    step("first")
    (folder() / "slow").touch()
    if (folder() / "failed-server-1").exists():
        (folder() / "slow").unlink()
    async with asyncio.TaskGroup() as group:
        group.create_task(slow("beside"))
        group.create_task(aflaky(inputs))
    step("last")


def retried_wrapped(inputs: str) -> None:
    step("first")
    try:
        flaky(inputs)
    except ConnectionError as error:
        raise RuntimeError("the server does not answer") from error
    step("last")


def handles_one_failure(inputs: str) -> None:
    try:
        flaky(inputs)
    except ConnectionError:
        step("instead")
    flaky(inputs)


def fails_in_a_nested_run(inputs: str) -> None:
    step("first")
    with guard.run("inside"):
        flaky(inputs)


def retried_outside(inputs: str) -> None:
    step("first")
    tell("between")
    if failing(inputs):
        raise ConnectionError("no step raised this")
    step("last")


def never_again(inputs: str) -> None:
    step("first")
    flaky_once(inputs)


def waits_once(inputs: str) -> None:
    step("first")
    once(inputs)
    step("last")


def many_steps(inputs: int) -> list[int]:
    return [pay(number) for number in range(inputs)]


def dies() -> None:
    step("first")
    os.kill(os.getpid(), signal.SIGKILL)


def heeds_nothing() -> None:
    step("first")
    tell("deaf")
    gate("deaf")


def submits() -> str:
    step("before")
    return guard.submit(alone, {"name": "submitted"}).id


def generator() -> object:
    yield 1


class Office:
    @staticmethod
    def static() -> None:
        step("static")

    def method(self) -> None:
        step("method")
