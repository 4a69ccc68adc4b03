"""pydantic-ai's `UsageLimits(tool_calls_limit=...)`, on an agent whose scripted model asks for the calls."""

import asyncio

from pydantic_ai import Agent, ModelResponse, TextPart, ToolCallPart, UsageLimitExceeded, UsageLimits
from pydantic_ai.models.function import FunctionModel

REQUIRES = "pydantic-ai-slim==2.68.0"
STOPS = (UsageLimitExceeded,)


def drive(limit, body, calls, at_once):
    turns = iter(range(calls // at_once))

    async def answer(messages, info):
        if next(turns, None) is None:
            return ModelResponse([TextPart("Done.")])
        return ModelResponse([ToolCallPart("step", {}) for _ in range(at_once)])

    agent = Agent(FunctionModel(answer))

    if asyncio.iscoroutinefunction(body):

        @agent.tool_plain
        async def step() -> None:
            await body()
    else:

        @agent.tool_plain
        def step() -> None:
            body()

    agent.run_sync("Go on.", usage_limits=UsageLimits(request_limit=None, tool_calls_limit=limit))
