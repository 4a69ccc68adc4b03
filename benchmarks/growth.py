"""Whether a step gets dearer as its run grows, as runs nest, and as scopes and runs come and go."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from agentguard import Budget, Guard, guarded_step
from benchmarks import _measure as m
from benchmarks._rows import Row

_BATCH = 100
_GROWN = 10_000
#: How deep runs are nested, how many scopes a run has had, and how many runs a guard.
_DEPTHS, _SCOPES, _RUNS = (2, 8, 16), 1000, 1000


def measure(*, quick: bool) -> list[Row]:
    """The rows on growth, in memory and in SQLite, by CPU time."""
    with tempfile.TemporaryDirectory() as folder:
        with Guard.in_memory(telemetry=False) as guard:
            memory = _growth(guard, 5 if quick else 20)
        more = m.least({name: _around(before) for name, before in _SETTINGS.items()}, 5 if quick else 20)
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
        Row(
            name="growth-depth",
            what="a level more around a nested run, from 8 to 16 levels over from 2 to 8",
            value=((more["16"] - more["8"]) / 8) / ((more["8"] - more["2"]) / 6),
            unit="x",
            limit=1.3,
            facts={f"µs {depth} deep": more[str(depth)] / 1000 for depth in (0, *_DEPTHS)},
        ),
        *(
            Row(
                name=f"growth-{name}",
                what=f"step after {count:,} {name} over one without",
                value=more[name] / more["0"],
                unit="x",
                limit=1.1,
                facts={"µs a step": more[name] / 1000},
            )
            for name, count in (("scopes", _SCOPES), ("runs", _RUNS))
        ),
    ]


def _deep(depth: int) -> Callable[[Guard, ExitStack], None]:
    def before(guard: Guard, blocks: ExitStack) -> None:
        for _ in range(depth):
            blocks.enter_context(guard.run("around", budget=Budget(steps=10**9)))

    return before


def _after_runs(guard: Guard, blocks: ExitStack) -> None:
    for _ in range(_RUNS):
        with guard.run("before"):
            pass


def _after_scopes(guard: Guard, blocks: ExitStack) -> None:
    run = blocks.enter_context(guard.run("r", budget=Budget(steps=10**9)))
    for number in range(_SCOPES):
        with run.scope(f"agent {number}"):
            pass


_SETTINGS: dict[str, Callable[[Guard, ExitStack], None]] = {
    **{str(depth): _deep(depth) for depth in (0, *_DEPTHS)},
    "scopes": _after_scopes,
    "runs": _after_runs,
}


def _around(before: Callable[[Guard, ExitStack], None]) -> m.Case:
    """The CPU time of a step in a new run, or in the run that `before` has opened scopes in."""
    step = guarded_step(m.work)

    def case() -> float:
        with Guard.in_memory(telemetry=False) as guard, ExitStack() as blocks:
            before(guard, blocks)
            if before is not _after_scopes:
                blocks.enter_context(guard.run("r", budget=Budget(steps=10**9)))
            m.calls(step, 20)
            return min(m.calls(step, _BATCH) for _ in range(3))

    return case


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
