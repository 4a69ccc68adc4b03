"""A run as this process has it: its log, its stops, what is in flight, its levels and its clock, wired.

One for each run in a process, shared by all its threads and tasks.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import threading
from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from agentguard.budget.account import Account, Amounts
from agentguard.budget.ledger import Movement
from agentguard.budget.resources import SECONDS
from agentguard.errors import AgentGuardError, KillSwitchTriggeredError, RunStopped
from agentguard.events import model as ev
from agentguard.events.data import (
    RunEnded,
    Said,
    StepEnded,
    StepRefused,
    Termination,
    data_of,
    put_said,
)
from agentguard.events.model import Record
from agentguard.protocols import EventStore, RunRow
from agentguard.runs.branch import UNNAMED, Branch
from agentguard.runs.fold import RunFold
from agentguard.runs.summary import RunSummary, summarize
from agentguard.runs.termination import stop_from, termination
from agentguard.steps import bodies_first, forked
from agentguard.steps.budget_levels import BudgetLevels, Level
from agentguard.steps.capture import Capturing, PayloadRecorder
from agentguard.steps.components import Components
from agentguard.steps.in_flight import InFlight
from agentguard.steps.log import RunLog
from agentguard.steps.redaction import Redactor
from agentguard.steps.run_clock import RunClock
from agentguard.steps.spec import StepSpec
from agentguard.steps.stops import Draining, Stops
from agentguard.steps.uncharged import uncharged

if TYPE_CHECKING:
    from agentguard.steps.served import ReplaySource
    from agentguard.steps.spans import RunSpan

#: How often, in seconds, a paused step looks whether another process has resumed the run.
_POLL = 0.02
_MOST_RECORDERS = 1000
_ATTACHED = "attached"


class EnclosingRun(NamedTuple):
    """A run around this one, and the scope of it that this one lies in."""

    live_run: LiveRun
    scope: str


class LiveRun:
    """A run in this process: it composes the log, the stops, what is in flight, the levels and the clock."""

    def __init__(
        self, components: Components, row: RunRow, fold: RunFold, around: Sequence[EnclosingRun] = ()
    ) -> None:
        self.components = components
        #: The runs around this one, the innermost first.
        self.around = tuple(around)
        outermost: str = around[-1].live_run.run_id if around else row.run_id
        self.log = RunLog(components.store, components.abilities, row, fold, outermost)
        self.run_id: str = fold.run_id
        self.in_flight = InFlight(fold.run_id)
        self.stops = Stops(self.log, self.in_flight, components.switch)
        self.clock = components.clock
        self.time = RunClock(self.log, components.clock)
        outer: list[Level] = []
        for enclosing, scope in around:
            outer += enclosing.levels.from_inside(scope)
        self.levels: BudgetLevels = BudgetLevels(self.log, self.time, outer, components.tenants)
        self.log.on_record = self._on_record
        self.log.on_reload = self._on_reload
        self.log.close_doubtful = self._close_doubtful
        #: Whether this process opened or claimed the run, and so writes its end.
        self.owner = True
        #: How many attachments of this process there are.
        self.attached = 0
        self.recorders: dict[StepSpec, PayloadRecorder] = {}
        #: Branches that callers name by path, for steps whose place is not that of the context.
        self.branches: dict[str, Branch] = {}
        self.span: RunSpan | None = None
        #: What serves steps from a log, in a replay or a recovery.
        self.player: ReplaySource | None = None
        #: Whether a stop interrupts sync bodies in flight.
        self.interrupt = False
        #: In a forked child, what its keys begin with instead of the main branch; else empty.
        self.fork = ""
        #: How often the process was forked inside the run.
        self.forks = 0
        self._condition = threading.Condition()
        forked.watch(self)

    @property
    def origin(self) -> str:
        """The run whose idempotency keys this one continues: its own id, or a fork's origin."""
        return self.log.fold.origin or self.run_id

    def idempotency_key(self, key: str) -> str:
        """Return the key for the outside world of the step with this key: the same for every attempt."""
        text = f"{self.log.fold.tenant}\x00{self.origin}\x00{key}"
        return base64.b32encode(sha256(text.encode()).digest()).decode().rstrip("=").lower()

    @property
    def scope_around(self) -> str:
        """The scope that this run lies in, of the run around it."""
        return self.around[0].scope if self.around else ""

    # --- what a record means here --------------------------------------------------------------

    def _on_record(self, record: Record) -> None:
        if self.time.follow():
            with self._condition:
                self._condition.notify_all()
        if record.type in (ev.SCOPE_OPENED, ev.RUN_BUDGET_SET):
            self.levels.changed()
        elif record.type == ev.STEP_REFUSED:
            self.stops.take_scope(data_of(record, StepRefused))
        self._take_stop()

    def take_stops(self) -> None:
        """Let the stops that the fold has, of the run and of its scopes, hold in this process."""
        for key, scope in self.log.fold.scopes.items():
            if scope.stop is not None:
                self.stops.take_scope({"stops": key, "termination": scope.stop})
        self._take_stop()

    def _on_reload(self) -> None:
        self.levels.changed()
        self.time.count()
        self.take_stops()
        with self._condition:
            self._condition.notify_all()

    def _take_stop(self) -> None:
        ended = self.log.fold.termination
        if ended is not None and self.stops.stop is None:
            stop = stop_from(ended)
            if stop is not None:
                self.stops.set(stop)

    def _close_doubtful(self) -> None:
        """Give back what the doubtful steps hold, as far as they are on record."""
        log = self.log
        while log.doubtful:
            key, (step, error) = log.doubtful.popitem()
            if key in log.fold.open:
                data: StepEnded = {"error": error, "body_ran": False}
                now = self.clock.wall()
                record = Record(
                    0, ev.STEP_FAILED, now, key, step.pos, step.name, step.kind, step.attempt, data=data
                )
                log.act([record], movements=self.levels.settling(key, None))

    # --- waiting -------------------------------------------------------------------------------

    def wait_for_change(self) -> None:
        """Block until the log has grown, or look again after a moment: another process may write."""
        with self._condition:
            self._condition.wait(_POLL)
        self._refresh_all()

    async def changed(self) -> None:
        """The same, without blocking the event loop."""
        await asyncio.sleep(_POLL)
        self._refresh_all()

    def _refresh_all(self) -> None:
        """Take in what others wrote, also in the runs around this one: one of them may ask at its limit."""
        self.refresh()
        for around in self.around:
            around.live_run.refresh()

    def refresh(self) -> None:
        """Take in what other processes wrote."""
        if self.player is not None:
            self.player.check_doubt()
        self.log.hold(LiveRun._refresh, self)

    def _refresh(self) -> None:
        self.log.await_commit()
        self.log.catch_up()
        self.time.count_idle()

    # --- stops ---------------------------------------------------------------------------------

    def take_kill(self) -> None:
        """Stop this run if a kill covers it, without a look at anything else."""
        self.stops.take_kill(self.end)

    def apply_kill(self) -> None:
        """Stop this run if a kill covers it; called when the switch signals a change."""
        self.stops.apply_kill(self.end, self._refresh_tenants)

    def _refresh_tenants(self) -> None:
        self.components.refresh()
        self.log.hold(BudgetLevels.changed, self.levels)

    def end(self, stop: RunStopped, refused: Record | None = None) -> None:
        """Stop the run.  In memory first: a store that is gone must not save a run from its stop.

        The first stop to be committed wins: where another process was first, its stop is the run's.
        """
        self.stops.set(stop)
        bodies_first.write(lambda: self._put_end(stop, [refused] if refused is not None else []))

    def kill_is_recorded(self) -> bool:
        """See that a run that a kill has stopped is on record as ended, and return whether it is.

        Another thread may have found the kill first, and be about to write it.
        """
        stop = self.stops.stop
        if not self.stops.killed or stop is None:
            return True
        if not self.log.fold.state.final:
            self._put_end(stop, [])
        with contextlib.suppress(AgentGuardError):
            self.log.hold(self.log.await_commit)
        return self.log.fold.state.final

    def _put_end(self, stop: RunStopped, before: Sequence[Record]) -> None:
        with contextlib.suppress(AgentGuardError):
            if not self.record_end(termination(stop), before):
                ended = self.log.fold.termination
                if ended != termination(stop):
                    self.stops.stop = stop_from(ended or {})

    def record_end(self, ended: Termination, before: Sequence[Record] = (), said: Said | None = None) -> bool:
        """Append the terminal event, unless the log has one; return whether it was this one."""
        done = self.log.decide(lambda: self._record_end(ended, before, said or {}))
        if self.in_flight.pending_warnings:
            self.in_flight.tell_warnings()
        return done

    def _record_end(self, ended: Termination, before: Sequence[Record], said: Said) -> bool:
        fold = self.log.fold
        if fold.state.final:
            return False
        if self.stops.stop is not None:
            ended = termination(self.stops.stop)
        kind = ev.RUN_FAILED
        if ended["type"] == "completed":
            kind = ev.RUN_COMPLETED
        elif ended["type"] == KillSwitchTriggeredError.__name__:
            kind = ev.RUN_KILLED
        now = self.clock.wall()
        data: RunEnded = {"termination": ended, "running_ns": self.time.elapsed()}
        put_said(data, said)
        last = Record(0, kind, now, name=fold.name, spent=dict(fold.account.spent), data=data)
        unused = uncharged(fold) if kind == ev.RUN_COMPLETED else ()
        warnings = [Record(0, ev.BUDGET_WARNING, now, data=warning) for warning in unused]
        self.log.act([*before, *warnings, last], movements=self.levels.closing())
        for warning in warnings:
            self.in_flight.warned(dict(warning.data or {}))
        return True

    def let_go(self) -> None:
        """The run is given up: outcomes that come yet belong to nothing that is in flight here."""
        self.owner = False
        self.log.fold.open.clear()
        if self.stops.draining is not None:
            self.log.released = self.stops.draining.stop

    # --- runs inside, and attachments ----------------------------------------------------------

    def enclosing(self, scope: str) -> list[EnclosingRun]:
        """Return the runs around a run that is nested in a scope of this one, the innermost first."""
        return [EnclosingRun(self, scope), *self.around]

    def unnamed_branch(self) -> Branch:
        """Return a branch for an attachment without a name, by a number that is given out once."""
        name = f"attach:{self.run_id}"
        count = Movement(name, settle=({}, {_ATTACHED: 1}), opening=Account(name, None))
        log = self.log
        moved = log.hold(lambda: log.store.append(log.number, (), movements=(count,)))
        return Branch(f"{UNNAMED}{moved[name].spent[_ATTACHED]}")

    # --- capture -------------------------------------------------------------------------------

    def redactor(self, spec: StepSpec) -> Redactor | None:
        """Return what takes secrets out of the payloads of a step, or None."""
        chosen = spec.redact if spec.redact is not None else self.components.redact
        return chosen.for_step(spec.name) if chosen else None

    def recorder(self, spec: StepSpec) -> PayloadRecorder:
        """Return what captures the calls of a step in this run, made at its first call."""
        if len(self.recorders) >= _MOST_RECORDERS:  # options that are made anew for each call
            self.recorders.clear()
        level = spec.capture or self.components.capture
        capturing = Capturing(level, self.redactor(spec), self.log.digest, self.log.fold.value_scheme)
        recorder = PayloadRecorder(spec, capturing)
        self.recorders[spec] = recorder
        return recorder

    # --- readings, without I/O -----------------------------------------------------------------

    def account(self, scope: str = "") -> Account:
        """Return a level's account as the program knows it: without what a recovery has not come to yet."""
        account = self.log.fold.scopes[scope].accounts[0]
        ahead = None if self.player is None else self.player.ahead(scope)
        return account if ahead is None else account.less(*ahead)

    def spent(self) -> Amounts:
        """Return what the run has used, nested runs that are still live included."""
        return self.log.hold(LiveRun.spent_so_far, self)

    def spent_so_far(self) -> Amounts:
        """Return the same; the lock is held."""
        spent = dict(self.account().spent)
        for child in self.in_flight.children:
            for resource, amount in child.spent_so_far().items():
                spent[resource] = spent.get(resource, 0) + amount
        return spent

    def reserved(self) -> Amounts:
        """Return what the steps in flight hold; the lock is held."""
        return self.log.fold.account.reserved

    def remaining(self) -> Amounts:
        """Return what the run's own budget leaves, reservations and live nested runs taken off."""
        return self.log.hold(LiveRun._remaining, self)

    def _remaining(self) -> Amounts:
        left = self.account().remaining()
        for child in self.in_flight.children:
            for amounts in (child.spent_so_far(), child.reserved()):
                for resource in left.keys() & amounts.keys():
                    left[resource] -= amounts[resource]
        limit = self.log.fold.budget.limits.get(SECONDS)
        if limit is not None:
            left[SECONDS] = limit - self.time.elapsed()
        return left

    def summary(self) -> RunSummary:
        """Return the summary as this process knows it."""
        return self.log.hold(LiveRun._summary, self)

    def _summary(self) -> RunSummary:
        running = None if self.log.fold.state.final else self.time.elapsed()
        return summarize(self.log.fold, running)

    # --- the same by shorter names, for the rooms around ---------------------------------------

    @property
    def fold(self) -> RunFold:
        """The fold of its log."""
        return self.log.fold

    @property
    def store(self) -> EventStore:
        """The store that its log lies in."""
        return self.log.store

    @property
    def row(self) -> RunRow:
        """Its row."""
        return self.log.row

    @row.setter
    def row(self, row: RunRow) -> None:
        self.log.row = row

    @property
    def stop(self) -> RunStopped | None:
        """The stop on record."""
        return self.stops.stop

    @property
    def draining(self) -> Draining | None:
        """How this process is letting go of it."""
        return self.stops.draining
