"""What open consoles cost the agents: 100 pages that move, while 50 runs take 100 steps a second in all."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

from agentguard import Guard, KillSwitchTriggeredError, guarded_step
from agentguard.console.tokens import Role, Tokens
from benchmarks import _measure as m
from benchmarks._rows import Row
from tests.kit import wait_until
from tests.servers import free_port

RUNS, STEPS_A_SECOND, PAGES = 50, 100, 100
#: How long, in seconds, is measured without pages and then with them, and how long they get to open.
_WINDOW, _SETTLING = 4.0, 2.0
_SPAWN = multiprocessing.get_context("spawn")


def measure(*, quick: bool) -> list[Row]:
    """The row on consoles.  Agents, console and pages are processes of their own."""
    without: list[float] = []
    with_pages: list[float] = []
    told: list[int] = []
    with tempfile.TemporaryDirectory(prefix="agentguard-") as folder, _agents(folder) as taken:
        with _console(folder) as (port, token):
            for _ in range(3 if quick else 8):
                without += _window(taken)
                with _pages(port, token, told):
                    with_pages += _window(taken)
    before, after = statistics.median(without), statistics.median(with_pages)
    return [
        Row(
            name="consoles",
            what=f"a step of {RUNS} runs while {PAGES} live pages are open, over one while none is",
            value=after / before,
            unit="x",
            limit=1.1,
            facts={
                "steps": len(without) + len(with_pages),
                "p50 µs without": before,
                "p50 µs with": after,
                "p95 µs without": m.percentile(without, 0.95),
                "p95 µs with": m.percentile(with_pages, 0.95),
                "MB told": sum(told) / 1e6,
            },
        )
    ]


def _window(taken: Connection) -> list[float]:
    time.sleep(_SETTLING)
    taken.send("forget")
    time.sleep(_WINDOW)
    taken.send("take")
    found: list[float] = taken.recv()
    return found


# --- agents ----------------------------------------------------------------------------------------


@contextmanager
def _agents(folder: str) -> Iterator[Connection]:
    ours, theirs = multiprocessing.Pipe()
    process = _SPAWN.Process(target=_run_agents, args=(theirs, folder))
    process.start()
    theirs.close()
    try:
        ours.recv()
        yield ours
    finally:
        ours.send("end")
        process.join()


def _run_agents(orders: Connection, folder: str) -> None:
    os.environ["AGENTGUARD_HOME"] = folder
    taken: list[float] = []
    with Guard.open(telemetry=False) as guard:
        threads = [threading.Thread(target=_agent, args=(guard, number, taken)) for number in range(RUNS)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(taken) > RUNS)
        orders.send("running")
        while (order := orders.recv()) != "end":
            if order == "take":
                orders.send(list(taken))
            taken.clear()
        guard.kill(reason="measured", actor="benchmark")
        for thread in threads:
            thread.join()


def _agent(guard: Guard, number: int, taken: list[float]) -> None:
    step = guarded_step(m.work)
    pause = RUNS / STEPS_A_SECOND
    due = time.monotonic() + pause * number / RUNS
    with suppress(KillSwitchTriggeredError), guard.run(f"agent-{number}"):
        while True:
            time.sleep(max(due - time.monotonic(), 0))
            due += pause
            began = time.perf_counter()
            step(1, b=2, c=3)
            taken.append((time.perf_counter() - began) * 1e6)


# --- the console, and its pages --------------------------------------------------------------------


@contextmanager
def _console(folder: str) -> Iterator[tuple[int, str]]:
    token, port = Tokens(Path(folder) / "console-tokens.json").add("watcher", Role.VIEWER), free_port()
    command = [sys.executable, "-m", "agentguard.cli", "serve", "--home", folder, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603 - ours
    try:
        wait_until(lambda: _answers(port))
        yield port, token
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    with suppress(OSError):
        asyncio.run(asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), 1))
        return True
    return False


@contextmanager
def _pages(port: int, token: str, told: list[int]) -> Iterator[None]:
    """Open the pages; when they are closed, `told` has the bytes that they were told."""
    ours, theirs = multiprocessing.Pipe()
    process = _SPAWN.Process(target=_open_pages, args=(theirs, port, token))
    process.start()
    theirs.close()
    try:
        ours.recv()
        yield
    finally:
        ours.send("end")
        told.append(ours.recv())
        process.join()


def _open_pages(orders: Connection, port: int, token: str) -> None:
    asyncio.run(_read_pages(orders, port, token))


async def _read_pages(orders: Connection, port: int, token: str) -> None:
    counts, all_open = [0] * PAGES, asyncio.Event()
    request = f"GET /live HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode()

    async def read(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        while part := await reader.read(2**16):
            counts[number] += len(part)
            if all(counts):
                all_open.set()

    readers = [asyncio.create_task(read(number)) for number in range(PAGES)]
    await all_open.wait()
    orders.send("open")
    await asyncio.to_thread(orders.recv)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    orders.send(sum(counts))
