"""What every session can do, whether the run is live here, attached to, recovered, forked or replayed."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Mapping
from typing import Any

from agentguard.budget.account import Account
from agentguard.budget.ledger import Movement
from agentguard.budget.model import Budget, BudgetChange, check_budget
from agentguard.errors import AgentGuardError, InvalidStateTransitionError, RunStopped, StoreUnavailableError
from agentguard.events import model as ev
from agentguard.events.data import RunBudgetSet, RunPaused, RunResumed, Said, put_said
from agentguard.events.model import Head, Record
from agentguard.killswitch import kill_requests
from agentguard.runs.branch import MAIN, Branch
from agentguard.runs.state import RunState, check_move
from agentguard.runtime import Runtime
from agentguard.sessions.dead import close_dead_runs
from agentguard.sessions.loading import load_live_run
from agentguard.steps import limit_questions
from agentguard.steps.components import Components
from agentguard.steps.inputs import RecordedInputs
from agentguard.steps.live import LiveRun
from agentguard.steps.model import InRun
from agentguard.tenancy import check_reason


class Session(abc.ABC):
    """How a run is opened and left, and how its owner controls it.

    A session is made by `Guard`, opened when the block of its `Run` is entered, and closed when it is left.
    """

    #: Where in the run around it this run is opened; None for a run that is in no other.
    around: InRun | None = None

    def __init__(self, runtime: Runtime, *, run_id: str, name: str, tenant: str) -> None:
        self.runtime = runtime
        self.run_id = run_id
        self.name = name
        self.tenant = tenant

    @property
    def components(self) -> Components:
        """What the run uses."""
        return self.runtime.components

    @property
    def inputs(self) -> Any:
        """What the run was given, by its first event."""
        first = next(self.components.store.read(self.run_id))
        return RecordedInputs.of(first).value()

    def branch(self) -> Branch:
        """Return the branch that the block is in."""
        return Branch(MAIN)

    @abc.abstractmethod
    def open(self) -> LiveRun:
        """Enter the block: return the run's live run in this process."""

    @abc.abstractmethod
    def close(self, live_run: LiveRun, error: BaseException | None) -> RunStopped | None:
        """Leave the block that `error` ended; return the stop to raise."""

    def give_up(self, error: BaseException) -> None:
        """End what opening the run has put on record: its block is not entered, because of `error`."""
        return  # one that ends no run

    # --- control -------------------------------------------------------------------------------

    def kill(self, reason: str, actor: str | None) -> int:
        """See `Run.kill`."""
        return kill(self.runtime, *kill_requests.kill_data(reason, run=self.run_id, actor=actor))

    def pause(self, reason: str) -> None:
        """See `Run.pause`."""
        pause(self.runtime, self.run_id, {} if reason == "" else {"reason": check_reason(reason)})

    def resume(self) -> None:
        """See `Run.resume`."""
        resume(self.runtime, self.run_id, {})

    def set_budget(self, budget: BudgetChange, actor: str | None, reason: str | None = None) -> None:
        """See `Run.set_budget`."""
        set_budget(self.runtime, self.run_id, budget, kill_requests.authorship(reason, actor))

    def drain(self, live_run: LiveRun, timeout: float | None) -> bool:
        """See `Run.drain`."""
        raise AgentGuardError(f"run {self.run_id} was not opened here: only its owner can drain it")

    async def adrain(self, live_run: LiveRun, timeout: float | None) -> bool:
        """See `Run.adrain`."""
        return self.drain(live_run, timeout)


def live_run_of(runtime: Runtime, run_id: str) -> LiveRun:
    """Return the live run of this process, read from the store if it is not live here.

    Raises:
        RunNotFoundError: there is no such run.
    """
    live = runtime.live.get(run_id)
    return live if live is not None else load_live_run(runtime.components, runtime.row(run_id))


def kill(runtime: Runtime, kind: str, order: dict[str, Any]) -> int:
    """Put a kill on record, stop what it covers, and return its generation.

    The runs of this process are KILLED on record by then, unless the store is away.
    """
    generation = runtime.components.switch.record(kind, order)
    runtime.observe()
    runtime.await_ends()  # which the thread that was woken by this kill may be about to write
    with contextlib.suppress(StoreUnavailableError):  # the kill is in force; a heartbeat ends dead runs later
        close_dead_runs(runtime.components)
    return generation


def pause(runtime: Runtime, run_id: str, said: Said) -> Head:
    """Put a pause on record, with who orders it and why, and return where."""
    live_run = live_run_of(runtime, run_id)

    def put() -> Head:
        check_move(run_id, live_run.fold.state, RunState.PAUSED)
        data: RunPaused = {"reason": ""}
        put_said(data, said)
        data["running_ns"] = live_run.time.elapsed()
        live_run.log.act([Record(0, ev.RUN_PAUSED, live_run.clock.wall(), data=data)])
        return live_run.log.head

    return live_run.log.decide(put)


def resume(runtime: Runtime, run_id: str, said: Said) -> Head:
    """Put on record that a pause is lifted, and return where."""
    live_run = live_run_of(runtime, run_id)

    def put() -> Head:
        if live_run.fold.state is not RunState.PAUSED:
            raise InvalidStateTransitionError(run_id, live_run.fold.state, RunState.RUNNING)
        if (asked := limit_questions.question(live_run.fold)) is not None:
            raise AgentGuardError(f"run {run_id} waits for a higher limit: {asked.way_out}")
        data: RunResumed = {**said, "running_ns": live_run.time.elapsed()}
        live_run.log.act([Record(0, ev.RUN_RESUMED, live_run.clock.wall(), data=data)])
        return live_run.log.head

    return live_run.log.decide(put)


def set_budget(
    runtime: Runtime,
    run_id: str,
    change: BudgetChange,
    said: Said,
    asked: str | int | None = None,
    *,
    own: bool = False,
) -> tuple[Head, RunBudgetSet]:
    """Put another budget on record, or changes of some limits; a run that asks at its limit goes on.

    Changes are made to the budget that the run has when they are appended, so that of two operators who
    change different limits neither undoes what the other did.  `own` says that the run's own program does so,
    and not an operator.  Return where it stands, and what it says.
    """
    if not isinstance(change, Mapping):
        check_budget(change)
    else:
        if not change:
            raise ValueError("budget names no limit to change; name one, as in {'usd': 5}")
        Budget().replace(**change)  # what is wrong in it is wrong for every run
    live_run = live_run_of(runtime, run_id)

    def put() -> tuple[Head, RunBudgetSet]:
        fold = live_run.fold
        if fold.state.final:
            raise AgentGuardError(
                f"run {run_id} is {fold.state} and spends no more: fork it with another budget"
            )
        budget = fold.budget.replace(**change) if isinstance(change, Mapping) else change
        data: RunBudgetSet = {"budget": budget.to_fields()}
        put_said(data, said)
        if own and live_run.owner:
            data["own"] = True
        movements: list[Movement] = []
        if fold.scopes[""].shared:  # runs inside it are held against the account that the store has
            account = Account.from_data(fold.account.to_data())
            account.limit_by(budget)
            movements.append(Movement(live_run.levels.account_name(""), opening=account))
        resumed = limit_questions.answer(live_run, budget, said, asked)
        raised = Record(0, ev.RUN_BUDGET_SET, live_run.clock.wall(), data=data)
        live_run.log.act([raised, *resumed], movements=movements)
        return live_run.log.head, data

    return live_run.log.decide(put)
