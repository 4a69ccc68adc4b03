"""A replay as a run's block: no body runs, nothing is written, nothing is spent."""

from __future__ import annotations

from typing import Any

from agentguard.budget.model import BudgetChange
from agentguard.errors import (
    AgentGuardError,
    LogIntegrityError,
    ReplayDivergenceError,
    RunStopped,
    StepOutcomeUnknownError,
)
from agentguard.events import codec
from agentguard.protocols import RunRow
from agentguard.replay import STALL_TIMEOUT
from agentguard.replay.origin import checked, origin_log
from agentguard.replay.player import Player
from agentguard.replay.sealed import SealedStore, StillSwitch
from agentguard.runs.fold import RunFold
from agentguard.runs.state import RunState
from agentguard.runtime import Runtime
from agentguard.sessions.base import Session
from agentguard.sessions.resumed import refuse_altered
from agentguard.steps.components import Components
from agentguard.steps.exit_rule import StopSwallowedError
from agentguard.steps.generators import leave_served
from agentguard.steps.live import LiveRun


class ReplaySession(Session):
    """A run that its log answers for: see `Guard.replay`.

    `components` are those of the replay around this one, for a nested run.
    """

    def __init__(
        self,
        runtime: Runtime,
        row: RunRow,
        *,
        stall_timeout: float = STALL_TIMEOUT,
        telemetry: Any = None,
        components: Components | None = None,
        around: Player | None = None,
    ) -> None:
        super().__init__(runtime, run_id=row.run_id, name=row.name, tenant=row.tenant)
        self._components = components
        self._player_around = around
        self._row = row
        self._stall_timeout = stall_timeout
        self._telemetry = telemetry
        self._player: Player | None = None

    @property
    def components(self) -> Components:
        """Where the log is read from."""
        return self.runtime.components if self._components is None else self._components

    def open(self) -> LiveRun:
        """Return a live run on a sealed copy of the components, with the log to answer for it.

        Raises:
            LogIntegrityError: the log was altered.
        """
        components = self.components
        store = components.store
        refuse_altered(components.abilities.sealed or store, self._row)
        fold = RunFold(self.run_id)
        for stored in checked(store.read(self.run_id), self.run_id):  # a submitted run was claimed first
            fold.apply(codec.decode(stored.body), stored.hash)
            if fold.state is not RunState.CREATED:
                break
        sealed = Components(
            store=SealedStore(store),  # pyright: ignore[reportArgumentType]
            switch=StillSwitch(),
            telemetry=self._telemetry,
            clock=components.clock,
            capture=components.capture,
            redact=components.redact,
        )
        live_run = LiveRun(sealed, self._row, fold)
        live_run.owner = False
        live_run.stops.seen = 0
        live_run.time.count()
        log = origin_log(store, self.run_id)
        self._player = Player(live_run, log, stall_timeout=self._stall_timeout, around=self._player_around)
        live_run.player = self._player
        return live_run

    def close(self, live_run: LiveRun, error: BaseException | None) -> RunStopped | None:
        """Hold the program's end against the log's; return the recorded stop to raise.

        Raises:
            ReplayDivergenceError: the program did something else, whatever it swallowed.
            StepOutcomeUnknownError: the log ends inside a step.
        """
        for factory in live_run.in_flight.factories():
            factory.release(id(live_run))
        player = self._player
        if player is None:
            return None
        player.close()
        try:
            return self._close(live_run, player, error)
        finally:
            player.stop_reading()

    def _close(self, live_run: LiveRun, player: Player, error: BaseException | None) -> RunStopped | None:
        if player.divergence is not None and error is not player.divergence:
            raise player.divergence.with_traceback(None) from error
        if isinstance(error, ReplayDivergenceError | StepOutcomeUnknownError | LogIntegrityError) or (
            error is not None and not isinstance(error, Exception | StopSwallowedError)
        ):
            return None  # of a run inside or around, or of its log; or the process wants out
        try:
            player.check_doubt()
            leave_served(live_run)
            player.check_nothing_left()
            return player.end(error)
        except ReplayDivergenceError as difference:
            raise difference from error

    def kill(self, reason: str, actor: str | None) -> int:
        """Do nothing: the recorded kill is delivered where it was."""
        return 0

    def drain(self, live_run: LiveRun, timeout: float | None) -> bool:
        """Refuse: a replay owns nothing that it could let go of."""
        raise AgentGuardError(f"run {self.run_id} is replayed here: there is nothing to drain")

    def pause(self, reason: str) -> None:
        """Do nothing: the recorded pauses are copied, and no new ones taken."""

    def resume(self) -> None:
        """See `pause`."""

    def set_budget(self, budget: BudgetChange, actor: str | None, reason: str | None = None) -> None:
        """Take the budget that the run was given here."""
        if self._player is not None:
            self._player.take_budget()
