"""agentfences: `checkpoint_sync(cost_delta_usd=...)` after a call; the agent reads the verdict."""

import asyncio
from contextlib import contextmanager

import agentfences

REQUIRES = "agentfences==0.9.2"
Breached = type("Breached", (Exception,), {})  # it raises nothing; an agent that heeds the verdict stops
STOPS = (Breached,)
SAYS = dict.fromkeys(("kill to check", "kill to body"), "from its hosted dashboard")
agentfences.init(local_only=True)


@contextmanager
def session(limit, cost):
    yield limit, cost


def governed(run, agent):
    decorated = agentfences.governed(budget_usd=run[0], max_iterations=10**6)(agent)
    return asyncio.run(decorated()) if asyncio.iscoroutinefunction(agent) else decorated()


def call(run, body):
    result = body()
    if agentfences.checkpoint_sync(cost_delta_usd=run[1]).breached:
        raise Breached
    return result


async def acall(run, body):
    result = await body()
    if (await agentfences.checkpoint(cost_delta_usd=run[1])).breached:
        raise Breached
    return result
