"""Faults of processes and clocks, done for real: SIGSTOP of the owner, fork in mid-run, a clock set back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

import agentguard
from agentguard import Budget, BudgetExceededError, Guard, RunState, current_step, guarded_step
from agentguard._process import identity
from agentguard.errors import RunOwnedError
from agentguard.protocols import RunRow
from agentguard.runs.summary import from_data
from agentguard.sessions.recovered import check_owner
from agentguard.testing.fakes import FakeClock

SOURCE = Path(agentguard.__file__).parents[1]

OWNER = """
import os, sys
from agentguard import *
from agentguard.errors import RunOwnedError, StepRefused

@guarded_step(effect="read")
def tool(n):
    print("began", flush=True)
    return n

guard = Guard.open(telemetry=False, durability=sys.argv[1])
try:
    with guard.run("r", run_id="r", budget=Budget(steps=20)) as run:
        print("ready", flush=True)
        for n, line in enumerate(sys.stdin):
            if line == "end\\n":
                break
            try:
                print("returned", tool(n), flush=True)
            except StepRefused as error:
                print("refused", error, flush=True)
except AgentGuardError as error:
    print("ended", type(error).__name__, getattr(error, "owner", "").split(" on ")[0], flush=True)
"""


class Owner:
    """A process that owns run "r" and makes a step for each line that it is given."""

    def __init__(self, durability: str = "process") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", OWNER, durability],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )
        assert self.says() == "ready"

    def says(self) -> str:
        return self.process.stdout.readline().strip()

    def asks(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def steps(self, number: int) -> None:
        self.asks()
        assert [self.says(), self.says()] == ["began", f"returned {number}"]

    def stand_still(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def end(self) -> list[str]:
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write("end\n")
        self.process.stdin.flush()
        rest = self.process.stdout.read().splitlines()
        self.process.wait(60)
        return rest

    def dispose(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def owner(home: Path) -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.dispose()


def agree(guard: Guard, run_id: str) -> None:
    assert guard.verify()
    row = guard.components.store.row(run_id)
    assert guard.reconstruct(run_id) == from_data(row.summary)


@guarded_step(effect="read")
def tool(n: int) -> int:
    return n


# --- SIGSTOP of the owner ----------------------------------------------------------------------------


def test_an_owner_that_stands_still_is_alive_and_is_named(owner, sqlite_guard):
    owner.steps(0)
    owner.stand_still()
    assert sqlite_guard.summary("r").state is RunState.RUNNING
    with pytest.raises(RunOwnedError, match=rf"process {owner.process.pid} on .*take_over=True"):
        sqlite_guard.recover("r").__enter__()
    with sqlite_guard.attach("r", branch="helper"):
        tool(1)
    assert owner.end() == []
    assert sqlite_guard.summary("r").state is RunState.COMPLETED
    assert sqlite_guard.summary("r").usage.steps == 2
    agree(sqlite_guard, "r")


def test_a_kill_of_a_run_whose_owner_stands_still_waits_for_it(owner, sqlite_guard):
    """It is not written off: it may go on at any time, and stops itself then, before any body."""
    owner.steps(0)
    owner.stand_still()
    generation = sqlite_guard.kill(run="r", reason="enough")
    assert sqlite_guard.summary("r").state is RunState.RUNNING
    assert owner.process.pid in [p.pid for p in sqlite_guard.components.switch.unacknowledged(generation)]
    owner.asks()
    assert owner.end() == ["ended KillSwitchTriggeredError "]
    assert sqlite_guard.summary("r").state is RunState.KILLED
    agree(sqlite_guard, "r")


def test_an_owner_that_wakes_after_a_take_over_is_fenced(owner, sqlite_guard):
    owner.steps(0)
    owner.stand_still()
    with sqlite_guard.recover("r", take_over=True) as run:
        assert [tool(0), tool(1)] == [0, 1]
        owner.asks()  # still stopped: it finds this when it goes on
        owner.process.send_signal(signal.SIGCONT)
        assert owner.says() == f"ended RunOwnedError process {os.getpid()}", "no body may run there"
        assert run.state is RunState.RUNNING
        assert tool(2) == 2
    owner.end()
    assert run.state is RunState.COMPLETED
    agree(sqlite_guard, "r")
    assert sqlite_guard.summary("r").usage.steps == 3


def test_an_owner_that_is_dead_needs_no_take_over(owner, sqlite_guard):
    owner.steps(0)
    owner.process.kill()
    owner.process.wait()
    with sqlite_guard.recover("r") as run:
        assert [tool(0), tool(1)] == [0, 1]
    assert run.state is RunState.COMPLETED
    agree(sqlite_guard, "r")


# --- fork in mid-run ---------------------------------------------------------------------------------

FORKS = """
import os, signal, sys
from agentguard import *
from agentguard.runs.summary import from_data

