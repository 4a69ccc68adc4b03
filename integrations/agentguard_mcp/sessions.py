"""One run for each MCP session, instead of one for the whole server."""

from __future__ import annotations

import contextlib
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final

from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_REQUEST
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from agentguard import Guard, Run, RunStopped

if TYPE_CHECKING:
    from mcp.server.context import ServerRequestContext

_KEY: Final = "agentguard.run"


class SessionRuns:
    """Opens a run at the first tool call of a session and ends it with the session.

    Sessions exist where the client makes the handshake (protocol versions before 2026-07-28).  A call
    of a newer client has none, and is refused: a budget of its own for each call would limit nothing.

    Args:
        guard: opens the runs.
        name: what the runs are called.
        options: those of `guard.run`: `budget=`, `tenant=`, `metadata=`, ...

    Example:
        >>> from agentguard import Budget, Guard
        >>> from agentguard_mcp import GuardMiddleware, SessionRuns
        >>> guard = Guard.in_memory()
        >>> middleware = GuardMiddleware(SessionRuns(guard, "files", budget=Budget(steps=100)))
    """

    def __init__(self, guard: Guard, name: str = "mcp-session", **options: Any) -> None:
        self._guard = guard
        self._name = name
        self._options = options

    def __call__(self, ctx: ServerRequestContext[Any, Any]) -> Run:
        """The run of the session that a request belongs to."""
        if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
            raise MCPError(
                INVALID_REQUEST,
                f"this server keeps a budget for each session, and protocol {ctx.protocol_version} has none",
            )
        # The SDK documents `state` and `exit_stack` for middleware, and has no public way to them yet.
        connection = ctx.session._connection  # noqa: SLF001
        run: Run | None = connection.state.get(_KEY)
        if run is None:
            # In a context of its own: the request's must not be left inside the run.
            run = copy_context().run(self._guard.start, self._name, **self._options)
            connection.state[_KEY] = run
            connection.exit_stack.callback(_end, run)
        return run


def _end(run: Run) -> None:
    with contextlib.suppress(RunStopped):  # it is on record; here nobody could be told
        run.close()
