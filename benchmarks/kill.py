"""How fast a kill from another process arrives: at the next check, and in an async body."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from agentguard import Guard, KillSwitchTriggeredError, guarded_step
from agentguard.killswitch.layout import Page
from agentguard.killswitch.orders import kill_data
from agentguard.killswitch.page import PageKillSwitch
from benchmarks import _measure as m
from benchmarks._rows import Row


def measure(*, quick: bool) -> list[Row]:
    """The rows on kills.  This process kills, another one runs; both read one monotonic clock."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        checks = _latencies(home, _spin, 100 if quick else 1000)
        bodies = _latencies(home, _sleep, 20 if quick else 100)
    return [
        Row(
            name="kill-check-p50",
            what="kill by another process to the next check, p50",
            value=m.percentile(checks, 0.5) / 1000,
            unit="µs",
            limit=50,
            facts={"kills": len(checks), "least µs": min(checks) / 1000},
        ),
        Row(
            name="kill-check-p99",
            what="kill by another process to the next check, p99",
            value=m.percentile(checks, 0.99) / 1e6,
            unit="ms",
            limit=1,
            facts={"worst ms": max(checks) / 1e6},
        ),
        Row(
            name="kill-body",
            what="kill by another process to the cancelled async body, worst",
            value=max(bodies) / 1e6,
            unit="ms",
            limit=20,
            facts={"kills": len(bodies), "p50 ms": m.percentile(bodies, 0.5) / 1e6},
        ),
    ]


def _latencies(home: Path, victim: Any, kills: int) -> list[float]:
    """Nanoseconds from the writing of the page to the end of each victim."""
    written: list[int] = []
    announce = Page.announce

    def timed_announce(page: Page, *args: Any) -> None:
        written.append(time.monotonic_ns())
        announce(page, *args)

    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=victim, args=(theirs, str(home), kills))
    process.start()
    theirs.close()
    switch = PageKillSwitch(home)
    found = []
    Page.announce = timed_announce  # type: ignore[method-assign]
    try:
        for _ in range(kills):
            run_id = ours.recv()
            time.sleep(random.uniform(0.002, 0.004))
            switch.record(*kill_data("benchmark", run=run_id, actor="benchmark"))
            found.append(float(ours.recv() - written[-1]))
    finally:
        Page.announce = announce  # type: ignore[method-assign]
        process.join()
        switch.close()
    return found


def _guard(home: str) -> Guard:
    os.environ["AGENTGUARD_HOME"] = home
    return Guard.open("memory://", telemetry=False)


def _spin(pipe: Connection, home: str, kills: int) -> None:
    """Runs that do nothing but check."""
    with _guard(home) as guard:
        for _ in range(kills):
            try:
                with guard.run("spin") as run:
                    pipe.send(run.id)
                    try:
                        while True:
                            run.check()
                    except KillSwitchTriggeredError:
                        pipe.send(time.monotonic_ns())
            except KillSwitchTriggeredError:
                pass


def _sleep(pipe: Connection, home: str, kills: int) -> None:
    """Runs whose one step sleeps."""

    @guarded_step
    async def sleep() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pipe.send(time.monotonic_ns())
            raise

    async def main() -> None:
        for _ in range(kills):
            try:
                async with guard.run("sleep") as run:
                    asyncio.get_running_loop().call_later(0.001, pipe.send, run.id)
                    await sleep()
            except KillSwitchTriggeredError:
                pass

    with _guard(home) as guard:
        asyncio.run(main())
