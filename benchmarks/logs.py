"""What it costs to read a large log: verify a million events, list the newest of many runs."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from agentguard import Guard, guarded_step
from agentguard.stores.sqlite import SQLiteEventStore
from benchmarks import _measure as m
from benchmarks._rows import Row


def measure(*, quick: bool) -> list[Row]:
    """The rows on reading, from SQLite.  `quick` verifies a tenth and says so."""
    with tempfile.TemporaryDirectory() as folder:
        return [
            _verify(Path(folder) / "verify.db", 100 if quick else 1000, 1000),
            _list(Path(folder) / "list.db", 10_000, 20 if quick else 100),
        ]


def _verify(path: Path, runs: int, events: int) -> Row:
    _fill(path, runs, (events - 3) // 2)
    with Guard.open(f"sqlite:///{path}", kill_switch="memory", telemetry=False) as guard:
        started = time.process_time()
        report = guard.verify()
        seconds = time.process_time() - started
    assert report, str(report)
    return Row(
        name="verify",
        what="verify 1,000,000 events from SQLite, CPU time [2]",
        value=seconds * 1_000_000 / report.events,
        unit="s",
        limit=3,
        facts={"events": report.events, "runs": report.runs, "CPU s": seconds},
    )


def _list(path: Path, runs: int, rounds: int) -> Row:
    _fill(path, runs, 1)
    with Guard.open(f"sqlite:///{path}", kill_switch="memory", telemetry=False) as guard:

        def newest() -> float:
            started = time.thread_time_ns()
            found = guard.runs(limit=50)
            taken = time.thread_time_ns() - started
            assert len(found) == 50
            return taken / 1e6

        taken = m.medians({"list": newest}, rounds)["list"]
    return Row(
        name="list",
        what="list the 50 newest of 10,000 runs",
        value=taken,
        unit="ms",
        limit=1,
        facts={"runs": runs},
    )


def _fill(path: Path, runs: int, steps: int) -> None:
    """Real runs, executed in memory and appended to the file in one act each."""
    step = guarded_step(m.work)
    store = SQLiteEventStore(path, durability="process")
    for _ in range(runs):
        with Guard.in_memory(telemetry=False) as guard:
            with guard.run("benchmark") as run:
                m.calls(step, steps)
            memory = guard.components.store
            row = memory.row(run.id)
            assert row is not None
            store.create(row, list(memory.read(run.id)))
    store.close()
