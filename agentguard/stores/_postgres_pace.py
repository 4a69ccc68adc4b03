"""When to commit: at once, or with those who are about to come back, where a commit takes long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

#: A commit that took so long, in seconds, waited for others: for processors, the disk or a tenant's account.
_CROWDED: Final = 0.002
#: For how long those are waited for whose acts it had: as a share of what it took, and in seconds.
_SHARE: Final = 0.5
_LONGEST: Final = 0.01
#: How often it is looked who has come.
_PAUSE: Final = 0.0005
#: After waiting in vain, so many commits do not wait, at most.
_MOST: Final = 16


class Pace:
    """How long a writer waits for more acts before it commits those that are there.

    Tasks whose acts were committed together have their next ones soon, if what they do is short.  Those of
    the other tasks are there already.  To commit these at once would make two halves of the tasks take turns
    for ever, with two commits where one would do; and each waits for its turn on a crowded server.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: How many acts are there when all have come, and until when they are waited for.
        self._due = 0
        self._until = 0.0
        #: How many there were at the end of the last commit, and how many it had.
        self._left = 0
        self._had = 0
        #: How many commits do not wait, now and after the next time in vain.
        self._skip = 0
        self._next_skip = 1

    def committed(self, acts: int, left: int, took: float) -> None:
        """Note a commit that is just over: how many acts it had, how many are left, and how long it took."""
        self._due = 0
        if took < _CROWDED or acts < 2:
            return
        if self._skip:
            self._skip -= 1
            return
        self._left, self._had, self._due = left, acts, left + acts
        self._until = self._clock() + min(took * _SHARE, _LONGEST)

    def pause(self, acts: int) -> float:
        """Return for how many seconds to wait before looking again, with so many acts there; 0: commit."""
        if not self._due:
            return 0.0
        remaining = self._until - self._clock()
        if acts < self._due and remaining > 0:
            return min(_PAUSE, remaining)
        self._due = 0
        if 2 * (acts - self._left) >= self._had:
            self._next_skip = 1
        else:
            self._skip, self._next_skip = self._next_skip, min(2 * self._next_skip, _MOST)
        return 0.0
