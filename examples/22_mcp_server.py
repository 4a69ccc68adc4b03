"""An MCP server whose tools are guarded, and a client that goes on asking.  Both in this process.

Run it:  python examples/22_mcp_server.py        (pip install 'agentguard[mcp]')
"""

import asyncio

from mcp.client.client import Client
from mcp.server.mcpserver import MCPServer
from mcp.shared.exceptions import MCPError

from agentguard import Budget, BudgetExceededError, Guard, Usage
from agentguard_mcp import GuardMiddleware

server = MCPServer(
    "office",
    middleware=[GuardMiddleware(tool_options={"send_email": {"usage": Usage(emails=1)}})],
)


@server.tool(annotations={"readOnlyHint": True})
def look_up(name: str) -> str:
    """Find an address."""
    return f"{name.lower()}@example.org"


@server.tool()
def send_email(to: str, body: str) -> str:
    """Send a mail."""
    print(f"  sent to {to}")
    return "sent"


async def somebodys_agent() -> None:
    """An agent elsewhere: it is told of the stop, and cannot get past it."""
    async with Client(server) as client:
        for name in ("Ann", "Ben", "Cem", "Dot"):
            found = await client.call_tool("look_up", {"name": name})
            try:
                await client.call_tool("send_email", {"to": found.content[0].text, "body": "Hello!"})
            except MCPError as error:
                print(f"  the client is told: {error.code} {error.data['type']}, limit {error.data['limit']}")
                return


def main() -> None:
    with Guard.in_memory() as guard:
        try:
            with guard.run("office", budget=Budget(emails=2, steps=100)) as run:
                asyncio.run(somebodys_agent())  # a real server: server.run("stdio")
        except BudgetExceededError as stop:
            print(f"stopped: {stop.resource}, {stop.spent} of {stop.limit}")
        print(f"{run.state}: {run.spent.steps} calls, {run.spent['emails']} mails")
        for event in guard.history(run.id):
            if event.type == "step_started":
                print(f"  {event.seq:>2} {event.key}  {event.data.get('effect', 'once')}")


main()
