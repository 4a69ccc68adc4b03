"""agentseatbelt: `guard.checkpoint(...)` and `guard.add_cost(...)` in `guard.run(agent)`; a file kills."""

import asyncio
from contextlib import nullcontext
from pathlib import Path

from agentseatbelt import Guard, GuardStop

REQUIRES = "agentseatbelt==0.3.0"
STOPS = (GuardStop,)


def session(limit, cost, **options):
    return nullcontext((Guard(max_budget_usd=limit, loop_threshold=None, **options), cost))


def governed(run, agent):
    result = asyncio.run(run[0].arun(agent)) if asyncio.iscoroutinefunction(agent) else run[0].run(agent)
    return "its result says so" if result.stopped else None


def call(run, body):
    run[0].checkpoint("step")
    body()
    run[0].add_cost(run[1])


async def acall(run, body):
    run[0].checkpoint("step")
    await body()
    run[0].add_cost(run[1])


def killable(place, name):
    return session(None, 0, kill_file=f"{place}/{name}")


def killer(place):
    return lambda name: Path(place, name).touch()
