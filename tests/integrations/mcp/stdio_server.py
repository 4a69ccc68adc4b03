"""A guarded server over stdio: `python stdio_server.py LEDGER`; each tool call adds a line to LEDGER."""

import contextlib
import sys
from pathlib import Path

from mcp.server.mcpserver import MCPServer

from agentguard import Budget, Guard, RunStopped
from agentguard_mcp import GuardMiddleware

LEDGER = Path(sys.argv[1])
server = MCPServer("calculator", middleware=[GuardMiddleware()])


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    with LEDGER.open("a", encoding="utf-8") as ledger:
        ledger.write(f"{a}+{b}\n")
    return a + b


with (
    Guard.open(telemetry=False) as guard,
    contextlib.suppress(RunStopped),
    guard.run("server", run_id="server", budget=Budget(calls={"add": 3})),
):
    server.run("stdio")
