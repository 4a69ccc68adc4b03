"""How long a run has been RUNNING, by this process's monotonic clock: what `seconds` limits (rule 3).

The time in which nothing is done but wait for approvals does not count (rule 10).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from agentguard.runs.state import RunState

if TYPE_CHECKING:
    from agentguard.steps.journal import Journal


class RunningTime:
    """The running time of one run.  Used under the store's lock, but for `elapsed`."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._base = journal.fold.running_ns
        self._since: int | None = None
        #: Steps that wait for an approval, and since when that time is still to be looked at.
        self.waiters: list[Any] = []
        self._waiting_since = 0
        #: How long, since `_since`, nothing was done but wait for approvals.
        self._idle_ns = 0

    def count(self, since: int | None = None) -> None:
        """Count while the run is RUNNING, from `since` (monotonic) or now."""
        now = self._journal.clock.monotonic()
        if self._since is not None:
            self._base += now - self._since - self._idle_ns
        self._idle_ns = 0
        running = self._journal.fold.state is RunState.RUNNING
        self._since = (now if since is None else since) if running else None

    def restart(self) -> None:
        """Count on from what the log says, after a claim."""
        self._base, self._since = self._journal.fold.running_ns, None
        self.count()

    def elapsed(self) -> int:
        """How long the run has been RUNNING, in nanoseconds."""
        if self._since is None:
            return self._base
        now = self._journal.clock.monotonic()
        return self._base + now - self._since - self._idle_ns - self._pending_idle(now)

    @contextlib.contextmanager
    def waiting(self, step: Any) -> Iterator[None]:
        """A step waits for an operator: while nothing else goes on, that time does not count."""
        with self._journal.lock:
            if not self.waiters:
                self._waiting_since = self._journal.clock.monotonic()
            self.waiters.append(step)
        try:
            yield
        finally:
            with self._journal.lock:
                self.count_idle()
                self.waiters.remove(step)

    def count_idle(self) -> None:
        """Look at the time since the last look, before the steps in flight change."""
        if self.waiters:
            now = self._journal.clock.monotonic()
            self._idle_ns += self._pending_idle(now)
            self._waiting_since = now

    def _pending_idle(self, now: int) -> int:
        """The time since the last look, if every open step waits, itself or for one inside it."""
        waiters = tuple(self.waiters)
        if not waiters or self._since is None:
            return 0
        waiting = {step.key for waiter in waiters for step in _and_around(waiter)}
        if not self._journal.fold.open.keys() <= waiting:
            return 0
        return now - max(self._waiting_since, self._since)


def _and_around(step: Any) -> Iterator[Any]:
    """A step and those whose bodies it is called in."""
    while step is not None:
        yield step
        step = step.parent
