"""A budget of 100 is 100 while the processes that spend it are killed -9 at random, and when they recover."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from agentguard import Budget, BudgetExceededError, Guard
from agentguard.budget.account import Account
from agentguard.sessions.abandoned import charge_some
from agentguard.sessions.base import live_run_of
from tests.scale import scaled

LIMIT = 100
PROCESSES = 4
#: Spends until it may not: in a run of its own, which the next of its name recovers, or in one that it joins.
WORKER = """
import asyncio, os, sys, threading
from contextlib import suppress
from agentguard import AgentGuardError, Guard, Usage, current_step, guarded_step

how, kind, marks = sys.argv[1:]
file = os.open(marks, os.O_WRONLY | os.O_APPEND)

def body():
    os.write(file, f"{current_step().idempotency_key}\\n".encode())
    os.fsync(file)

@guarded_step(usage=Usage(usd="0.01"), effect="idempotent", name="step")
def step():
    body()

@guarded_step(usage=Usage(usd="0.01"), effect="idempotent", name="step")
async def async_step():
    body()
    await asyncio.sleep(0)

def agent():
    with suppress(AgentGuardError):
        while True:
            step()

async def async_agent():
    with suppress(AgentGuardError):
        while True:
            await async_step()

def threads(opened):
    with opened as run:
        threads = [threading.Thread(target=run.bind(agent)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

async def tasks(opened):
    async with opened:
        await asyncio.gather(*(asyncio.create_task(async_agent()) for _ in range(64)))

with Guard.open(telemetry=False) as guard:
    print("ready", flush=True)
    run_id = sys.stdin.readline().strip()
    with suppress(AgentGuardError):
        if kind == "own":
            opened = guard.run("r", tenant="acme", run_id=run_id, if_exists="recover")
        else:
            opened = guard.attach(run_id, branch=f"{os.getpid()}")
        threads(opened) if how == "threads" else asyncio.run(tasks(opened))
"""


class Store(NamedTuple):
    """A store that processes share, and how many of them are killed."""

    guard: Guard
    kills: int


@pytest.fixture(
    params=[
        ("postgres", 4),
        pytest.param(("postgres", scaled(12, at_least=4)), marks=pytest.mark.long),
        pytest.param(("sqlite", scaled(12, at_least=4)), marks=pytest.mark.long),
    ],
    ids=lambda param: "-".join(map(str, param)),
)
def store(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A guard on the store that the processes of the test open by themselves."""
    name, kills = request.param
    if name == "postgres":
        monkeypatch.setenv("AGENTGUARD_STORE", request.getfixturevalue("postgres_url"))
    with Guard.open(telemetry=False) as guard:
        yield Store(guard, kills)


def spender(how: str, kind: str, marks: Path) -> subprocess.Popen[str]:
    """Start a process that spends once it is told where."""
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, how, kind, str(marks)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def send(worker: subprocess.Popen[str], run_id: str) -> subprocess.Popen[str]:
    """Let a process spend in a run."""
    assert worker.stdin is not None
    worker.stdin.write(f"{run_id}\n")
    worker.stdin.flush()
    return worker


def spend_under_kills(kills: int, how: str, kind: str, run_ids: list[str], marks: Path) -> list[str]:
    """Let processes spend in these runs, kill and replace them at random, and give the keys of the bodies."""
    marks.touch()
    waiting = [spender(how, kind, marks) for _ in range(len(run_ids) + kills)]
    for worker in waiting:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    workers = [send(waiting.pop(), run_id) for run_id in run_ids]
    hit = 0
    for count in sorted(random.sample(range(1, LIMIT - kills), kills)):
        deadline = time.monotonic() + 60
        while len(marks.read_bytes().splitlines()) < count and any(each.poll() is None for each in workers):
            assert time.monotonic() < deadline, "nobody spends any more"
            time.sleep(0.001)
        number = random.randrange(len(workers))
        workers[number].kill()
        hit += workers[number].wait() == -signal.SIGKILL
        workers[number].communicate()
        workers[number] = send(waiting.pop(), run_ids[number])
    for worker in workers:
        worker.communicate(timeout=120)
        assert worker.returncode == 0
    assert hit, "nobody was killed at work"
    return marks.read_text().split()


def check(guard: Guard, bodies: list[str]) -> list[Account]:
    """Check every log by itself, once what the dead had in flight is charged; give what the logs add up to."""
    charge_some(guard.runtime, guard.components)
    rows = guard.runs()
    started = Counter(event.type for row in rows for event in guard.history(row.run_id))["step_started"]
    assert len(set(bodies)) <= started == LIMIT, "each body was admitted, and all of the limit could be used"
    assert guard.verify()
    for row in rows:
        assert guard.reconstruct(row.run_id) == row
    return [live_run_of(guard.runtime, row.run_id).fold.account for row in rows]


def is_the_limit(*accounts: Account) -> bool:
    """Whether all of the limit is spent and nothing is reserved."""
    spent = [sum(each.spent.get(name, 0) for each in accounts) for name in ("steps", "nano_usd")]
    return spent == [LIMIT, 10**9] and not any(any(each.reserved.values()) for each in accounts)


@pytest.mark.parametrize("how", ["threads", "tasks"])
def test_a_tenants_budget_over_runs_that_are_killed_and_recovered(
    store: Store, how: str, tmp_path: Path
) -> None:
    store.guard.set_tenant_budget("acme", Budget(usd=1))
    runs = [f"run-{number}" for number in range(PROCESSES)]
    bodies = spend_under_kills(store.kills, how, "own", runs, tmp_path / "marks")
    assert is_the_limit(*check(store.guard, bodies))
    assert is_the_limit(store.guard.components.store.accounts(["tenant:acme"])["tenant:acme"])


@pytest.mark.parametrize("how", ["threads", "tasks"])
def test_the_budget_of_a_run_whose_processes_are_killed(store: Store, how: str, tmp_path: Path) -> None:
    with pytest.raises(BudgetExceededError), store.guard.run("r", budget=Budget(usd=1)) as run:
        joined = [run.id] * PROCESSES
        bodies = spend_under_kills(store.kills, how, "joined", joined, tmp_path / "marks")
    assert is_the_limit(*check(store.guard, bodies))
