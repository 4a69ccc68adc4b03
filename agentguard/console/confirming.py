"""What a kill or a revival may be about, and what is typed to confirm it."""

from __future__ import annotations

from agentguard.console.auth import ConsoleError, Identity
from agentguard.console.data import Console

#: How much of a run's id is typed: its end, since ids of one minute begin alike.
_TYPED_CHARACTERS = 6
SCOPES = ("global", "tenant", "run")


def confirmation(scope: str, target: str) -> str:
    """Return what an operator has to type to confirm a kill."""
    if scope == "global":
        return "kill all"
    return f"kill {target if scope == 'tenant' else target[-_TYPED_CHARACTERS:]}"


def check_scope(console: Console, who: Identity, scope: str, target: str) -> None:
    """Refuse a kill or a revival that a token may not order.

    Raises:
        ConsoleError: it is beyond the token's tenant, or cannot be meant.
        RunNotFoundError: there is no such run for it.
    """
    if scope not in SCOPES:
        raise ConsoleError(400, f"scope must be global, tenant or run, not {scope!r}")
    if (scope == "global") != (not target):
        raise ConsoleError(400, "target must name the tenant or the run, and is empty for a global kill")
    if scope == "run":
        console.row(who, target)
    elif who.tenant is not None and target != who.tenant:
        raise ConsoleError(403, f"this token is bound to the tenant {who.tenant}")
