"""The errors of agentguard.

    AgentGuardError
    ├── RunStopped                       the run is over: sticky, raised by every later check
    │   ├── BudgetExceededError          a limit of a scope, run, tenant or account was met
    │   ├── KillSwitchTriggeredError     somebody pulled the switch
    │   └── UnknownCostError             money or tokens are limited and the call has no price
    ├── StepRefused                      this one call did not run; the run goes on
    │   ├── ApprovalDeniedError
    │   ├── LimitAskedError              a limit asks, and the caller is to get the answer (`asks="caller"`)
    │   ├── EventLoopUnsupportedError    async, and no asyncio event loop runs
    │   ├── StoreUnavailableError        the log cannot be written: fail closed
    │   │   └── EventsEvictedError       memory:// has made room
    │   └── KillSwitchUnavailableError   the switch cannot be read: fail closed
    │       └── ControlLogDeniedError    this login may not read it
    ├── InvalidStateTransitionError      misuse
    ├── NoActiveRunError                 misuse
    ├── RunExistsError                   misuse
    ├── RunNotFoundError                 misuse
    ├── QueueUnavailableError            misuse: the store has no queue for workers
    ├── ProgramError                     misuse: a function that cannot be found, or cannot be a run's body
    ├── DuplicateKeyError                misuse: a `key=` used again after it completed
    ├── RunOwnedError                    the run belongs to a live process
    ├── ReplayDivergenceError            the program and its log differ
    ├── StepOutcomeUnknownError          a started step has no outcome on record
    ├── RunGivenUpError                  an operator ended the run as FAILED
    ├── WorkersDiedError                 a submitted run was ended, for one worker after the other died in it
    ├── LogIntegrityError                the log was altered
    └── RecordedError                    a replay's form of an exception whose class is not imported

`RunStopped` is an `Exception`, not a `BaseException`: several frameworks mask or hang on the
latter, and none of them can swallow the former for good, because the stop is sticky and is
raised again when the run's block is left.  It is no RuntimeError, ValueError or
NotImplementedError either, since frameworks give those a meaning of their own.

Attributes carry the facts; messages are built from them and never need to be parsed.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

Amount = int | float | Decimal


class AgentGuardError(Exception):
    """The base of every error that agentguard raises on purpose."""

    #: Names of the attributes that carry the facts, in the order of the constructor.
    _facts: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """The error's attributes by name, for logs and for `RunSummary.termination`."""
        return {name: getattr(self, name) for name in self._facts}

    def __reduce__(self) -> tuple[Any, ...]:
        if not self._facts:
            return (type(self), self.args, vars(self) or None)
        return (_rebuild, (type(self), self.facts()))


def _with_message(cls: type[AgentGuardError], message: str) -> AgentGuardError:
    error = cls.__new__(cls, message)
    error.args = (message,)
    return error


def _rebuild(cls: type[AgentGuardError], facts: dict[str, Any]) -> AgentGuardError:
    return cls(**facts)


class RunStopped(AgentGuardError):
    """The run is stopped and no further step of it will run."""

    run_id: str | None = None

    @property
    def cancels(self) -> bool:
        """Whether the stop cancels bodies in flight: a kill and a deadline do.

        A refusal does not: what is in flight has its reservation, so it finishes and is charged.
        """
        return True


class BudgetExceededError(RunStopped):
    """A step asked for more than a limit leaves.

    `scope` is where the limit lies: `"run"`, the path of a scope such as `"research/web"`,
    `"tenant:acme"`, `"account:thread:42"`, or `"run:<id>"` and `"run:<id>/research"` for a run around the one
    that `run_id` names; that run itself is told of its `"run"` and of `"research"`.  Amounts are in
    the resource's own unit: USD (`Decimal`), tokens, steps, seconds, calls, or a counter's count.
    """

    _facts = ("resource", "spent", "reserved", "requested", "limit", "scope", "run_id")

    def __init__(
        self,
        resource: str,
        spent: Amount,
        reserved: Amount,
        requested: Amount,
        limit: Amount,
        scope: str = "run",
        run_id: str | None = None,
    ) -> None:
        self.resource = resource
        self.spent = spent
        self.reserved = reserved
        self.requested = requested
        self.limit = limit
        self.scope = scope
        self.run_id = run_id
        where = "the run" if scope == "run" else scope
        super().__init__(
            f"{resource} limit of {where}: {limit} allowed, {spent} spent, "
            f"{reserved} reserved by steps in flight, {requested} more requested"
            + (f" (run {run_id})" if run_id else "")
        )

    @property
    def cancels(self) -> bool:
        """See `RunStopped.cancels`: of all limits, that of the running time alone."""
        return self.resource == "seconds"


