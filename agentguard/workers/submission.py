"""How a run is submitted: created, and put into the queue in the same act."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agentguard.errors import QueueUnavailableError, RunExistsError
from agentguard.program import Program, name_of
from agentguard.protocols import RunQueue
from agentguard.queries import Queries
from agentguard.run import Run
from agentguard.runs.state import RunState
from agentguard.runs.summary import RunSummary, state_of
from agentguard.runtime import Runtime
from agentguard.sessions.live import LiveSession
from agentguard.sessions.options import RunOptions
from agentguard.sessions.submitted import SubmittedSession
from agentguard.steps.current import CURRENT
from agentguard.workers.job import RunJob, checked_queue

#: Seconds between two looks at a run that is waited for.
_POLL = 0.1


class SubmittedRun:
    """A run that was put into the queue; made by `guard.submit`."""

    def __init__(self, runtime: Runtime, run_id: str, name: str, tenant: str) -> None:
        self._runtime = runtime
        #: The run's id, by which every process knows it.
        self.id = run_id
        self.name = name
        self.tenant = tenant

    def __repr__(self) -> str:
        return f"<SubmittedRun {self.id} {self.name}>"

    @property
    def state(self) -> RunState:
        """Where the run is in its life: CREATED until a worker has it.  Asks the store."""
        return state_of(self._runtime.row(self.id))

    def wait(self, timeout: float | None = None) -> RunState:
        """Wait until the run has ended, and return its state.

        Args:
            timeout: seconds; None waits as long as it takes.

        Raises:
            TimeoutError: it has not ended by then; it goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (state := self.state).final:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"run {self.id} has not ended after {timeout:g} s: {state}")
            time.sleep(_POLL)
        return state

    def summary(self) -> RunSummary:
        """Return the run in a few lines, as `guard.summary` does."""
        return Queries(self._runtime).summary(self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a submitted run is queued and tried again; `Guard.submit` says what they mean.

    Raises:
        ValueError, TypeError: one cannot be meant; the message names it.
    """

    queue: str | None
    priority: int
    retries: int
    backoff: float

    def __post_init__(self) -> None:
        if self.queue is not None:
            checked_queue(self.queue)
        for name in ("priority", "retries"):
            if type(getattr(self, name)) is not int:
                raise TypeError(f"{name} must be an int, not {getattr(self, name)!r}")
        if abs(self.priority) >= 2**31:
            raise ValueError(f"priority must lie between -2**31 and 2**31, not {self.priority}")
        if self.retries < 0:
            raise ValueError(f"retries must not be negative, not {self.retries}")
        if type(self.backoff) not in (int, float):
            raise TypeError(f"backoff must be a number of seconds, not {self.backoff!r}")
        if not 0 <= self.backoff < math.inf:
            raise ValueError(f"backoff must be seconds from 0 up, not {self.backoff!r}")


def queue_of(runtime: Runtime) -> RunQueue:
    """Return the queue of a guard's store.

    Raises:
        QueueUnavailableError: it has none.
    """
    components = runtime.components
    if components.abilities.queue is None:
        raise QueueUnavailableError(components.store.url)
    return components.abilities.queue


def submit(
    runtime: Runtime,
    fn: Callable[..., Any],
    inputs: object,
    *,
    name: str | None,
    given: Mapping[str, Any],
    terms: Terms,
) -> SubmittedRun:
    """See `Guard.submit`; `given` are options of the run by name, None where the caller leaves one out."""
    queue = queue_of(runtime)
    program = Program.load(name_of(fn))
    options = _options(program, inputs, name, given)

    def put(options: RunOptions) -> SubmittedRun:
        session = SubmittedSession(runtime, options, retries=terms.retries)
        name = checked_queue(session.tenant if terms.queue is None else terms.queue)
        job = RunJob(
            run_id=session.run_id,
            tenant=session.tenant,
            function=program.target,
            retries=terms.retries,
            backoff=float(terms.backoff),
        )
        session.submit(
            lambda: queue.put(job.run_id, job.tenant, queue=name, priority=terms.priority, args=job.to_args())
        )
        return SubmittedRun(runtime, session.run_id, session.name, session.tenant)

    place = CURRENT.get()
    if place is None or not isinstance(place.run, Run):
        return put(options)
    return _in_a_run(place.run, runtime, options, put)


def _in_a_run(
    run: Run, runtime: Runtime, options: RunOptions, put: Callable[[RunOptions], SubmittedRun]
) -> SubmittedRun:
    """Submit once, also where the run that submits is recovered or replayed: the id is on its record."""
    if options.tenant is None:
        options = replace(options, tenant=run.tenant)
    own_id = options.run_id is None
    options = options if not own_id else replace(options, run_id=str(run.uuid()))

    def submitted() -> list[str]:
        try:
            new = put(options)
        except RunExistsError:
            if not own_id:
                raise
            # The run that submits has died before this value was on its record.
            return [options.run_id or "", options.name, options.tenant or ""]
        return [new.id, new.name, new.tenant]

    return SubmittedRun(runtime, *run.record(f"submit {options.name}", submitted))


def _options(program: Program, inputs: object, name: str | None, given: Mapping[str, Any]) -> RunOptions:
    """Return the options of the run; those of a decorated function stand for what the caller leaves out."""
    session = None if program.decorated is None else program.decorated.session
    own = session.options if isinstance(session, LiveSession) else RunOptions(name=program.fn.__name__)
    named = {option: value for option, value in given.items() if value is not None}
    return replace(
        own,
        **{"name": own.name if name is None else name, "run_id": None, "on_warning": None} | named,
        inputs=program.inputs_of(inputs),
        detached=True,
    )
