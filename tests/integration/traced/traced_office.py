"""The app of a traced worker."""

import os

import agentguard.telemetry
from agentguard import Budget, Guard, Usage, guarded_step

providers = agentguard.telemetry.setup(endpoint=os.environ["ENDPOINT"], service_name=os.environ["SERVICE"])
guard = Guard.open()


@guarded_step(usage=Usage(usd="0.03"))
def write(letter: str) -> str:
    return letter


@guard.run("letters", budget=Budget(usd="0.05"))
def letters(count: int) -> None:
    for number in range(count):
        write(f"letter {number}")
