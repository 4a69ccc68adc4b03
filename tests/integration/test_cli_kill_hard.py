"""`agentguard kill --hard`, on real processes that nothing else stops."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import agentguard
from agentguard import Guard, RunState
from agentguard.cli.commands.kill import main
from agentguard.runs.summary import from_data

SOURCE = Path(agentguard.__file__).parents[1]

#: How a body takes a stop: it ends soon, or at SIGTERM, or never.
PROGRAM = """
import signal, sys, threading, time
from agentguard import *

manner, name = sys.argv[1:3]
if manner == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

def body(run):
    print("in the body", flush=True)
    while True:  # a sync body, which no stop can interrupt
        if manner == "polite" and run.stop is not None:
            return
        time.sleep(0.01)

with Guard.open(telemetry=False) as guard, guard.run(name, run_id=name, tenant=name[:1] * 2) as run:
    if manner == "beside":
        began = threading.Event()

        def beside():
            with guard.run("tame", run_id="tame-1", tenant="tt"):
                began.set()
                threading.Event().wait()

        threading.Thread(target=beside, daemon=True).start()
        began.wait()
    if manner == "nested":
        with guard.run("inside", run_id="inside") as run:
            run.call("body", body, run)
    run.call("body", body, run)
"""


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that is inside a body when this returns."""
    children: list[subprocess.Popen[str]] = []

    def begin(manner: str, name: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, manner, name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )
        children.append(child)
        assert child.stdout.readline() == "in the body\n"
        return child

    yield begin
    for child in children:
        child.kill()
        child.communicate()


def hard(capsys: pytest.CaptureFixture[str], *argv: str, grace: str = "0.6") -> tuple[int, dict]:
    code = main(["kill", "--hard", "--yes", "--reason", "enough", "--grace", grace, "--json", *argv])
    return code, json.loads(capsys.readouterr().out)


def on_record(guard: Guard) -> list[tuple[str, list[int]]]:
    return [
        (event.data["signal"], [process["pid"] for process in event.data["processes"]])
        for event in guard.history("control")
        if event.type == "processes_signalled"
    ]


@pytest.mark.parametrize(("manner", "last"), [("deaf", signal.SIGTERM), ("stubborn", signal.SIGKILL)])
def test_a_body_that_ignores_everything_is_ended_with_its_process(start, sqlite_guard, capsys, manner, last):
    child, other = start(manner, "a1"), start("deaf", "b1")
    code, facts = hard(capsys, "--run", "a1")
    assert child.wait(30) == -last
    assert other.poll() is None, "another run's process is left alone"
    signalled = {"SIGTERM": [child.pid]} | ({"SIGKILL": [child.pid]} if manner == "stubborn" else {})
    assert code == 0
    assert (facts["signalled"], facts["still_there"], facts["problems"]) == (signalled, [], [])
    assert on_record(sqlite_guard) == list(signalled.items())
    assert sqlite_guard.history("control")[0].data["reason"] == "enough"
    assert sqlite_guard.summary("a1").state is RunState.KILLED
    assert sqlite_guard.reconstruct("a1") == from_data(sqlite_guard.components.store.row("a1").summary)
    assert sqlite_guard.summary("b1").state is RunState.RUNNING
    assert sqlite_guard.verify()


def test_a_run_that_stops_within_the_grace_time_keeps_its_process(start, sqlite_guard, capsys):
    child = start("polite", "a1")
    code, facts = hard(capsys, "--run", "a1", grace="30")
    assert (code, facts["signalled"], facts["live"]) == (0, {}, 1)
    assert child.wait(30) == 1
    assert "KillSwitchTriggeredError" in child.stderr.read()
    assert on_record(sqlite_guard) == []
    assert sqlite_guard.summary("a1").usage.steps == 1


def test_a_tenants_processes_and_then_everybodys(start, sqlite_guard, capsys):
    first, second, other = start("deaf", "a1"), start("deaf", "a2"), start("deaf", "b1")
    code, facts = hard(capsys, "--tenant", "aa")
    assert code == 0
    assert sorted(facts["signalled"]["SIGTERM"]) == sorted([first.pid, second.pid])
    assert (first.wait(30), second.wait(30), other.poll()) == (-signal.SIGTERM, -signal.SIGTERM, None)
    code, facts = hard(capsys)
    assert (code, facts["signalled"]) == (0, {"SIGTERM": [other.pid]})
    assert other.wait(30) == -signal.SIGTERM
    assert {str(row.state) for row in sqlite_guard.runs()} == {"KILLED"}
    assert sqlite_guard.verify()


def test_a_process_that_stands_still_is_killed_though_it_owns_no_run(start, sqlite_guard, capsys):
    """In a global kill, by its place in the kill page."""
    child = start("deaf", "a1")
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    code, facts = hard(capsys)
    assert (code, facts["signalled"]) == (0, {"SIGTERM": [child.pid], "SIGKILL": [child.pid]})
    assert child.wait(30) == -signal.SIGKILL
    assert sqlite_guard.summary("a1").state is RunState.KILLED


def test_what_became_of_it_in_words(start, sqlite_guard, capsys):
    argv = ["kill", "--hard", "--yes", "--reason", "why"]
    start("polite", "a1")
    assert main([*argv, "--run", "a1", "--grace", "30"]) == 0
    assert capsys.readouterr().out == "killed run a1 (generation 1): all stopped by themselves\n"
    child = start("deaf", "a2")
    assert main([*argv, "--run", "a2", "--grace", "0.6"]) == 0
    assert capsys.readouterr().out == f"killed run a2 (generation 2): SIGTERM to pid {child.pid}\n"


