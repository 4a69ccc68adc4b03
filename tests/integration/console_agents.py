"""Agents that a console shows and stops; each program prints what a test waits for."""

from __future__ import annotations

import sys
import threading
import time

from agentguard import ApprovalDeniedError, Budget, Guard, KillSwitchTriggeredError, Usage

#: No line of one thread in the middle of another's.
_PRINTING = threading.Lock()


def say(text: str) -> None:
    """Print a line."""
    with _PRINTING:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def spend(guard: Guard, name: str, tenant: str, seconds: str = "0.02") -> None:
    """Spend a cent a step until the run is killed."""
    try:
        with guard.run(name, tenant=tenant, budget=Budget(usd=1000)) as run:
            say(run.id)
            while True:
                run.call("spin", time.sleep, float(seconds), usage=Usage(usd="0.01"))
    except KillSwitchTriggeredError as error:
        say(f"stopped: {error.reason}")


def spend_in_threads(guard: Guard, name: str, tenant: str, runs: str) -> None:
    """The same in so many runs at once."""
    threads = [
        threading.Thread(target=spend, args=(guard, f"{name}-{n}", tenant, "0.1")) for n in range(int(runs))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def ask(guard: Guard, name: str, tenant: str, *payments: str) -> None:
    """Ask before each payment, and say what became of it."""
    with guard.run(name, tenant=tenant, budget=Budget(usd=1000)) as run:
        say(run.id)
        for usd in payments:
            try:
                say(f"paid {run.call('pay', int, usd, approval=True)}")
            except ApprovalDeniedError as error:
                say(f"denied {usd}: {error.reason}")


if __name__ == "__main__":
    program = {"spend": spend, "spend_in_threads": spend_in_threads, "ask": ask}[sys.argv[1]]
    with Guard.open(telemetry=False) as opened:
        program(opened, *sys.argv[2:])
