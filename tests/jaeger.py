"""A real Jaeger for tests: built once from its Go module, into a cache outside the checkout.

`python -m tests.jaeger` builds it (about 6 minutes on 2 cores); `.ci/run` does so in the background.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

from tests.kit import wait_until
from tests.servers import free_port, missing

VERSION = "1.76.0"
MODULE = Path(__file__).parent / "data" / "jaeger"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentguard"
BINARY = CACHE / f"jaeger-{VERSION}"

_SETTINGS = """
service:
  extensions: [jaeger_storage, jaeger_query, healthcheckv2]
  pipelines: {{traces: {{receivers: [otlp], exporters: [jaeger_storage_exporter]}}}}
  telemetry: {{metrics: {{level: none}}, logs: {{level: warn}}}}
extensions:
  jaeger_storage: {{backends: {{main: {{memory: {{max_traces: 10000}}}}}}}}
  jaeger_query:
    storage: {{traces: main}}
    http: {{endpoint: "127.0.0.1:{query}"}}
    grpc: {{endpoint: "127.0.0.1:{query_grpc}"}}
  healthcheckv2: {{use_v2: true, http: {{endpoint: "127.0.0.1:{health}"}}}}
receivers:
  otlp: {{protocols: {{grpc: {{endpoint: "127.0.0.1:{grpc}"}}, http: {{endpoint: "127.0.0.1:{otlp}"}}}}}}
exporters: {{jaeger_storage_exporter: {{trace_storage: main}}}}
"""


class Jaeger:
    """A running Jaeger: `endpoint` takes OTLP over HTTP."""

    def __init__(self, otlp: int, query: int) -> None:
        self.endpoint = f"http://127.0.0.1:{otlp}"
        self._query = f"http://127.0.0.1:{query}"

    def spans(self, trace_id: str, count: int) -> dict[str, dict[str, Any]]:
        """Return the spans of a trace by name, once there are so many; of those of one name, the last."""
        found: list[dict[str, Any]] = []

        def complete() -> bool:
            nonlocal found
            found = self.get(f"/api/traces/{trace_id}")[0]["spans"]
            return len(found) == count

        wait_until(complete)
        found.sort(key=lambda span: span["startTime"])
        return {span["operationName"]: span for span in found}

    def trace_of(self, service: str, tags: dict[str, str]) -> str:
        """Return the one trace of a service that has a span with these tags, once it is there."""
        wait_until(lambda: self.search(service, tags))
        (found,) = self.search(service, tags)
        return str(found["traceID"])

    def search(self, service: str, tags: dict[str, str]) -> list[dict[str, Any]]:
        """Return the traces of a service that have a span with these tags."""
        return list(self.get(f"/api/traces?service={service}&tags={quote(json.dumps(tags))}"))

    def get(self, path: str) -> Any:
        """Ask the query API."""
        try:
            with urlopen(self._query + path, timeout=5) as answer:
                return json.load(answer)["data"]
        except URLError as error:
            if getattr(error, "code", 0) == 404:
                return [{"spans": []}]
            raise


@contextmanager
def jaeger() -> Iterator[Jaeger]:
    """Start a Jaeger on ports of its own."""
    if not BINARY.exists():
        missing(f"Jaeger: python -m tests.jaeger builds {BINARY}, given Go")
    ports = {name: free_port() for name in ("query", "query_grpc", "health", "grpc", "otlp")}
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "settings.yaml"
        settings.write_text(_SETTINGS.format(**ports))
        environment = os.environ | {
            "OTEL_TRACES_SAMPLER": "always_off"
        }  # else it traces itself, and stops late
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(
                [BINARY, "--config", settings], stdout=log, stderr=log, cwd=folder, env=environment
            )
        try:
            wait_until(lambda: process.poll() is None and _healthy(ports["health"]), 60)
            yield Jaeger(ports["otlp"], ports["query"])
        finally:
            process.terminate()
            process.wait(30)


def _healthy(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/status", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def build() -> None:
    """Build the binary, unless it is there.  Without the optimiser, which halves the time."""
    if BINARY.exists():
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        for name in ("go.mod", "go.sum"):
            shutil.copy(MODULE / f"{name}.txt", Path(folder) / name)
        target = Path(folder) / "jaeger"
        command = ["go", "build", "-mod=readonly", "-trimpath", "-gcflags=all=-N -l", "-ldflags=-s -w"]
        command += ["-o", str(target), "github.com/jaegertracing/jaeger/cmd/jaeger"]
        subprocess.run(command, cwd=folder, env=os.environ | {"CGO_ENABLED": "0"}, check=True)
        target.rename(BINARY)


if __name__ == "__main__":
    sys.exit(build())
