"""agentguard on SQLite: `run.call` in `guard.run(..., if_exists="recover")`, and `guard.replay`."""

import os

from agentguard import Guard

REQUIRES = "."
SAYS = {"after each step": "written: survives kill -9"}


async def program(run, body, steps):
    for number in range(1, steps + 1):
        await run.call("step", body.waiting, number)


def guard(folder, **options):
    os.environ["AGENTGUARD_HOME"] = folder
    return Guard.open(f"sqlite:///{folder}/runs.db", telemetry=False, **options)


async def engine(folder, body, **options):
    with guard(folder, **options) as opened:

        async def run(name, steps):
            async with opened.run("peer", run_id=name, if_exists="recover") as live:
                await program(live, body, steps)

        async def replay(name, steps):
            async with opened.replay(name) as again:
                await program(again, body, steps)

        yield run, replay


def killer(folder):
    opened = guard(folder)
    return lambda name: opened.kill(reason="stop", run=name)
