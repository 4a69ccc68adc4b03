"""A scope: a named part of a run with a budget of its own."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any, Self

from agentguard.budget.model import Budget, Remaining, Usage
from agentguard.errors import AgentGuardError, RunStopped
from agentguard.events import model as ev
from agentguard.events.model import Record
from agentguard.runs.branch import branch_of, key_part, scope_part
from agentguard.runs.current import CURRENT, Place, leave
from agentguard.steps.flow import check
from agentguard.steps.live import LiveRun
from agentguard.steps.spinning import check_place
from agentguard.steps.verdict import raise_verdict
from agentguard.tenancy import check_id


class Scope:
    """A part of a run with a budget of its own, such as a sub-agent.  Scopes nest.

    A step inside is charged to the scope, to those around it and to the run.  When the scope's own
    budget is met, `BudgetExceededError` is raised inside, sticks there, and is raised again when the
    block is left; its `.scope` is this scope's path.  The code around the block may catch it and go on.

    Use it as `with` or `async with`; made by `run.scope(name, budget=...)`.
    """

    def __init__(self, run: Any, place: Any, name: str, budget: Budget | None) -> None:
        self._journal: LiveRun = run.journal
        self._place = place
        self._token: Any = None
        self._span: Any = None
        self.run = run
        self.name = check_id(name, "scope name")
        self.around: str = place.scope_key
        self.key, self.pos = place.branch.next_call(key_part(name))
        self.budget = Budget() if budget is None else budget
        if not isinstance(self.budget, Budget):
            raise TypeError(f"budget must be a Budget, not {type(budget).__name__}")
        around = place.scope
        part = scope_part(name)
        self.path: str = f"{around.path}/{part}" if around is not None else part

    @property
    def stop(self) -> RunStopped | None:
        """What stopped this scope, if anything did."""
        return self._journal.stops.scopes.get(self.key)

    @property
    def spent(self) -> Usage:
        """What has been spent inside, scopes within included."""
        return Usage.from_amounts(self._account().spent)

    @property
    def remaining(self) -> Remaining:
        """What the scope's own budget leaves."""
        return Remaining(self._account().remaining())

    def _account(self) -> Any:
        if self.key not in self._journal.log.fold.scopes:
            raise RuntimeError(f"scope {self.path} is not open yet: use it as `with run.scope(...)`")
        return self._journal.account(self.key)

    def __enter__(self) -> Self:
        if self._token is not None:
            raise RuntimeError(f"scope {self.path} was entered before; open a new one")
        journal = self._journal
        place = self._place
        if journal.player is None or not journal.player.open_scope(self):
            self._open(journal, place.scope_key)
        if journal.span is not None:
            self._span = journal.span.start_scope(self.name, self.path)
        self._token = CURRENT.set(Place(self.run, self, place.branch, place.step))
        return self

    def _open(self, journal: LiveRun, around: str) -> None:
        check_place(journal, around, branch_of(self.key), self.pos)
        data: dict[str, Any] = {"running_ns": journal.time.elapsed()}
        if around:
            data["scope"] = around
        if self._place.step is not None:
            data["parent"] = self._place.step.key
        if not self.budget.unlimited:
            data["budget"] = self.budget.to_fields()
        opened = Record(0, ev.SCOPE_OPENED, journal.clock.wall(), self.key, self.pos, self.name, data=data)

        def decide() -> None:
            check(journal, around)
            journal.log.act([opened])

        journal.log.decide(decide)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        leave(self._token)
        journal = self._journal
        if self._span is not None:
            self._span.end(self.stop or error)
        if journal.player is None or not journal.player.close_scope(self):
            self._close(journal, self.stop)
        if journal.stops.stop is None:
            raise_verdict(self.stop, error)

    def _close(self, journal: LiveRun, stop: RunStopped | None) -> None:
        draining = journal.stops.draining
        if draining is not None and not draining.lets_on():
            return  # what the agent does on its way out is not on record: whoever recovers closes it
        data = {"stopped": True} if stop is not None else None

        def decide() -> None:
            spent = dict(journal.log.fold.account.spent)
            record = Record(
                0,
                ev.SCOPE_CLOSED,
                journal.clock.wall(),
                self.key,
                self.pos,
                self.name,
                spent=spent,
                data=data,
            )
            journal.log.act([record])

        with contextlib.suppress(AgentGuardError):
            journal.log.decide(decide)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __repr__(self) -> str:
        return f"<Scope {self.path} of run {self._journal.run_id}>"
