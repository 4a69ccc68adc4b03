"""Runs as traces in Jaeger, or wherever else OTLP goes: pip install 'agentguard[otel]'.

Start a Jaeger (`docker compose up jaeger`), then `python examples/jaeger.py http://127.0.0.1:4318`, and
look at http://127.0.0.1:16686 for the service "triage".
"""

import sys
from contextlib import suppress

import agentguard.telemetry
from agentguard import Budget, Guard, RunStopped, Usage, guarded_step


@guarded_step(effect="read", usage=Usage(usd="0.01"))
def search(query: str) -> list[str]:
    return [f"a page about {query}"]


@guarded_step(kind="llm", usage=Usage(usd="0.05", input_tokens=900, output_tokens=100))
def summarize(pages: list[str]) -> str:
    return f"{len(pages)} pages"


def main(endpoint: str) -> str | None:
    with agentguard.telemetry.setup(endpoint=endpoint, service_name="triage"):
        guard = Guard.in_memory()
        with suppress(RunStopped), guard.run("triage", budget=Budget(usd="0.10"), tenant="acme") as run:
            with run.scope("research", budget=Budget(steps=5)):
                pages = search("tides")
            while True:
                print(summarize(pages))
        print(run.summary())
        return run.trace_id


if __name__ == "__main__":
    print("trace", main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:4318"))