@pytest.fixture(params=["sqlite", "postgres"])
def anywhere(request, home, monkeypatch):
    """A guard on the store of the runs and of the command, which the environment names."""
    url = f"sqlite:///{home / 'agentguard.db'}"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    monkeypatch.setenv("AGENTGUARD_STORE", url)
    with Guard.open(url, telemetry=False) as guard:
        yield guard


def test_the_other_runs_of_the_process_are_named_before_they_end_with_it(start, anywhere, capsys):
    child, apart = start("beside", "a1"), start("deaf", "b1")
    named = f"run tame-1 tame, pid {child.pid}"
    refused = main(["kill", "--hard", "--run", "a1", "--reason", "why"])
    said = capsys.readouterr().err
    assert (refused, named in said, "b1" in said) == (1, True, False)
    assert child.poll() is None
    argv = ["kill", "--hard", "--yes", "--reason", "why", "--grace", "0.6"]
    assert main([*argv, "--run", "a1"]) == 0
    said = capsys.readouterr()
    assert f"also ends what else runs in these processes:\n  {named}\n" in said.err
    assert said.out == (
        f"killed run a1 (generation 1): SIGTERM to pid {child.pid}\n  {named}: ended with its process\n"
    )
    assert child.wait(30) == -signal.SIGTERM
    _, facts = hard(capsys, "--run", "b1")
    assert facts["signalled"] == {"SIGTERM": [apart.pid]}
    assert facts["other_runs"] == []


def test_where_processes_have_no_descriptors_they_are_known_by_their_start(
    start, sqlite_guard, capsys, monkeypatch
):
    child = start("deaf", "a1")
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    code, facts = hard(capsys, "--run", "a1")
    assert (code, facts["signalled"]) == (0, {"SIGTERM": [child.pid]})
    assert child.wait(30) == -signal.SIGTERM


def test_the_process_of_a_run_inside_the_one_that_is_meant_is_ended(start, sqlite_guard, capsys):
    child = start("nested", "a1")
    code, facts = hard(capsys, "--run", "a1")
    assert (code, facts["signalled"]) == (0, {"SIGTERM": [child.pid]})
    (event,) = [event for event in sqlite_guard.history("control") if event.type == "processes_signalled"]
    (process,) = event.data["processes"]
    assert process["runs"] == ["inside"], "the one around it has stopped"


def test_a_global_kill_passes_over_the_process_that_takes_part_and_says_it(start, sqlite_guard, capsys):
    sqlite_guard.runtime.participate()
    code, facts = hard(capsys)
    assert (code, facts["signalled"]) == (3, {})
    assert on_record(sqlite_guard) == []


def test_it_never_ends_itself(sqlite_guard, capsys):
    """This process owns the run that is meant, and takes part in the page."""
    with suppress(agentguard.KillSwitchTriggeredError), sqlite_guard.run("r", run_id="r") as run:
        run.call("body", lambda: hard(capsys, "--run", "r", grace="0"))
    assert on_record(sqlite_guard) == []
    assert run.state is RunState.KILLED


def test_a_pid_that_was_given_to_another_process_is_left_alone(start, sqlite_guard, capsys):
    """The row of a dead owner names a pid that somebody else has now: start times tell them apart."""
    child = start("deaf", "a1")
    bystander = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    )
    child.kill()
    child.wait()
    store = sqlite_guard.components.store
    row = store.row("a1")
    row.owner = {**row.owner, "pid": bystander.pid}
    store._database().writer.run("UPDATE run SET owner = ?", (json.dumps(row.owner),), wait=30.0)
    assert store.row("a1").owner["pid"] == bystander.pid
    code, facts = hard(capsys, "--run", "a1")
    assert (code, facts["signalled"]) == (3, {})
    assert bystander.poll() is None
    bystander.communicate()
    assert sqlite_guard.summary("a1").state is RunState.KILLED


def test_an_escalation_of_a_kill_that_a_body_ignored(start, sqlite_guard, capsys, eventually):
    """The run has ended long since; its body goes on."""
    child = start("deaf", "a1")
    sqlite_guard.kill(run="a1", reason="gently")
    eventually(lambda: sqlite_guard.summary("a1").state is RunState.KILLED)
    assert child.poll() is None
    code, facts = hard(capsys, "--tenant", "aa")
    assert (code, facts["signalled"]) == (0, {"SIGTERM": [child.pid]})
    assert child.wait(30) == -signal.SIGTERM
    code, facts = hard(capsys, "--run", "a1")
    assert (code, facts["signalled"]) == (3, {})


def test_a_store_that_cannot_be_read_is_said_and_the_kill_is_recorded(home, capsys):
    (home / "agentguard.db").write_text("no database " * 1000)
    code = main(["kill", "--hard", "--yes", "--reason", "why", "--grace", "0"])
    said = capsys.readouterr()
    assert code == 1
    assert said.out.startswith("killed global (generation 1)")
    assert "the store: " in said.err
    assert "no SQLite database" in said.err


def test_without_a_terminal_it_asks_for_yes(home, capsys):
    assert main(["kill", "--hard", "--run", "r", "--reason", "why"]) == 1
    assert "say --yes" in capsys.readouterr().err
    with Guard.open(telemetry=False) as guard:
        assert guard.kills() == []


@pytest.mark.parametrize(("answer", "code"), [("kill hard", 3), ("yes", 1)])
def test_on_a_terminal_it_asks(home, answer, code):
    terminal, theirs = pty.openpty()
    command = [sys.executable, "-m", "agentguard.cli", "kill", "--hard", "--run", "r", "--reason", "why"]
    asked = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    os.close(theirs)
    os.write(terminal, f"{answer}\n".encode())
    out, err = asked.communicate(timeout=60)
    os.close(terminal)
    assert asked.returncode == code
    assert "Type 'kill hard' to go on" in err
    assert ("no live process holds such a run" in out) is (code == 3)
