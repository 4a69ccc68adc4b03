"""An agent is killed by the hand of the system, for real, and carries on: no completed step runs twice.

Run it:  python examples/31_crash_and_recover.py
It starts itself again as the process that dies.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from agentguard import Guard, StepOutcomeUnknownError, Usage, current_step, guarded_step

RUN_ID = "invoices-2026-05"  # an id of your own, so that the next process finds the run
CUSTOMERS = ["ann", "bob", "cid", "dan"]


def world() -> Path:
    """Where effects on the world are noted: a file that outlives every process."""
    return Path(os.environ["AGENTGUARD_HOME"]) / "world"


def note(what: str) -> None:
    with world().open("a") as file:
        file.write(f"{what}\n")


@guarded_step(effect="read")  # a repeat does no harm
def amount_due(customer: str) -> int:
    return 100 * len(customer)


@guarded_step(effect="idempotent", usage=Usage(usd="0.01"))  # a repeat under the same key does nothing
def charge(customer: str, amount: int) -> str:
    step = current_step()
    assert step is not None
    note(f"charged {customer} {amount} under {step.idempotency_key[:8]}")
    if customer == os.environ.get("DIE_WHILE_CHARGING"):
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
    return f"receipt of {customer}"


@guarded_step  # effect="once": nobody but an operator may say whether it happened
def send_letter(customer: str, receipt: str) -> str:
    note(f"posted a letter to {customer}")
    if customer == os.environ.get("DIE_WHILE_POSTING"):
        os.kill(os.getpid(), signal.SIGKILL)
    return "posted"


def agent() -> int:
    for customer in CUSTOMERS:
        send_letter(customer, charge(customer, amount_due(customer)))
    return len(CUSTOMERS)


def work() -> None:
    """What the process does, first or again: `if_exists="recover"` makes both the same program."""
    with Guard.open() as guard:
        try:
            with guard.run("invoices", run_id=RUN_ID, if_exists="recover"):
                print(f"  done: {agent()} customers")
        except StepOutcomeUnknownError as unknown:
            print(f"  cannot go on: {unknown.key} may have happened")
            sys.exit(3)


def life(number: int, **dies: str) -> None:
    """One life of the process."""
    before = len(effects())
    sys.stdout.flush()  # it prints to the same place
    command = [sys.executable, __file__, "work"]
    ran = subprocess.run(command, env=os.environ | dies, check=False)  # noqa: S603 - this file itself
    how = "killed by SIGKILL" if ran.returncode == -signal.SIGKILL else f"ended with {ran.returncode}"
    print(f"life {number}: {how}")
    for effect in effects()[before:]:
        print(f"  {effect}")


def effects() -> list[str]:
    return world().read_text().splitlines() if world().exists() else []


def main() -> None:
    life(1, DIE_WHILE_CHARGING="bob")
    life(2, DIE_WHILE_POSTING="cid")
    life(3)
    with Guard.open() as guard:
        print("an operator looks into the letter box: the letter is there")
        guard.resolve(RUN_ID, "main/send_letter#3", "completed", result="posted")
    life(4)

    with Guard.open() as guard:
        summary = guard.summary(RUN_ID)
        print(f"{summary.state}, {summary.usage.usd} USD; the log is {guard.verify(RUN_ID)}")
        for event in guard.history(RUN_ID):
            if event.type in ("run_recovered", "run_paused", "step_resolved"):
                print(
                    f"  {event.seq:2} {event.type:14} {event.key or ''} {event.data.get('as', '')}".rstrip()
                )
        completed = [event.key for event in guard.history(RUN_ID) if event.type == "step_completed"]
        assert len(completed) == len(set(completed))
    letters = [effect for effect in effects() if effect.startswith("posted")]
    twice = len(letters) - len(set(letters))
    print(f"{len(letters)} letters for {len(CUSTOMERS)} customers, posted twice: {twice}")


if __name__ == "__main__":
    if sys.argv[1:] == ["work"]:
        work()
    else:
        # Only so that the example leaves your own state alone; a program needs no such line.
        with tempfile.TemporaryDirectory() as home:
            os.environ["AGENTGUARD_HOME"] = home
            main()
