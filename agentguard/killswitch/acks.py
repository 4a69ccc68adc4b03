"""Waiting for acknowledgements, on the side of the one who kills."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from agentguard.killswitch.model import Acknowledgements

_FIRST_PAUSE = 0.0001
_LONGEST_PAUSE = 0.002


class Count(NamedTuple):
    """What one look at the participants has found; `complete`: whether all could be looked at."""

    live: int
    acknowledged: int
    complete: bool = True


def total(counts: Iterable[Count]) -> Count:
    """Return several counts as one."""
    live, acknowledged, complete = zip(*counts, strict=True)
    return Count(sum(live), sum(acknowledged), all(complete))


def collect(count: Callable[[], Count], timeout: float) -> Acknowledgements:
    """Ask `count` until it is complete and all have acknowledged, or time is up."""
    start = time.monotonic()
    pause = _FIRST_PAUSE
    while True:
        live, acknowledged, complete = count()
        passed = time.monotonic() - start
        if (complete and acknowledged >= live) or passed >= timeout:
            return Acknowledgements(live, acknowledged, passed)
        time.sleep(min(pause, timeout - passed))
        pause = min(pause * 2, _LONGEST_PAUSE)
