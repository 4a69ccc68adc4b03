"""agentguard: `@guarded_step(usage=...)` in `with guard.run(...)`, as in docs/quickstart.md."""

import functools
import os
from contextlib import contextmanager

from agentguard import Budget, Guard, RunStopped, Usage

REQUIRES = "."
STOPS = (RunStopped,)


@contextmanager
def session(limit, cost):
    with Guard.in_memory(telemetry=False) as guard, guard.run("peer", budget=Budget(usd=limit)) as run:
        yield functools.partial(run.call, "step", usage=Usage(usd=cost))


def call(run, body):
    return run(body)


async def acall(run, body):
    return await run(body)


@contextmanager
def killable(place, name):
    os.environ["AGENTGUARD_HOME"] = place
    with Guard.open("memory://", telemetry=False) as guard, guard.run("peer", run_id=name) as run:
        yield functools.partial(run.call, "step")


def killer(place):
    os.environ["AGENTGUARD_HOME"] = place
    guard = Guard.open("memory://", telemetry=False)
    return lambda name: guard.kill(reason="stop", run=name)
