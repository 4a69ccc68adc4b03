"""What a tenant's budget costs a step where it is kept at a ledger on Redis, by the wall clock."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import redis

from agentguard import Budget, Guard, guarded_step
from benchmarks import _measure as m
from benchmarks._rows import Row
from tests.servers import valkey, valkey_binary

_BLOCK = 10


def measure(*, quick: bool) -> list[Row]:
    """The row on the ledger, over a socket of this host; none where there is no server."""
    if valkey_binary() is None:
        return []
    with tempfile.TemporaryDirectory() as folder, valkey(Path(folder), "--appendonly", "no") as server:
        return [_row(Path(folder), server.socket, 15 if quick else 60)]


def _row(folder: Path, url: str, rounds: int) -> Row:
    step = guarded_step(m.work)
    limit = Budget(steps=10**9)
    with ExitStack() as stack:
        guards = {
            "plain": Guard.open(f"sqlite:///{folder}/plain.db", kill_switch="memory", telemetry=False),
            "store": Guard.open(f"sqlite:///{folder}/store.db", kill_switch="memory", telemetry=False),
            "ledger": Guard.open(
                f"sqlite:///{folder}/ledger.db", kill_switch="memory", telemetry=False, ledger=url
            ),
        }
        for name, guard in guards.items():
            stack.enter_context(guard)
            if name != "plain":
                guard.set_tenant_budget("default", limit)

        def block(guard: Guard) -> float:
            with guard.run("ledger", budget=limit):
                step(1, b=2, c=3)
                started = time.perf_counter_ns()
                for _ in range(_BLOCK):
                    step(1, b=2, c=3)
                return (time.perf_counter_ns() - started) / _BLOCK

        client = stack.enter_context(redis.Redis.from_url(url))

        def ping() -> float:
            started = time.perf_counter_ns()
            for _ in range(_BLOCK):
                client.ping()
            return (time.perf_counter_ns() - started) / _BLOCK

        taken = m.least(
            {name: (lambda guard=guard: block(guard)) for name, guard in guards.items()} | {"ping": ping},
            rounds,
        )
    return Row(
        name="ledger-redis",
        what="step with a tenant's budget at a ledger on Redis, over one without",
        value=taken["ledger"] / taken["plain"],
        unit="x",
        facts={
            "µs a step": taken["ledger"] / 1000,
            "without": taken["plain"] / 1000,
            "budget in the store": taken["store"] / 1000,
            "µs a PING": taken["ping"] / 1000,
        },
    )
