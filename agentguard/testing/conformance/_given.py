"""What the suites are given: rows, logs, accounts, and threads that begin together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from agentguard.budget.account import Account, Request
from agentguard.budget.model import Budget
from agentguard.events.codec import Stored, chain, genesis
from agentguard.protocols import RunRow

DEADLINE = 20.0


def a_row(run_id: str, **fields: Any) -> RunRow:
    """A run's row."""
    defaults: dict[str, Any] = {
        "name": "triage",
        "tenant": "acme",
        "state": "RUNNING",
        "created_ns": 1,
        "owner": {"pid": 7, "host": "h"},
        "salt": b"salt",
        "summary": {"metadata": {"a": [1, None, "é"]}, "steps": 0},
    }
    return RunRow(run_id=run_id, **(defaults | fields))


def log_of(run_id: str, count: int, *, tag: str = "", payload: bytes | None = None) -> list[Stored]:
    """The first events of a run, chained."""
    events = []
    digest = genesis(run_id)
    for seq in range(1, count + 1):
        body = b'{"seq":%d,"type":"value","name":"%s"}' % (seq, f"{run_id}{tag}".encode())
        digest = chain(digest, body)
        events.append(Stored(seq, body, digest, payload))
    return events


def unplaced(events: Any) -> list[Stored]:
    """Events without their positions, which a store gives."""
    return [event._replace(position=0) for event in events]


def steps(count: int) -> Request:
    """A request for steps."""
    return Request({"steps": count}, "step", "tool")


def opening(limit: int) -> Account:
    """An account of a tenant."""
    return Account("tenant:acme", Budget(steps=limit))


def on_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What `work(0..count-1)` gives, all begun at the same time."""
    barrier = threading.Barrier(count)

    def begin(index: int) -> Any:
        barrier.wait()
        return work(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def wait_until(condition: Callable[[], object]) -> None:
    """Return when a condition holds, which it must soon."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.001)
