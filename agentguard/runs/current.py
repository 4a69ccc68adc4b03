"""Where the code that runs now stands: its run, scope, branch and step."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any

from agentguard.runs.branch import Branch

if TYPE_CHECKING:
    from agentguard.budget.named import NamedAccount


class Position:
    """A position inside a run.  `run`, `scope` and `step` are the public objects, or None.

    `account` is the named account that steps here are charged to, or None.
    """

    __slots__ = ("account", "branch", "live_run", "run", "scope", "scope_key", "step")

    def __init__(
        self, run: Any, scope: Any, branch: Branch, step: Any = None, account: NamedAccount | None = None
    ) -> None:
        self.run = run
        self.live_run = run.live_run
        self.scope = scope
        self.scope_key: str = scope.key if scope is not None else ""
        self.branch = branch
        self.step = step
        self.account = account


def on_branch(position: Any, branch: Branch) -> Position:
    """Return the same position on another branch."""
    return Position(position.run, position.scope, branch, position.step, position.account)


#: The position of the code that runs now.  A `Step` is a position too: that of its body.
CURRENT: ContextVar[Any] = ContextVar("agentguard_position", default=None)


def here() -> Any:
    """Return the position of the code that runs now, or None."""
    return CURRENT.get()


def leave(token: Token[Any], run: Any = None) -> None:
    """Restore what was current before, also in another context than the one it was set in.

    `run`, where it is known, is what ends: a context that stands in another run keeps its place.
    """
    try:
        CURRENT.reset(token)
    except ValueError:
        # Entered in one context and left in another (ASGI streaming, notebooks), which may have
        # got the run by copy.
        position = CURRENT.get()
        if position is not None and run in (None, position.run):
            CURRENT.set(None if token.old_value is Token.MISSING else token.old_value)


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
