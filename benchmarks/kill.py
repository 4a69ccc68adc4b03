"""How fast a kill from another process arrives: at the next check, and in an async body."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from agentguard import Guard, KillSwitchTriggeredError, guarded_step
from agentguard.killswitch.kill_requests import kill_data
from agentguard.killswitch.layout import Page
from agentguard.killswitch.page import PageKillSwitch
from agentguard.steps.stops import Stops
from benchmarks import _measure as m
from benchmarks._rows import Row

Victim = Callable[[Connection, str, int], None]


def measure(*, quick: bool) -> list[Row]:
    """The rows on kills.  This process kills, another one runs; both read one monotonic clock."""
    with tempfile.TemporaryDirectory() as folder:
        checks = latencies(Path(folder), spin, 100 if quick else 1000)
        bodies = latencies(Path(folder), _sleep, 20 if quick else 100)
    noticed, stopped, raised = zip(*checks, strict=True)
    cancelled = [last for _, _, last in bodies]
    return [
        Row(
            name="kill-check-p50",
            what="kill by another process to the check that notices it, p50",
            value=m.percentile(noticed, 0.5),
            unit="µs",
            limit=50,
            facts={
                "kills": len(checks),
                "to the run's stop, p50 µs": m.percentile(stopped, 0.5),
                "to the error raised, the run's end on record, p50 µs": m.percentile(raised, 0.5),
            },
        ),
        Row(
            name="kill-check-p99",
            what="kill by another process to the check that notices it, p99",
            value=m.percentile(noticed, 0.99) / 1000,
            unit="ms",
            limit=1,
            facts={
                "to the run's stop, p99 ms": m.percentile(stopped, 0.99) / 1000,
                "to the error raised, p99 ms": m.percentile(raised, 0.99) / 1000,
            },
        ),
        Row(
            name="kill-body",
            what="kill by another process to the cancelled async body, worst",
            value=max(cancelled) / 1000,
            unit="ms",
            limit=20,
            facts={"kills": len(bodies), "p50 ms": m.percentile(cancelled, 0.5) / 1000},
        ),
    ]


def latencies(home: Path, victim: Victim, kills: int) -> list[tuple[float, ...]]:
    """Microseconds from the writing of the page until it is noticed, until the stop, and until its effect."""
    written = m.stamps(Page, "announce")
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=victim, args=(theirs, str(home), kills))
    process.start()
    theirs.close()
    switch = PageKillSwitch(home)
    found = []
    try:
        for _ in range(kills):
            run_id = ours.recv()
            time.sleep(random.uniform(0.002, 0.004))
            written.clear()
            switch.record(*kill_data("benchmark", run=run_id, actor="benchmark"))
            found.append(tuple((at - written[0]) / 1000 for at in ours.recv()))
        process.join()
    finally:
        process.kill()
        switch.close()
    return found


class _Stamps:
    """When a kill is first noticed in this process, and when the run is stopped: nothing starts then."""

    def __init__(self) -> None:
        self.looks = m.stamps(Stops, "take_kill")
        self.stops = m.stamps(Stops, "set")

    def clear(self) -> None:
        self.looks.clear()
        self.stops.clear()

    def until(self, ended: int) -> tuple[int, int, int]:
        # Those before found nothing: the process is told of the kill before, too.
        noticed = max(look for look in self.looks if look <= self.stops[0])
        return noticed, self.stops[0], ended


def guard_in(home: str) -> Guard:
    """A guard of the victim's, in memory, that hears the kills of this home."""
    os.environ["AGENTGUARD_HOME"] = home
    return Guard.open("memory://", telemetry=False)


def spin(pipe: Connection, home: str, kills: int) -> None:
    """Runs that do nothing but check."""
    stamps = _Stamps()
    with guard_in(home) as guard:
        for _ in range(kills):
            try:
                with guard.run("spin") as run:
                    stamps.clear()
                    pipe.send(run.id)
                    try:
                        while True:
                            run.check()
                    finally:
                        ended = time.monotonic_ns()
            except KillSwitchTriggeredError:
                pipe.send(stamps.until(ended))


def _sleep(pipe: Connection, home: str, kills: int) -> None:
    """Runs whose one step sleeps."""
    stamps = _Stamps()

    @guarded_step
    async def sleep() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pipe.send(stamps.until(time.monotonic_ns()))
            raise

    async def main() -> None:
        for _ in range(kills):
            try:
                async with guard.run("sleep") as run:
                    stamps.clear()
                    asyncio.get_running_loop().call_later(0.001, pipe.send, run.id)
                    await sleep()
            except KillSwitchTriggeredError:
                pass

    with guard_in(home) as guard:
        asyncio.run(main())
