"""Whether a limit of 100 lets exactly 100 bodies run, whoever calls them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentguard import Budget, BudgetExceededError, Guard, guarded_step
from benchmarks._rows import Row

LIMIT = 100
_PROCESSES = 4


class _Counted:
    """A guarded step that counts the bodies that ran."""

    def __init__(self) -> None:
        self.bodies = itertools.count()
        self.step = guarded_step(name="work")(self._body)
        self.async_step = guarded_step(name="work")(self._async_body)

    def _body(self) -> None:
        next(self.bodies)

    async def _async_body(self) -> None:
        next(self.bodies)
        await asyncio.sleep(0)

    def ran(self) -> int:
        return next(self.bodies)


def measure(*, quick: bool) -> list[Row]:
    """The rows on overshoot, all on one SQLite file."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AGENTGUARD_HOME"] = folder
        url = f"sqlite:///{Path(folder) / 'overshoot.db'}"
        with Guard.open(url, kill_switch="memory", telemetry=False) as guard:
            found = {"threads": _threads(guard), "tasks": _tasks(guard)}
        found["processes"] = _processes(url)
    names = {
        "threads": "64 threads",
        "tasks": "64 tasks",
        "processes": f"{_PROCESSES} processes of 16 threads",
    }
    return [
        Row(
            name=f"overshoot-{name}",
            what=f"bodies that ran under a budget of 100 steps, {names[name]}",
            value=ran,
            unit="",
            limit=LIMIT,
            sense="exactly",
        )
        for name, ran in found.items()
    ]


def _threads(guard: Guard) -> int:
    counted = _Counted()
    with contextlib.suppress(BudgetExceededError), guard.run("threads", budget=Budget(steps=LIMIT)) as run:
        _in_threads([run.bind(_until_stopped) for _ in range(64)], counted.step)
    return counted.ran()


def _tasks(guard: Guard) -> int:
    counted = _Counted()

    async def one() -> None:
        with contextlib.suppress(BudgetExceededError):
            while True:
                await counted.async_step()

    async def main() -> None:
        async with guard.run("tasks", budget=Budget(steps=LIMIT)):
            await asyncio.gather(*(one() for _ in range(64)))

    with contextlib.suppress(BudgetExceededError):
        asyncio.run(main())
    return counted.ran()


def _processes(url: str) -> int:
    spawn = multiprocessing.get_context("spawn")
    with (
        Guard.open(url, telemetry=False) as guard,
        contextlib.suppress(BudgetExceededError),
        guard.run("processes", budget=Budget(steps=LIMIT)) as run,
    ):
        with concurrent.futures.ProcessPoolExecutor(_PROCESSES, mp_context=spawn) as pool:
            ran = sum(pool.map(_attached, itertools.repeat((url, run.id), _PROCESSES)))
    return ran


def _attached(where: tuple[str, str]) -> int:
    """The share of one process."""
    url, run_id = where
    counted = _Counted()
    with (
        Guard.open(url, telemetry=False) as guard,
        contextlib.suppress(BudgetExceededError),
        guard.attach(run_id) as run,
    ):
        _in_threads([run.bind(_until_stopped) for _ in range(16)], counted.step)
    return counted.ran()


def _until_stopped(step: Any) -> None:
    with contextlib.suppress(BudgetExceededError):
        while True:
            step()


def _in_threads(targets: list[Callable[..., None]], step: Any) -> None:
    threads = [threading.Thread(target=target, args=(step,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
