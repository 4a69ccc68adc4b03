"""Stop a run from another process, in the middle of an async step.

Run it:  python examples/03_kill_from_another_terminal.py
It starts the other process itself.  With --wait it prints the command and waits for you to type it.
"""

import asyncio
import os
import subprocess
import sys
import tempfile

from agentguard import Guard, KillSwitchTriggeredError, guarded_step


@guarded_step
async def long_call(in_flight: asyncio.Event) -> None:
    """As long as a slow model call, or longer."""
    in_flight.set()
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        print("the body was cancelled")
        raise


async def stubborn_agent(in_flight: asyncio.Event) -> None:
    try:
        await long_call(in_flight)
    except Exception as error:  # noqa: BLE001 - agents do this; it does not help them
        print(f"the agent swallows: {type(error).__name__}")


async def pull_the_switch(run_id: str, in_flight: asyncio.Event) -> None:
    await in_flight.wait()
    # The same as typing `agentguard kill --run ID --reason ...` into another terminal.
    command = [sys.executable, "-m", "agentguard.cli", "kill", "--run", run_id, "--reason", "enough"]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    print(f"the other process: {output.decode().strip()}")


async def main(*, wait: bool) -> None:
    with Guard.open() as guard:
        run = guard.run("night shift")
        in_flight = asyncio.Event()
        if wait:
            print(f"AGENTGUARD_HOME={os.environ['AGENTGUARD_HOME']}", end=" ")
            print(f"agentguard kill --run {run.id} --reason enough", flush=True)
            other = None
        else:
            other = asyncio.create_task(pull_the_switch(run.id, in_flight))
        try:
            async with run:
                await stubborn_agent(in_flight)
        except KillSwitchTriggeredError as stop:
            print(f"stopped: {stop.reason!r}, ordered by somebody else: {stop.actor is not None}")
        if other is not None:
            await other
        print(f"on record: {guard.summary(run.id).state}")

        # The kill was meant for that run; others may start.
        with guard.run("next shift") as after:
            pass
        print(f"the next run: {guard.summary(after.id).state}")


if __name__ == "__main__":
    # Only so that the example leaves your own state alone; a program needs no such line.
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("AGENTGUARD_HOME", home)
        asyncio.run(main(wait="--wait" in sys.argv))
