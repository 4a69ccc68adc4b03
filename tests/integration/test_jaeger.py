"""A run is one trace in a real Jaeger: run, scopes, steps, money, refusals and kills, found by tag."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.jaeger import Jaeger, jaeger

REFUSED = """
import sys
import agentguard.telemetry
from contextlib import suppress
from agentguard import Budget, Guard, RunStopped, Usage, guarded_step

@guarded_step(effect="read", usage=Usage(usd="0.01"))
def search(query): ...

@guarded_step(kind="llm", usage=Usage(usd="0.05", input_tokens=900, output_tokens=100))
def summarize(): ...

with agentguard.telemetry.setup(endpoint=sys.argv[1], service_name="triage"), Guard.in_memory() as guard:
    with suppress(RunStopped), guard.run("triage", budget=Budget(usd="0.10"), tenant="acme") as run:
        with run.scope("research", budget=Budget(steps=5)):
            search("tides")
        summarize()
        summarize()
    print(guard.history(run.id)[0].trace_id)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Jaeger]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with jaeger() as running:
        yield running


def python(program: str, *arguments: str) -> str:
    """Run a program in a process of its own: OpenTelemetry's globals are set for good."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        env=clean | {"NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def tags(span: dict) -> dict:
    return {tag["key"]: tag["value"] for tag in span["tags"]}


def parent(span: dict) -> str:
    (reference,) = span["references"]
    assert reference["refType"] == "CHILD_OF"
    return str(reference["spanID"])


def test_a_run_is_one_trace_with_scope_steps_and_money(server: Jaeger) -> None:
    """Metrics go to the same address, which has none: that is no noise on standard error."""
    trace_id = python(REFUSED, server.endpoint).strip()
    spans = server.spans(trace_id, 5)
    run, scope = spans["invoke_agent triage"], spans["invoke_agent research"]
    search = spans["execute_tool search"]
    assert run["references"] == []
    assert parent(scope) == run["spanID"]
    assert parent(search) == scope["spanID"]
    assert tags(scope)["agentguard.scope.path"] == "research"
    assert tags(search)["agentguard.cost.amount"] == 0.01
    assert tags(run)["agentguard.run.cost.amount"] == 0.06
    assert tags(run)["agentguard.tenant.id"] == "acme"
    assert tags(run)["error.type"] == "agentguard.budget_exceeded"
    assert tags(run)["agentguard.log.head"].count(":") == 1


@pytest.mark.parametrize(
    "wanted",
    [
        {"error.type": "agentguard.budget_exceeded"},
        {"agentguard.decision": "deny"},
        {"agentguard.deny.reason": "budget_exceeded"},
        {"agentguard.tenant.id": "acme"},
    ],
    ids=lambda wanted: "=".join(*wanted.items()),
)
def test_a_refusal_is_found_by_its_tag(server: Jaeger, wanted: dict[str, str]) -> None:
    trace_id = python(REFUSED, server.endpoint).strip()
    server.spans(trace_id, 5)
    assert trace_id in {trace["traceID"] for trace in server.search("triage", wanted)}


KILLED = """
import sys
import agentguard.telemetry
from contextlib import suppress
from agentguard import Guard, RunStopped, guarded_step

@guarded_step
def work(n): ...

with agentguard.telemetry.setup(traces=sys.argv[1] + "/v1/traces", metrics=False, service_name="killed"):
    with Guard.in_memory() as guard:
        with suppress(RunStopped), guard.run("doomed") as run:
            work(1)
            guard.kill(run=run.id, reason="enough")
            work(2)
        print(guard.history(run.id)[0].trace_id)
"""


def test_a_kill_is_found_by_its_tag(server: Jaeger) -> None:
    trace_id = python(KILLED, server.endpoint).strip()
    spans = server.spans(trace_id, 3)
    assert tags(spans["invoke_agent doomed"])["error.type"] == "agentguard.killed"
    found = server.search("killed", {"agentguard.run.state": "KILLED"})
    assert [trace["traceID"] for trace in found] == [trace_id]
