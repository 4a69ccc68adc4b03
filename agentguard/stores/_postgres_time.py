"""What time it is for all hosts: by the server, since clocks of hosts differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agentguard._clock import Clock

#: Clocks that differ by less count as the same, in nanoseconds.
_SAME: Final = 1_000_000_000
#: For so long a difference is taken to stay, unless the clock of this host jumps.
_KEPT: Final = 60_000_000_000


class ServerTime:
    """By how many nanoseconds the server's clock is ahead of that of this host.

    Signs of life lie in the store by the server's clock, and are told by the host's: so how old one is does
    not depend on who wrote it.
    """

    def __init__(self, clock: Clock, ask: Callable[[], int]) -> None:
        self._clock = clock
        self._ask = ask
        self._ahead = self._exactly_ahead = 0
        #: Until when that holds, and how the two clocks of this host stood to each other.
        self._until: int | None = None
        self._between = 0

    def ahead(self) -> int:
        """Return the difference, asked for anew from time to time; 0 where the clocks go alike."""
        if not self.is_known:
            monotonic = self._clock.monotonic()
            between = self._clock.wall() - monotonic
            before = self._clock.wall()
            found = self._ask()
            ahead = self._exactly_ahead = found - (before + self._clock.wall()) // 2
            self._ahead = 0 if abs(ahead) < _SAME else ahead
            self._until, self._between = monotonic + _KEPT, between
        return self._ahead

    @property
    def is_known(self) -> bool:
        """Whether the difference was asked for of late, and the clock of this host has not jumped since."""
        monotonic = self._clock.monotonic()
        between = self._clock.wall() - monotonic
        return self._until is not None and monotonic < self._until and abs(between - self._between) < _SAME

    def now(self) -> int:
        """Return the server's time as this host can tell it, in nanoseconds."""
        self.ahead()
        return self._clock.wall() + self._exactly_ahead