class KillSwitchTriggeredError(RunStopped):
    """Somebody stopped this run, its tenant, or everything; `scope` says which."""

    _facts = ("scope", "reason", "actor", "at", "run_id")

    def __init__(
        self,
        scope: str,
        reason: str,
        actor: str | None = None,
        at: datetime | None = None,
        run_id: str | None = None,
    ) -> None:
        self.scope = scope
        self.reason = reason
        self.actor = actor
        self.at = at
        self.run_id = run_id
        by = f" by {actor}" if actor else ""
        when = f" at {at.isoformat(timespec='seconds')}" if at else ""
        super().__init__(f"killed ({scope}){by}{when}: {reason}")


class UnknownCostError(RunStopped):
    """A call whose cost nobody knows was about to run under a limit on money or tokens."""

    _facts = ("name", "resources", "run_id", "detail")

    def __init__(
        self,
        name: str,
        resources: Sequence[str] = ("usd",),
        run_id: str | None = None,
        detail: str | None = None,
    ) -> None:
        self.name = name
        self.resources = tuple(resources)
        self.run_id = run_id
        self.detail = detail
        super().__init__(
            f"{name}: the run limits {' and '.join(self.resources)}, "
            f"and {detail or 'this llm step does not say how much it uses'}; "
            "name it in reserve= and usage= (Usage(usd=0) says free), or give the model a price"
        )

    @property
    def cancels(self) -> bool:
        """See `RunStopped.cancels`: it refuses one call."""
        return False


class StepRefused(AgentGuardError):
    """This one call was not made; the run itself goes on."""


class EventLoopUnsupportedError(StepRefused):
    """An async step was called under an event loop that is not asyncio's, such as trio's."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name}: async steps run under asyncio, and no asyncio event loop runs here; call a sync "
            "step in a thread (trio.to_thread.run_sync), or run the program with asyncio "
            "(anyio.run(main, backend='asyncio'))"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return (_with_message, (type(self), *self.args))


class ApprovalDeniedError(StepRefused):
    """An operator denied the step, or nobody could be asked."""

    _facts = ("key", "reason", "actor", "run_id")

    def __init__(
        self,
        key: str,
        reason: str | None = None,
        actor: str | None = None,
        run_id: str | None = None,
    ) -> None:
        self.key = key
        self.reason = reason
        self.actor = actor
        self.run_id = run_id
        by = f" by {actor}" if actor else ""
        super().__init__(f"step {key} was denied{by}: {reason or 'no reason given'}")


class LimitAskedError(StepRefused):
    """A limit of the run has no room for the step, and its caller is to ask whether it is raised.

    Raised with `asks="caller"` where a run's limit asks (`on_limit="ask"`), instead of a pause until an
    operator has answered.  Amounts are plain: USD as text, else numbers.
    """

    _facts = ("key", "name", "resource", "spent", "reserved", "requested", "limit", "run_id")

    def __init__(
        self,
        key: str,
        name: str,
        resource: str,
        spent: str | float,
        reserved: str | float,
        requested: str | float,
        limit: str | float,
        run_id: str | None = None,
    ) -> None:
        self.key = key
        self.name = name
        self.resource = resource
        self.spent = spent
        self.reserved = reserved
        self.requested = requested
        self.limit = limit
        self.run_id = run_id
        super().__init__(
            f"{name} asks for a higher limit of {resource}: {limit} allowed, {spent} spent, "
            f"{reserved} reserved, {requested} more requested"
        )


class StoreUnavailableError(StepRefused):
    """The event log cannot be written or read, so nothing may run."""


class EventsEvictedError(StoreUnavailableError):
    """`memory://` has let go of the events of an ended run, to make room."""


class KillSwitchUnavailableError(StepRefused):
    """The kill switch cannot be read, so nothing may run."""


class ControlLogDeniedError(KillSwitchUnavailableError):
    """This login has no right to the control log: it is one of a single tenant."""


class InvalidStateTransitionError(AgentGuardError):
    """A run was asked to make a move that its state does not allow."""

    _facts = ("run_id", "from_state", "to_state")

    def __init__(self, run_id: str, from_state: Any, to_state: Any) -> None:
        self.run_id = run_id
        self.from_state = from_state
        self.to_state = to_state
        super().__init__(f"run {run_id} cannot go from {from_state} to {to_state}")


class NoActiveRunError(AgentGuardError):
    """A guarded step was called where no run is active.

    Call it inside `with guard.run(...)`; in a thread of your own, hand the function over as
    `run.bind(fn)`; in another process, use `guard.attach(run_id)`.
    """

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or " ".join((type(self).__doc__ or "").split()))


class RunExistsError(AgentGuardError):
    """A run with this id is already in the store."""

    _facts = ("run_id",)

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(
            f"run {run_id} exists already; choose another run_id, join it with "
            "guard.attach(run_id), or pass if_exists='recover'"
        )


class RunNotFoundError(AgentGuardError, LookupError):
    """No run with this id is in the store."""

    _facts = ("run_id",)

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"no run {run_id} in this store; `agentguard runs` lists them")


class ProgramError(AgentGuardError):
    """A function cannot be found by its name, or cannot be the body of a run."""

    _facts = ("target", "problem")

    def __init__(self, target: str, problem: str) -> None:
        self.target = target
        self.problem = problem
        super().__init__(f"{target}: {problem}")


class QueueUnavailableError(AgentGuardError):
    """The guard's store has no queue for workers."""

    _facts = ("store",)

    def __init__(self, store: str) -> None:
        self.store = store
        super().__init__(
            f"{store} has no queue for workers: submitted runs need PostgreSQL, as in "
            "Guard.open('postgresql://...'); on this store, call the function in a run of its own"
        )