@guarded_step(reserve=Usage(coins=3), usage=lambda _: Usage(coins=2))
def tool(work=None):
    return work() if work else None

def child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1]

def dies():
    os.kill(os.getpid(), signal.SIGKILL)

guard = Guard.open(telemetry=False, durability=sys.argv[1])
guard.set_tenant_budget("acme", Budget(coins=100))
with guard.run("r", tenant="acme", budget=Budget(steps=50)) as run:
    tool()
    assert child(tool) == 0
    assert child(lambda: tool(dies)) == signal.SIGKILL          # killed inside a body of its own
    tool(lambda: child(dies))                                   # killed inside a body of the parent's
    tool(lambda: child(tool))
    store = guard.components.store
    with store.exclusive("r1"):                                     # forked inside a transaction of the parent's
        pid = os.fork()
        if pid == 0:
            dies()
    os.waitpid(pid, 0)
    tool()
    assert run.state == "RUNNING"
assert guard.verify()
types = [e.type for e in guard.history(run.id)]
assert types.count("step_started") == 7 and types.count("step_completed") == 6, types
row = store.row(run.id)
assert guard.reconstruct(run.id) == from_data(row.summary)
account = store.accounts(["tenant:acme"])["tenant:acme"]
assert account.spent["coins"] == 12 and account.reserved["coins"] == 3, account
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("durability", ["process", "power"])
def test_children_forked_in_mid_run_may_die_anywhere(home, durability):
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKS, durability],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    assert ran.returncode == 0, ran.stderr


# --- a clock set back --------------------------------------------------------------------------------


def test_a_wall_clock_set_back_by_an_hour_changes_no_order_and_no_limit(home):
    clock = FakeClock()
    with Guard.open(telemetry=False, clock=clock) as guard:
        guard.set_tenant_budget("acme", Budget(steps=100), per="day")
        with (
            pytest.raises(BudgetExceededError, match="seconds"),
            guard.run("r", run_id="r", tenant="acme", budget=Budget(seconds=60)) as run,
        ):
            tool(0)
            clock.advance(40)
            clock.turn_back(timedelta(hours=1))
            assert tool(1) == 1
            assert run.remaining.seconds == 20
            with guard.attach("r", branch="helper"):
                tool(2)
            clock.advance(21)
            tool(3)
        assert run.summary().duration == 61
        events = guard.history("r")
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert events[-1].at_ns < events[0].at_ns, "it is told as it was"
        agree(guard, "r")
        with guard.run("s", run_id="s"):
            pass
        assert [row.run_id for row in guard.runs()] == ["s", "r"]


def test_a_wall_clock_set_back_makes_no_live_owner_stale(home):
    """Neither of this host, which goes by the process, nor of another, which goes by the heartbeat."""
    now = time.time_ns()
    hour = 3600 * 10**9
    mine = RunRow(run_id="r", name="n", tenant="t", state="RUNNING", created_ns=now)
    mine.owner, mine.heartbeat_ns = identity(), now - 10 * hour
    other = RunRow(run_id="r", name="n", tenant="t", state="RUNNING", created_ns=now)
    other.owner, other.heartbeat_ns = {**identity(), "host": "elsewhere"}, now
    for row, wall in ((mine, now), (mine, now - hour), (other, now), (other, now - hour)):
        with pytest.raises(RunOwnedError):
            check_owner(row, wall, take_over=False)
    check_owner(other, now + hour, take_over=False)


def test_a_run_is_recovered_by_a_process_whose_clock_is_an_hour_behind(owner, home):
    owner.steps(0)
    owner.process.kill()
    owner.process.wait()
    behind = FakeClock()
    with Guard.open(telemetry=False, clock=behind) as guard:
        with guard.recover("r") as run:
            assert [tool(0), tool(1)] == [0, 1]
            assert current_step() is None
        assert 0 <= run.summary().duration < 600
        agree(guard, "r")
