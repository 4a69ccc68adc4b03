"""Kills while the store is away: bodies are stopped at once, whatever cannot be written."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from agentguard import Guard, KillSwitchTriggeredError, RunState, guarded_step
from agentguard.killswitch.kill_requests import kill_data
from agentguard.killswitch.page import PageKillSwitch

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the page needs flock and FIFOs")

Wait = Callable[[Callable[[], object]], None]


def test_each_kill_stops_its_bodies_though_what_earlier_ones_stopped_cannot_be_written(
    home: Path, tmp_path: Path, eventually: Wait
) -> None:
    path, begun, cancelled = tmp_path / "events.db", set(), set()
    runs = ["a", "b", "c", "other"]

    @guarded_step
    async def body(run_id: str) -> None:
        begun.add(run_id)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.add(run_id)

    async def agent(guard: Guard, run_id: str) -> None:
        with suppress(KillSwitchTriggeredError):
            async with guard.run("agent", run_id=run_id):
                await body(run_id)

    with (
        Guard.open(f"sqlite:///{path}", telemetry=False, store_timeout=3600) as guard,
        Guard.open("memory://", telemetry=False) as other,
        closing(PageKillSwitch(home)) as switch,
    ):
        # Each has a loop of its own, which may have to wait for the file once its body has ended.
        loops = [
            threading.Thread(target=lambda g=g, r=r: asyncio.run(agent(g, r)))
            for r, g in zip(runs, (guard, guard, guard, other), strict=True)
        ]
        for loop in loops:
            loop.start()
        eventually(lambda: begun == set(runs))
        with closing(sqlite3.connect(path, isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            for run_id in runs:
                switch.record(*kill_data("why", run=run_id))
                eventually(lambda run_id=run_id: run_id in cancelled)
            writer.execute("ROLLBACK")
        for loop in loops:
            loop.join()
        assert {guard.summary(run_id).state for run_id in runs[:3]} == {RunState.KILLED}
