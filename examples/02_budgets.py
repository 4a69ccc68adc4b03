"""Budgets: counters of your own, limits on calls, scopes inside a run, and going on after a stop.

Run it:  python examples/02_budgets.py
"""

import os
import tempfile
from dataclasses import dataclass

from agentguard import Budget, BudgetExceededError, Guard, Run, Usage, guarded_step


@dataclass
class Answer:
    text: str
    tokens_in: int
    tokens_out: int


def at_most(prompt: str) -> Usage:
    """What a call may cost at most: reserved before it runs."""
    return Usage(usd="0.01", input_tokens=len(prompt), output_tokens=100)


def really(answer: Answer) -> Usage:
    """What it has cost: known from the answer, and charged in place of the reservation."""
    return Usage(usd="0.004", input_tokens=answer.tokens_in, output_tokens=answer.tokens_out)


@guarded_step(kind="llm", reserve=at_most, usage=really)
def ask(prompt: str) -> Answer:
    return Answer(f"about {prompt}", tokens_in=len(prompt), tokens_out=20)


@guarded_step(usage=Usage(refunds=1, refunded_eur=25))  # count whatever you like
def refund(order: str) -> None:
    print(f"  refunded {order}")


@guarded_step
def fetch(url: str) -> str:
    return f"page {url}"


def research(run: Run) -> int:
    """A sub-agent with a budget of its own; where it is stopped, the run goes on."""
    fetched = 0
    try:
        with run.scope("research", budget=Budget(usd="0.02", calls={"fetch": 3})) as scope:
            for number in range(10):
                ask(f"question {number}")
                fetch(f"https://example.org/{number}")
                fetched += 1
    except BudgetExceededError as stop:
        print(f"scope {stop.scope!r} is stopped: {stop.resource}, {stop.spent} of {stop.limit} used")
        print(f"  a call that may need {stop.requested} more was not made")
        print(f"  the scope spent {scope.spent.usd} USD; the run still has {run.remaining.usd} USD")
    return fetched


def main() -> None:
    limits = Budget(usd="0.10", tokens=2_000, steps=50, seconds=60, refunds=2, refunded_eur=100)
    with Guard.open() as guard:
        try:
            with guard.run("support", budget=limits, on_warning=warn) as run:
                print(f"pages fetched: {research(run)}")
                print(f"an answer after that: {ask('one more').text!r}")
                for order in ("A-1", "A-2", "A-3"):
                    refund(order)
        except BudgetExceededError as stop:
            print(f"run is stopped: {stop.resource}, {stop.spent} of {stop.limit} used")
        summary = guard.summary(run.id)
        print(f"{summary.state}: {summary.usage.usd} USD, {summary.usage['refunds']} refunds")


def warn(warning: dict[str, str]) -> None:
    print(f"  warning: {warning['used']} of {warning['limit']} {warning['resource']} ({warning['path']})")


if __name__ == "__main__":
    # Only so that the example leaves your own state alone; a program needs no such line.
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("AGENTGUARD_HOME", home)
        main()
