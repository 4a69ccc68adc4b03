"""agentguard for MCP servers: every tool call of a server as a guarded step.

`server.middleware.append(GuardMiddleware())` and `with guard.run(...): server.run()` is all it takes.
"""

from agentguard_mcp.errors import GuardError
from agentguard_mcp.middleware import GuardMiddleware
from agentguard_mcp.sessions import SessionRuns

__all__ = ["GuardError", "GuardMiddleware", "SessionRuns"]
