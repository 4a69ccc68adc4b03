"""What `guard_client` costs a chat call of the OpenAI SDK, against the SDK alone, on a local server.

The server answers at once, so the figure is the worst there is: a real provider takes a second and more.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Any

from agentguard import Budget, Guard
from benchmarks import _measure as m
from benchmarks._rows import Row

_LIMIT = 1.05
_CALLS = 20
_ASKED: Any = {
    "model": "gpt-5-mini",
    "max_completion_tokens": 100,
    "messages": [{"role": "user", "content": "What is the answer?"}],
}


def measure(*, quick: bool) -> list[Row]:
    """The rows on SDK clients; none where the SDK is not installed."""
    try:
        from openai import OpenAI  # noqa: PLC0415 - an extra

        from agentguard_openai import guard_client  # noqa: PLC0415
    except ImportError:
        return []
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=_serve, args=(there,), daemon=True)
    server.start()
    bare = OpenAI(api_key="k", base_url=here.recv(), max_retries=0)
    clients = {"bare": bare, "guarded": guard_client(bare)}
    try:
        with tempfile.TemporaryDirectory() as home:
            os.environ["AGENTGUARD_HOME"] = home
            with Guard.in_memory(telemetry=False) as guard:
                memory = m.least(_cases(guard, clients), 5 if quick else 40)
            with Guard.open(telemetry=False) as guard:
                disk = m.least(_cases(guard, clients), 5 if quick else 40)
    finally:
        bare.close()
        here.send(None)
        server.join()
    return [
        _row("client", "a chat call through guard_client over the SDK alone, memory", memory),
        _row("client-disk", "the same, SQLite", disk),
    ]


def _cases(guard: Guard, clients: dict[str, Any]) -> dict[str, m.Case]:
    """Wall time of one call."""

    def of(client: Any) -> m.Case:
        def case() -> float:
            with guard.run("ask", budget=Budget(usd=10**6)):
                client.chat.completions.create(**_ASKED)
                started = time.perf_counter_ns()
                for _ in range(_CALLS):
                    client.chat.completions.create(**_ASKED)
                return (time.perf_counter_ns() - started) / _CALLS

        return case

    return {name: of(client) for name, client in clients.items()}


def _row(name: str, what: str, least: dict[str, float]) -> Row:
    bare, guarded = least["bare"], least["guarded"]
    facts = {"bare µs": bare / 1000, "guarded µs": guarded / 1000, "added µs": (guarded - bare) / 1000}
    return Row(name=name, what=what, value=guarded / bare, unit="x", limit=_LIMIT, facts=facts)


def _serve(there: Connection) -> None:
    from tests.integrations.clients.server import serve  # noqa: PLC0415 - in the server's process

    with serve() as providers:
        there.send(f"{providers.url}/v1")
        there.recv()
