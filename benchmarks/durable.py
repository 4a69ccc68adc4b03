"""What a step costs that survives the death of its process, or of the machine."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentguard import Budget, Guard, guarded_step
from benchmarks import _measure as m
from benchmarks._rows import Row
from benchmarks.peers import __main__ as peers

_BLOCK = 50
#: Adapters of the comparison, with their titles and how many times our step theirs is to take.
_PEERS = {"dbos": ("DBOS", 6), "sqlite_saver": ("LangGraph's SqliteSaver", 1)}


def measure(*, quick: bool) -> list[Row]:
    """The rows on durability, on the disk that holds the temporary files, by the wall clock."""
    with tempfile.TemporaryDirectory() as folder:
        return [
            _process(Path(folder), 15 if quick else 60),
            _power(Path(folder), 200 if quick else 800, 3 if quick else 9),
            *_peers(1 if quick else 3),
        ]


def _process(folder: Path, rounds: int) -> Row:
    step = guarded_step(m.work)
    url = f"sqlite:///{folder / 'process.db'}"
    commit, connection = _bare_commit(folder / "bare.db")
    with Guard.open(url, kill_switch="memory", telemetry=False) as guard:
        with guard.run("durable", budget=Budget(steps=10**9)):
            taken = m.medians(
                {"step": lambda: _wall(lambda: step(1, b=2, c=3)), "commit": lambda: _wall(commit)}, rounds
            )
    connection.close()
    return Row(
        name="sqlite-process",
        what="durable step over two bare WAL+NORMAL one-row commits",
        value=taken["step"] / (2 * taken["commit"]),
        unit="x",
        limit=1.7,
        facts={"µs a step": taken["step"] / 1000, "µs a commit": taken["commit"] / 1000},
    )


def _bare_commit(path: Path) -> tuple[Callable[[], Any], sqlite3.Connection]:
    """One row of the size of an event, in one statement that commits by itself: the cheapest there is."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("CREATE TABLE event (body BLOB, hash BLOB, payload BLOB)")
    row = (b"x" * 300, b"h" * 32, b"p" * 24)
    return lambda: connection.execute("INSERT INTO event VALUES (?, ?, ?)", row), connection


def _wall(call: Callable[[], Any]) -> float:
    """Return the median of many calls, since others on the machine take milliseconds of some."""
    taken = []
    for _ in range(_BLOCK):
        started = time.perf_counter_ns()
        call()
        taken.append(time.perf_counter_ns() - started)
    return statistics.median(taken)


def _power(folder: Path, steps: int, rounds: int) -> Row:
    url = f"sqlite:///{folder / 'power.db'}"
    with Guard.open(url, kill_switch="memory", telemetry=False, durability="power") as guard:
        taken = m.medians(
            {
                "one": lambda: asyncio.run(_tasks(guard, 1, steps // 4)),
                "many": lambda: asyncio.run(_tasks(guard, 64, steps // 4 * 8)),
            },
            rounds,
        )
    return Row(
        name="sqlite-power",
        what="durability=power: throughput of 64 tasks over one task",
        value=taken["one"] / taken["many"],
        unit="x",
        limit=10,
        sense="at least",
        facts={"steps/s of one": 1e9 / taken["one"], "of 64": 1e9 / taken["many"]},
    )


def _peers(rounds: int) -> list[Row]:
    """The durable steps of others over ours that is fsynced too, each in its own environment and in turns."""
    found: dict[str, list[float]] = {name: [] for name in ("agentguard_power", *_PEERS)}
    try:
        for name in list(found) * rounds:
            found[name].append(peers.measured(peers.ADAPTERS[name], case="µs a step")["µs a step"])
    except (OSError, KeyError):  # no package index
        return []
    taken = {name: statistics.median(some) for name, some in found.items()}
    ours = taken["agentguard_power"]
    return [
        Row(
            name=f"durable-{name.replace('_', '-')}",
            what=f"a durable step of {title} over ours, each fsynced",
            value=taken[name] / ours,
            unit="x",
            limit=limit,
            sense="at least",
            facts={"its µs": taken[name], "ours": ours},
        )
        for name, (title, limit) in _PEERS.items()
    ]


async def _tasks(guard: Guard, tasks: int, steps: int) -> float:
    """Nanoseconds a step when so many tasks share the steps."""
    step = guarded_step(_async_work)

    async def some() -> None:
        for _ in range(steps // tasks):
            await step(1, b=2, c=3)

    async with guard.run("power", budget=Budget(steps=10**9)):
        await step(1)
        started = time.perf_counter_ns()
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(some())
        return (time.perf_counter_ns() - started) / (steps // tasks * tasks)


async def _async_work(a: int, b: int = 0, c: int = 0) -> int:
    return a
