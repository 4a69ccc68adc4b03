"""Fork and many guards: forked children, and several guards in one process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from agentguard import (
    Budget,
    Guard,
    KillSwitchTriggeredError,
    RunState,
    RunStopped,
    StoreUnavailableError,
    Usage,
    current_run,
    guarded_step,
)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

PRELUDE = """
import asyncio, os, sys, threading
from contextlib import suppress
from agentguard import *

@guarded_step(usage=Usage(usd="0.01"))
def step(name=None): return name

@guarded_step
async def astep(): return "async"

def child(work):
    '''Run `work` in a forked child and give what it said, or how it failed.'''
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = str(work())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read) as pipe:
        return pipe.read()

def keys(guard, run):
    return [e.key for e in guard.history(run.id) if e.type == "step_started"]
"""


def in_fresh_process(program: str) -> str:
    """A process without pytest's threads, which a fork would leave locks of."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr + ran.stdout
    return ran.stdout


@needs_fork
def test_a_child_is_attached_in_a_branch_of_its_own(home):
    in_fresh_process("""
with Guard.open(telemetry=False) as guard:
    with guard.run("r", budget=Budget(steps=20)) as run:
        step()
        assert child(lambda: step("mine")) == "mine"
        assert child(lambda: asyncio.run(astep())) == "async"
        step()
        assert run.remaining.steps == 16, run.remaining
    assert keys(guard, run) == [
        "main/step#1", "main/fork#1/step#2", "main/fork#2/astep#1", "main/step#2"
    ], keys(guard, run)
    assert run.state == "COMPLETED"
    with guard.run("r") as again:  # counted by the run, so that two runs of one program have the same keys
        assert child(lambda: step("mine")) == "mine"
    assert keys(guard, again) == ["main/fork#1/step#1"]
    assert guard.verify(run.id)
    assert guard.reconstruct(run.id) == guard.summary(run.id)
""")


@needs_fork
def test_a_child_never_writes_the_runs_end(home):
    in_fresh_process("""
with Guard.open(telemetry=False) as guard:
    run = guard.run("r").__enter__()
    pid = os.fork()
    if pid == 0:
        step()
        run.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert guard.summary(run.id).state == "RUNNING"
    step()
    run.close()
    types = [e.type for e in guard.history(run.id)]
    assert types.count("run_completed") == 1 and types[-1] == "run_completed", types
    assert guard.summary(run.id).usage.steps == 2
    assert guard.verify(run.id)
""")


@needs_fork
def test_a_stop_in_the_child_is_the_runs(home):
    in_fresh_process("""
def greedy():
    with suppress(RunStopped):
        while True:
            step()
    return "stopped"

with Guard.open(telemetry=False) as guard:
    try:
        with guard.run("r", budget=Budget(usd="0.05")) as run:
            assert child(greedy) == "stopped"
            step()
    except BudgetExceededError as error:
        assert error is run.stop
    else:
        raise AssertionError("not stopped")
    assert guard.summary(run.id).usage.steps == 5
    assert guard.verify(run.id)
""")


@needs_fork
def test_a_kill_reaches_the_child(home):
    in_fresh_process("""
with Guard.open(telemetry=False) as guard:
    with suppress(RunStopped), guard.run("r") as run:
        guard.kill(run=run.id, reason="before the fork")
        assert child(step).startswith("KillSwitchTriggeredError"), child(step)
    with guard.run("s") as run:
        def kill():
            guard.kill(run=run.id, reason="by the child")
        child(kill)
        try:
            step()
        except KillSwitchTriggeredError as error:
            assert error.reason == "by the child"
        else:
            raise AssertionError("not killed")
        raise SystemExit
""")


@needs_fork
def test_forked_while_other_threads_work(home):
    """Locks that a thread held at the fork are gone with it."""
    in_fresh_process("""
stop = threading.Event()

def busy():
    with suppress(RunStopped):
        while not stop.is_set():
            step()

with Guard.open(telemetry=False) as guard:
    with guard.run("r") as run:
        threads = [threading.Thread(target=run.bind(busy)) for _ in range(4)]
        for thread in threads: thread.start()
        for n in range(8):
            assert child(lambda: step("mine")) == "mine"
        stop.set()
        for thread in threads: thread.join()
    assert guard.verify(run.id)
    found = keys(guard, run)
    assert len(set(found)) == len(found)
    assert sum("/fork#" in key for key in found) == 8
""")


@needs_fork
def test_in_memory_the_child_is_refused(home):
    in_fresh_process("""
with Guard.in_memory(telemetry=False) as guard:
    with guard.run("r") as run:
        step()
        assert child(step).startswith("StoreUnavailableError"), child(step)
        step()
    assert guard.summary(run.id).usage.steps == 2
    assert guard.verify(run.id)
""")


