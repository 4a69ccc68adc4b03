"""What `guard_client` costs a chat call of the OpenAI SDK, against the SDK alone, on a local server.

The server answers after 50 ms, which is less than a hosted model takes; one row, for information, has it
answer at once.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from agentguard import Budget, Guard
from benchmarks import _measure as m
from benchmarks._rows import Row

_LIMIT = 1.05
_CALLS = 10
#: Seconds until the server answers.
_ANSWERS_AFTER = 0.05
_ASKED: Any = {
    "model": "gpt-5-mini",
    "max_completion_tokens": 100,
    "messages": [{"role": "user", "content": "What is the answer?"}],
}


def measure(*, quick: bool) -> list[Row]:
    """The rows on SDK clients; none where the SDK is not installed."""
    return compare(rounds=10 if quick else 30, calls=_CALLS)


def compare(*, rounds: int, calls: int) -> list[Row]:
    """The same, of so many rounds with so many calls."""
    try:
        from openai import OpenAI  # noqa: PLC0415 - an extra

        from agentguard_openai import guard_client  # noqa: PLC0415
    except ImportError:
        return []
    with tempfile.TemporaryDirectory() as home, _server(_ANSWERS_AFTER) as slow, _server(0) as at_once:
        os.environ["AGENTGUARD_HOME"] = home
        with OpenAI(api_key="k", base_url=slow, max_retries=0) as bare:
            clients = {"bare": bare, "guarded": guard_client(bare)}
            with Guard.in_memory(telemetry=False) as guard:
                memory = m.least(_cases(guard, clients, calls), rounds)
            with Guard.open(telemetry=False) as guard:
                disk = m.least(_cases(guard, clients, calls), rounds)
        with OpenAI(api_key="k", base_url=at_once, max_retries=0) as bare, Guard.in_memory() as guard:
            quick_answers = m.least(
                _cases(guard, {"bare": bare, "guarded": guard_client(bare)}, calls), rounds
            )
    return [
        _row("client", "a chat call through guard_client over the SDK alone, memory", memory, _LIMIT),
        _row("client-disk", "the same, SQLite", disk, _LIMIT),
        _row("client-at-once", "the same, memory, with a server that answers at once", quick_answers),
    ]


@contextmanager
def _server(answers_after: float) -> Iterator[str]:
    """Serve in another process; gives the address."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=_serve, args=(there, answers_after), daemon=True)
    server.start()
    try:
        yield here.recv()
    finally:
        here.send(None)
        server.join()


def _cases(guard: Guard, clients: dict[str, Any], calls: int) -> dict[str, m.Case]:
    """Wall time of one call."""

    def of(client: Any) -> m.Case:
        def case() -> float:
            with guard.run("ask", budget=Budget(usd=10**6)):
                client.chat.completions.create(**_ASKED)
                started = time.perf_counter_ns()
                for _ in range(calls):
                    client.chat.completions.create(**_ASKED)
                return (time.perf_counter_ns() - started) / calls

        return case

    return {name: of(client) for name, client in clients.items()}


def _row(name: str, what: str, least: dict[str, float], limit: float | None = None) -> Row:
    bare, guarded = least["bare"], least["guarded"]
    facts = {"bare µs": bare / 1000, "guarded µs": guarded / 1000, "added µs": (guarded - bare) / 1000}
    return Row(name=name, what=what, value=guarded / bare, unit="x", limit=limit, facts=facts)


def _serve(there: Connection, answers_after: float) -> None:
    from tests.integrations.clients.server import serve  # noqa: PLC0415 - in the server's process

    with serve(answers_after=answers_after) as providers:
        there.send(f"{providers.url}/v1")
        there.recv()
