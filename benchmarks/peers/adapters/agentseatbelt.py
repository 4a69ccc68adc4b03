"""agentseatbelt: `guard.checkpoint(...)` and `guard.add_cost(...)` inside `guard.run(agent)`."""

import asyncio
import itertools
from contextlib import contextmanager

from agentseatbelt import Guard
from agentseatbelt.errors import GuardStop

REQUIRES = "agentseatbelt==0.3.0"
STOPS = (GuardStop,)
_numbers = itertools.count()  # equal actions would be a loop, which is not what is measured


@contextmanager
def session(limit, cost):
    yield Guard(max_budget_usd=limit), cost


def governed(run, agent):
    """Run the agent; the result says whether it was stopped, and its output is None then."""
    is_async = asyncio.iscoroutinefunction(agent)
    result = asyncio.run(run[0].arun(agent)) if is_async else run[0].run(agent)
    return "its result says so" if result.stopped else None


def call(run, body):
    guard, cost = run
    guard.checkpoint("step", number=next(_numbers))
    result = body()
    guard.add_cost(cost)
    return result


async def acall(run, body):
    guard, cost = run
    guard.checkpoint("step", number=next(_numbers))
    result = await body()
    guard.add_cost(cost)
    return result
