"""Replays, recoveries and forks as blocks: what `guard.replay`, `recover` and `fork` open."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from agentguard._encoding import decode
from agentguard.errors import (
    AgentGuardError,
    LogIntegrityError,
    ReplayDivergenceError,
    RunStopped,
    StepOutcomeUnknownError,
)
from agentguard.events import codec
from agentguard.protocols import EventStore, RunRow
from agentguard.replay.origin import checked, origin_log
from agentguard.replay.player import Player
from agentguard.replay.sealed import SealedStore, StillSwitch
from agentguard.runs.branch import MAIN, Branch
from agentguard.runs.fold import RunFold
from agentguard.steps.generators import leave_served
from agentguard.steps.journal import Journal
from agentguard.steps.parts import Parts


class Replaying:
    """A replay as a run's block: no body runs, nothing is written, nothing is spent."""

    def __init__(
        self,
        parts: Parts,
        row: RunRow,
        *,
        stall_timeout: float,
        check: Callable[[EventStore, RunRow], None],
        telemetry: Any = None,
        around: Player | None = None,
    ) -> None:
        self._parts = parts
        self._check = check
        self._around = around
        self._row = row
        self._stall_timeout = stall_timeout
        self._telemetry = telemetry
        self.run_id, self.name, self.tenant = row.run_id, row.name, row.tenant
        self._player: Player | None = None

    @property
    def inputs(self) -> Any:
        """What the recorded run was given."""
        first = next(iter(self._parts.store.read(self.run_id)))
        return None if first.payload is None else decode(first.payload)

    def branch(self) -> Branch:
        """The branch that the run's own code is in."""
        return Branch(MAIN)

    def open(self, run: Any) -> Journal:
        """A journal on a sealed copy of the parts, with the log to answer for it.

        Raises:
            LogIntegrityError: the log was altered.
        """
        store = self._parts.store
        self._check(getattr(store, "sealed", store), self._row)
        fold = RunFold(self.run_id)
        for stored in itertools.islice(checked(store.read(self.run_id), self.run_id), 2):
            fold.apply(codec.decode(stored.body), stored.hash)
        parts = Parts(
            store=SealedStore(store),  # pyright: ignore[reportArgumentType]
            switch=StillSwitch(),
            telemetry=self._telemetry,
            clock=self._parts.clock,
            capture=self._parts.capture,
            redact=self._parts.redact,
        )
        journal = Journal(parts, self._row, fold)
        journal.owner = False
        journal.seen = 0
        journal.time.count()
        log = origin_log(store, self.run_id)
        self._player = Player(journal, log, stall_timeout=self._stall_timeout, around=self._around)
        journal.player = self._player
        return journal

    def close(self, journal: Journal, error: BaseException | None) -> RunStopped | None:
        """Hold the program's end against the log's; gives the recorded stop to raise.

        Raises:
            ReplayDivergenceError: the program did something else, whatever it swallowed.
            StepOutcomeUnknownError: the log ends inside a step.
        """
        for factory in journal.loops.values():
            factory.leave(id(journal))
        player = self._player
        if player is None:
            return None
        player.close()
        if player.divergence is not None and error is not player.divergence:
            raise player.divergence.with_traceback(None) from error
        if isinstance(error, ReplayDivergenceError | StepOutcomeUnknownError | LogIntegrityError) or (
            error is not None and not isinstance(error, Exception)
        ):
            return None  # of a run inside or around, or of its log; or the process wants out
        try:
            player.check_doubt()
            leave_served(journal)
            player.finish()
            return player.end(error)
        except ReplayDivergenceError as difference:
            raise difference from error

    def kill(self, run_id: str, reason: str, actor: str | None) -> int:
        """A replay cannot be killed: its recorded kill is delivered where it was."""
        return 0

    def drain(self, journal: Journal, timeout: float | None) -> bool:
        """A replay owns nothing that it could let go of."""
        raise AgentGuardError(f"run {self.run_id} is replayed here: there is nothing to drain")

    async def adrain(self, journal: Journal, timeout: float | None) -> bool:
        """See `drain`."""
        return self.drain(journal, timeout)

    def pause(self, run_id: str, reason: str) -> None:
        """A replay copies the recorded pauses and takes no new ones."""

    def resume(self, run_id: str) -> None:
        """See `pause`."""
