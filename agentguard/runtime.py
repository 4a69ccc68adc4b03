"""What a guard runs on: its components, opened at first use, and the runs of this process."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from agentguard import config
from agentguard._ids import new_run_id
from agentguard._process import ProcessLock
from agentguard.budget.model import Budget
from agentguard.budget.rules import BudgetRules
from agentguard.errors import AgentGuardError, RunNotFoundError, StoreUnavailableError
from agentguard.heartbeat import Heartbeat
from agentguard.protocols import Participant, RunRow
from agentguard.steps.bodies_first import bodies_first, call_each
from agentguard.steps.components import Components
from agentguard.steps.live import LiveRun


class Runtime:
    """The components of a guard, its live runs, and its participation in the kill switch.

    The heartbeat calls `check` every second, which stops bodies whose run was stopped elsewhere, and `beat`
    every few seconds, which writes a sign of life; both only while the process has runs.
    """

    def __init__(
        self,
        open_components: Callable[[], Components],
        *,
        default_budget: Budget | None = None,
        new_run_id: Callable[[], str] = new_run_id,
        check: Callable[[Runtime], None],
        beat: Callable[[Runtime], None],
    ) -> None:
        self._open_components = open_components
        self._components: Components | None = None
        #: Held while components are opened, and while they are joined: threads that come first at once
        #: have them once.
        self._opening = ProcessLock()
        self._participant: Participant | None = None
        #: Whether runs of other guards that are opened inside one of its runs become its own.
        self.adopts = False
        #: Whether the guard was closed, so that using it again is an error.
        self.closed = False
        self._default_budget = default_budget
        #: The budgets that are set outside the code, once a run has asked for one.
        self._outside_budgets: BudgetRules | None = None
        #: Return the id of a run that is given none.
        self.new_run_id = new_run_id
        #: The runs of this process by id.
        self.live: weakref.WeakValueDictionary[str, LiveRun] = weakref.WeakValueDictionary()
        #: The run down to which abandoned steps were looked for; None: begin anew at the newest.
        self.looked_at: str | None = None
        #: How many signs of life there were.
        self.beats = 0
        self._heartbeat = Heartbeat(_weakly(self, check), _weakly(self, beat))

    def budget_for(self, name: str, tenant: str) -> Budget:
        """Return the budget of a run of this name and tenant whose code names none.

        Raises:
            ValueError: what is set outside the code cannot be right.
        """
        if self._default_budget is not None:
            return self._default_budget
        if self._outside_budgets is None:
            self._outside_budgets = config.outside_budgets()
        rule = self._outside_budgets.find(name, tenant)
        return Budget() if rule is None else rule.budget

    # --- components ----------------------------------------------------------------------------

    @property
    def components(self) -> Components:
        """The components, opened at first use.

        Raises:
            StoreUnavailableError: the guard was closed.
        """
        return self._open() if self._components is None else self._components

    def _open(self) -> Components:
        with self._opening.here():
            if self._components is None:
                if self.closed:
                    raise StoreUnavailableError("this guard is closed; open a new one with Guard.open(...)")
                components = self._open_components()
                components.refresh()
                if self._components is None:
                    self._components = components
                else:  # a signal handler has opened others meanwhile
                    components.close_beside(self._components)
            return self._components

    @property
    def opened(self) -> Components | None:
        """The components, if they are open."""
        return self._components

    def close(self) -> None:
        """Close what was opened.  Closing twice does nothing."""
        components, self._components = self._components, None
        self.closed = True
        participant, self._participant = self._participant, None
        self._heartbeat.stop()
        if participant is not None:
            participant.leave()
        if components is not None:
            components.close()

    # --- the kill switch -----------------------------------------------------------------------

    def participate(self) -> None:
        """Be told of kills, also while no step runs, and send signs of life."""
        observe = _weakly(self, Runtime.observe)

        def on_change(_generation: int) -> None:
            observe()

        if self._participant is None:
            switch = self.components.switch
            with self._opening.here():
                if self._participant is None:
                    participant = switch.join(on_change)
                    if self._participant is None:
                        self._participant = participant
                    else:  # a signal handler came in between
                        participant.leave()
        self._heartbeat.start(os.getpid())

    def observe(self) -> None:
        """Hold every live run of this process against the kill switch.

        What a kill covers is stopped first: the rest may have to wait for a store.
        """
        call_each([self._stop_killed, *(partial(_try, run.apply_kill) for run in self.live_runs())])

    def _stop_killed(self) -> None:
        with bodies_first():
            call_each([partial(_try, live_run.take_kill) for live_run in self.live_runs()])

    def await_ends(self) -> None:
        """Wait until the live runs here that a kill stopped have ended on record, if the store is there."""
        all(live_run.kill_is_recorded() for live_run in self.live_runs())

    # --- runs ----------------------------------------------------------------------------------

    def live_runs(self) -> Iterator[LiveRun]:
        """Return the live runs of this process, while other threads open and end some."""
        for ref in self.live.valuerefs():
            if (live_run := ref()) is not None:
                yield live_run

    def row(self, run_id: str) -> RunRow:
        """Return the row of a run.

        Raises:
            RunNotFoundError: there is no such run.
        """
        row = self.components.store.row(run_id)
        if row is None:
            raise RunNotFoundError(run_id)
        return row


def _try(act: Callable[[], None]) -> None:
    with suppress(AgentGuardError):
        act()


def _weakly(runtime: Runtime, call: Callable[[Runtime], None]) -> Callable[[], bool]:
    """Return a call that does not keep the runtime alive, and says whether it still is."""
    reference = weakref.ref(runtime)

    def called() -> bool:
        alive = reference()
        if alive is not None:
            call(alive)
        return alive is not None

    return called
