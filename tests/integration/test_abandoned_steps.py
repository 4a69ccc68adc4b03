"""A run ends with a step in flight and its process dies: the reservation is found, and charged or given back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from decimal import Decimal

import pytest

from agentguard import AgentGuardError, Budget, Guard, Usage, guarded_step
from agentguard.cli.__main__ import main

#: Ends (or is killed) while `slow` is in its body, then waits to be killed itself.
PROGRAM = """
import contextlib, sys, threading
from agentguard import Budget, Guard, RunStopped, Usage, guarded_step

inside, over = threading.Event(), threading.Event()

@guarded_step(usage=Usage(usd="0.60"))
def slow():
    inside.set()
    over.wait()

guard = Guard.open(telemetry=False)
account = {"account": "thread:42", "account_budget": Budget(usd=1)}
with contextlib.suppress(RunStopped), guard.run("r", run_id="job-00001", tenant="t", **account) as run:
    threading.Thread(target=run.bind(slow), daemon=True).start()
    inside.wait()
    if sys.argv[1] == "killed":
        guard.kill(run="job-00001", reason="stop")
print("ended", flush=True)
over.wait()
"""


def start(how: str) -> subprocess.Popen[str]:
    """A process whose run has ended, and whose step is still in flight."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ended\n"
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
