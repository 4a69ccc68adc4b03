"""Agents that a console shows and stops; each program prints what a test waits for."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress

from agentguard import (
    ApprovalDeniedError,
    Budget,
    BudgetExceededError,
    Guard,
    KillSwitchTriggeredError,
    RunStopped,
    Usage,
)

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


def burn(guard: Guard, name: str, tenant: str) -> None:
    """Spend fast, and swallow whatever is raised, a stop too."""
    with guard.run(name, tenant=tenant, budget=Budget(usd=1_000_000)) as run:
        say(f"wild {run.id}")
        while True:
            with suppress(Exception):
                run.call("fetch_page", time.sleep, 0.01, usage=Usage(usd=5))


def burn_beside(guard: Guard, name: str, tenant: str, runs: str) -> None:
    """The same in a thread, beside tame runs in others."""
    thread = threading.Thread(target=burn, args=(guard, name, tenant))
    thread.start()
    spend_in_threads(guard, f"{name}-tame", tenant, runs)


def ask(guard: Guard, name: str, tenant: str, *payments: str) -> None:
    """Ask before each payment, and say what became of it."""
    with guard.run(name, tenant=tenant, budget=Budget(usd=1000)) as run:
        say(run.id)
        for usd in payments:
            try:
                say(f"paid {run.call('pay', int, usd, approval=True)}")
            except ApprovalDeniedError as error:
                say(f"denied {usd}: {error.reason}")


def ask_for_more(guard: Guard, name: str, tenant: str, payments: str) -> None:
    """Pay a dollar so often, within a limit of one dollar that asks."""
    with guard.run(name, tenant=tenant, budget=Budget(usd=1, on_limit="ask")) as run:
        say(run.id)
        for n in range(int(payments)):
            try:
                run.call("pay", int, n, usage=Usage(usd=1))
            except BudgetExceededError as error:
                say(f"stopped at {error.limit}")
                raise
            say(f"paid {n}")


if __name__ == "__main__":
    programs = (spend, spend_in_threads, burn_beside, ask, ask_for_more)
    program = {each.__name__: each for each in programs}[sys.argv[1]]
    with Guard.open(telemetry=False) as opened:
        with suppress(RunStopped):
            program(opened, *sys.argv[2:])
