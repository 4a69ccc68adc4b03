"""A run opened inside one that is replayed or recovered: replayed, recovered or new, as the log has it."""

from __future__ import annotations

import threading

from agentguard.budget.model import BudgetChange
from agentguard.errors import RunStopped, StepOutcomeUnknownError
from agentguard.replay.divergence import NOT_REPLAYABLE
from agentguard.replay.keyed import KeyedOutcomes
from agentguard.replay.player import Player
from agentguard.runs.branch import branch_of
from agentguard.runs.summary import state_of
from agentguard.sessions.base import Session
from agentguard.sessions.live import LiveSession
from agentguard.sessions.recovered import RecoverySession
from agentguard.sessions.replayed import ReplaySession
from agentguard.steps.live import LiveRun


class NestedSession(LiveSession):
    """A run inside a replayed or recovered one; it is a new run where the log does not have it."""

    _recorded: Session | None = None

    def open(self) -> LiveRun:
        """Open the run that the log of the run around it has at this place, or a new one."""
        self._recorded = self._session_on_record()
        return super().open() if self._recorded is None else self._recorded.open()

    def close(self, live_run: LiveRun, error: BaseException | None) -> RunStopped | None:
        """Leave the run as what it was opened as."""
        return (
            super().close(live_run, error)
            if self._recorded is None
            else self._recorded.close(live_run, error)
        )

    def give_up(self, error: BaseException) -> None:
        """See `Session.give_up`."""
        if self._recorded is None:
            super().give_up(error)
        else:
            self._recorded.give_up(error)

    def kill(self, reason: str, actor: str | None) -> int:
        """See `Run.kill`; a replayed run touches nothing that is live."""
        return super().kill(reason, actor) if self._recorded is None else self._recorded.kill(reason, actor)

    def pause(self, reason: str) -> None:
        """See `Run.pause`."""
        if self._recorded is None:
            super().pause(reason)
        else:
            self._recorded.pause(reason)

    def resume(self) -> None:
        """See `Run.resume`."""
        if self._recorded is None:
            super().resume()
        else:
            self._recorded.resume()

    def set_budget(self, budget: BudgetChange, actor: str | None, reason: str | None = None) -> None:
        """See `Run.set_budget`."""
        if self._recorded is None:
            super().set_budget(budget, actor, reason)
        else:
            self._recorded.set_budget(budget, actor, reason)

    def drain(self, live_run: LiveRun, timeout: float | None) -> bool:
        """See `Run.drain`."""
        recorded = self._recorded
        return super().drain(live_run, timeout) if recorded is None else recorded.drain(live_run, timeout)

    async def adrain(self, live_run: LiveRun, timeout: float | None) -> bool:
        """See `Run.adrain`."""
        recorded = self._recorded
        return await (
            super().adrain(live_run, timeout) if recorded is None else recorded.adrain(live_run, timeout)
        )

    def _session_on_record(self) -> Session | None:
        around = self.around
        player = None if around is None else around.live_run.player
        if isinstance(player, KeyedOutcomes):
            player = player.player_at(branch_of(self.key))
        if around is None or not isinstance(player, Player):
            return None
        if around.thread != threading.get_ident():
            self.pos = player.place_of_run(self.key, self.pos)
        recorded = player.open_run(self.key, self.pos, around.scope_key)
        if recorded is None:
            return None
        components = around.live_run.components
        row = components.store.row(recorded)
        if row is None:
            if not player.live:
                expected = f"the log of run {recorded}, which was opened here"
                player.diverge(NOT_REPLAYABLE, self.key, expected, "it is not in this store")
            self.is_in_outer_log = True
            return None
        if not player.live or state_of(row).final:
            self.run_id = recorded  # of a fork's origin, where that is what it is served from
            return ReplaySession(self.runtime, row, components=components, around=player)
        if (
            recorded != self.run_id or row.parent_id != around.live_run.run_id
        ):  # it goes on in a fork's origin
            error = StepOutcomeUnknownError(around.live_run.origin, self.key)
            error.add_note(f"it is run {recorded}, which has not ended: recover it, and then fork again")
            raise error
        return RecoverySession(
            self.runtime, row, self.options, take_over=True, around=around, key=self.key, pos=self.pos
        )
