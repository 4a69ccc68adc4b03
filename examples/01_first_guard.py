"""Guard functions that you have already, and watch a call being refused.

Run it:  python examples/01_first_guard.py
"""

import os
import tempfile

from agentguard import Budget, BudgetExceededError, Guard, Usage, guarded_step


# Two functions of an agent.  One line makes each of them a guarded step; nothing else changes.
@guarded_step
def search(query: str) -> list[str]:
    return [f"{query}-{number}@example.org" for number in range(1, 6)]


@guarded_step(usage=Usage(usd="0.01", emails=1))  # what a call costs is known in advance
def send_email(to: str, body: str) -> str:
    print(f"  sent to {to}")
    return "ok"


def agent() -> None:
    for address in search("ann"):
        try:
            send_email(address, "Hello!")
        except Exception as error:  # noqa: BLE001 - agents do this; it does not help them
            print(f"  the agent swallows: {error}")


def main() -> None:
    with Guard.open() as guard:
        try:
            with guard.run("newsletter", budget=Budget(usd="1.00", emails=3)) as run:
                agent()
        except BudgetExceededError as stop:
            print(f"stopped: {stop.resource}, {stop.spent} of {stop.limit} used")

        summary = guard.summary(run.id)
        print(f"{summary.state}: {summary.usage['emails']} emails, {summary.usage.usd} USD")
        print(f"log: {guard.verify(run.id)}")
        for event in guard.history(run.id):
            print(f"  {event.seq:2} {event.type:14} {event.key or ''}")


if __name__ == "__main__":
    # Only so that the example leaves your own state alone; a program needs no such line.
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("AGENTGUARD_HOME", home)
        main()
