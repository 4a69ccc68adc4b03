"""Which position the code that runs now has, in which run, scope, branch and step."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentguard.steps.model import InRun, OpenedRun

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
