"""Waiting for acknowledgements, on the side of the one who kills."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from agentguard.killswitch.model import Acknowledgements

_SHORTEST_PAUSE = 0.0001
_LONGEST_PAUSE = 0.02
#: How many times as long as a look is the pause after it: a look takes time from those who are to act.
_PAUSES = 5


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
    start = now = time.monotonic()
    while True:
        began = now
        live, acknowledged, complete = count()
        now = time.monotonic()
        passed = now - start
        if (complete and acknowledged >= live) or passed >= timeout:
            return Acknowledgements(live, acknowledged, passed)
        pause = min(max(_PAUSES * (now - began), _SHORTEST_PAUSE), _LONGEST_PAUSE)
        time.sleep(min(pause, timeout - passed))
        now = time.monotonic()
