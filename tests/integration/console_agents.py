"""Agents that a console shows and stops; each program prints what a test waits for."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from agentguard import (
    ApprovalDeniedError,
    Budget,
    BudgetExceededError,
    Guard,
    KillSwitchTriggeredError,
    Run,
    RunStopped,
    Usage,
)
from agentguard.testing.fakes import FakeClock

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


def spend_in_threads(guard: Guard, name: str, tenant: str, runs: str, seconds: str = "0.1") -> None:
    """The same in so many runs at once."""
    threads = [
        threading.Thread(target=spend, args=(guard, f"{name}-{n}", tenant, seconds)) for n in range(int(runs))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def forked(guard: Guard, name: str, tenant: str) -> None:
    """Look something up and pay for it; then the same as a fork, which finds another price; say both ids."""

    def agent(run: Run, price: str) -> None:
        run.call("look_up", str, "the price of paper", usage=Usage(usd="0.03", tokens=900))
        run.call("compare", lambda: price, usage=Usage(usd="0.02", tokens=400))
        for n in range(4):
            run.call("pay", time.sleep, 0.01 * n, usage=Usage(usd=price, tokens=100))

    with guard.run(name, tenant=tenant, budget=Budget(usd=2)) as run:
        agent(run, "0.40")
    with guard.fork(run.id, 4, name=f"{name}-cheaper") as fork:
        agent(fork, "0.25")
    say(f"{run.id} {fork.id}")


def past(guard: Guard, tenant: str, days: str) -> None:
    """Ask two models on each of the last days."""
    for day in range(int(days)):
        clock = FakeClock(datetime.now(UTC) - timedelta(days=day))
        with Guard.open(clock=clock, telemetry=False) as then, then.run("report", tenant=tenant) as run:
            for model, usd in (("claude-sonnet", f"{1 + day % 3}.20"), ("gpt-5-mini", f"0.{4 + day % 5}0")):
                run.call(
                    "ask",
                    int,
                    kind="llm",
                    usage=Usage(usd=usd, tokens=5000),
                    attributes={"gen_ai.request.model": model},
                )
    say("asked")


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
    programs = (spend, spend_in_threads, forked, past, burn_beside, ask, ask_for_more)
    program = {each.__name__: each for each in programs}[sys.argv[1]]
    with Guard.open(telemetry=False) as opened:
        with suppress(RunStopped):
            program(opened, *sys.argv[2:])
