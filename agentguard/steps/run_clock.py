"""How long a run has been RUNNING, by this process's monotonic clock: what `seconds` limits.

The time in which nothing is done but wait for approvals does not count.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from agentguard._clock import Clock
from agentguard.runs.state import RunState

if TYPE_CHECKING:
    from agentguard.steps.log import RunLog
    from agentguard.steps.step_call import StepCall


class RunClock:
    """The running time of one run.  Used under the log's lock, but for `elapsed`."""

    def __init__(self, log: RunLog, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._base = log.fold.running_ns
        self._since: int | None = None
        #: The state that time is counted for.
        self._state = log.fold.state
        #: Steps that wait for an approval, and since when that time is still to be looked at.
        self.waiters: list[StepCall] = []
        self._waiting_since = 0
        #: How long, since `_since`, nothing was done but wait for approvals.
        self._idle_ns = 0

    def follow(self) -> bool:
        """Count anew if the run's state has changed; return whether it has."""
        if self._log.fold.state is self._state:
            return False
        self.count()
        return True

    def count(self, since: int | None = None) -> None:
        """Count while the run is RUNNING, from `since` (monotonic) or now."""
        now = self._clock.monotonic()
        if self._since is not None:
            self._base += now - self._since - self._idle_ns
        self._idle_ns = 0
        self._state = self._log.fold.state
        running = self._state is RunState.RUNNING
        self._since = (now if since is None else since) if running else None

    def restart(self) -> None:
        """Count on from what the log says, after a claim."""
        self._base, self._since = self._log.fold.running_ns, None
        self.count()

    def elapsed(self) -> int:
        """Return how long the run has been RUNNING, in nanoseconds."""
        if self._since is None:
            return self._base
        now = self._clock.monotonic()
        return self._base + now - self._since - self._idle_ns - self._pending_idle(now)

    @contextlib.contextmanager
    def waiting(self, step: StepCall) -> Iterator[None]:
        """A step waits for an operator: while nothing else goes on, that time does not count."""
        self._log.hold(self._begin_waiting, step)
        try:
            yield
        finally:
            self._log.hold(self._end_waiting, step)

    def _begin_waiting(self, step: StepCall) -> None:
        if not self.waiters:
            self._waiting_since = self._clock.monotonic()
        self.waiters.append(step)

    def _end_waiting(self, step: StepCall) -> None:
        self.count_idle()
        self.waiters.remove(step)

    def count_idle(self) -> None:
        """Look at the time since the last look, before the steps in flight change."""
        if self.waiters:
            now = self._clock.monotonic()
            self._idle_ns += self._pending_idle(now)
            self._waiting_since = now

    def _pending_idle(self, now: int) -> int:
        """Return the time since the last look, if every open step waits, itself or for one inside it."""
        waiters = tuple(self.waiters)
        if not waiters or self._since is None:
            return 0
        waiting = {step.key for waiter in waiters for step in _and_around(waiter)}
        if not self._log.fold.open.keys() <= waiting:
            return 0
        return now - max(self._waiting_since, self._since)


def _and_around(step: StepCall | None) -> Iterator[StepCall]:
    """A step and those whose bodies it is called in."""
    while step is not None:
        yield step
        step = step.parent
