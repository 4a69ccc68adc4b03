"""How soon a submitted run is taken, and taken over when its worker is killed -9: workers on PostgreSQL."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agentguard import Guard
from agentguard.stores._postgres_schema import migrate
from benchmarks import _measure as m
from benchmarks._rows import Row
from tests.kit import wait_until
from tests.postgres import DURABLE, execute, postgres

_ROOT = Path(__file__).parents[1]
_LIVE = """
SELECT count(*) FROM agentguard_queue.procrastinate_workers WHERE last_heartbeat > now() - interval '3 s'
"""
_FAST = ("--heartbeat", "1", "--stalled-after", "3")


def measure(*, quick: bool) -> list[Row]:
    """The rows on workers."""
    with tempfile.TemporaryDirectory(prefix="agentguard-") as folder, postgres(*DURABLE) as server:
        migrate(server.url())
        os.environ |= {
            "AGENTGUARD_STORE": server.url(),
            "AGENTGUARD_KILL_SWITCH": "page",
            "AGENTGUARD_HOME": folder,
        }
        agents = importlib.import_module("benchmarks._worker_agents")
        with agents.guard as guard:
            taken = _taken(guard, agents, 10 if quick else 100)
            over = [_taken_over(guard, agents) for _ in range(2 if quick else 10)]
    return [
        Row(
            name="worker-take-over",
            what="run of a worker that was killed -9, to the claim by another",
            value=max(over),
            unit="s",
            limit=5,
            facts={"kills": len(over), "p50 s": m.percentile(over, 0.5), "options": " ".join(_FAST)},
        ),
        Row(
            name="worker-latency",
            what="from the end of a submission to the claim by a worker that waits, p50",
            value=m.percentile(taken, 0.5),
            unit="ms",
            facts={"runs": len(taken), "p90 ms": m.percentile(taken, 0.9)},
        ),
    ]


@contextmanager
def _worker() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "agentguard.cli", "worker", "--app", "benchmarks._worker_agents:guard"]
    process = subprocess.Popen([*command, *_FAST], cwd=_ROOT, stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _taken(guard: Guard, agents: Any, count: int) -> list[float]:
    """Milliseconds from each submission to its claim."""
    found = []
    with _worker():
        guard.submit(agents.nothing).wait(60)
        for _ in range(count):
            run = guard.submit(agents.nothing)
            submitted = time.time_ns()
            run.wait(60)
            found.append((_claims(guard, run.id)[0] - submitted) / 1e6)
    return found


def _taken_over(guard: Guard, agents: Any) -> float:
    """Seconds from the kill of a worker to the claim by the other."""
    run = guard.submit(agents.busy, 60.0)
    with _worker() as first:
        wait_until(lambda: guard.summary(run.id).steps > 1, 60)
        with _worker() as second:
            wait_until(lambda: execute(os.environ["AGENTGUARD_STORE"], _LIVE) == [(2,)], 120)
            first.kill()
            killed = time.time_ns()
            wait_until(lambda: len(_claims(guard, run.id)) == 2, 60)
            assert second.poll() is None
            guard.kill(run=run.id, reason="measured")
            run.wait(60)
    return (_claims(guard, run.id)[1] - killed) / 1e9


def _claims(guard: Guard, run_id: str) -> list[int]:
    return [event.at_ns for event in guard.history(run_id) if event.type == "run_recovered"]
