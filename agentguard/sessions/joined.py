"""A run that nobody owns: any process joins it, and somebody says when it ends."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

from agentguard.errors import NoActiveRunError, RunExistsError, RunStopped
from agentguard.events.data import Said
from agentguard.events.model import Head
from agentguard.replay.keyed import KeyedOutcomes
from agentguard.replay.resolving import give_up
from agentguard.runs.branch import Branch
from agentguard.runs.state import RunState
from agentguard.runs.termination import COMPLETED, termination
from agentguard.runtime import Runtime
from agentguard.sessions import drain
from agentguard.sessions.attached import AttachedSession
from agentguard.sessions.base import Session, live_run_of
from agentguard.sessions.live import LiveSession
from agentguard.sessions.nested_ends import close_ended_nested_runs
from agentguard.sessions.options import RunOptions
from agentguard.sessions.recovered import check_owner
from agentguard.steps.live import LiveRun
from agentguard.tenancy import DEFAULT_TENANT


class JoinedSession(Session):
    """A run that this process joins, and creates where nobody has: `end` ends it, and no block does."""

    def __init__(self, runtime: Runtime, options: RunOptions) -> None:
        super().__init__(
            runtime,
            run_id=options.run_id or "",
            name=options.name,
            tenant=options.tenant or DEFAULT_TENANT,
        )
        self._options = options
        self._attached: AttachedSession | None = None

    def branch(self) -> Branch:
        """Return the branch that this process is in."""
        return self._joined().branch()

    def open(self) -> LiveRun:
        """Create the run if it is not there, and join it.

        Raises:
            KillSwitchTriggeredError: a kill covers the run that is created; it is on record as KILLED.
        """
        options = self._options
        if self.components.store.row(self.run_id) is None:
            with contextlib.suppress(RunExistsError):  # another process was quicker
                _UnownedSession(self.runtime, options).create()
        self._attached = attached = AttachedSession(self.runtime, self.run_id, None)
        self.name, self.tenant = attached.name, attached.tenant
        live_run = attached.open()
        if not live_run.owner:
            if live_run.player is None:
                live_run.player = KeyedOutcomes(live_run)
            if options.on_warning is not None:
                live_run.in_flight.on_warning = options.on_warning
            live_run.interrupt = live_run.interrupt or options.interrupt_threads
        return live_run

    def close(self, live_run: LiveRun, error: BaseException | None) -> RunStopped | None:
        """Leave the run as it is; return its stop to raise."""
        return self._joined().close(live_run, error)

    def _joined(self) -> AttachedSession:
        if self._attached is None:
            raise NoActiveRunError(f"run {self.run_id} has not been joined yet")
        return self._attached


class _UnownedSession(LiveSession):
    """How such a run begins: as any, but without an owner."""

    def __init__(self, runtime: Runtime, options: RunOptions) -> None:
        super().__init__(runtime, replace(options, detached=True, if_exists="error"))

    def new_owner(self) -> dict[str, Any]:
        """Return that nobody owns the run."""
        return {}

    def create(self) -> None:
        """Put the run on record."""
        live_run = self.open()
        live_run.owner = False
        drain.forget(self.runtime, live_run)
        self.end_span(live_run, None)


def end(
    runtime: Runtime, run_id: str, error: BaseException | None, said: Said
) -> tuple[RunState, Head | None]:
    """End a run that nobody owns; return its state, and where the end stands if it had not ended before."""
    live_run = live_run_of(runtime, run_id)

    def put() -> tuple[RunState, Head | None]:
        row = runtime.row(run_id)
        if live_run.fold.state.final:
            return live_run.fold.state, None
        check_owner(row, runtime.components.clock.wall(), take_over=False)
        close_ended_nested_runs(live_run)
        for key in tuple(live_run.fold.open):
            give_up(live_run, key, by="the end of the run")
        live_run.record_end(COMPLETED if error is None else termination(error), said=said)
        return live_run.fold.state, live_run.log.head

    return live_run.log.decide(put)
