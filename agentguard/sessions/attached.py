"""How a run of another thread or process is joined, and left again without ending it."""

from __future__ import annotations

import contextlib

from agentguard.errors import AgentGuardError, NoActiveRunError, RunStopped
from agentguard.events import codec
from agentguard.runs.branch import MAIN, Branch, key_part
from agentguard.runtime import Runtime
from agentguard.sessions import drain
from agentguard.sessions.base import Session
from agentguard.sessions.loading import load_journal
from agentguard.steps.live import LiveRun
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
        self._branch = None if branch is None else Branch(f"{MAIN}/{key_part(branch)}")

    def branch(self) -> Branch:
        """Return the branch that this attachment is in."""
        if self._branch is None:
            raise NoActiveRunError(f"run {self.run_id} has not been attached to yet")
        return self._branch

    def open(self) -> LiveRun:
        """Share the journal that this process has, or fold the log."""
        journal = self.runtime.live.get(self.run_id)
        if journal is None:
            journal = load_journal(self.components, self._row, self._branch)
            self.runtime.live[self.run_id] = journal
        elif self._branch is not None:
            for stored in self.components.store.read(self.run_id):
                if (key := codec.decode(stored.body).key) is not None:
                    self._branch.passed(key)
        if self._branch is None:
            self._branch = journal.unnamed_branch()
        journal.attached += 1
        self.runtime.participate()
        return journal

    def close(self, journal: LiveRun, error: BaseException | None) -> RunStopped | None:
        """Detach; return the run's stop to raise."""
        with contextlib.suppress(AgentGuardError):
            journal.refresh()
        journal.attached -= 1
        if not journal.attached and not journal.owner:
            drain.forget(self.runtime, journal)
        return journal.stop

    def drain(self, journal: LiveRun, timeout: float | None) -> bool:
        """Refuse: a run that was attached to is left by leaving the block."""
        raise AgentGuardError(f"run {self.run_id} was attached to: only its owner can drain it")