@needs_fork
def test_a_guard_made_before_the_fork_works_after_it(home):
    """Lazy or used: the child opens its own connection and leaves the parent's alone."""
    in_fresh_process("""
def own_run():
    with guard.run("child") as run:
        step()
    return run.state

for used in (False, True):
    guard = Guard.open(telemetry=False)
    if used:
        with guard.run("parent"): step()
    assert child(own_run) == "COMPLETED", child(own_run)
    with guard.run("after"): step()
    assert guard.verify()
    guard.close()
""")


@needs_fork
def test_multiprocessing_by_fork(home):
    in_fresh_process("""
import multiprocessing

def work(n):
    return step(n)

if __name__ == "__main__":
    with Guard.open(telemetry=False) as guard:
        with guard.run("r", budget=Budget(steps=100)) as run:
            with multiprocessing.get_context("fork").Pool(3) as pool:
                assert sorted(pool.map(work, range(12))) == list(range(12))
            step()
        assert guard.summary(run.id).usage.steps == 13
        assert len(set(keys(guard, run))) == 13
        assert guard.verify(run.id)
""")


def test_multiprocessing_by_spawn(home, tmp_path):
    """A spawned child knows of no run; decorated functions are picklable, and it may attach."""
    script = tmp_path / "spawned.py"
    script.write_text("""
import multiprocessing
from agentguard import *

@guarded_step
def step(n):
    return n

@guarded_step
async def astep(n):
    return n

def work(run_id, n):
    with Guard.open(telemetry=False) as guard, guard.attach(run_id, branch=f"w{n}"):
        return step(n)

if __name__ == "__main__":
    with Guard.open(telemetry=False) as guard:
        with guard.run("r") as run:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                try:
                    pool.apply(step, (1,))
                except NoActiveRunError as error:
                    assert "guard.attach" in str(error)
                else:
                    raise AssertionError("ran outside a run")
                assert pool.apply(work, (run.id, 5)) == 5
        assert guard.summary(run.id).usage.steps == 1
""")
    ran = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 0, ran.stderr


# --- many guards -----------------------------------------------------------------------------------


@guarded_step(usage=Usage(usd="0.25"))
def pay() -> None:
    pass


def test_a_step_belongs_to_the_current_runs_guard(home):
    with Guard.open(telemetry=False) as disk, Guard.in_memory(telemetry=False) as memory:
        with disk.run("on disk") as outer:
            pay()
            with memory.run("in memory", detached=True) as inner:
                assert current_run() is inner
                pay()
            pay()
        assert disk.summary(outer.id).usage.steps == 2
        assert memory.summary(inner.id).usage.steps == 1
        assert [row.run_id for row in memory.runs()] == [inner.id]


def test_guards_of_one_file_share_it(home):
    """By real path, however they spell it; closing one leaves the other open."""
    path = home / "shared.db"
    link = home / "link.db"
    link.symlink_to(path)
    first = Guard.open(f"sqlite:///{path}", telemetry=False)
    second = Guard.open(f"sqlite:///{link}", telemetry=False)
    with first.run("a"):
        pay()
    with second.run("b"):
        pay()
    assert [row.name for row in first.runs()] == ["b", "a"]
    assert first.components.store.lock_for("r1") is second.components.store.lock_for("r1")
    first.close()
    with second.run("c"):
        pay()
    assert second.verify()
    second.close()


def test_runs_of_two_guards_on_one_file_at_once(home):
    with Guard.open(telemetry=False) as first, Guard.open(telemetry=False) as second:

        def work(guard: Guard) -> None:
            for _ in range(5):
                with guard.run("r", budget=Budget(steps=3)), suppress(RunStopped):
                    for _ in range(3):
                        pay()

        threads = [threading.Thread(target=work, args=(guard,)) for guard in (first, second) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        rows = first.runs()
        assert len(rows) == 20
        assert all(row.usage.steps == 3 for row in rows)
        assert first.verify()


def test_one_page_serves_all_guards_of_a_home(home):
    with (
        Guard.open(telemetry=False) as first,
        Guard.open(f"sqlite:///{home / 'b.db'}", telemetry=False) as second,
    ):
        with pytest.raises(KillSwitchTriggeredError), second.run("r") as run:
            first.kill(tenant="default", reason="from next door")
            pay()
        assert run.state is RunState.KILLED
        assert [kill.reason for kill in second.kills()] == ["from next door"]


def test_a_closed_guard_is_closed_for_good(home):
    guard = Guard.open(telemetry=False)
    with guard, guard.run("first"):
        pay()
    with guard, pytest.raises(StoreUnavailableError, match="closed"), guard.run("second"):
        pytest.fail("entered")
    with Guard.open(telemetry=False) as another:
        assert [run.name for run in another.runs()] == ["first"]
