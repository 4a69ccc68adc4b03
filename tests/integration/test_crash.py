"""`kill -9` in mid-run: what the log promises of a process that had no time to say anything."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from agentguard import Budget, Guard, RunState, guarded_step
from agentguard.audit.verify import reconstruct
from agentguard.runs.summary import from_data
from agentguard.sessions.recovered import check_owner
from tests.scale import scaled

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the victims are forked, which is quick")

#: Imports once, then forks a victim for each line it reads; a victim works until it is killed.
NURSERY = r"""
import asyncio, os, sys, threading
from contextlib import suppress
from agentguard import Budget, Guard, RunStopped, Usage, current_step, guarded_step

def work(marks, durability):
    file = os.open(marks, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def mark(word, key):
        step = current_step()
        run = key[0] if key else step.run.id
        os.write(file, f"{word} {run} {key[1] if key else step.key}\n".encode())
        return (run, step.key) if step else None

    @guarded_step(reserve=Usage(coins=3), usage=lambda _: Usage(coins=2))
    def bounded(text):
        return mark("began", None)

    @guarded_step(usage=Usage(coins=1))
    def failing():
        mark("began", None)
        raise OSError

    @guarded_step(reserve=Usage(coins=1), usage=lambda _: Usage(coins=2))
    async def awaited():
        key = mark("began", None)
        await asyncio.sleep(0)
        return key

    @guarded_step(usage=Usage(coins=1))
    def items():
        mark("began", None)
        yield from range(3)

    def agent(n):
        text = "x" * 10
        while True:
            mark("returned", bounded(text))
            with suppress(OSError):
                failing()
            mark("returned", asyncio.run(awaited()))
            list(items())
            text += text if len(text) < 20_000 else ""

    def nested():
        while True:
            with guard.run("nested"):
                for _ in range(3):
                    mark("returned", bounded("nested"))

    guard = Guard.open(durability=durability, telemetry=False)
    with guard.run("victim", tenant="acme") as run:
        threads = [threading.Thread(target=run.bind(agent), args=(n,)) for n in range(2)]
        threads.append(threading.Thread(target=run.bind(nested)))
        for thread in threads:
            thread.start()
        with run.scope("s", Budget(coins=10**9)):
            agent(2)

for line in sys.stdin:
    marks, durability = line.split()
    victim = os.fork()
    if victim == 0:
        try:
            work(marks, durability)
        finally:
            os._exit(1)
    print(victim, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1]), flush=True)
"""


def marks_of(path: Path) -> list[list[str]]:
    """The lines of a file that is written while we read; the last may be half a line."""
    text = path.read_text() if path.exists() else ""
    return [line.split(" ", 2) for line in text[: text.rfind("\n") + 1].splitlines()]


def kill_one(nursery: subprocess.Popen, path: Path, durability: str, wanted: int, eventually) -> None:
    """Let a victim work until it has left some marks, and kill it in whatever it does then."""
    nursery.stdin.write(f"{path} {durability}\n")
    nursery.stdin.flush()
    victim = int(nursery.stdout.readline())
    if wanted:
        eventually(lambda: len(marks_of(path)) >= wanted)
    os.kill(victim, signal.SIGKILL)
    assert int(nursery.stdout.readline()) == -signal.SIGKILL


def check_log(guard: Guard, marks: list[list[str]]) -> None:
    """The log verifies, and has what the bodies and the callers saw."""
    assert guard.verify()
    started, completed = set(), set()
    for row in guard.runs(limit=10_000):
        for event in guard.history(row.run_id):
            if event.type == "step_started":
                started.add((row.run_id, event.key))
            elif event.type == "step_completed":
                completed.add((row.run_id, event.key))
    began = {(run, key) for word, run, key in marks if word == "began"}
    returned = {(run, key) for word, run, key in marks if word == "returned"}
    assert began <= started
    assert returned <= completed
    assert len(began) == sum(word == "began" for word, _, _ in marks), "a body ran twice"


def check_next_process(guard: Guard) -> None:
    """The runs of the dead are seen as such, can be joined, and be ended by a kill."""

    @guarded_step
    def helps() -> None:
        pass

    left = [row for row in guard.runs(state="RUNNING", limit=10_000) if row.parent_id is None]
    for listed in left:
        row = guard.components.store.row(listed.run_id)
        check_owner(row, 0, take_over=False)  # it refuses where the owner lives
    for listed in left[:3]:
        with guard.attach(listed.run_id, branch="next"):
            helps()
        assert guard.summary(listed.run_id).state is RunState.RUNNING
    guard.kill(tenant="acme", reason="left behind")
    for listed in left:
        assert guard.summary(listed.run_id).state is RunState.KILLED
        row = guard.components.store.row(listed.run_id)
        assert guard.reconstruct(listed.run_id) == from_data(row.summary)
    assert guard.verify()


def check_accounts(guard: Guard) -> None:
    """Accounts and logs agree: what is settled is spent, and what is open is reserved."""
    store = guard.components.store
    spent, reserved = Counter[str](), Counter[str]()
    for listed in guard.runs(limit=10_000):
        row = store.row(listed.run_id)
        fold = reconstruct(store, row)
        for event in guard.history(row.run_id):
            if event.type in ("step_completed", "step_failed") and event.usage is not None:
                spent.update(event.usage.amounts())
        for step in fold.open.values():
            reserved.update(step.request.reserve)
        assert (row.ended_ns is not None) == fold.state.final
    account = store.accounts(["tenant:acme"])["tenant:acme"]
    assert +Counter(account.spent) == +spent
    assert +Counter(account.reserved) == +reserved
    for name, limit in account.limits.items():
        assert account.spent[name] + account.reserved[name] <= limit + account.excess.get(name, 0)


def kills(guard: Guard, tmp_path: Path, times: int, durability: str, eventually) -> None:
    guard.set_tenant_budget("acme", Budget(coins=10**6))
    marks: list[list[str]] = []
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        for n in range(times):
            path = tmp_path / f"marks{n}"
            # Also before it has done anything; but the first one has.
            early = (0, 1) if n else (20,)
            wanted = random.choice((*early, random.randrange(2, 60) if n else 30, random.randrange(60, 200)))
            kill_one(nursery, path, durability, wanted, eventually)
            marks += marks_of(path)
    finally:
        nursery.stdin.close()
        nursery.wait(30)
        nursery.stdout.close()
    assert any(word == "returned" for word, _, _ in marks)
    check_log(guard, marks)
    check_accounts(guard)


@pytest.mark.parametrize("durability", ["process", "power"])
def test_kill_nine_in_mid_run(sqlite_guard, tmp_path, eventually, durability):
    kills(sqlite_guard, tmp_path, 10, durability, eventually)
    check_next_process(sqlite_guard)


@pytest.mark.long
@pytest.mark.parametrize("durability", ["process", "power"])
def test_two_hundred_times_kill_nine(sqlite_guard, tmp_path, eventually, durability):
    kills(sqlite_guard, tmp_path, scaled(200), durability, eventually)
    check_next_process(sqlite_guard)


def test_a_run_whose_owner_is_dead_can_be_killed(sqlite_guard, tmp_path, eventually):
    """`run_killed` is written by the killer, since nobody else is there to do it."""
    kills(sqlite_guard, tmp_path, 1, "process", eventually)
    victim = next(row for row in sqlite_guard.runs() if row.name == "victim")
    assert victim.state is RunState.RUNNING
    sqlite_guard.kill(run=victim.run_id, reason="left behind")
    assert sqlite_guard.summary(victim.run_id).state is RunState.KILLED
    assert sqlite_guard.verify()
