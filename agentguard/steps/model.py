"""Where code stands in a run: a `Position`, or the `Step` in whose body it runs."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from agentguard.budget.account import Amounts, Request
from agentguard.budget.model import Budget, Remaining, Usage
from agentguard.budget.named import NamedAccount
from agentguard.errors import RunStopped, UnknownCostError
from agentguard.runs.branch import Branch
from agentguard.steps.decision import Decision
from agentguard.steps.spec import StepSpec, with_step
from agentguard.steps.step_call import StepCall

if TYPE_CHECKING:
    import asyncio

    from agentguard.protocols import Commit
    from agentguard.steps.capture import PayloadRecorder
    from agentguard.steps.live import LiveRun
    from agentguard.steps.spans import StepSpan


class OpenedRun(Protocol):
    """The public `Run`, as the rooms below it need it."""

    @property
    def id(self) -> str:
        """The run's id."""
        ...

    @property
    def tenant(self) -> str:
        """Whose run it is."""
        ...

    @property
    def live_run(self) -> LiveRun:
        """The run as this process has it."""
        ...

    @property
    def session(self) -> OpenedSession:
        """How it was opened."""
        ...

    def install_task_factory(
        self, loop: asyncio.AbstractEventLoop, branch: Branch, *, early: bool = True
    ) -> None:
        """Give tasks made in this loop branches of their own."""

    def here(self) -> InRun:
        """Return the place of the code that runs now, in this run."""
        ...

    def limits(self, *resources: str) -> bool:
        """Return whether a level that a step here is charged to limits one of these."""
        ...

    def leave_context(self) -> bool:
        """Make current what was so before the run, if it was entered here and left in another context."""
        ...


class OpenedSession(Protocol):
    """How a run was opened, as the rooms below the sessions need it."""

    @property
    def around(self) -> InRun | None:
        """Where in the run around it the run was opened; None for a run that is in no other."""
        ...


class OpenedScope(Protocol):
    """The public `Scope`, as the code inside it needs it."""

    key: str
    name: str
    path: str
    budget: Budget

    @property
    def spent(self) -> Usage:
        """What has been spent inside."""
        ...

    @property
    def remaining(self) -> Remaining:
        """What its own budget leaves."""
        ...

    @property
    def stop(self) -> RunStopped | None:
        """What stopped it, if anything did."""
        ...


class InRun(Protocol):
    """Where code stands in a run: a `Position`, or the `Step` in whose body it runs."""

    @property
    def run(self) -> OpenedRun:
        """The public `Run`."""
        ...

    @property
    def live_run(self) -> LiveRun:
        """The run as this process has it."""
        ...

    @property
    def scope(self) -> OpenedScope | None:
        """The public `Scope`, or None."""
        ...

    @property
    def scope_key(self) -> str:
        """The scope's key; empty for the run itself."""
        ...

    @property
    def branch(self) -> Branch:
        """Where calls are numbered."""
        ...

    @property
    def step(self) -> Step | None:
        """The step whose body runs here, or None."""
        ...

    @property
    def thread(self) -> int:
        """The thread that it was entered in; of a step, only where a log answers."""
        ...

    @property
    def account(self) -> NamedAccount | None:
        """The named account that steps here are charged to, or None."""
        ...


class Position:
    """A position inside a run.  `run`, `scope` and `step` are the public objects, or None.

    `account` is the named account that steps here are charged to, or None; `thread` the thread whose branch
    it is, by default this one.
    """

    __slots__ = ("account", "branch", "live_run", "run", "scope", "scope_key", "step", "thread")

    def __init__(
        self,
        run: OpenedRun,
        scope: OpenedScope | None,
        branch: Branch,
        step: Step | None = None,
        account: NamedAccount | None = None,
        *,
        thread: int = 0,
    ) -> None:
        self.run = run
        self.thread = thread or threading.get_ident()
        self.live_run: LiveRun = run.live_run
        self.scope = scope
        self.scope_key: str = scope.key if scope is not None else ""
        self.branch = branch
        self.step = step
        self.account = account


def on_branch(position: InRun, branch: Branch) -> Position:
    """Return the same position on another branch."""
    return Position(position.run, position.scope, branch, position.step, position.account)


class Step(StepCall):
    """One call of a guarded step, and the position of its body.

    `current_step()` gives it inside the body.  `idempotency_key` is stable over attempts, replays
    and recoveries: hand it to the service that you call, so that a repeat happens once.
    """

    __slots__ = (
        "account",
        "asked",
        "at_ns",
        "attributes",
        "commit",
        "continuations",
        "entered",
        "live_run",
        "needs_approval",
        "recorder",
        "request",
        "run",
        "scope",
        "seq",
        "settled",
        "span",
        "started_ns",
        "thread",
        "unknown",
        "unpriced",
    )

    def __init__(self, spec: StepSpec, position: InRun, key: str, pos: int) -> None:
        self.spec = spec
        self.pos = pos
        self.run = position.run
        self.scope = position.scope
        self.scope_key = position.scope_key
        self._branch = None
        self.parent = position.step
        #: The named account that it is charged to beside its levels.
        self.account: NamedAccount | None = position.account
        self.live_run: LiveRun = position.live_run
        #: What is kept of its arguments and its result.
        self.recorder: PayloadRecorder = self.live_run.recorders.get(spec) or self.live_run.recorder(spec)
        self.key = key
        self.attempt = 1
        #: What it asks for; set by `prepare` where calls differ.
        self.request: Request = spec.request or spec.plain
        self.needs_approval = spec.approval is True or type(spec.approval) is Decision
        #: Where a log answers: the thread it was called in.
        self.thread = 0
        self.elsewhere = False
        self.payload = None
        self.digest = None
        #: Its start, or its outcome, where that was accepted and is not known to be committed.
        self.commit: Commit | None = None
        #: What binds its approval to arguments that no digest tells apart; set where one is needed.
        self.unknown: str | None
        #: Its arguments as who must approve it is shown them; set where one must.
        self.asked: bytes | None
        #: The sequence of its outcome.
        self.seq = 0
        self.settled: Amounts | None = None
        #: What `reserve=` raised for a call whose cost nobody knows: the step is refused with it.
        self.unpriced: UnknownCostError | None = None
        #: Facts of this call alone, for the span and the log: the id of a tool call.
        self.attributes: Mapping[str, object] | None = None
        self.span: StepSpan | None = None
        #: How its result went on after its function had returned, in the words of `steps.following`.
        self.continuations: tuple[str, ...] = ()
        #: When its start was put on record, or was about to be.
        self.at_ns = 0
        self.started_ns = 0
        #: Whether its body has begun.
        self.entered = False

    @property
    def step(self) -> Step:
        """Itself: the step that code placed here belongs to."""
        return self

    @property
    def idempotency_key(self) -> str:
        """A key for the outside world: the same for every attempt at this step."""
        return self.live_run.idempotency_key(self.key)

    def settle(self, usage: Usage) -> None:
        """Say what the step really used; the last call wins, and goes before `usage=`.

        Raises:
            TypeError: not a `Usage`.
        """
        if not isinstance(usage, Usage):
            raise TypeError(f"settle() takes a Usage, not {type(usage).__name__}")
        self.settled = with_step(usage)

    def __repr__(self) -> str:
        return f"<Step {self.key} attempt {self.attempt} of run {self.live_run.log.fold.run_id}>"
