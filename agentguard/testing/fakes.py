"""Time and ids that a test decides: for `Guard.in_memory(clock=FakeClock(), ids=FakeIds())`."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

from agentguard._clock import Clock

_SECOND = 1_000_000_000


class FakeClock(Clock):
    """A clock that stands still until it is advanced; wall clock and monotonic clock move together.

    Example:
        >>> from agentguard import Budget, Guard
        >>> clock = FakeClock()
        >>> with Guard.in_memory(clock=clock) as guard:
        ...     with guard.run("slow", budget=Budget(seconds=60)) as run:
        ...         clock.advance(45)
        ...         left = run.remaining.seconds
        >>> left
        15.0
    """

    __slots__ = ("_lock", "_passed", "_start")

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        if start.tzinfo is None:
            raise ValueError(
                f"start needs a time zone, as in datetime(2026, 1, 1, tzinfo=UTC), not {start!r}"
            )
        self._start = int((start - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1)) * 1000
        self._passed = 0
        self._lock = threading.Lock()
        super().__init__(wall=self._wall, monotonic=self._monotonic)

    def _wall(self) -> int:
        return self._start + self._passed

    def _monotonic(self) -> int:
        return self._passed

    def advance(self, by: float | timedelta) -> None:
        """Move on by seconds, or by a timedelta.

        Raises:
            ValueError: it is negative; a wall clock that was set back is `turn_back`.
        """
        seconds = by.total_seconds() if isinstance(by, timedelta) else by
        if seconds < 0:
            raise ValueError(f"time goes on: {by!r} is negative")
        with self._lock:
            self._passed += round(seconds * _SECOND)

    def turn_back(self, by: float | timedelta) -> None:
        """Set the wall clock back, as an operator or NTP may; the monotonic clock goes on."""
        seconds = by.total_seconds() if isinstance(by, timedelta) else by
        with self._lock:
            self._start -= round(seconds * _SECOND)

    @property
    def now(self) -> datetime:
        """The wall clock as a datetime."""
        return datetime.fromtimestamp(self._wall() / _SECOND, UTC)


class FakeIds:
    """Run ids that count: `run-1`, `run-2`, ...

    Example:
        >>> from agentguard import Guard
        >>> with Guard.in_memory(ids=FakeIds()) as guard, guard.run("a") as run:
        ...     run.id
        'run-1'
    """

    def __init__(self, prefix: str = "run") -> None:
        self._prefix = prefix
        self._count = 0
        self._lock = threading.Lock()

    def __call__(self) -> str:
        """The next id."""
        with self._lock:
            self._count += 1
            return f"{self._prefix}-{self._count}"
