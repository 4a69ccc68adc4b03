"""A run is one trace in a real Jaeger: run, scopes, steps, money, refusals and kills, found by tag."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.jaeger import Jaeger, jaeger

PROGRAMS = Path(__file__).parent / "traced"

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


def environment(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return clean | {"NO_PROXY": "127.0.0.1"} | more


def python(program: str, *arguments: str, **more: str) -> str:
    """Run a program in a process of its own: OpenTelemetry's globals are set for good."""
    words = [str(PROGRAMS / program)] if program.endswith(".py") else ["-c", program]
    ran = subprocess.run(
        [sys.executable, "-W", "error", *words, *arguments],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def tags(span: dict) -> dict:
    return {tag["key"]: tag["value"] for tag in span["tags"]}


def parent(span: dict) -> str | None:
    """Return the span that this one lies below, in whatever trace."""
    above = [str(known["spanID"]) for known in span["references"] if known["refType"] == "CHILD_OF"]
    assert len(above) <= 1
    return above[0] if above else None


def links(span: dict) -> list[tuple[str, str]]:
    """Return the spans that this one is linked to, by trace and span."""
    return [
        (known["traceID"], known["spanID"]) for known in span["references"] if known["refType"] != "CHILD_OF"
    ]


@pytest.fixture(scope="module")
def refused(server: Jaeger) -> str:
    """The trace of a run that met its budget.

    Metrics go to the same address, which has none: that is no noise on standard error.
    """
    return python(REFUSED, server.endpoint).strip()


def test_a_run_is_one_trace_with_scope_steps_and_money(server: Jaeger, refused: str) -> None:
    spans = server.spans(refused, 5)
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
def test_a_refusal_is_found_by_its_tag(server: Jaeger, refused: str, wanted: dict[str, str]) -> None:
    server.spans(refused, 5)
    assert [trace["traceID"] for trace in server.search("triage", wanted)] == [refused]


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


# --- frameworks, other threads and processes, workers --------------------------------------------


@pytest.fixture(scope="module")
def langchain(server: Jaeger) -> dict[str, str]:
    """The traces of three runs of a LangChain agent, by name."""
    pytest.importorskip("langchain")
    return dict(json.loads(python("langchain_agent.py", server.endpoint)))


def test_a_langchain_run_is_one_trace_with_models_tools_tokens_and_money(
    server: Jaeger, langchain: dict[str, str]
) -> None:
    spans = server.spans(langchain["desk"], 4)
    run, model, tool = (
        spans[name] for name in ("invoke_agent desk", "chat scripted-1", "execute_tool look_up")
    )
    assert run["references"] == []
    assert {parent(model), parent(tool)} == {run["spanID"]}
    asked = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "scripted-1",
        "gen_ai.usage.input_tokens": 1000,
        "gen_ai.usage.output_tokens": 200,
        "agentguard.cost.amount": 0.008,
        "agentguard.decision": "allow",
        "agentguard.tenant.id": "acme",
        "span.kind": "client",
    }
    assert asked.items() <= tags(model).items()
    assert tags(tool)["gen_ai.tool.name"] == "look_up"
    assert tags(tool)["gen_ai.tool.call.id"] == "call-1"
    assert tags(run)["agentguard.run.cost.amount"] == 0.016
    assert tags(run)["agentguard.run.input_tokens"] == 2000
    assert tags(run)["agentguard.run.state"] == "COMPLETED"
    assert "error.type" not in tags(run)


@pytest.mark.parametrize(
    ("run", "step_name", "error", "state"),
    [
        ("spender", "chat scripted-1", "agentguard.budget_exceeded", "FAILED"),
        ("doomed", "chat scripted-1", "agentguard.killed", "KILLED"),
    ],
)
def test_a_langchain_run_that_was_stopped_is_found_by_its_error(
    server: Jaeger, langchain: dict[str, str], run: str, step_name: str, error: str, state: str
) -> None:
    spans = server.spans(langchain[run], 4)
    step, whole = spans[step_name], spans[f"invoke_agent {run}"]
    assert parent(step) == whole["spanID"]
    assert tags(step)["agentguard.decision"] == "deny"
    assert tags(step)["error.type"] == tags(whole)["error.type"] == error
    assert tags(whole)["agentguard.run.state"] == state
    assert server.trace_of("langchain", {"error.type": error}) == langchain[run]


