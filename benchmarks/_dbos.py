"""The same work on DBOS, to stand beside ours: steps of workflows, on the same server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dbos import DBOS, DBOSConfig
from psycopg.conninfo import conninfo_to_dict


@contextmanager
def workflows(url: str) -> Iterator[Callable[[int, int], float]]:
    """A function of tasks and steps of each that gives nanoseconds a step."""
    place = conninfo_to_dict(url)
    config: DBOSConfig = {
        "name": "benchmark",
        # SQLAlchemy takes the folder of a socket as an option alone.
        "system_database_url": "postgresql://{user}@/{dbname}?host={host}&port={port}".format_map(place),
        "run_admin_server": False,
        "log_level": "ERROR",
    }
    DBOS(config=config)

    @DBOS.step()
    async def step(a: int, b: int = 0, c: int = 0) -> int:
        return a

    @DBOS.workflow()
    async def some(each: int) -> None:
        for _ in range(each):
            await step(1, b=2, c=3)

    DBOS.launch()

    async def many(tasks: int, each: int) -> float:
        started = time.perf_counter_ns()
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(some(each))
        return (time.perf_counter_ns() - started) / (tasks * each)

    try:
        yield lambda tasks, each: asyncio.run(many(tasks, each))
    finally:
        DBOS.destroy()
