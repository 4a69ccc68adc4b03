"""Send spans and metrics of runs and steps to OpenTelemetry: to the console, or to a collector.

Run it:  python examples/04_opentelemetry.py
         python examples/04_opentelemetry.py --endpoint http://127.0.0.1:4318

Needs:   pip install 'agentguard[otel]'
"""

import argparse
import os
import tempfile

import agentguard.telemetry
from agentguard import Budget, Guard, RunStopped, Usage, guarded_step


@guarded_step(kind="llm", usage=Usage(usd="0.02", input_tokens=120, output_tokens=40))
def ask(prompt: str) -> str:
    return f"about {prompt}"


@guarded_step
def lookup(order: str) -> str:
    if order == "A-2":
        raise LookupError(f"no order {order}")  # a failed step is a span with an error
    return "shipped"


def agent() -> None:
    for order in ("A-1", "A-2", "A-3"):
        try:
            print(f"  {ask(f'order {order}')}: {lookup(order)}")
        except LookupError as error:
            print(f"  {error}")


def main(endpoint: str | None) -> None:
    # Once, at the start of a program.  Where OpenTelemetry is set up already, leave this out.
    providers = agentguard.telemetry.setup(
        endpoint=endpoint, console=endpoint is None, service_name="order-desk"
    )
    with Guard.open() as guard:
        try:
            with guard.run("orders", budget=Budget(usd="0.05"), tenant="acme") as run:
                agent()
        except RunStopped as stop:
            print(f"stopped: {stop}")
        summary = guard.summary(run.id)
    providers.force_flush()
    print(f"{summary.state}; the run's span has agentguard.log.head = {summary.head.seq}:{summary.head.hash}")
    print(f"spans and metrics went to {endpoint or 'the console (standard error)'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoint", help="where an OTLP/HTTP collector listens")
    # Only so that the example leaves your own state alone; a program needs no such line.
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("AGENTGUARD_HOME", home)
        main(parser.parse_args().endpoint)
