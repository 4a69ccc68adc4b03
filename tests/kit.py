"""What tests of every room use."""

from __future__ import annotations

import time
from collections.abc import Callable

from agentguard import Guard


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Return as soon as a condition holds; fail when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come to hold"
        time.sleep(0.005)


def is_waited(guard: Guard) -> bool:
    """Say whether a step of a live run waits for an operator, so that the time of its run stands still.

    The question is on record a moment before.
    """
    return any(live_run.time.waiters for live_run in guard.runtime.live_runs())
