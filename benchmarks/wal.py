"""How large the WAL of a SQLite store gets, and what a reader that stays costs those who write."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import sqlite3
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

from agentguard import Guard, guarded_step
from agentguard.stores._checkpointer import wal_size
from benchmarks import _measure as m
from benchmarks._rows import Row

_CONTEXT = multiprocessing.get_context("spawn")
_LIMIT_MB = 64


def measure(*, quick: bool) -> list[Row]:
    """The rows on the WAL: saturated writers by number, and one writer beside readers."""
    seconds = 2.0 if quick else 8.0
    rows = [_size(f"wal-{count}", count, seconds, "") for count in (1, 2, 4, 8)]
    rows.append(_size("wal-slow", 8, seconds, "slow"))
    rows.append(_size("wal-short-readers", 2, seconds, "short"))
    alone, beside = (_steps(seconds, reader) for reader in ("", "stays"))
    rows.append(_together(seconds))
    rows.append(
        Row(
            name="wal-reader",
            what="steps/s of a writer beside a reader that stays, over those of one alone",
            value=beside / alone,
            unit="x",
            limit=0.85,
            sense="at least",
            facts={"steps/s alone": alone, "steps/s beside it": beside},
        )
    )
    return rows


def _together(seconds: float) -> Row:
    """The processes take turns with the one, since a machine's speed changes meanwhile."""
    found: dict[int, list[float]] = {1: [], 4: []}
    for writers in (*found, *reversed(found), *found):
        found[writers].append(_steps(seconds / 2, "", writers))
    one, four = (statistics.median(rates) for rates in found.values())
    return Row(
        name="wal-together",
        what="steps/s of 4 processes on one file together, over those of one",
        value=four / one,
        unit="x",
        limit=0.8,
        sense="at least",
        facts={"steps/s of one": one, "of 4": four},
    )


def _size(name: str, writers: int, seconds: float, how: str) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "wal.db"
        steps, largest = _run(path, writers, seconds, how)
    said = {"slow": ", with pauses", "short": ", beside readers of 0.2 s"}.get(how, "")
    return Row(
        name=name,
        what=f"the WAL's largest size with {writers} writing processes{said}",
        value=largest / 2**20,
        unit="MB",
        limit=_LIMIT_MB,
        facts={"steps/s": steps / seconds},
    )


def _steps(seconds: float, how: str, writers: int = 1) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return _run(Path(folder) / "steps.db", writers, seconds, how)[0] / seconds


def _run(path: Path, writers: int, seconds: float, how: str) -> tuple[int, int]:
    """Let processes write for a while; return their steps, and the WAL's largest size in bytes."""
    with Guard.open(f"sqlite:///{path}", kill_switch="memory", telemetry=False) as guard, guard.run("first"):
        pass
    results = _CONTEXT.SimpleQueue()
    go = _CONTEXT.Event()
    processes = [
        _CONTEXT.Process(target=_write, args=(path, go, seconds, how == "slow", results))
        for _ in range(writers)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        results.get()
    with closing(sqlite3.connect(path)) as reader:
        if how == "stays":
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM event").fetchone()
        go.set()
        largest = _watch(path, seconds, reader if how == "short" else None)
        steps = sum(results.get() for _ in processes)
        for process in processes:
            process.join()
    return steps, largest


def _watch(path: Path, seconds: float, reader: sqlite3.Connection | None) -> int:
    largest, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        if reader is not None:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM run").fetchone()
        time.sleep(0.2 if reader is not None else 0.02)
        largest = max(largest, wal_size(str(path)))
        if reader is not None:
            reader.execute("COMMIT")
    return largest


def _write(path: Path, go: object, seconds: float, slow: bool, results: object) -> None:  # noqa: FBT001
    step = guarded_step(m.work)
    with Guard.open(f"sqlite:///{path}", kill_switch="memory", telemetry=False) as guard:
        with guard.run("writer"):
            step(1, b=2, c=3)
            results.put(0)  # type: ignore[attr-defined]
            go.wait()  # type: ignore[attr-defined]
            count, end = 0, time.monotonic() + seconds
            while time.monotonic() < end:
                step(1, b=2, c=3)
                count += 1
                if slow:
                    time.sleep(0.005)
    results.put(count)  # type: ignore[attr-defined]
