"""The protocol error that a client gets for a call that the guard did not let run."""

from __future__ import annotations

from mcp.shared.exceptions import MCPError

from agentguard import AgentGuardError, RunStopped
from agentguard_mcp import _mapping as m


class GuardError(MCPError):
    """A tool call was refused by the guard; `data` holds the facts for the client.

    The code is `RUN_STOPPED` (the run is over, no later call will be let through) or `CALL_REFUSED`
    (this call alone).  `cause` is the agentguard error.
    """

    RUN_STOPPED = -32080
    CALL_REFUSED = -32081

    def __init__(self, cause: AgentGuardError) -> None:
        code = self.RUN_STOPPED if isinstance(cause, RunStopped) else self.CALL_REFUSED
        super().__init__(code, str(cause), m.error_data(cause))
        self.cause = cause
