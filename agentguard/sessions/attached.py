"""How a run of another thread or process is joined, and left again without ending it."""

from __future__ import annotations

import contextlib

from agentguard.errors import AgentGuardError, NoActiveRunError, RunStopped
from agentguard.events import codec
from agentguard.runs.branch import MAIN, Branch, key_segment
from agentguard.runtime import Runtime
from agentguard.sessions import drain
from agentguard.sessions.base import Session
from agentguard.sessions.loading import load_live_run
from agentguard.steps.live import LiveRun
from agentguard.steps.spans import RunSpan
from agentguard.tenancy import check_id


class AttachedSession(Session):
    """A run that this process joins: it is charged and stopped like its owner, and never ends it."""

    def __init__(self, runtime: Runtime, run_id: str, branch: str | None) -> None:
        check_id(run_id, "run_id")
        if branch is not None:
            check_id(branch, "branch")
        self._row = row = runtime.row(run_id)
        super().__init__(runtime, run_id=run_id, name=row.name, tenant=row.tenant)
        #: A branch without a name of its own is numbered when it is entered.
        self._branch = None if branch is None else Branch(f"{MAIN}/{key_segment(branch)}")
        #: The first attachment of a process has a span, for a run whose own is elsewhere.
        self._span: RunSpan | None = None

    def branch(self) -> Branch:
        """Return the branch that this attachment is in."""
        if self._branch is None:
            raise NoActiveRunError(f"run {self.run_id} has not been attached to yet")
        return self._branch

    def open(self) -> LiveRun:
        """Share the live run that this process has, or fold the log."""
        live_run = self.runtime.live.get(self.run_id)
        if live_run is None:
            live_run = load_live_run(self.components, self._row, self._branch)
            self.runtime.live[self.run_id] = live_run
        elif self._branch is not None:
            for stored in self.components.store.read(self.run_id):
                if (key := codec.decode(stored.body).key) is not None:
                    self._branch.passed(key)
        if self._branch is None:
            self._branch = live_run.unnamed_branch()
        live_run.attached += 1
        self.runtime.participate()
        if live_run.span is None and (telemetry := self.components.telemetry) is not None:
            live_run.span = self._span = telemetry.start_run(
                name=self.name,
                run_id=self.run_id,
                tenant=self.tenant,
                metadata=live_run.fold.metadata,
                origin=live_run.fold.began_in,
            )
        return live_run

    def close(self, live_run: LiveRun, error: BaseException | None) -> RunStopped | None:
        """Detach; return the run's stop to raise."""
        with contextlib.suppress(AgentGuardError):
            live_run.refresh()
        live_run.attached -= 1
        if not live_run.attached and not live_run.owner:
            drain.forget(self.runtime, live_run)
        if self._span is not None:
            self._span.end_part(live_run.stop or error)
        return live_run.stop

    def drain(self, live_run: LiveRun, timeout: float | None) -> bool:
        """Refuse: a run that was attached to is left by leaving the block."""
        raise AgentGuardError(f"run {self.run_id} was attached to: only its owner can drain it")
