"""Runs that are entered here and left there: streamed answers, notebook cells, prefork servers."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import agentguard
from agentguard import (
    Budget,
    BudgetExceededError,
    Guard,
    NoActiveRunError,
    RunState,
    current_run,
    guarded_step,
)

SOURCE = Path(agentguard.__file__).parents[1]


@guarded_step
async def atool(n: int) -> int:
    await asyncio.sleep(0)
    return n


@guarded_step
def tool(n: int) -> int:
    return n


async def in_task_of_its_own(work):
    return await asyncio.create_task(work)


# --- a streamed answer (ASGI): entered by the endpoint, left by the server ---------------------------


async def answer(guard: Guard, run_id: str, items: int) -> AsyncIterator[int]:
    """What an endpoint gives to a StreamingResponse."""
    async with guard.run("answer", run_id=run_id, budget=Budget(steps=5)):
        for n in range(items):
            yield await atool(n)


async def endpoint(guard: Guard, run_id: str, items: int) -> AsyncIterator[int]:
    """Enters the run before it returns, so that a refusal can still be a status code."""
    stream = answer(guard, run_id, items)
    first = await anext(stream)

    async def body() -> AsyncIterator[int]:
        yield first
        async for item in stream:
            yield item

    return body()


async def request(guard: Guard, run_id: str, items: int) -> list[int]:
    """What a server does: the endpoint in the request's task, its answer in a task made from there."""
    stream = await endpoint(guard, run_id, items)
    got = []

    async def send() -> None:
        async for item in stream:
            got.append(item)

    try:
        await in_task_of_its_own(send())
    except BudgetExceededError:
        got.append(-1)
    return got


def test_a_streamed_answer_is_entered_in_one_task_and_left_in_another(sqlite_guard):
    async def server() -> list[list[int]]:
        return await asyncio.gather(*(request(sqlite_guard, f"r{n}", 4) for n in range(10)))

    assert asyncio.run(server()) == [[0, 1, 2, 3]] * 10
    assert current_run() is None
    assert {str(row.state) for row in sqlite_guard.runs()} == {"COMPLETED"}
    assert {row.steps for row in sqlite_guard.runs()} == {4}
    assert sqlite_guard.verify()


def test_items_that_are_asked_for_in_tasks_of_their_own_name_their_run(sqlite_guard):
    """There the context is that of whoever asks, so the generator's steps say whose they are."""

    async def stream() -> AsyncIterator[int]:
        async with sqlite_guard.run("answer", run_id="r") as run:
            for n in range(3):
                yield await run.call("atool", atool.__wrapped__, n)

    async def server() -> list[int]:
        items = stream()
        return [await in_task_of_its_own(anext(items, -1)) for _ in range(4)]

    assert asyncio.run(server()) == [0, 1, 2, -1]
    assert sqlite_guard.summary("r").state is RunState.COMPLETED
    assert sqlite_guard.summary("r").steps == 3


def test_a_client_that_goes_away_ends_the_run(sqlite_guard):
    async def server() -> None:
        stream = answer(sqlite_guard, "r", 4)
        assert await in_task_of_its_own(anext(stream)) == 0
        await in_task_of_its_own(stream.aclose())

    asyncio.run(server())
    assert sqlite_guard.summary("r").state is RunState.FAILED
    assert sqlite_guard.verify()


def test_a_limit_met_in_mid_stream_is_raised_to_the_server(sqlite_guard):
    assert asyncio.run(request(sqlite_guard, "r", 9)) == [0, 1, 2, 3, 4, -1]
    assert sqlite_guard.summary("r").state is RunState.FAILED
    assert sqlite_guard.verify()


# --- a notebook: a context or a task for each cell ---------------------------------------------------


