"""A process dies while a call waits in its paused run: the run is resumed, recovered, and goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from agentguard import Guard, Run, guarded_step
from tests.kit import wait_until


@guarded_step
def number(n: int) -> int:
    return n


@guarded_step
async def anumber(n: int) -> int:
    return n


def alone(run: Run, pause: Callable[[], None]) -> list[int]:
    """The one call that waits."""
    before = number(1)
    pause()
    return [before, number(2)]


def beside(run: Run, pause: Callable[[], None]) -> list[int]:
    """One that was made first and is awaited last, and threads with branches of their own."""
    found: list[int] = []

    async def main() -> list[int]:
        first = anumber(1)
        found.append(await anumber(2))
        threads = [threading.Thread(target=run.bind(lambda: found.append(number(3)))) for _ in range(2)]
        pause()
        for thread in threads:
            thread.start()
        later = await first
        await asyncio.to_thread(lambda: [thread.join() for thread in threads])
        return [later, *found]

    return asyncio.run(main())


PROGRAMS = {"alone": (alone, [1, 2]), "beside": (beside, [1, 2, 3, 3])}


def child(name: str) -> None:
    """Run a program, paused as by an operator, and tell once a call of it waits."""
    guard = Guard.open(telemetry=False)

    def waits() -> None:
        wait_until(lambda: run.live_run.time.waiters)
        sys.stdout.write("waits\n")
        sys.stdout.flush()

    with guard.run("r", run_id="r1") as run:
        threading.Thread(target=waits, daemon=True).start()
        PROGRAMS[name][0](run, lambda: guard.pause("r1"))


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("first", ["resume", "recover"])
def test_a_call_that_waited_for_a_resume_goes_on(sqlite_guard: Guard, name: str, first: str) -> None:
    program, result = PROGRAMS[name]
    command = [sys.executable, "-c", f"from {__name__} import child; child({name!r})"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert sqlite_guard.summary("r1").state == "PAUSED"
    if first == "resume":
        sqlite_guard.resume("r1")
    later = threading.Timer(0.05, sqlite_guard.resume, args=("r1",))
    with sqlite_guard.recover("r1") as run:
        if first == "recover":
            later.start()
        assert program(run, lambda: None) == result
    if first == "recover":
        later.join()  # the operator's act goes on after the run does
    assert sqlite_guard.summary("r1").state == "COMPLETED"
    assert sqlite_guard.verify()
    with sqlite_guard.replay("r1") as replayed:
        assert program(replayed, lambda: None) == result
