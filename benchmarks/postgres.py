"""What a step costs whose log is in PostgreSQL: a real server with fsync, over its socket."""

from __future__ import annotations

import asyncio
import importlib.util
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import psycopg

from agentguard import Budget, Guard, guarded_step
from agentguard.stores._postgres_schema import migrate
from benchmarks import _measure as m
from benchmarks._rows import Row
from tests.postgres import DURABLE, postgres

_BLOCK = 10
_TENANT = "acme"


def measure(*, quick: bool) -> list[Row]:
    """The rows on PostgreSQL, by the wall clock."""
    with postgres(*DURABLE) as server:
        server.execute("CREATE DATABASE app")
        url = server.url("app")
        migrate(url)
        return [
            _one_thread(url, 5 if quick else 30),
            _tasks(url, 10 if quick else 40, 2 if quick else 5),
            *_processes(url, 20 if quick else 100, 1 if quick else 3),
            *_dbos(url, 10 if quick else 40, 2 if quick else 5),
        ]


def _open(url: str) -> Guard:
    return Guard.open(url, kill_switch="memory", telemetry=False)


def _one_thread(url: str, rounds: int) -> Row:
    step = guarded_step(m.work)
    with psycopg.connect(url, autocommit=True) as bare, _open(url) as guard:
        bare.execute("CREATE TABLE public.bare (body bytea, hash bytea, payload bytea)")
        row = (b"x" * 300, b"h" * 32, b"p" * 24)

        def commit() -> None:
            bare.execute("INSERT INTO public.bare VALUES (%b, %b, %b)", row)

        with guard.run("one", budget=Budget(steps=10**9)):
            taken = m.medians(
                {"step": lambda: _wall(lambda: step(1, b=2, c=3)), "commit": lambda: _wall(commit)}, rounds
            )
    return Row(
        name="postgres-step",
        what="step on PostgreSQL, one thread, over two bare one-row commits",
        value=taken["step"] / (2 * taken["commit"]),
        unit="x",
        limit=1.3,
        facts={"µs a step": taken["step"] / 1000, "µs a commit": taken["commit"] / 1000},
    )


def _wall(call: Callable[[], Any]) -> float:
    started = time.perf_counter_ns()
    for _ in range(_BLOCK):
        call()
    return (time.perf_counter_ns() - started) / _BLOCK


def _tasks(url: str, each: int, rounds: int) -> Row:
    with _open(url) as guard:
        taken = m.medians(
            {
                "one": lambda: asyncio.run(_of_tasks(guard, 1, each)),
                "many": lambda: asyncio.run(_of_tasks(guard, 64, each)),
            },
            rounds,
        )
    return Row(
        name="postgres-tasks",
        what="throughput of 64 tasks of one run over one task",
        value=taken["one"] / taken["many"],
        unit="x",
        limit=12,
        sense="at least",
        facts={"steps/s of one": 1e9 / taken["one"], "of 64": 1e9 / taken["many"]},
    )


async def _of_tasks(guard: Guard, tasks: int, each: int, tenant: str = "default") -> float:
    """Nanoseconds a step when each of so many tasks takes so many."""
    step = guarded_step(_work)

    async def some() -> None:
        for _ in range(each):
            await step(1, b=2, c=3)

    async with guard.run("tasks", tenant=tenant, budget=Budget(steps=10**9)):
        await step(1)
        started = time.perf_counter_ns()
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(some())
        return (time.perf_counter_ns() - started) / (tasks * each)


async def _work(a: int, b: int = 0, c: int = 0) -> int:
    return a


# --- several processes ---------------------------------------------------------------------------


def _processes(url: str, each: int, rounds: int) -> list[Row]:
    with _open(url) as guard:
        guard.set_tenant_budget(_TENANT, Budget(steps=10**9))
    taken = m.medians(
        {
            "one": lambda: _of_processes(url, 1, each, "default"),
            "eight": lambda: _of_processes(url, 8, each, "default"),
            "tenant": lambda: _of_processes(url, 8, each, _TENANT),
        },
        rounds,
    )
    rates = {name: 1e9 / ns for name, ns in taken.items()}
    return [
        Row(
            name="postgres-processes",
            what="throughput of 8 processes x 16 tasks over one x 16",
            value=taken["one"] / taken["eight"],
            unit="x",
            limit=1.6,
            sense="at least",
            facts={"steps/s of one": rates["one"], "of 8": rates["eight"]},
        ),
        Row(
            name="postgres-tenant",
            what="the same with one tenant budget for all, over that without",
            value=taken["eight"] / taken["tenant"],
            unit="x",
            limit=0.7,
            sense="at least",
            facts={"steps/s": rates["tenant"]},
        ),
    ]


def _of_processes(url: str, count: int, each: int, tenant: str) -> float:
    """Nanoseconds a step when so many processes have 16 tasks each."""
    spawn = multiprocessing.get_context("spawn")
    barrier, times = spawn.Barrier(count), spawn.Queue()
    processes = [
        spawn.Process(target=_process, args=(url, each, tenant, barrier, times)) for _ in range(count)
    ]
    for process in processes:
        process.start()
    spans = [times.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    elapsed = max(end for _, end in spans) - min(start for start, _ in spans)
    return float(elapsed) / (count * 16 * each)


def _process(url: str, each: int, tenant: str, barrier: Any, times: Any) -> None:
    with _open(url) as guard:
        # The control log of the measuring process is not this one's: the budget is set here too.
        if tenant == _TENANT:
            guard.set_tenant_budget(tenant, Budget(steps=10**9))
        asyncio.run(_of_tasks(guard, 16, 2, tenant))
        barrier.wait()
        started = time.monotonic_ns()
        asyncio.run(_of_tasks(guard, 16, each, tenant))
        times.put((started, time.monotonic_ns()))


# --- beside another one --------------------------------------------------------------------------


def _dbos(url: str, each: int, rounds: int) -> list[Row]:
    """A step of DBOS on the same server, where it is installed (`pip install dbos`)."""
    if importlib.util.find_spec("dbos") is None:
        return []
    from benchmarks import _dbos  # noqa: PLC0415  # it needs the package

    with _open(url) as guard, _dbos.workflows(url) as workflow:
        taken = m.medians(
            {
                "dbos one": lambda: workflow(1, each),
                "one": lambda: asyncio.run(_of_tasks(guard, 1, each)),
                "dbos many": lambda: workflow(64, each),
                "many": lambda: asyncio.run(_of_tasks(guard, 64, each)),
            },
            rounds,
        )
    return [
        Row(
            name=f"postgres-dbos-{tasks}",
            what=f"a step of DBOS over ours, {tasks} task{'s' if tasks > 1 else ''}",
            value=taken[f"dbos {name}"] / taken[name],
            unit="x",
            limit=limit,
            sense="at least",
            facts={"steps/s of DBOS": 1e9 / taken[f"dbos {name}"], "of ours": 1e9 / taken[name]},
        )
        for tasks, name, limit in ((1, "one", 3), (64, "many", 10))
    ]
