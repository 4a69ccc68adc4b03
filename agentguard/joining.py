"""How a run that is on record is taken up: its journal from its log, and joining it from elsewhere."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from agentguard._encoding import decode
from agentguard._process import identity
from agentguard.errors import AgentGuardError, NoActiveRunError, RunNotFoundError, RunStopped
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.leaving import forget
from agentguard.protocols import RunRow
from agentguard.runs.branch import MAIN, Branch, key_part
from agentguard.runs.fold import RunFold
from agentguard.runs.termination import stop_from
from agentguard.steps.journal import Journal
from agentguard.steps.levels import Outer
from agentguard.steps.parts import Parts
from agentguard.tenancy import check_id

if TYPE_CHECKING:
    from agentguard.guard import Guard


def load_journal(parts: Parts, row: RunRow, branch: Branch | None = None) -> Journal:
    """The journal of a run that another process owns, folded from its log.

    `branch` goes on with its numbering after the steps that the log has in it.
    """
    fold = RunFold(row.run_id)
    for stored in parts.store.read(row.run_id):
        record = fold.apply_stored(stored)
        if branch is not None and record.key is not None:
            branch.passed(record.key)
    journal = Journal(parts, row, fold, _outer_of(parts, row))
    journal.owner = False
    journal.time.count(_started_monotonic(parts, row, fold))
    if fold.termination is not None:
        journal.stop = stop_from(fold.termination)
    for key, scope in fold.scopes.items():
        if scope.stop is not None and (stop := stop_from(scope.stop)) is not None:
            journal.scope_stops[key] = stop
    return journal


def _outer_of(parts: Parts, row: RunRow) -> list[Outer]:
    """The levels around a nested run, from the logs of the runs around it."""
    if row.parent_id is None or (parent_row := parts.store.row(row.parent_id)) is None:
        return []
    parent = load_journal(parts, parent_row)
    for stored in parts.store.read(row.parent_id):
        record = codec.decode(stored.body)
        data = record.data or {}
        if record.type == ev.SCOPE_OPENED and data.get("run") == row.run_id:
            _, outer = parent.levels.sharing(data.get("scope", ""))
            return outer
    return []


def _started_monotonic(parts: Parts, row: RunRow, fold: RunFold) -> int | None:
    """When the run would have started by this host's monotonic clock, had it never stopped."""
    now = parts.clock.monotonic()
    owner = row.owner
    mine = identity()
    if owner.get("boot") and owner["boot"] == mine["boot"] and owner["host"] == mine["host"]:
        return int(owner.get("monotonic_ns", now))
    return now - max(0, parts.clock.wall() - (fold.started_ns or fold.created_ns))


class Joining:
    """How a run of another thread or process is joined, and left again without ending it."""

    def __init__(self, guard: Guard, run_id: str, branch: str | None) -> None:
        self.guard = guard
        self.run_id = check_id(run_id, "run_id")
        if branch is not None:
            check_id(branch, "branch")
        row = guard.parts.store.row(run_id)
        if row is None:
            raise RunNotFoundError(run_id)
        self._row = row
        self.name, self.tenant = row.name, row.tenant
        #: A branch without a name of its own is numbered when it is entered.
        self._branch = None if branch is None else Branch(f"{MAIN}/{key_part(branch)}")

    @property
    def inputs(self) -> Any:
        """What the run was given, if that is on record."""
        first = next(iter(self.guard.parts.store.read(self.run_id)))
        return None if first.payload is None else decode(first.payload)

    def branch(self) -> Branch:
        """The branch that this attachment is in."""
        if self._branch is None:
            raise NoActiveRunError(f"run {self.run_id} has not been attached to yet")
        return self._branch

    def open(self, run: Any) -> Journal:
        """Share the journal that this process has, or fold the log."""
        journal = self.guard.live.get(self.run_id)
        if journal is None:
            journal = load_journal(self.guard.parts, self._row, self._branch)
            self.guard.live[self.run_id] = journal
        elif self._branch is not None:
            for stored in self.guard.parts.store.read(self.run_id):
                if (key := codec.decode(stored.body).key) is not None:
                    self._branch.passed(key)
        if self._branch is None:
            self._branch = journal.unnamed_branch()
        journal.attached += 1
        self.guard.take_part()
        return journal

    def close(self, journal: Journal, error: BaseException | None) -> RunStopped | None:
        """Detach; gives the run's stop to raise."""
        with contextlib.suppress(AgentGuardError):
            journal.refresh()
        journal.attached -= 1
        if not journal.attached and not journal.owner:
            forget(self.guard, journal)
        return journal.stop

    def kill(self, run_id: str, reason: str, actor: str | None) -> int:
        """See `Run.kill`."""
        return self.guard.kill(run=run_id, reason=reason, actor=actor)

    def drain(self, journal: Journal, timeout: float | None) -> bool:
        """Whoever has joined a run leaves it by leaving the block."""
        raise AgentGuardError(f"run {self.run_id} was attached to: only its owner can drain it")

    async def adrain(self, journal: Journal, timeout: float | None) -> bool:
        """See `drain`."""
        return self.drain(journal, timeout)

    def pause(self, run_id: str, reason: str) -> None:
        """See `Run.pause`."""
        self.guard.pause(run_id, reason=reason)

    def resume(self, run_id: str) -> None:
        """See `Run.resume`."""
        self.guard.resume(run_id)
