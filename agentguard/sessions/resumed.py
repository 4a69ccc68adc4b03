"""Runs whose beginning is on record: that is served, the rest goes live."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from agentguard.audit.verify import verify
from agentguard.budget.model import BudgetChange
from agentguard.errors import (
    AgentGuardError,
    LogIntegrityError,
    ReplayDivergenceError,
    RunStopped,
    StepOutcomeUnknownError,
)
from agentguard.events import codec
from agentguard.events.codec import Stored
from agentguard.protocols import EventStore, RunRow
from agentguard.replay.divergence import NOT_REPLAYABLE
from agentguard.replay.player import Player
from agentguard.replay.resolving import pause_for, settle_unknown
from agentguard.sessions import drain
from agentguard.sessions.owned import OwnedSession
from agentguard.steps.generators import leave_served
from agentguard.steps.live import LiveRun


class ResumedSession(OwnedSession):
    """A run that is carried on: recovered, or forked."""

    def close(self, live_run: LiveRun, error: BaseException | None) -> RunStopped | None:
        """End the run, unless it cannot be carried on: then it is given back as it is."""
        player: Any = live_run.player
        try:
            return self._close(live_run, player, error)
        finally:
            if isinstance(player, Player):
                player.stop_reading()

    def _close(self, live_run: LiveRun, player: Any, error: BaseException | None) -> RunStopped | None:
        live = live_run.owner and live_run.stop is None and live_run.draining is None
        if isinstance(player, Player) and live:
            reason = _in_the_way(live_run, player, error)
            if reason is not None:
                if isinstance(reason, ReplayDivergenceError) and reason.kind == NOT_REPLAYABLE and reason.key:
                    pause_for(live_run, reason.key, f"the result of {reason.key} cannot be handed out")
                self.give_back(live_run)
                if reason is not error and (error is None or isinstance(error, Exception)):
                    raise reason.with_traceback(None) from error
                return None
        return super().close(live_run, error)

    def _abandon(self, live_run: LiveRun, error: BaseException) -> None:
        """Let go of a run whose block is not entered: nothing of it has been carried on."""
        self.give_back(live_run)

    def set_budget(self, budget: BudgetChange, actor: str | None, reason: str | None = None) -> None:
        """See `Run.set_budget`; what is on record is not done again."""
        live = self.runtime.live.get(self.run_id)
        player = None if live is None else live.player
        if not (isinstance(player, Player) and player.take_budget()):
            super().set_budget(budget, actor, reason)

    def give_back(self, live_run: LiveRun) -> None:
        """Leave the run without an owner, for an operator or another program to go on."""
        drain.give_back(self.runtime, live_run)
        self.end_span(live_run, None)


def carry_on(
    live_run: LiveRun, log: Iterator[Stored], *, stall_timeout: float, around: Player | None = None
) -> None:
    """Let a log answer for what is on record in it; calls beyond it go live."""
    live_run.player = Player(
        live_run, log, unknown=settle_unknown, stall_timeout=stall_timeout, around=around
    )


def _in_the_way(live_run: LiveRun, player: Player, error: BaseException | None) -> AgentGuardError | None:
    """Return why this program cannot carry its run on, even where it swallowed that; None if it can."""
    if player.divergence is not None:
        return player.divergence
    if isinstance(error, StepOutcomeUnknownError | LogIntegrityError):
        return error
    try:
        player.check_doubt()
        if error is None:
            leave_served(live_run)
            player.check_nothing_left()
    except (ReplayDivergenceError, StepOutcomeUnknownError) as reason:
        return reason
    return None


def refuse_altered(store: EventStore, row: RunRow) -> None:
    """Refuse to run an agent on a log that is not what was written, nor on one forked from such.

    Raises:
        LogIntegrityError: it names the first fault.
    """
    faults = verify(store, [row], {}).faults
    if faults:
        raise LogIntegrityError(*faults[0])
    origin = codec.origin(itertools.islice(store.read(row.run_id), 3))
    if origin is not None and (row_of_origin := store.row(origin)) is not None:
        refuse_altered(store, row_of_origin)
