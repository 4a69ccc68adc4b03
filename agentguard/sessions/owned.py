"""Runs that this process owns, and so ends: taking part while they live, and their last event."""

from __future__ import annotations

import contextlib
from typing import Any

from agentguard._encoding import type_name
from agentguard._process import identity
from agentguard.budget.model import BudgetChange
from agentguard.errors import AgentGuardError, RunStopped
from agentguard.events import model as ev
from agentguard.events.data import NestedRunOpened, Termination
from agentguard.events.model import Record
from agentguard.killswitch import kill_requests
from agentguard.killswitch.model import GENERATION
from agentguard.runs.state import RunState
from agentguard.runs.termination import COMPLETED, termination
from agentguard.runtime import Runtime
from agentguard.sessions import drain
from agentguard.sessions.base import Session, set_budget
from agentguard.sessions.loading import load_live_run
from agentguard.sessions.nested_ends import close_ended_nested_runs, closing
from agentguard.sessions.options import RunOptions
from agentguard.steps import outcome, phases
from agentguard.steps.draining import allows, is_unwinding
from agentguard.steps.generator_step import GeneratorAbandonedError
from agentguard.steps.live import LiveRun
from agentguard.steps.model import InRun, Step


class OwnedSession(Session):
    """The session of a run that this process opened or claimed: it ends the run.

    `key` and `pos` are the place of a nested run in the run around it.
    """

    def __init__(
        self,
        runtime: Runtime,
        options: RunOptions,
        *,
        run_id: str,
        tenant: str,
        around: InRun | None = None,
        key: str = "",
        pos: int = 0,
    ) -> None:
        super().__init__(runtime, run_id=run_id, name=options.name, tenant=tenant)
        self.options = options
        self.around = around
        self.key = key
        self.pos = pos
        #: What arrived when the block was left; a list, since that may be None.
        self._left: list[BaseException | None] = []
        #: What the run's row says of this process, once there is one.
        self._owner: dict[str, Any] = {}
        self._span_ended = False
        #: Whether the run around it has been charged what this one used.
        self._charged = False
        #: Whether the log alone knows that: the act was cut short.
        self._in_doubt = False

    def new_owner(self) -> dict[str, Any]:
        """Return what the run's row says of this process as its owner."""
        self._owner = identity() | {"monotonic_ns": self.components.clock.monotonic()}
        return self._owner

    def give_up(self, error: BaseException) -> None:
        """See `Session.give_up`."""
        live_run = self.runtime.live.get(self.run_id) or self._on_record()
        if live_run is not None and not live_run.fold.state.final:
            live_run.owner = True
            self._abandon(live_run, error)

    def _on_record(self) -> LiveRun | None:
        """Return the run, where this session has put it on record or claimed it."""
        row = self.components.store.row(self.run_id)
        if row is None or not self._owner or row.owner != self._owner:
            return None
        return load_live_run(self.components, row)

    def _abandon(self, live_run: LiveRun, error: BaseException) -> None:
        """Let go of a run whose block is not entered."""
        self.close(live_run, error)

    # --- taking part ---------------------------------------------------------------------------

    def take_part(self, live_run: LiveRun) -> None:
        """Let the run be stopped, warned, drained and charged along with what is around it."""
        live_run.in_flight.on_warning = self.options.on_warning
        live_run.interrupt = self.options.interrupt_threads
        self.runtime.live[self.run_id] = live_run
        if self.around is not None:
            parent = self.around.live_run
            live_run.interrupt = live_run.interrupt or parent.interrupt
            parent.in_flight.children.append(live_run)
            if parent.draining is not None:  # inside a body that a drain lets finish
                live_run.stops.drain_with(parent.draining)
        self.runtime.participate()

    # --- the end -------------------------------------------------------------------------------

    def close(self, live_run: LiveRun, error: BaseException | None) -> RunStopped | None:
        """End the run, and return the stop to raise, if it has one."""
        draining = live_run.draining
        if draining is not None and (is_unwinding(draining, error) or not allows(draining)):
            drain.finish(self.runtime, live_run)
            if not live_run.fold.state.final:
                self.end_span(live_run, None)
                return live_run.stop or draining.stop
        if not live_run.owner:  # a forked child leaves the block: its parent ends the run
            return live_run.stop
        again = bool(self._left)  # the end could not be put on record, or a signal handler came in between
        if not again:
            self._left.append(error)
        error = self._left[0]
        self._settle_generators(live_run)
        try:
            self._find_stop(live_run, error)
            if again and self.around is not None and live_run.log.read_again().state.final:
                close_ended_nested_runs(self.around.live_run)
                self._charged = True
            else:
                self._end_in_outer_run(live_run, error)
        finally:
            self.leave_outer_run(live_run)
            drain.forget(self.runtime, live_run)
            self.end_span(live_run, live_run.stop or error)
        return None if live_run.fold.state is RunState.COMPLETED else live_run.stop

    def _find_stop(self, live_run: LiveRun, error: BaseException | None) -> None:
        """Stop the run with a kill that no step has found, or with the stop that its block raised."""
        if live_run.stop is None and live_run.stops.signal[GENERATION] != live_run.stops.seen:
            with contextlib.suppress(AgentGuardError):
                live_run.apply_kill()
        if isinstance(error, RunStopped) and live_run.stop is None:
            if error.run_id in (None, live_run.run_id):
                live_run.stops.set(error)
            else:  # of another run: an ordinary error, unless a kill covers this run
                with contextlib.suppress(AgentGuardError):
                    live_run.apply_kill()

    def _record_end(self, live_run: LiveRun, error: BaseException | None) -> None:
        """Put the end on record.  That it cannot be is raised, unless something else is already."""
        if live_run.stop is not None and live_run.fold.state.final and not live_run.log.dirty:
            return
        try:
            live_run.record_end(COMPLETED if error is None else self._termination(live_run, error))
        except AgentGuardError as failure:
            told = live_run.stop if error is None else error
            if told is None:
                raise
            told.add_note(f"agentguard could not record the end of the run: {failure}")

    def _termination(self, live_run: LiveRun, error: BaseException) -> Termination:
        redact = self.runtime.components.redact
        ended = termination(error, redact.text if redact and not isinstance(error, RunStopped) else None)
        if isinstance(error, RunStopped) and live_run.stop is None:
            ended["type"] = type_name(type(error))  # it did not stop this run
        return ended

    def _settle_generators(self, live_run: LiveRun) -> None:
        in_flight = live_run.in_flight
        held = in_flight.holders()
        in_flight.settle_orphans()
        for step, holder in held:
            if step not in in_flight.held:
                continue  # an orphan, settled just now
            with contextlib.suppress(AgentGuardError):
                if holder is not None:
                    holder.abandon()
                else:  # a signal handler has cut short its finaliser
                    assert isinstance(step, Step)  # noqa: S101 - what is held is one
                    error = GeneratorAbandonedError("dropped, and its end was cut short")
                    phases.close(step, outcome.failed(step, error, outcome.ABANDONED))

    # --- the end of a nested run ---------------------------------------------------------------

    def _end_in_outer_run(self, live_run: LiveRun, error: BaseException | None) -> None:
        """Put the end on record; a nested run's in one act with what the run around it is charged."""
        if self.around is None:
            self._record_end(live_run, error)
            return

        def end_both() -> None:
            self._record_end(live_run, error)
            self._charge_outer_run(live_run)

        try:
            self.around.live_run.log.decide(end_both)
        except BaseException as failure:  # taken back, unless it came after the commit: the log knows
            self._charged = False
            self._in_doubt = True
            live_run.log.dirty = True
            if not isinstance(failure, AgentGuardError):
                raise
            self._record_end(live_run, error)  # the run around it cannot be written

    def leave_outer_run(self, live_run: LiveRun) -> None:
        """Charge what the run has used to the run around it, where that has not been done."""
        if self.around is None:
            return
        parent = self.around.live_run
        if live_run.fold.state.final and not self._charged:
            with contextlib.suppress(AgentGuardError):
                if self._in_doubt:
                    parent.log.decide(lambda: close_ended_nested_runs(parent))
                else:
                    parent.log.decide(lambda: self._charge_outer_run(live_run))
        if live_run in parent.in_flight.children:
            parent.in_flight.children.remove(live_run)

    def _charge_outer_run(self, live_run: LiveRun) -> None:
        """Append the end of this run to the log of the run around it; inside its `decide`."""
        if self.around is None or not live_run.fold.state.final:
            return
        parent: LiveRun = self.around.live_run
        data: NestedRunOpened = {"run": self.run_id}
        if self.around.scope_key:
            data["scope"] = self.around.scope_key
        opened = Record(0, ev.SCOPE_OPENED, 0, self.key, self.pos, self.name, data=data)
        parent.log.act([closing(parent, opened, live_run.fold.state, live_run.fold.account.spent)])
        self._charged = True

    def end_span(self, live_run: LiveRun, error: BaseException | None) -> None:
        """End the run's span, with the head of its log."""
        if live_run.span is not None and not self._span_ended:
            self._span_ended = True
            fold = live_run.fold
            live_run.span.end(
                error=error,
                state=str(fold.state),
                head=(fold.seq, fold.hash.hex()),
                usage=fold.account.spent,
                steps=fold.steps,
            )

    # --- control -------------------------------------------------------------------------------

    def set_budget(self, budget: BudgetChange, actor: str | None, reason: str | None = None) -> None:
        """See `Run.set_budget`."""
        said = kill_requests.authorship(reason, actor)
        set_budget(self.runtime, self.run_id, budget, said, own=True)

    def drain(self, live_run: LiveRun, timeout: float | None) -> bool:
        """See `Run.drain`."""
        return drain.drain(self.runtime, live_run, timeout)

    async def adrain(self, live_run: LiveRun, timeout: float | None) -> bool:
        """See `Run.adrain`."""
        return await drain.adrain(self.runtime, live_run, timeout)
