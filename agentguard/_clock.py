"""Where time comes from: injected, so that tests and replay can decide what time it is."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Two readings in nanoseconds: `wall()` since the epoch, `monotonic()` for durations."""

    __slots__ = ("monotonic", "wall")

    def __init__(
        self,
        wall: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.wall = wall
        self.monotonic = monotonic


SYSTEM_CLOCK = Clock()
