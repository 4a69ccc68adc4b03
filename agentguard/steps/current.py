"""Where the code that runs now stands: its run, scope, branch and step."""

from __future__ import annotations

import threading
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Protocol

from agentguard.runs.branch import Branch

if TYPE_CHECKING:
    import asyncio

    from agentguard.budget.named import NamedAccount
    from agentguard.steps.live import LiveRun
    from agentguard.steps.model import Step
    from agentguard.steps.scope import Scope


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
    def scope(self) -> Scope | None:
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
        scope: Scope | None,
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


#: The position of the code that runs now.  A `Step` is a position too: that of its body.
CURRENT: ContextVar[InRun | None] = ContextVar("agentguard_position", default=None)


def here() -> InRun | None:
    """Return the position of the code that runs now, or None."""
    return CURRENT.get()


def current_position() -> InRun | None:
    """Return the same, but for a run that was entered in this context and left in another one.

    It is no longer current.  A step, which is in a hurry, is told there that the run is over.
    """
    while (position := CURRENT.get()) is not None and position.run.leave_context():
        pass
    return position


def restore_position(token: Token[InRun | None], run: OpenedRun | None = None) -> bool:
    """Restore what was current before, also in another context than the one it was set in.

    `run`, where it is known, is what ends: a context that stands in another run keeps its place.
    Return whether it was set in this context.
    """
    try:
        CURRENT.reset(token)
    except ValueError:
        # Entered in one context and left in another (ASGI streaming, notebooks), which may have
        # got the run by copy.
        position = CURRENT.get()
        if position is not None and run in (None, position.run):
            CURRENT.set(None if token.old_value is Token.MISSING else token.old_value)
        return False
    return True


#: Whether guarded steps may run outside a run here: for unit tests of decorated functions.
_OUTSIDE: ContextVar[bool] = ContextVar("agentguard_outside", default=False)


def outside_allowed() -> bool:
    """Whether a test has allowed steps outside a run."""
    return _OUTSIDE.get()


def allow_outside() -> Token[bool]:
    """Allow them, until the token is given to `refuse_outside`."""
    return _OUTSIDE.set(True)


def refuse_outside(token: Token[bool]) -> None:
    """Take the permission back."""
    _OUTSIDE.reset(token)
