"""`python -m benchmarks`: measure the figures of the contract.  It reports; it does not judge.

--quick        fewer repetitions, for a first look
--only NAME    a group (overhead, kill, ...) or a row (step, verify, ...); may be given again
--json PATH    where the figures go as JSON; by default benchmarks/results.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import (
    breakdown,
    clients,
    consoles,
    durable,
    growth,
    kafka,
    kill,
    kill_network,
    langchain,
    logs,
    overhead,
    overshoot,
    payloads,
    postgres,
    replay,
    startup,
    telemetry,
    wal,
    workers,
)
from benchmarks._rows import Row, table

#: Every group runs in a fresh process.  The rows that each one has, for `--only`.
GROUPS: dict[str, tuple[Callable[..., list[Row]], tuple[str, ...]]] = {
    "overhead": (overhead.measure, ("step-no-chain", "step", "async")),
    "payloads": (payloads.measure, ("payload-500", "payload-10000")),
    "telemetry": (telemetry.measure, ("otel-api", "otel-sdk")),
    "growth": (
        growth.measure,
        ("growth-memory", "growth-sqlite", "growth-depth", "growth-scopes", "growth-runs"),
    ),
    "durable": (
        durable.measure,
        ("sqlite-process", "sqlite-power", "durable-dbos", "durable-sqlite-saver"),
    ),
    "wal": (
        wal.measure,
        ("wal-1", "wal-2", "wal-4", "wal-8", "wal-slow", "wal-short-readers", "wal-together", "wal-reader"),
    ),
    "postgres": (
        postgres.measure,
        (
            "postgres-step",
            "postgres-tasks",
            "postgres-processes",
            "postgres-tenant",
            "postgres-dbos-1",
            "postgres-dbos-64",
        ),
    ),
    "overshoot": (
        overshoot.measure,
        ("overshoot-threads", "overshoot-tasks", "overshoot-processes"),
    ),
    "kill": (kill.measure, ("kill-check-p50", "kill-check-p99", "kill-body")),
    "kill-network": (kill_network.measure, ("kill-redis", "kill-postgres", "kill-hosts")),
    "workers": (workers.measure, ("worker-take-over", "worker-latency")),
    "kafka": (kafka.measure, ("kafka-events", "kafka-lag")),
    "logs": (logs.measure, ("verify", "list")),
    "replay": (replay.measure, ("replay", "replay-memory", "replay-async")),
    "langchain": (
        langchain.measure,
        (
            "langchain",
            "langchain-empty",
            "langchain-own",
            "langchain-step",
            "langchain-there",
            "langchain-handler",
            "langchain-middleware",
            "langchain-by-hand",
            "langchain-disk",
            "langchain-disk-there",
            "langchain-history",
            "langchain-long",
            "langchain-bytes",
            "langchain-kill",
        ),
    ),
    "clients": (clients.measure, ("client", "client-disk", "client-at-once")),
    "startup": (startup.measure, ("startup-import", "startup-runs", "startup-kill")),
    "consoles": (consoles.measure, ("consoles",)),
    "breakdown": (breakdown.measure, ()),
}

FOOTNOTES = """\
U is one call through an empty functools.wraps closure.  Overhead: the least thread CPU time of many
interleaved repetitions; a step is called with three arguments, in a run with one limit, captured in full.
[1] sha256 is replaced, for the time of the row, by a call into C that gives a constant: in the chain
    and in the digests of the payloads.
[2] scaled to a million from the events that were verified, payloads included."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", metavar="NAME", default=[])
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("results.json"), metavar="PATH")
    options = parser.parse_args()
    rows: list[Row] = []
    for name in _chosen(parser, options.only):
        found = _measured(name, quick=options.quick)
        wanted = [row for row in found if _is_wanted(options.only, name, row)]
        print(table(wanted, head=not rows), flush=True)
        rows += wanted
    print(f"\n{FOOTNOTES}")
    options.json.write_text(json.dumps(_report(rows, quick=options.quick), indent=2) + "\n")
    print(f"\nwritten to {options.json}")


def _chosen(parser: argparse.ArgumentParser, only: list[str]) -> list[str]:
    known = {row for _, rows in GROUPS.values() for row in rows} | GROUPS.keys()
    if strange := set(only) - known:
        parser.error(f"no row or group {', '.join(sorted(strange))}; known are {', '.join(sorted(known))}")
    return [name for name, (_, rows) in GROUPS.items() if not only or {name, *rows} & set(only)]


def _is_wanted(only: list[str], group: str, row: Row) -> bool:
    return not only or group in only or row.name in only


def _measured(group: str, *, quick: bool) -> list[Row]:
    """The rows of a group, from a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(GROUPS[group][0], quick=quick).result()


def _report(rows: list[Row], *, quick: bool) -> dict[str, Any]:
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": quick,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "rows": [row.to_data() for row in rows],
    }


if __name__ == "__main__":
    main()
