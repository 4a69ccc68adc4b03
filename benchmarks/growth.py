"""Whether a step gets dearer as its run grows: step 10,000 over step 1."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

from agentguard import Budget, Guard, guarded_step
from benchmarks import _measure as m
from benchmarks._rows import Row

_BATCH = 100
_GROWN = 10_000


def measure(*, quick: bool) -> list[Row]:
    """The rows on growth, in memory and in SQLite, by CPU time."""
    with tempfile.TemporaryDirectory() as folder:
        with Guard.in_memory(telemetry=False) as guard:
            memory = _growth(guard, 5 if quick else 20)
        url = f"sqlite:///{Path(folder) / 'growth.db'}"
        with Guard.open(url, kill_switch="memory", telemetry=False) as guard:
            sqlite = _growth(guard, 3 if quick else 6)
    return [
        Row(
            name="growth-memory",
            what="step 10,000 over step 1 of a run, in memory",
            value=memory[1] / memory[0],
            unit="x",
            limit=1.1,
            facts={"ns at first": memory[0], "ns at last": memory[1]},
        ),
        Row(
            name="growth-sqlite",
            what="step 10,000 over step 1 of a run, in SQLite",
            value=sqlite[1] / sqlite[0],
            unit="x",
            limit=1.1,
            facts={"ns at first": sqlite[0], "ns at last": sqlite[1]},
        ),
    ]


def _growth(guard: Guard, rounds: int) -> tuple[float, float]:
    """What a step costs early and late in a run; batches around both, the least of all rounds."""
    step = guarded_step(m.work)
    early, late = [], []
    with guard.run("warm up"):
        m.calls(step, 1000)
    for _ in range(rounds):
        with guard.run("grows", budget=Budget(steps=10**9)):
            early += [m.calls(step, _BATCH) for _ in range(5)]
            for _ in itertools.repeat(None, _GROWN - 10 * _BATCH):
                step(1, b=2, c=3)
            late += [m.calls(step, _BATCH) for _ in range(5)]
    return min(early), min(late)