class WorkersDiedError(AgentGuardError):
    """One worker after the other has died in a submitted run."""

    _facts = ("run_id", "deaths")

    def __init__(self, run_id: str, deaths: int) -> None:
        self.run_id = run_id
        self.deaths = deaths
        super().__init__(
            f"{deaths} workers have died, one after the other, while they carried out run {run_id}"
        )


class RunGivenUpError(AgentGuardError):
    """An operator has ended the run as FAILED: `agentguard end RUN --failed TEXT`."""


class DuplicateKeyError(AgentGuardError):
    """A step's `key=` is unique in its run, and this one has completed or is in flight."""

    _facts = ("key", "run_id")

    def __init__(self, key: str, run_id: str | None = None) -> None:
        self.key = key
        self.run_id = run_id
        super().__init__(
            f"step key {key!r} has already completed, or is in flight, in run {run_id}; "
            "a key= may be called again only after a failure"
        )


class RunOwnedError(AgentGuardError):
    """The run belongs to another process that is alive, as far as can be told."""

    _facts = ("run_id", "owner")

    def __init__(self, run_id: str, owner: str) -> None:
        self.run_id = run_id
        self.owner = owner
        super().__init__(f"run {run_id} belongs to {owner}; pass take_over=True to claim it")


class ReplayDivergenceError(AgentGuardError):
    """The program did something else than its log says; `kind` names the first difference."""

    _facts = ("kind", "key", "expected", "found")

    def __init__(self, kind: str, key: str | None, expected: Any = None, found: Any = None) -> None:
        self.kind = kind
        self.key = key
        self.expected = expected
        self.found = found
        super().__init__(
            f"replay differs from the log ({kind}) at {key}\n  recorded: {expected}\n  now:      {found}"
        )


class StepOutcomeUnknownError(AgentGuardError):
    """A step started before the crash and left no outcome: it may or may not have happened."""

    _facts = ("run_id", "key")

    def __init__(self, run_id: str, key: str) -> None:
        self.run_id = run_id
        self.key = key
        super().__init__(
            f"step {key} of run {run_id} had started and has no outcome on record; say what "
            f"became of it with guard.resolve({run_id!r}, {key!r}, 'retry'|'completed'|'failed')"
        )


class LogIntegrityError(AgentGuardError):
    """The log of a run was altered; `seq` is the first event that does not fit."""

    _facts = ("run_id", "seq", "problem")

    def __init__(self, run_id: str, seq: int, problem: str) -> None:
        self.run_id = run_id
        self.seq = seq
        self.problem = problem
        super().__init__(f"run {run_id}, event {seq}: {problem}")


class ThreadCancellation(abc.ABC):  # noqa: B024 - classes are registered
    """What an exception is by which a framework cancels the work of a thread: for integrations.

    A step whose body ends with one was cancelled, and has not failed by itself:
    `ThreadCancellation.register(framework.CancelledError)`.
    """


class RecordedError(AgentGuardError):
    """A recorded exception whose class is not imported here; its attributes say what is known."""

    _facts = ("type_name", "message", "recorded")

    def __init__(self, type_name: str, message: str, recorded: dict[str, Any] | None = None) -> None:
        self.type_name = type_name
        self.message = message
        self.recorded = recorded or {}
        super().__init__(f"{type_name}: {message}")
