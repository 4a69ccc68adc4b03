"""A budget of 100 is 100, whoever asks: threads, tasks, processes, and all of them at once."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import threading
import time
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import pytest

from agentguard import Budget, BudgetExceededError, Guard, RunState, RunStopped, Usage, guarded_step
from agentguard.sessions.base import live_run_of

LIMIT = 100


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def any_guard(request, home):
    """A guard on each store."""
    url = {"memory": "memory://", "sqlite": None}.get(request.param)
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    with Guard.open(url, telemetry=False) as guard:
        yield guard


@pytest.fixture(params=["sqlite", "postgres"])
def shared_guard(request, home, monkeypatch):
    """A guard on each store that processes share, which the processes of the test open by themselves."""
    if request.param == "postgres":
        monkeypatch.setenv("AGENTGUARD_STORE", request.getfixturevalue("postgres_url"))
    with Guard.open(telemetry=False) as guard:
        yield guard


def check_books(guard: Guard, run_id: str, *, ran: int) -> None:
    """Log, fold, row and, where there is one, the shared account say the same."""
    assert ran == LIMIT
    summary = guard.summary(run_id)
    assert summary.usage.steps == LIMIT
    assert summary.usage.usd == Decimal(LIMIT) / 100
    assert summary.steps == LIMIT
    assert guard.reconstruct(run_id) == summary
    account = live_run_of(guard.runtime, run_id).fold.account
    assert not any(account.reserved.values())
    types = [event.type for event in guard.history(run_id)]
    assert types.count("step_started") == types.count("step_completed") == LIMIT
    assert types.count("step_refused") == 1
    assert guard.verify(run_id)


@pytest.mark.usefixtures("within_a_day")
def test_limits_that_were_set_while_a_process_had_no_run_hold_for_its_next_run(shared_guard):
    ran = []
    step = guarded_step(usage=Usage(usd="0.10"))(lambda: ran.append(1))

    def steps_of_a_run() -> int:
        ran.clear()
        with suppress(RunStopped), shared_guard.run("r", tenant="acme"):
            for _ in range(4):
                step()
        return len(ran)

    assert steps_of_a_run() == 4
    with Guard.open(telemetry=False) as operator:
        for limit, room in (("0.30", 3), ("0.20", 0), ("0.50", 2), ("2.00", 4)):
            operator.set_tenant_budget("acme", Budget(usd=limit), per="month")
            assert steps_of_a_run() == room
        operator.set_tenant_budget("acme", Budget(), per="month")
    with Guard.open(telemetry=False) as late:
        assert late.tenants() == shared_guard.tenants() == []


def test_64_threads(any_guard):
    ran = []
    step = guarded_step(usage=Usage(usd="0.01"))(lambda: ran.append(threading.get_ident()))
    start = threading.Barrier(64)

    def agent() -> None:
        start.wait()
        with suppress(RunStopped):
            while True:
                step()

    with pytest.raises(BudgetExceededError), any_guard.run("r", budget=Budget(usd=1)) as run:
        threads = [threading.Thread(target=run.bind(agent)) for _ in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    check_books(any_guard, run.id, ran=len(ran))


def test_64_tasks(any_guard):
    ran = []

    @guarded_step(usage=Usage(usd="0.01"))
    async def step(task: int) -> None:
        ran.append(task)
        await asyncio.sleep(0)

    async def agent(task: int) -> None:
        with suppress(RunStopped):
            while True:
                await step(task)

    async def main() -> None:
        await asyncio.gather(*(agent(task) for task in range(64)))

    with pytest.raises(BudgetExceededError), any_guard.run("r", budget=Budget(usd=1)) as run:
        asyncio.run(main())
    # A body that was admitted and then cancelled by the refusal of another counts as much as any.
    types = [event.type for event in any_guard.history(run.id)]
    assert len(ran) == types.count("step_started") == LIMIT
    assert any_guard.summary(run.id).usage == Usage(usd=1) + Usage.from_amounts({"steps": LIMIT})
    assert any_guard.reconstruct(run.id) == any_guard.summary(run.id)
    assert any_guard.verify(run.id)


def test_threads_and_tasks_and_nested_runs_at_once(any_guard):
    ran = []
    step = guarded_step(usage=Usage(usd="0.01"))(lambda: ran.append(1))

    @guarded_step(usage=Usage(usd="0.01"))
    async def async_step() -> None:
        ran.append(1)
        await asyncio.sleep(0)

    start = threading.Barrier(12)

    def in_thread() -> None:
        start.wait()
        with suppress(RunStopped):
            while True:
                step()

    def in_nested_run() -> None:
        with suppress(RunStopped), any_guard.run("inner"):
            start.wait()
            while True:
                step()

    def in_tasks() -> None:
        async def agent() -> None:
            with suppress(RunStopped):
                while True:
                    await async_step()

        async def main() -> None:
            await asyncio.gather(*(agent() for _ in range(8)))

        start.wait()
        asyncio.run(main())

    with pytest.raises(BudgetExceededError), any_guard.run("r", budget=Budget(usd=1)) as run:
        agents = [in_thread] * 6 + [in_nested_run] * 4 + [in_tasks] * 2
        threads = [threading.Thread(target=run.bind(agent)) for agent in agents]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(ran) == LIMIT
    account = any_guard.components.store.accounts([f"run:{run.id}"])[f"run:{run.id}"]
    assert account.spent["nano_usd"] == 10**9
    assert not any(account.reserved.values())
    for row in any_guard.runs():
        assert any_guard.reconstruct(row.run_id) == row
    assert any_guard.verify()


WORKER = """
import os, sys, threading
from contextlib import suppress
from agentguard import Guard, RunStopped, Usage, guarded_step

