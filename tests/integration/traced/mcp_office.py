"""An agent that calls a tool of an MCP server in another process; the server has a run, and so has the agent.

`python mcp_office.py ENDPOINT` prints the trace of the agent's run; with "server" behind, it is the server.
"""

import asyncio
import contextlib
import os
import sys

from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.server.mcpserver import MCPServer
from mcp.shared.exceptions import MCPError

import agentguard.telemetry
from agentguard import Budget, Guard, RunStopped, guarded_step
from agentguard_mcp import GuardMiddleware

server = MCPServer("calculator", middleware=[GuardMiddleware()])


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def serve(endpoint: str) -> None:
    with (
        agentguard.telemetry.setup(endpoint=endpoint, metrics=False, service_name="mcp-server"),
        Guard.in_memory() as guard,
        contextlib.suppress(RunStopped),
        guard.run("server", budget=Budget(calls={"add": 1})),
    ):
        server.run("stdio")


async def agent(endpoint: str) -> None:
    parameters = StdioServerParameters(
        command=sys.executable, args=[*sys.orig_argv[1:], "server"], env=dict(os.environ)
    )

    @guarded_step
    async def ask(client: Client, number: int) -> None:
        with contextlib.suppress(MCPError):
            await client.call_tool("add", {"a": number, "b": 1})

    async with Client(stdio_client(parameters)) as client:
        await ask(client, 1)
        await ask(client, 2)


def main(endpoint: str) -> None:
    with (
        agentguard.telemetry.setup(endpoint=endpoint, metrics=False, service_name="mcp-agent"),
        Guard.in_memory(capture="none") as guard,
    ):
        with guard.run("agent") as run:
            asyncio.run(agent(endpoint))
        print(guard.history(run.id)[0].trace_id)


if sys.argv[2:] == ["server"]:
    serve(sys.argv[1])
else:
    main(sys.argv[1])
