"""A run ends with a step in flight and its process dies: the reservation is found, and charged or given back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from decimal import Decimal

import pytest

from agentguard import AgentGuardError, Budget, Guard, Usage, guarded_step
from agentguard.cli.__main__ import main
from agentguard.sessions.abandoned import charge_some
from tests.kit import wait_until

#: Its run ends (or is killed, by this process or another) while `slow` is in its body, or in that of a process
#: that has joined it; then it waits to be killed itself.
PROGRAM = """
import contextlib, sys, threading
from agentguard import Budget, Guard, RunStopped, Usage, guarded_step

inside, over = threading.Event(), threading.Event()

@guarded_step(usage=Usage(usd="0.60"))
def slow():
    inside.set()
    over.wait()

guard = Guard.open(telemetry=False)
if sys.argv[1] == "attached":
    with contextlib.suppress(RunStopped), guard.attach("job-00001") as run:
        threading.Thread(target=run.bind(slow), daemon=True).start()
        inside.wait()
        print("inside", flush=True)
        over.wait()
account = {"account": "thread:42", "account_budget": Budget(usd=2)}
with contextlib.suppress(RunStopped), guard.run("r", run_id="job-00001", tenant="t", **account) as run:
    threading.Thread(target=run.bind(slow), daemon=True).start()
    inside.wait()
    if sys.argv[1] == "waits":
        print("inside", flush=True)
        sys.stdin.readline()
    if sys.argv[1] == "killed":
        guard.kill(run="job-00001", reason="stop")
