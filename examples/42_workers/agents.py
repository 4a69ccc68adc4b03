"""The agents that workers carry out: they write letters, one each fifth of a second."""

import os
import time
from pathlib import Path

from agentguard import Budget, Guard, current_step, guarded_step

guard = Guard.open()
OUTBOX = Path(os.environ.get("OUTBOX", "outbox.txt"))


@guarded_step(effect="idempotent")
def send(letter: str) -> str:
    time.sleep(0.2)
    with OUTBOX.open("a") as outbox:  # a mail server would drop the second letter with one key
        outbox.write(f"{current_step().idempotency_key} {letter}\n")
    return letter


@guard.run("letters", budget=Budget(steps=1000, seconds=600))
def letters(tenant: str, count: int) -> None:
    for number in range(1, count + 1):
        send(f"{tenant} {number}")