def test_a_notebook_whose_cells_share_a_context(sqlite_guard):
    kernel = contextvars.copy_context()
    run = kernel.run(sqlite_guard.start, "notebook", run_id="r")
    assert kernel.run(tool, 1) == 1
    kernel.run(run.close)
    assert kernel.run(current_run) is None
    assert sqlite_guard.summary("r").state is RunState.COMPLETED
    assert sqlite_guard.summary("r").steps == 1


def test_a_notebook_whose_cells_have_contexts_of_their_own(sqlite_guard):
    """A step finds its run by the context; `run.call` and `run.bind` need none."""
    cell = lambda *work: contextvars.copy_context().run(*work)  # noqa: E731
    run = cell(lambda: sqlite_guard.start("notebook", run_id="r"))
    with pytest.raises(NoActiveRunError):
        cell(tool, 1)
    assert cell(lambda: run.call("tool", tool.__wrapped__, 2)) == 2
    assert cell(run.bind(tool), 3) == 3
    cell(run.close)
    assert cell(lambda: sqlite_guard.start("notebook", run_id="s")).state is RunState.RUNNING
    assert sqlite_guard.summary("r").steps == 2
    assert sqlite_guard.summary("r").state is RunState.COMPLETED


def test_a_notebook_whose_cells_are_tasks(sqlite_guard):
    async def kernel() -> None:
        async def first():
            return sqlite_guard.start("notebook", run_id="r")

        async def second(run):
            assert await run.bind(atool)(2) == 2
            assert await run.call("tool", atool.__wrapped__, 3) == 3

        run = await in_task_of_its_own(first())
        await in_task_of_its_own(second(run))
        await in_task_of_its_own(run.aclose())

    asyncio.run(kernel())
    assert sqlite_guard.summary("r").steps == 2
    assert sqlite_guard.summary("r").state is RunState.COMPLETED
    assert sqlite_guard.verify()


# --- a server that loads the program and then forks its workers --------------------------------------

PRELOADED = """
import os, signal, sys
from contextlib import suppress
from agentguard import *

@guarded_step(reserve=Usage(coins=1))
def tool():
    return os.getpid()

guard = Guard.open(telemetry=False, durability=sys.argv[1])   # at import, as with `gunicorn --preload`
guard.set_tenant_budget("acme", Budget(coins=100))
with guard.run("warm-up", tenant="acme"):                     # which has opened store, page and threads
    tool()

def worker(say):
    for request in range(30):
        with suppress(RunStopped), guard.run("request", tenant="acme"):
            for _ in range(2):
                tool()
    os.write(say, b"idle.")
    with guard.run("waits", tenant="other", run_id=f"waits-{os.getpid()}") as run:
        run.call("waits", lambda: os.write(say, b"in.") and signal.sigwait([signal.SIGUSR1]))
        tool()
        os.write(say, b"went on.")

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
told, say = os.pipe()
workers = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        try:
            with suppress(KillSwitchTriggeredError):
                worker(say)
                os._exit(1)
        finally:
            os._exit(0)
    workers.append(pid)
os.close(say)
said = b""
while said.count(b"in.") < 4:
    said += os.read(told, 100)
assert guard.reconstruct(f"waits-{workers[0]}").state == "RUNNING"
guard.kill(tenant="other", reason="deploy")
for pid in workers:
    os.kill(pid, signal.SIGUSR1)
assert [os.waitpid(pid, 0)[1] for pid in workers] == [0] * 4
assert os.read(told, 100) == b"", "a step went on after the kill"
assert {str(guard.summary(f"waits-{pid}").state) for pid in workers} == {"KILLED"}
account = guard.components.store.accounts(["tenant:acme"])["tenant:acme"]
assert account.spent["coins"] == 100 and not account.reserved.get("coins"), account.spent
assert sum(row.usage["coins"] for row in guard.runs(tenant="acme", limit=1000)) == 100
assert guard.verify()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("durability", ["process", "power"])
def test_workers_forked_from_a_program_that_has_used_its_guard(home, durability):
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELOADED, durability],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr, ran.stderr