print("ended", flush=True)
over.wait()
"""


def start(how: str, says: str = "ended") -> subprocess.Popen[str]:
    """A process whose run has ended, and whose step is still in flight."""
    command = [sys.executable, "-c", PROGRAM, how]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == f"{says}\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


#: What the step reserves.
USD = Decimal("0.60")


@pytest.fixture(params=["completed", "killed"])
def key(request: pytest.FixtureRequest, sqlite_guard: Guard) -> str:
    """The key of a step that an ended run of a dead process left; its tenant has room for one such step."""
    sqlite_guard.set_tenant_budget("t", Budget(usd="1.00"))
    end(start(request.param))
    (key,) = [event.key for event in sqlite_guard.history("job-00001") if event.type == "step_started"]
    return key


@guarded_step(usage=Usage(usd="0.60"))
def next_step() -> str:
    return "done"


def doctor(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, list[str]]]:
    code = main(["doctor", "--json", *options])
    found: dict[str, list[str]] = {}
    for check in json.loads(capsys.readouterr().out)["checks"]:
        found.setdefault(check["check"], []).append(f"{check['status']}: {check['detail']}")
    return code, found


def test_doctor_names_the_step_and_repair_charges_it_once(sqlite_guard, key, capsys):
    code, found = doctor(capsys)
    assert code == 1
    assert found["steps"][0].startswith(
        f"FAULT: 1 of ended runs still hold what they reserved (job-00001 {key})"
    )
    code, found = doctor(capsys, "--repair")
    assert code == 0
    assert any(f"job-00001 {key}" in said for said in found["repair"])
    assert "steps" not in found
    assert sqlite_guard.tenants()[0].spent.usd == USD
    account = sqlite_guard.account("thread:42", tenant="t")
    assert (account.spent.usd, account.reserved.usd) == (USD, 0)
    assert doctor(capsys, "--repair")[0] == 0
    assert sqlite_guard.tenants()[0].spent.usd == USD
    assert sqlite_guard.history("job-00001")[-1].type == "step_resolved"
    sqlite_guard.verify("job-00001")


def test_resolve_gives_back_what_a_step_that_cost_nothing_had_reserved(sqlite_guard, key):
    state = sqlite_guard.summary("job-00001").state
    sqlite_guard.resolve("job-00001", key, "failed", usage=Usage())
    assert sqlite_guard.summary("job-00001").state == state
    with sqlite_guard.run("next", tenant="t"):
        assert next_step() == "done"


def test_a_step_is_resolved_once(sqlite_guard, key):
    sqlite_guard.resolve("job-00001", key, "failed")
    with pytest.raises(AgentGuardError, match="has an outcome"):
        sqlite_guard.resolve("job-00001", key, "failed")
    assert sqlite_guard.tenants()[0].spent.usd == USD


def test_the_step_of_a_process_that_lives_is_left_alone(sqlite_guard, capsys):
    sqlite_guard.set_tenant_budget("t", Budget(usd="1.00"))
    process = start("completed")
    try:
        code, found = doctor(capsys, "--repair")
        assert code == 0
        assert "steps" not in found
        assert sqlite_guard.tenants()[0].spent == Usage()
    finally:
        end(process)


def test_of_a_process_that_cannot_be_seen_from_here_doctor_says_so_and_charges_nothing(
    sqlite_guard, key, capsys, monkeypatch
):
    monkeypatch.setattr("agentguard._process.pid_namespace", lambda: 1)
    code, found = doctor(capsys, "--repair")
    assert code == 0
    assert found["steps"][0].startswith("note: 1 of ended runs")
    assert sqlite_guard.tenants()[0].spent == Usage()


# --- without an operator -------------------------------------------------------------------------


def look(guard: Guard) -> None:
    """What a sign of life does, once a minute."""
    charge_some(guard.runtime, guard.components)


def outcomes(guard: Guard) -> list[str]:
    """The events of its steps, the starts last."""
    return sorted(event.type for event in guard.history("job-00001") if event.type.startswith("step_"))


def books(guard: Guard) -> tuple[Decimal, Decimal, Decimal]:
    """What the tenant and the named account have spent, and what that holds."""
    account = guard.account("thread:42", tenant="t")
    assert account is not None
    return guard.tenants()[0].spent.usd, account.spent.usd, account.reserved.usd


def test_signs_of_life_of_two_processes_charge_it_once(sqlite_guard, key):
    with Guard.open(telemetry=False) as other:
        guards = [sqlite_guard, other]
        threads = [threading.Thread(target=look, args=(guard,)) for guard in guards * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert outcomes(sqlite_guard) == ["step_resolved", "step_started"]
    assert books(sqlite_guard) == (USD, USD, 0)
    assert sqlite_guard.verify()
    assert sqlite_guard.prune("0s") == ["job-00001"], "a run with a step in flight would have stayed"


def test_a_process_that_has_runs_does_it_by_itself(sqlite_guard, key):
    with sqlite_guard.run("another", tenant="other"):
        wait_until(lambda: "step_resolved" in outcomes(sqlite_guard))
    assert books(sqlite_guard) == (USD, USD, 0)


def test_runs_of_long_ago_have_their_turn(sqlite_guard, key):
    for _ in range(5):
        with sqlite_guard.run("newer"):
            pass
    for turn in range(3):
        assert "step_resolved" not in outcomes(sqlite_guard), turn
        charge_some(sqlite_guard.runtime, sqlite_guard.components, part=2)
    assert books(sqlite_guard) == (USD, USD, 0)


def test_a_body_whose_process_lives_outlives_its_run(sqlite_guard):
    sqlite_guard.set_tenant_budget("t", Budget(usd="1.00"))
    process = start("killed")
    try:
        look(sqlite_guard)
        assert outcomes(sqlite_guard) == ["step_started"]
    finally:
        end(process)


def test_so_does_that_of_a_process_that_had_joined_the_run_until_it_dies_too(sqlite_guard):
    sqlite_guard.set_tenant_budget("t", Budget(usd="2.00"))
    owner = start("waits", "inside")
    joined = start("attached", "inside")
    try:
        sqlite_guard.kill(run="job-00001", reason="stop")
        owner.stdin.write("\n")
        owner.stdin.flush()
        assert owner.stdout.readline() == "ended\n"
        end(owner)
        look(sqlite_guard)
        assert outcomes(sqlite_guard) == ["step_resolved", "step_started", "step_started"]
    finally:
        end(joined)
    look(sqlite_guard)
    assert outcomes(sqlite_guard) == ["step_resolved"] * 2 + ["step_started"] * 2
    assert books(sqlite_guard) == (2 * USD, 2 * USD, 0)
