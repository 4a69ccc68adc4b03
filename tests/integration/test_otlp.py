"""`agentguard.telemetry.setup` in processes of their own, since it sets globals for good."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import agentguard.telemetry
from agentguard.telemetry._live import version


class Receiver(ThreadingHTTPServer):
    """Takes OTLP over HTTP and keeps the bodies by path."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.received = {}
        self.keys = set()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.received.setdefault(self.path, []).append(body)
        self.server.keys.add(self.headers.get("x-api-key"))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def receiver():
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def python(program, **environment):
    """Run a program and give what it wrote to standard output and standard error."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=clean | {"NO_PROXY": "127.0.0.1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


AGENT = """
import agentguard.telemetry
from agentguard.telemetry.spans import Telemetry

telemetry = Telemetry()  # before the set-up, which is found all the same
providers = agentguard.telemetry.setup({options})
run = telemetry.start_run(name="triage", run_id="r1", tenant="acme")
step = run.start_step("look", "tool", "look#1", 1)
step.end(TimeoutError(), {{"nano_usd": 500_000_000}}, 1_000)
run.end(error=None, state="COMPLETED", head=(4, "ab12"), usage={{}}, steps=1)
print(run.trace_id, run.span_id, step.span_id)
"""


def test_spans_and_metrics_reach_a_receiver(receiver):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
        ExportMetricsServiceRequest,
    )
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    options = f"endpoint={receiver.endpoint + '/'!r}, service_name='svc', headers={{'x-api-key': 'k'}}"
    flush = "assert providers.force_flush()\nproviders.shutdown()\n"
    out, err = python(AGENT.format(options=options) + flush)
    assert err == ""
    trace_id, run_id, step_id = out.split()
    assert receiver.keys == {"k"}

    (body,) = receiver.received["/v1/traces"]
    (resource_spans,) = ExportTraceServiceRequest.FromString(body).resource_spans
    resource = {kv.key: kv.value.string_value for kv in resource_spans.resource.attributes}
    assert resource["service.name"] == "svc"
    (scope_spans,) = resource_spans.scope_spans
    assert scope_spans.scope.name == "agentguard"
    assert scope_spans.scope.version == version()
    step, run = scope_spans.spans
    assert (step.name, step.kind, step.status.code) == ("execute_tool look", 1, 2)
    assert (run.name, run.kind, run.status.code) == ("invoke_agent triage", 1, 0)
    assert {run.trace_id.hex(), step.trace_id.hex()} == {trace_id}
    assert (run.span_id.hex(), step.span_id.hex()) == (run_id, step_id)
    assert (run.parent_span_id.hex(), step.parent_span_id.hex()) == ("", run_id)
    found = {kv.key: kv.value for kv in step.attributes}
    assert found["error.type"].string_value == "timeout"
    assert found["agentguard.cost.amount"].double_value == 0.5
    assert found["agentguard.step.attempt"].int_value == 1
    (head,) = (kv.value for kv in run.attributes if kv.key == "agentguard.log.head")
    assert head.string_value == "4:ab12"

    measured = ExportMetricsServiceRequest.FromString(receiver.received["/v1/metrics"][-1])
    names = {
        metric.name
        for resource_metrics in measured.resource_metrics
        for scope in resource_metrics.scope_metrics
        for metric in scope.metrics
    }
    assert {"agentguard.spend", "agentguard.decisions", "agentguard.runs.active"} <= names


def test_what_is_queued_goes_out_at_exit(receiver):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    python(AGENT.format(options=""), OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)
    assert set(receiver.received) == {"/v1/traces", "/v1/metrics"}


@pytest.mark.parametrize(
    ("options", "environment", "service"),
    [
        ("console=True", {}, "agentguard"),
        ("console=True", {"OTEL_SERVICE_NAME": "theirs"}, "theirs"),
        ("console=True, service_name='mine'", {"OTEL_SERVICE_NAME": "theirs"}, "mine"),
    ],
)
def test_console_prints_to_standard_error(options, environment, service):
    pytest.importorskip("opentelemetry.sdk")
    program = AGENT.format(options=options).replace("providers = ", "block = ")
    out, err = python(program + "with block:\n    pass\n", **environment)
    assert len(out.split()) == 3
    span, _ = json.JSONDecoder().raw_decode(err)
    assert span["name"] == "execute_tool look"
    assert span["resource"]["attributes"]["service.name"] == service
    assert '"agentguard.spend"' in err


@pytest.mark.parametrize(("signal", "kind"), [("trace", "TracerProvider"), ("metrics", "MeterProvider")])
def test_second_setup_is_refused(signal, kind):
    pytest.importorskip("opentelemetry.sdk")
    setter = {"trace": "set_tracer_provider", "metrics": "set_meter_provider"}[signal]
    out, _ = python(f"""
import agentguard.telemetry
from agentguard.errors import AgentGuardError
from opentelemetry import {signal}
from opentelemetry.sdk.{signal} import {kind}

{signal}.{setter}(ours := {kind}())
try:
    agentguard.telemetry.setup(console=True)
except AgentGuardError as error:
    print(error)
assert {signal}.get_{setter.removeprefix("set_")}() is ours
""")
    name = {"trace": "tracer", "metrics": "meter"}[signal]
    assert out == (
        f"this process has a {name} provider already ({kind}), and OpenTelemetry takes one for "
        "good; agentguard uses it without setup(), or call setup() first\n"
    )


def test_without_the_extra_setup_says_what_to_install():
    out, _ = python("""
import sys
import agentguard.telemetry
from agentguard._optional import MissingExtraError

sys.modules["opentelemetry.sdk"] = None
try:
    agentguard.telemetry.setup()
except MissingExtraError as error:
    print(error)
""")
    assert out == (
        "agentguard.telemetry.setup() needs the package 'opentelemetry.sdk': pip install 'agentguard[otel]'\n"
    )


def test_importing_the_room_imports_no_opentelemetry_and_spans_no_sdk():
    out, _ = python("""
import sys
import agentguard.telemetry
print([name for name in sys.modules if name.startswith("opentelemetry")])
from agentguard.telemetry.spans import Telemetry
run = Telemetry().start_run(name="triage", run_id="r1", tenant="acme")
assert run.trace_id is None
print([name for name in sys.modules if name.startswith("opentelemetry.sdk")])
""")
    assert out == "[]\n[]\n"


def test_endpoint_must_be_an_address():
    with pytest.raises(ValueError, match="endpoint must be an http:// or https:// address"):
        agentguard.telemetry.setup(endpoint="127.0.0.1:4318")
