"""How fast a kill arrives over a server: at the next check of a busy process, and on two hosts."""

from __future__ import annotations

import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentguard.killswitch.kill_requests import kill_data
from agentguard.killswitch.network import NetworkKillSwitch
from agentguard.stores._postgres_schema import migrate
from benchmarks import _measure as m
from benchmarks import kill
from benchmarks._rows import Row
from tests import hosts, postgres, servers
from tests.relays import end_relays


def measure(*, quick: bool) -> list[Row]:
    """The rows on kills over a server.  The servers are real, and keep what they are told on disk."""
    count = 30 if quick else 300
    with tempfile.TemporaryDirectory(prefix="agentguard-") as folder:
        with servers.valkey(Path(folder), "--appendonly", "yes", "--appendfsync", "always") as server:
            redis = _latencies(server.url, count)
        with postgres.postgres(*postgres.DURABLE) as own:
            migrate(own.url())
            over_postgres = _latencies(own.url(), count)
    rows = [
        _row("kill-redis", "kill over Valkey to the check of a busy process, p50", redis, 1),
        _row("kill-postgres", "kill over Postgres to the check of a busy process, p50", over_postgres, 5),
    ]
    if hosts.namespaces_work():
        rows.append(_on_two_hosts())
    return rows


def _row(name: str, what: str, found: list[float], limit: float) -> Row:
    facts = {"kills": len(found), "p90 ms": m.percentile(found, 0.9), "p99 ms": m.percentile(found, 0.99)}
    return Row(name=name, what=what, value=m.percentile(found, 0.5), unit="ms", limit=limit, facts=facts)


def _on_two_hosts() -> Row:
    with tempfile.TemporaryDirectory(prefix="agentguard-") as folder:
        reached = hosts.kill_everywhere(Path(folder), processes=8, runs=200)
    return Row(
        name="kill-hosts",
        what="kill of 200 runs, 8 processes, 2 hosts, to the end of the last body",
        value=reached.ended[-1] * 1000,
        unit="ms",
        limit=100,
        facts={
            "p50 ms": m.percentile([1000 * at for at in reached.ended], 0.5),
            "bodies ended": len(reached.ended),
            "live": reached.facts["live"],
            "acknowledged": reached.facts["acknowledged"],
            "acknowledged after ms": reached.facts["seconds"] * 1000,
        },
    )


def _latencies(url: str, kills: int) -> list[float]:
    """Milliseconds from the call that kills, on one host, to the check on another that notices."""
    with tempfile.TemporaryDirectory() as here, tempfile.TemporaryDirectory() as there, _switch_at(url):
        ours, theirs = multiprocessing.Pipe()
        victim = multiprocessing.get_context("spawn").Process(
            target=kill.spin, args=(theirs, f"{there}/a", kills)
        )
        victim.start()
        theirs.close()
        switch = NetworkKillSwitch(url, Path(here))
        found = []
        try:
            for _ in range(kills):
                run_id = ours.recv()
                time.sleep(random.uniform(0.002, 0.004))
                called = time.monotonic_ns()
                switch.record(*kill_data("benchmark", run=run_id, actor="benchmark"))
                found.append((ours.recv()[0] - called) / 1e6)
            victim.join()
        finally:
            victim.kill()
            switch.close()
            end_relays(Path(there))
    return found


@contextmanager
def _switch_at(url: str) -> Iterator[None]:
    os.environ["AGENTGUARD_KILL_SWITCH"] = url
    try:
        yield
    finally:
        del os.environ["AGENTGUARD_KILL_SWITCH"]
