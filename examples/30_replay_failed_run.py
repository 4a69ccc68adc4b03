"""A run failed in production; run it again on a laptop, from its exported log, with no keys and no network.

Run it:  python examples/30_replay_failed_run.py
"""

import os
import tempfile
from pathlib import Path

from agentguard import Guard, ReplayDivergenceError, Run, Usage, guarded_step

REALLY_DONE: list[str] = []


class RateError(Exception):
    """What our rate service raises."""


@guarded_step(kind="llm", usage=Usage(usd="0.01"))
def plan(question: str) -> list[str]:
    REALLY_DONE.append("asked the model")
    return ["EUR", "USD", "XXX"]


@guarded_step(effect="read")
def rate(currency: str) -> float:
    REALLY_DONE.append(f"fetched {currency}")
    if currency == "XXX":
        raise RateError(f"no rate for {currency}")
    return 1.25


def agent(run: Run) -> float:
    asked_at = run.now()  # on record, so that it is the same again
    total = sum(rate(currency) for currency in plan("which currencies?"))
    print(f"  asked at {asked_at:%H:%M}")
    return total


def careful_agent(run: Run) -> float:
    """The agent with the fault mended: it leaves out what has no rate, and says so to an operator."""
    run.now()
    total = 0.0
    for currency in plan("which currencies?"):
        try:
            total += rate(currency)
        except RateError as error:
            run.call("tell_operator", print, f"  {error}")
    return total


def in_production(path: Path) -> None:
    with Guard.open() as guard:
        try:
            with guard.run("rates") as run:
                agent(run)
        except RateError as error:
            print(f"in production: {type(error).__name__}: {error}")
        print(f"  really done: {', '.join(REALLY_DONE)}")
        guard.export(run.id, path)
    REALLY_DONE.clear()


def on_a_laptop(path: Path) -> None:
    with Guard.open(f"file://{path}") as guard:  # read-only: nothing can happen to the record
        run_id = guard.runs()[0].run_id
        print(f"the log: {guard.verify()}")

        print("replayed:")
        try:
            with guard.replay(run_id) as run:
                agent(run)  # set a breakpoint anywhere
        except RateError as error:
            print(f"  the same error, as its own type: {error}")
        print(f"  really done: {', '.join(REALLY_DONE) or 'nothing'}")

        print("the mended agent on the same log:")
        try:
            with guard.replay(run_id) as run:
                careful_agent(run)
        except ReplayDivergenceError as difference:
            print(f"  goes as recorded until it does something new: {difference.kind} at {difference.key}")
        print(f"  really done: {', '.join(REALLY_DONE) or 'nothing'}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "run.jsonl"
        in_production(log)
        on_a_laptop(log)


if __name__ == "__main__":
    # Only so that the example leaves your own state alone; a program needs no such line.
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("AGENTGUARD_HOME", home)
        main()
