"""Would another budget have stopped that run, and where?  Then carry it on under a larger one.

Run it:  python examples/32_what_if.py
Nothing is run to answer the question: the log is folded under the other budget.
"""

import os
import tempfile

from agentguard import Budget, BudgetExceededError, Guard, Usage, guarded_step

PAGES = [f"page-{number}" for number in range(1, 9)]


@guarded_step(effect="read", usage=Usage(usd="0.002"))
def fetch(page: str) -> str:
    return page.upper()


@guarded_step(kind="llm", usage=Usage(usd="0.01", input_tokens=900, output_tokens=100))
def summarize(text: str) -> str:
    print(f"  really summarized {text}")
    return text[:4]


def agent() -> int:
    return len([summarize(fetch(page)) for page in PAGES])


def main() -> None:
    with Guard.open() as guard:
        print("under 0.05 USD:")
        try:
            with guard.run("summaries", budget=Budget(usd="0.05")) as run:
                agent()
        except BudgetExceededError as stop:
            print(f"stopped: {stop.spent} of {stop.limit} {stop.resource} spent")

        print("what if:")
        for budget in (
            Budget(usd="0.03"),
            Budget(tokens=2_500),
            Budget(calls={"fetch": 3}),
            Budget(steps=100),
        ):
            print(f"  {budget}: {guard.what_if(run.id, budget)}")

        # An ended run is ended.  A fork shares its events and goes on from there, under a budget of its own.
        last = next(e.seq for e in reversed(guard.history(run.id)) if e.type == "step_completed")
        print(f"a fork after event {last}, under 0.20 USD:")
        with guard.fork(run.id, at=last, budget=Budget(usd="0.20")) as fork:
            print(f"  {agent()} pages, the first four from the log")
        print(f"{fork.state}: {fork.spent.usd} USD, what the origin had spent included")
        for difference in guard.diff(run.id, fork.id).differences:
            print(f"  they differ: {difference.kind} at {difference.key or 'the end'}")


if __name__ == "__main__":
    # Only so that the example leaves your own state alone; a program needs no such line.
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("AGENTGUARD_HOME", home)
        main()
