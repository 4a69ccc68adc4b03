"""How fast a log replays, and that what is kept in memory does not grow with it."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from itertools import repeat
from pathlib import Path

from agentguard import Guard, guarded_step
from agentguard.stores.sqlite import SQLiteEventStore
from benchmarks import _measure as m
from benchmarks._rows import Row

_FEW, _MANY = 20_000, 100_000
step = guarded_step(m.work)


@guarded_step
async def async_step(a: int, b: int = 0, c: int = 0) -> int:
    return a


def measure(*, quick: bool) -> list[Row]:
    """The rows on replay, from SQLite, by CPU time on one core; verifying the log first counts too."""
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder) / "few.db", Path(folder) / "many.db"
        _record(few, _FEW, _sync)
        _record(many, _MANY, _sync)
        awaited = Path(folder) / "async.db"
        _record(awaited, _FEW, _async)
        rounds = 1 if quick else 3
        return [
            _speed(many, rounds),
            _memory(few, many),
            Row(
                name="replay-async",
                what=f"replay of {_FEW:,} async steps in one task",
                value=max(_rate(awaited, _FEW, _async) for _ in repeat(None, rounds)),
                unit="steps/s",
            ),
        ]


def _speed(path: Path, rounds: int) -> Row:
    return Row(
        name="replay",
        what=f"replay of a log of {_MANY:,} steps, steps a second of CPU",
        value=max(_rate(path, _MANY, _sync) for _ in repeat(None, rounds)),
        unit="steps/s",
        limit=20_000,
        sense="at least",
    )


def _memory(few: Path, many: Path) -> Row:
    small, large = _peak(few, _FEW), _peak(many, _MANY)
    return Row(
        name="replay-memory",
        what=f"peak memory of a replay of {_MANY:,} steps over {_FEW:,}",
        value=large / small,
        unit="x",
        limit=1.1,
        facts={"kB of the small one": small / 1000, "kB of the large one": large / 1000},
    )


def _sync(steps: int) -> None:
    m.calls(step, steps)


def _async(steps: int) -> None:
    asyncio.run(m.async_calls(async_step, steps))


def _record(path: Path, steps: int, program: Callable[[int], None]) -> None:
    """A real run, executed in memory and appended to the file in one act."""
    store = SQLiteEventStore(path, durability="process")
    with Guard.in_memory(telemetry=False) as guard:
        with guard.run("benchmark", run_id="recorded"):
            program(steps)
        memory = guard.components.store
        row = memory.row("recorded")
        assert row is not None
        store.create(row, list(memory.read("recorded")))
    store.close()


def _rate(path: Path, steps: int, program: Callable[[int], None]) -> float:
    """Steps replayed in a second of the process's CPU time."""
    with Guard.open(f"sqlite:///{path}", kill_switch="memory", telemetry=False) as guard:
        gc.collect()
        started = time.process_time()
        with guard.replay("recorded"):
            program(steps)
        return steps / (time.process_time() - started)


def _peak(path: Path, steps: int) -> int:
    """The most that a replay holds at one time, in bytes, by tracemalloc."""
    with Guard.open(f"sqlite:///{path}", kill_switch="memory", telemetry=False) as guard:
        gc.collect()
        tracemalloc.start()
        try:
            with guard.replay("recorded"):
                _sync(steps)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
