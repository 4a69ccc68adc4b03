"""Waiting for acknowledgements, on the side of the one who kills."""

from __future__ import annotations

import time
from collections.abc import Callable

from agentguard.killswitch.model import Acknowledgements

_FIRST_PAUSE = 0.0001
_LONGEST_PAUSE = 0.002


def collect(count: Callable[[], tuple[int, int]], timeout: float) -> Acknowledgements:
    """Ask `count`, which gives live and acknowledged, until they are equal or time is up."""
    start = time.monotonic()
    pause = _FIRST_PAUSE
    while True:
        live, acknowledged = count()
        passed = time.monotonic() - start
        if acknowledged >= live or passed >= timeout:
            return Acknowledgements(live, acknowledged, passed)
        time.sleep(min(pause, timeout - passed))
        pause = min(pause * 2, _LONGEST_PAUSE)