def test_steps_of_who_attaches_lie_below_the_run_or_are_linked_to_it(server: Jaeger) -> None:
    """A thread shares the trace; a request and another process have one of their own, with a link."""
    trace_id = python("attaching.py", server.endpoint).strip()
    spans = server.spans(trace_id, 3)
    run = spans["invoke_agent shared"]
    for step in ("execute_tool by_owner", "execute_tool by_thread"):
        assert parent(spans[step]) == run["spanID"]
        assert links(spans[step]) == []
    to_run = [(trace_id, run["spanID"])]

    other = server.spans(server.trace_of("helper", {"agentguard.run.id": tags(run)["agentguard.run.id"]}), 2)
    joined, step = other["invoke_agent shared"], other["execute_tool by_process"]
    assert joined["traceID"] != trace_id
    assert links(joined) == to_run
    assert parent(joined) is None
    assert parent(step) == joined["spanID"]
    assert tags(step)["agentguard.cost.amount"] == 0.02
    assert "agentguard.run.cost.amount" not in tags(joined), "the owner's span tells the totals, once"
    assert tags(run)["agentguard.run.cost.amount"] == 0.02

    request = server.spans(server.trace_of("owner", {"agentguard.step.id": "main/web/in_a_request#1"}), 2)
    assert parent(request["execute_tool in_a_request"]) == request["GET /"]["spanID"]
    assert links(request["execute_tool in_a_request"]) == to_run


def test_a_workers_run_is_linked_to_the_run_that_submitted_it(server: Jaeger, postgres_url: str) -> None:
    pytest.importorskip("procrastinate")
    settings = {"AGENTGUARD_STORE": postgres_url, "ENDPOINT": server.endpoint, "PYTHONPATH": str(PROGRAMS)}
    worker = subprocess.Popen(
        [sys.executable, "-m", "agentguard.cli", "worker", "--app", "traced_office:guard"],
        env=environment(SERVICE="worker", **settings),
        stderr=subprocess.DEVNULL,
    )
    with worker:
        try:
            submitter, run_id, state = python("submitting.py", SERVICE="shop", **settings).split()
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 0
        finally:
            worker.kill()
    assert state == "FAILED"
    order = server.spans(submitter, 1)["invoke_agent order"]
    spans = server.spans(server.trace_of("worker", {"agentguard.run.id": run_id}), 3)
    carried_out = spans["invoke_agent letters"]
    assert links(carried_out) == [(submitter, order["spanID"])]
    assert parent(carried_out) is None
    assert parent(spans["execute_tool write"]) == carried_out["spanID"]
    assert tags(carried_out)["agentguard.run.cost.amount"] == 0.03
    assert tags(carried_out)["error.type"] == "agentguard.budget_exceeded"


def test_an_mcp_servers_step_lies_in_its_callers_trace_and_is_linked_to_its_own_run(server: Jaeger) -> None:
    """The SDK hands the caller's trace to the server: both ends of a call are in one trace, with its own spans."""
    pytest.importorskip("mcp")
    trace_id = python("mcp_office.py", server.endpoint).strip()
    of_server = server.trace_of("mcp-server", {"agentguard.run.state": "FAILED"})
    run = server.spans(of_server, 1)["invoke_agent server"]
    spans = server.spans(trace_id, 13)
    path = [
        "execute_tool add",
        "tools/call add",
        "MCP send tools/call add",
        "execute_tool ask",
        "invoke_agent agent",
    ]
    for name, above in pairwise(path):
        assert parent(spans[name]) == spans[above]["spanID"]
    denied = spans["execute_tool add"]  # the second of two
    assert links(denied) == [(of_server, run["spanID"])]
    assert tags(denied)["agentguard.run.id"] == tags(run)["agentguard.run.id"]
    assert tags(denied)["error.type"] == tags(run)["error.type"] == "agentguard.budget_exceeded"
    found = server.search("mcp-server", {"agentguard.decision": "deny", "gen_ai.tool.name": "add"})
    assert [trace["traceID"] for trace in found] == [trace_id]
