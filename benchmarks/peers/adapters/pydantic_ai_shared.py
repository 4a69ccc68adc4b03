"""pydantic-ai's `UsageLimits` over runs that share one `usage=`, as its page on delegation shows."""

import asyncio
from contextlib import contextmanager

from pydantic_ai import Agent, ModelResponse, RunUsage, TextPart, UsageLimitExceeded, UsageLimits
from pydantic_ai.models.function import FunctionModel

REQUIRES = "pydantic-ai-slim==2.68.0"
STOPS = (UsageLimitExceeded,)
COUNTS = True


@contextmanager
def session(limit, _):
    yield {"usage": RunUsage(), "usage_limits": UsageLimits(request_limit=limit)}


def call(run, body):
    async def answer(messages, info):
        body()
        return ModelResponse([TextPart("Done.")])

    asyncio.run(Agent(FunctionModel(answer)).run("Go on.", **run))


async def acall(run, body):
    async def answer(messages, info):
        await body()
        return ModelResponse([TextPart("Done.")])

    await Agent(FunctionModel(answer)).run("Go on.", **run)
