"""The base class of tasks that are runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NoReturn

from celery import Task  # type: ignore[import-untyped]
from celery.exceptions import Ignore  # type: ignore[import-untyped]

from agentguard import (
    Budget,
    Guard,
    InvalidStateTransitionError,
    ReplayDivergenceError,
    RunExistsError,
    RunState,
    RunStopped,
    StepOutcomeUnknownError,
    current_run,
)
from agentguard.errors import RunNotFoundError, RunOwnedError

#: Seconds until a task is delivered again whose run somebody else has, or an operator has to decide about.
_LATER = 15


class GuardedTask(Task):  # type: ignore[misc]
    """A task whose every delivery is one and the same run: `@app.task(base=GuardedTask, guard=guard)`.

    A task that is delivered again, since its worker died or was silent for longer than the broker waits,
    recovers the run of the first delivery: what is on record is not done again.  If that one still lives, the
    second waits; if the run has ended, its recorded end is given back.  Celery's own retries (`self.retry`,
    `autoretry_for`) are runs of their own; a stopped run is never one of them.

    Options, beside those of any task:
        guard: the Guard; needed.
        budget: the limits of each run.
        tenant: whose run it is: a name, or a callable that gives it for the task's arguments.
    """

    abstract = True
    acks_late = True
    reject_on_worker_lost = True
    #: Expected ends, which Celery logs in a line.
    throws = (RunStopped,)
    dont_autoretry_for = (RunStopped,)

    #: As the application registers it; every task that runs has one.
    name: str
    guard: Guard
    budget: Budget | None = None
    tenant: str | Callable[..., str] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Carry out one delivery; called by hand, a run of its own."""
        if not isinstance(getattr(self, "guard", None), Guard):
            raise TypeError(f"task {self.name}: pass guard=, as in @app.task(base=GuardedTask, guard=guard)")
        if self.request.called_directly or self.request.id is None:
            return self._in_a_run(None, args, kwargs)
        run_id = f"celery-{self.request.id}"
        if self.request.retries:
            run_id += f"-{self.request.retries}"
        around = current_run()
        if around is not None and around.id == run_id:  # called by hand, in its own delivery
            return self._in_a_run(None, args, kwargs)
        return self._delivered(run_id, args, kwargs)

    def _delivered(self, run_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state = self._state(run_id)
        if state is RunState.PAUSED and not self._asks(run_id):
            self._come_later()
        if state is not None and state.final:
            return self._as_recorded(run_id, args, kwargs)
        try:
            return self._in_a_run(run_id, args, kwargs)
        except (RunOwnedError, RunExistsError, StepOutcomeUnknownError) as error:
            if error.run_id != run_id:  # of a run inside
                raise
            self._come_later()
        except InvalidStateTransitionError as error:
            if error.run_id != run_id:
                raise
            return self._as_recorded(run_id, args, kwargs)  # it ended in this moment

    def _state(self, run_id: str) -> RunState | None:
        try:
            return self.guard.summary(run_id).state
        except RunNotFoundError:
            return None

    def _asks(self, run_id: str) -> bool:
        """Return whether the run asks at its limit: the time to answer runs in the process that has it."""
        return any(asked.run_id == run_id and asked.limit for asked in self.guard.approvals())

    def _in_a_run(self, run_id: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self.guard.run(
            self.name.rpartition(".")[2],
            run_id=run_id,
            if_exists="error" if run_id is None else "recover",
            budget=self.budget,
            tenant=self._tenant(args, kwargs),
            inputs={"args": list(args), "kwargs": kwargs},
            metadata={} if run_id is None else {"celery.task": self.name, "celery.id": self.request.id},
        ):
            return self.run(*args, **kwargs)

    def _tenant(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        given: str | Callable[..., str] | None  # a function there is none of our methods
        given = inspect.getattr_static(self, "tenant")
        if isinstance(given, staticmethod):
            given = given.__func__
        return given(*args, **kwargs) if callable(given) else given

    def _as_recorded(self, run_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return, or raise, what the task did when it ended; no step runs."""
        try:
            with self.guard.replay(run_id):
                return self.run(*args, **kwargs)
        except (ReplayDivergenceError, StepOutcomeUnknownError) as error:
            raise Ignore(f"run {run_id} has ended, and its result is not on record") from error

    def _come_later(self) -> NoReturn:
        """Have the task delivered again in a while, as the same delivery."""
        self.signature_from_request(countdown=_LATER, retries=self.request.retries).apply_async()
        raise Ignore("its run is another delivery's, or waits for an operator")