run_id, marks = sys.argv[1:]
file = os.open(marks, os.O_WRONLY | os.O_APPEND)

@guarded_step(usage=Usage(usd="0.01"))
def step():
    os.write(file, b"%d\\n" % os.getpid())

ran = []
def agent(name):
    mine = 0
    with suppress(RunStopped), guard.attach(run_id, branch=name):
        while True:
            step()
            mine += 1
    ran.append(mine)

with Guard.open(telemetry=False) as guard:
    guard.summary(run_id)
    print("ready", flush=True)
    sys.stdin.readline()
    threads = [threading.Thread(target=agent, args=(f"{os.getpid()}.{n}",)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ran) == 16, ran
    print(sum(ran), flush=True)
"""


def test_4_processes_of_16_threads(shared_guard, tmp_path):
    """Through `attach` on one run: exactly 100 bodies ran, and nobody starved."""
    marks = tmp_path / "marks"
    marks.touch()
    with pytest.raises(BudgetExceededError), shared_guard.run("r", budget=Budget(usd=1)) as run:
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, run.id, str(marks)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        finished = [int(worker.communicate(timeout=120)[0]) for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * 4
    bodies = marks.read_text().split()
    assert sum(finished) == LIMIT
    assert run.state is RunState.FAILED
    check_books(shared_guard, run.id, ran=len(bodies))


ANOTHER = """
import sys
from agentguard import Guard, Usage, guarded_step

@guarded_step(reserve=Usage(usd="0.9"), usage=Usage(usd="0.1"))
def step():
    print("inside", flush=True)
    sys.stdin.readline()

with Guard.open(telemetry=False) as guard, guard.attach(sys.argv[1], branch="another"):
    step()
"""


@pytest.mark.parametrize("is_async", [False, True])
def test_what_another_process_gave_back_is_known_before_a_step_is_refused(shared_guard, is_async):
    with shared_guard.run("r", budget=Budget(usd=1)) as run:
        another = subprocess.Popen(
            [sys.executable, "-c", ANOTHER, run.id], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert another.stdout.readline() == "inside\n"
        run.call("look", int, usage=Usage(usd="0.05"))  # from here on, this process knows of it
        another.communicate("go\n", timeout=60)
        if is_async:
            asyncio.run(run.call("pay", asyncio.sleep, 0, usage=Usage(usd="0.8")))
        else:
            run.call("pay", int, usage=Usage(usd="0.8"))
    assert shared_guard.summary(run.id).usage.usd == Decimal("0.95")


TASKS_WORKER = """
import asyncio, os, sys
from contextlib import suppress
from agentguard import Guard, RunStopped, Usage, guarded_step

run_id, marks = sys.argv[1:]
file = os.open(marks, os.O_WRONLY | os.O_APPEND)

@guarded_step(usage=Usage(usd="0.01"))
async def step():
    os.write(file, b"%d\\n" % os.getpid())
    await asyncio.sleep(0)

async def agent():
    with suppress(RunStopped):
        while True:
            await step()

async def main():
    with Guard.open(telemetry=False) as guard:
        guard.summary(run_id)
        print("ready", flush=True)
        sys.stdin.readline()
        with suppress(RunStopped):
            async with guard.attach(run_id, branch=f"{os.getpid()}"):
                await asyncio.gather(*(asyncio.create_task(agent()) for _ in range(64)))

asyncio.run(main())
"""


def test_4_processes_of_64_tasks(shared_guard, tmp_path):
    marks = tmp_path / "marks"
    marks.touch()
    with pytest.raises(BudgetExceededError), shared_guard.run("r", budget=Budget(usd=1)) as run:
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", TASKS_WORKER, run.id, str(marks)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            worker.communicate("go\n", timeout=120)
        assert [worker.returncode for worker in workers] == [0] * 4
    # A body that was admitted and then cancelled by the refusal of another counts as much as any.
    types = [event.type for event in shared_guard.history(run.id)]
    assert types.count("step_started") == LIMIT
    assert len(marks.read_text().split()) <= LIMIT
    assert shared_guard.summary(run.id).usage.steps == LIMIT
    assert shared_guard.verify(run.id)


TENANT_WORKER = """
import json, os, sys
from contextlib import suppress
from agentguard import Guard, RunStopped, Usage, guarded_step

@guarded_step(usage=Usage(usd="0.01"))
def step(): pass

done = 0
with Guard.open(telemetry=False) as guard:
    print("ready", flush=True)
    sys.stdin.readline()
    with suppress(RunStopped), guard.run("r", tenant="acme"):
        while True:
            step()
            done += 1
print(done, flush=True)
"""


def test_a_tenants_budget_over_processes(shared_guard):
    """Runs of their own in several processes share one account."""
    shared_guard.set_tenant_budget("acme", Budget(usd=1))
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", TENANT_WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    done = [int(worker.communicate(timeout=120)[0]) for worker in workers]
    assert sum(done) == LIMIT
    account = shared_guard.components.store.accounts(["tenant:acme"])["tenant:acme"]
    assert account.spent == {"nano_usd": 10**9, "steps": LIMIT}
    assert not any(account.reserved.values())
    assert shared_guard.verify()


KILLED_WORKER = """
import os, sys
from contextlib import suppress
from agentguard import AgentGuardError, Guard, Usage, current_step, guarded_step

run_id, marks = sys.argv[1:]
file = os.open(marks, os.O_WRONLY | os.O_APPEND)

@guarded_step(usage=Usage(usd="0.01"), effect="idempotent")
def step():
    os.write(file, f"{current_step().idempotency_key}\\n".encode())

with Guard.open(telemetry=False) as guard, suppress(AgentGuardError):
    with guard.run("r", tenant="acme", run_id=run_id, if_exists="recover"):
        while True:
            step()
"""


def test_a_tenants_budget_while_its_clients_are_killed_and_recover(shared_guard, tmp_path):
    """Nothing is charged twice, nothing is lost, and nobody gets beyond the limit."""
    shared_guard.set_tenant_budget("acme", Budget(usd=1))
    marks = tmp_path / "marks"
    marks.touch()

    def start(run_id: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", KILLED_WORKER, run_id, str(marks)])

    workers = {f"run-{number}": start(f"run-{number}") for number in range(3)}
    kills = 0
    while kills < 6:
        reached = len(marks.read_text().splitlines()) + random.randint(1, 8)
        while len(marks.read_text().splitlines()) < reached:
            if all(worker.poll() is not None for worker in workers.values()):
                break
            time.sleep(0.002)
        run_id = random.choice(sorted(workers))
        workers[run_id].kill()
        workers[run_id].wait()
        workers[run_id] = start(run_id)
        kills += 1
    for worker in workers.values():
        assert worker.wait(120) == 0
    logs = [live_run_of(shared_guard.runtime, row.run_id).fold.account for row in shared_guard.runs()]
    books = shared_guard.components.store.accounts(["tenant:acme"])["tenant:acme"]
    assert books.spent["steps"] == sum(account.spent.get("steps", 0) for account in logs)
    assert books.spent["nano_usd"] <= 10**9
    assert not any(books.reserved.values())
    assert books.spent["steps"] == LIMIT, "and all of it could be used"
    assert len(set(marks.read_text().split())) <= LIMIT
    assert shared_guard.verify()


ATTACHED = """
import json, sys
from agentguard import BudgetExceededError, Guard, KillSwitchTriggeredError, RunStopped, current_run, guarded_step

run_id, how = sys.argv[1:]

@guarded_step
def step(): return "ran"

with Guard.open(telemetry=False) as guard:
    said = {}
    try:
        with guard.attach(run_id, branch="other") as run:
            said["first"] = step()
            said["inputs"] = run.inputs
            said["name"] = run.name
            if how == "fails":
                raise ZeroDivisionError
            if how == "kills":
                run.kill("by the other process", actor="other")
                step()
            if how == "spends":
                while True:
                    step()
    except (RunStopped, ZeroDivisionError) as error:
        said["error"] = type(error).__name__
    said["stop"] = type(run.stop).__name__
    said["state"] = str(run.state)
print(json.dumps(said))
"""


def attach_elsewhere(run_id: str, how: str) -> dict:
    """What a second process that joins the run has to say."""
    ran = subprocess.run(
        [sys.executable, "-c", ATTACHED, run_id, how], capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_attach_from_a_second_process_detaches(sqlite_guard):
    with sqlite_guard.run("r", inputs={"q": 1}, budget=Budget(steps=9)) as run:
        said = attach_elsewhere(run.id, "leaves")
        assert said == {
            "first": "ran",
            "inputs": {"q": 1},
            "name": "r",
            "stop": "NoneType",
            "state": "RUNNING",
        }
        assert run.call("f", lambda: "here") == "here"
        assert run.spent.steps == 2
    assert run.state is RunState.COMPLETED
    keys = [e.key for e in sqlite_guard.history(run.id) if e.type == "step_started"]
    assert keys == ["main/other/step#1", "main/f#1"]


def test_an_error_in_a_second_process_does_not_end_the_run(sqlite_guard):
    with sqlite_guard.run("r") as run:
        assert attach_elsewhere(run.id, "fails")["error"] == "ZeroDivisionError"
    assert run.state is RunState.COMPLETED


def test_a_stop_in_a_second_process_is_the_runs(sqlite_guard):
    with pytest.raises(BudgetExceededError) as raised, sqlite_guard.run("r", budget=Budget(steps=3)) as run:
        assert attach_elsewhere(run.id, "spends") == {
            "first": "ran",
            "inputs": None,
            "name": "r",
            "error": "BudgetExceededError",
            "stop": "BudgetExceededError",
            "state": "FAILED",
        }
        with pytest.raises(BudgetExceededError):
            run.call("f", pytest.fail, "ran")
    assert (raised.value.resource, raised.value.limit, raised.value.run_id) == ("steps", 3, run.id)
    assert raised.value is run.stop


def test_a_stop_in_a_second_process_is_found_at_the_exit(sqlite_guard):
    """Also where the owner calls no further step."""
    with pytest.raises(BudgetExceededError), sqlite_guard.run("r", budget=Budget(steps=3)) as run:
        attach_elsewhere(run.id, "spends")
    assert run.state is RunState.FAILED


def test_a_kill_by_a_second_process(sqlite_guard):
    from agentguard import KillSwitchTriggeredError

    with pytest.raises(KillSwitchTriggeredError) as raised, sqlite_guard.run("r") as run:
        said = attach_elsewhere(run.id, "kills")
        assert (said["error"], said["state"]) == ("KillSwitchTriggeredError", "KILLED")
        run.call("f", pytest.fail, "ran")
    assert (raised.value.reason, raised.value.actor) == ("by the other process", "other")
    assert os.getpid() not in (0, 1)
    assert Path(sqlite_guard.components.store.path).exists()
