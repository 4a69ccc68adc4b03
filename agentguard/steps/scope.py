"""A scope: a named part of a run with a budget of its own."""

from __future__ import annotations

import contextlib
import threading
from contextvars import Token
from types import TracebackType
from typing import Self

from agentguard._reentry import at_its_call, covered, finish
from agentguard.budget.account import Account
from agentguard.budget.model import Budget, Remaining, Usage, check_stops
from agentguard.errors import AgentGuardError, RunStopped
from agentguard.events import model as ev
from agentguard.events.data import ScopeClosed, ScopeOpened
from agentguard.events.model import Record
from agentguard.runs.branch import branch_of, key_segment, scope_part
from agentguard.steps import interrupt
from agentguard.steps.current import CURRENT, restore_position
from agentguard.steps.draining import allows
from agentguard.steps.exit_rule import raise_on_exit
from agentguard.steps.flow import check
from agentguard.steps.live import LiveRun
from agentguard.steps.model import InRun, OpenedRun, OpenedScope, Position
from agentguard.steps.spans import ScopeSpan
from agentguard.steps.spinning import check_place
from agentguard.tenancy import check_id


class Scope:
    """A part of a run with a budget of its own, such as a sub-agent.  Scopes nest.

    A step inside is charged to the scope, to those around it and to the run.  When the scope's own
    budget is met, `BudgetExceededError` is raised inside, sticks there, and is raised again when the
    block is left; its `.scope` is this scope's path.  The code around the block may catch it and go on.

    Use it as `with` or `async with`; made by `run.scope(name, budget=...)`.
    """

    def __init__(self, run: OpenedRun, position: InRun, name: str, budget: Budget | None) -> None:
        self._live_run: LiveRun = run.live_run
        self._position = position
        self._token: Token[InRun | None] | None = None
        self._span: ScopeSpan | None = None
        self.run = run
        self.name = check_id(name, "scope name")
        self.around: str = position.scope_key
        self.key, self.pos = position.branch.next_call(key_segment(name))
        self.budget = Budget() if budget is None else budget
        if not isinstance(self.budget, Budget):
            raise TypeError(f"budget must be a Budget, not {type(budget).__name__}")
        check_stops(self.budget, "a scope's budget")
        around = position.scope
        part = scope_part(name)
        self.path: str = f"{around.path}/{part}" if around is not None else part

    @property
    def stop(self) -> RunStopped | None:
        """What stopped this scope, if anything did."""
        return self._live_run.stops.scopes.get(self.key)

    @property
    def elsewhere(self) -> bool:
        """Whether it is entered in another thread than its branch's, so that it was numbered as it came."""
        return self._position.thread != threading.get_ident()

    @property
    def spent(self) -> Usage:
        """What has been spent inside, scopes within included."""
        return Usage.from_amounts(self._account().spent)

    @property
    def remaining(self) -> Remaining:
        """What the scope's own budget leaves."""
        return Remaining(self._account().remaining())

    def _account(self) -> Account:
        if self.key not in self._live_run.log.fold.scopes:
            raise RuntimeError(f"scope {self.path} is not open yet: use it as `with run.scope(...)`")
        return self._live_run.account(self.key)

    def __enter__(self) -> Self:
        if self._token is not None:
            raise RuntimeError(f"scope {self.path} was entered before; open a new one")
        try:
            self._enter()
            return self  # noqa: TRY300 - or a signal handler raises here
        except AgentGuardError:
            raise
        except BaseException:  # of a signal handler, perhaps: there will be no `__exit__`
            self._cut_short()
            raise

    def _enter(self) -> None:
        live_run = self._live_run
        position = self._position
        if live_run.player is None or not live_run.player.open_scope(self):
            self._open(live_run, position.scope_key)
        if live_run.span is not None:
            self._span = live_run.span.start_scope(self.name, self.path)
        self._token = CURRENT.set(self._place(position, self))
        interrupt.entered(self)

    def _cut_short(self) -> None:
        """Close the scope all the same, and make current what was so before."""
        live_run = self._live_run
        self._end_span(self.stop)
        if live_run.player is None:
            finish(lambda: self._close(live_run, self.stop), live_run.log.is_owned)
        if (position := CURRENT.get()) is not None and position.scope is self:
            CURRENT.set(self._place(self._position, self._position.scope))

    def _end_span(self, error: BaseException | None) -> None:
        span, self._span = self._span, None
        if span is not None:
            span.end(error)

    def _place(self, at: InRun, scope: OpenedScope | None) -> Position:
        return Position(self.run, scope, at.branch, at.step, at.account, thread=at.thread)

    def _open(self, live_run: LiveRun, around: str) -> None:
        check_place(live_run, around, branch_of(self.key), self.pos)
        data: ScopeOpened = {"running_ns": live_run.time.elapsed()}
        if around:
            data["scope"] = around
        if self._position.step is not None:
            data["parent"] = self._position.step.key
        if not self.budget.unlimited:
            data["budget"] = self.budget.to_fields()
        opened = Record(0, ev.SCOPE_OPENED, live_run.clock.wall(), self.key, self.pos, self.name, data=data)

        def decide() -> None:
            check(live_run, around)
            live_run.log.act([opened])

        live_run.log.decide(decide)

    @covered
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._leave(error)
        except AgentGuardError:
            raise
        except BaseException:  # of a signal handler: what it has cut short is done all the same
            self._cut_short()
            raise
        if self._live_run.stops.stop is None:
            raise_on_exit(self.stop, error)

    def _leave(self, error: BaseException | None) -> None:
        interrupt.leaving(self)
        if self._token is not None:
            restore_position(self._token)
        live_run = self._live_run
        self._end_span(self.stop or error)
        if live_run.player is None or not live_run.player.close_scope(self):
            self._close(live_run, self.stop)

    def _close(self, live_run: LiveRun, stop: RunStopped | None) -> None:
        draining = live_run.stops.draining
        if draining is not None and not allows(draining):
            return  # what the agent does on its way out is not on record; the recovery closes it
        data: ScopeClosed | None = {"stopped": True} if stop is not None else None

        def decide() -> None:
            scope = live_run.log.fold.scopes.get(self.key)
            if scope is None or scope.closed:
                return  # where a signal handler has come in between
            spent = dict(live_run.log.fold.account.spent)
            record = Record(
                0,
                ev.SCOPE_CLOSED,
                live_run.clock.wall(),
                self.key,
                self.pos,
                self.name,
                spent=spent,
                data=data,
            )
            live_run.log.act([record])

        with contextlib.suppress(AgentGuardError):
            live_run.log.decide(decide)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    @at_its_call(__exit__)
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.__exit__(kind, error, traceback)
        except AgentGuardError:
            raise
        except BaseException:
            self._cut_short()
            raise

    def __repr__(self) -> str:
        return f"<Scope {self.path} of run {self._live_run.run_id}>"
