"""A submitted run as a worker claims it, carries it on, and lets go of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agentguard.errors import AgentGuardError, KillSwitchUnavailableError, RunStopped, StoreUnavailableError
from agentguard.protocols import RunRow
from agentguard.replay import trying_again
from agentguard.runtime import Runtime
from agentguard.sessions import drain
from agentguard.sessions.options import RunOptions
from agentguard.sessions.recovered import RecoverySession
from agentguard.steps.live import LiveRun

#: By which the run's row tells that a worker owns it, whose life the queue watches.
_WORKER = "worker"
#: What is no failure of the program, and may be gone in a moment.
_PASSING = (StoreUnavailableError, KillSwitchUnavailableError)


@dataclass
class Claim:
    """On whose account a run is claimed, and what became of that."""

    #: The worker, by the queue's number.
    worker: int
    #: Whether the run is tried again if its function fails.
    may_try_again: bool
    #: Whether the function has failed, and the run was let go for another try.
    failed: bool = False


class WorkerSession(RecoverySession):
    """A run of the queue.

    Of an owner that is a worker the queue tells whether it is dead, and the claim's epoch fences it; any
    other owner is left alone as long as it may live.
    """

    def __init__(self, runtime: Runtime, row: RunRow, options: RunOptions, claim: Claim) -> None:
        super().__init__(runtime, row, options)
        self._claimed = claim

    def new_owner(self) -> dict[str, Any]:
        """Return what the row says of this process."""
        return super().new_owner() | {_WORKER: self._claimed.worker}

    def check_owner(self) -> None:
        """Refuse a run that somebody else has, beside the queue."""
        if _WORKER not in self._row.owner:
            super().check_owner()

    def close(self, live_run: LiveRun, error: BaseException | None) -> RunStopped | None:
        """End the run, or let it go for another try."""
        if error is not None and self._comes_again(live_run, error):
            drain.drain(self.runtime, live_run, timeout=0)  # its other threads begin nothing more
            self.end_span(live_run, None)
            return None
        return super().close(live_run, error)

    def _comes_again(self, live_run: LiveRun, error: BaseException) -> bool:
        player = live_run.player
        if not live_run.owner or live_run.stop is not None or live_run.draining is not None:
            return False
        if player is not None and player.halted:
            return False
        if isinstance(error, _PASSING):
            return True
        if isinstance(error, AgentGuardError) or not isinstance(error, Exception):
            return False
        if live_run.fold.open.keys() - live_run.log.elsewhere:  # of threads that go on
            return False
        if not self._claimed.may_try_again or not trying_again.prepare(live_run, error):
            return False
        self._claimed.failed = True
        return True
