"""`agentguard kill` and `revive`, as somebody types them."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

import agentguard
from agentguard import Guard, RunState
from agentguard.cli import aftermath
from agentguard.cli import main as agentguard_main
from agentguard.cli.commands.kill import main
from agentguard.killswitch.kill_requests import kill_data
from agentguard.killswitch.page import PageKillSwitch
from agentguard.sessions import upkeep
from tests.kit import wait_until
from tests.postgres import execute
from tests.servers import free_port

SOURCE = Path(agentguard.__file__).parents[1]
DEADLINE = 60.0

COMMAND = "import sys; from agentguard.cli.commands.kill import main; sys.exit(main(sys.argv[1:]))"

JOINS = """
import sys
from pathlib import Path
from agentguard.killswitch.page import PageKillSwitch
from agentguard.sessions import upkeep
switch = PageKillSwitch(Path(sys.argv[1]))
release = len(sys.argv) == 2
switch.join(lambda generation: release or sys.stdin.readline())
print("ready", flush=True)
sys.stdin.read()
"""


class Result(NamedTuple):
    code: int
    out: str
    err: str


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SOURCE), "AGENTGUARD_HOME": str(home)}


@pytest.fixture
def home(home: Path) -> Path:
    """Below the test's own, and not there yet."""
    return home / "state"


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """The command in this process, for its words and codes; stdin is no terminal under pytest."""

    def run_it(*argv: str) -> Result:
        code = main([*argv, "--home", str(home)])
        return Result(code, *capsys.readouterr())

    return run_it


@pytest.fixture
def switch(home: Path) -> Iterator[PageKillSwitch]:
    opened = PageKillSwitch(home)
    yield opened
    opened.close()


@pytest.fixture
def attach(home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that takes part; with `stuck`, one that never acts."""
    children: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", JOINS, str(home), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(home),
        )
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


@pytest.mark.parametrize(
    ("target", "name"),
    [((), "global"), (("--tenant", "acme"), "tenant acme"), (("--run", "r1"), "run r1")],
    ids=["global", "tenant", "run"],
)
def test_kill_says_what_it_hit(
    run: Callable[..., Result],
    attach: Callable[..., subprocess.Popen[str]],
    target: tuple[str, ...],
    name: str,
) -> None:
    attach()
    attach()
    began = time.monotonic()
    result = run("kill", *target, "--yes", "--reason", "why", "--timeout", "60")
    took = time.monotonic() - began
    assert result.code == 0
    start, _, end = result.out.partition(" in ")
    assert start == f"killed {name} (generation 1): 2 live, 2 acknowledged"
    milliseconds, unit = end.split()
    assert unit == "ms"
    assert 0 <= float(milliseconds) / 1000 <= took
    assert result.err == ""


def test_kill_is_recorded_with_reason_and_actor(run: Callable[..., Result], switch: PageKillSwitch) -> None:
    run("kill", "--tenant", "acme", "--reason", "bad\nprompt", "--actor", "ann")
    kill = switch.find("acme", "r1", since=1)
    assert kill is not None
    assert (kill.reason, kill.actor, kill.generation) == ("bad\\nprompt", "ann", 1)
    assert switch.find("other", "r1", since=0) is None


def test_kill_exits_3_where_no_live_process_is_attached(
    run: Callable[..., Result], switch: PageKillSwitch
) -> None:
    result = run("kill", "--run", "r1", "--reason", "why")
    assert result.code == 3
    assert result.out.startswith("killed run r1 (generation 1): no live process is attached")
    assert switch.find("acme", "r1", since=1) is not None


def test_kill_exits_4_and_names_those_who_have_not_acted(
    run: Callable[..., Result],
    attach: Callable[..., subprocess.Popen[str]],
    switch: PageKillSwitch,
) -> None:
    attach()
    stuck = attach("stuck")
    assert switch.record(*kill_data("first", run="r0")) == 1
    assert switch.acknowledgements(1, timeout=0.3).live == 2
    result = run("kill", "--yes", "--reason", "why", "--timeout", "0.3", "--json")
    assert result.code == 4
    facts = json.loads(result.out)
    assert facts["live"] == 2
    assert stuck.pid in facts["unacknowledged_pids"]
    result = run("kill", "--yes", "--reason", "why", "--timeout", "0.3")
    assert result.code == 4
    assert f"still to act: pid {stuck.pid}" in result.out


def test_json_is_one_object_with_the_facts(
    home: Path, run: Callable[..., Result], attach: Callable[..., subprocess.Popen[str]]
) -> None:
    attach()
    began = time.monotonic()
    kill = json.loads(run("kill", "--run", "r1", "--reason", "why", "--actor", "ann", "--json").out)
    assert 0 < kill.pop("seconds") <= time.monotonic() - began
    assert kill == {
        "action": "kill",
        "home": str(home),
        "generation": 1,
        "scope": "run",
        "target": "r1",
        "reason": "why",
        "actor": "ann",
        "live": 1,
        "acknowledged": 1,
        "unacknowledged_pids": [],
    }
    revive = json.loads(run("revive", "--run", "r1", "--reason", "fixed", "--json").out)
    assert (revive["action"], revive["generation"], revive["cleared"]) == ("revive", 2, 1)


def test_revive_clears_its_target_and_says_what(run: Callable[..., Result], switch: PageKillSwitch) -> None:
    run("kill", "--run", "r1", "--reason", "why", "--actor", "ann")
    run("kill", "--yes", "--reason", "all", "--actor", "ann")
    result = run("revive", "--run", "r1", "--reason", "fixed")
    assert result == (0, "revived run r1 (generation 3): cleared 'why' by ann\n", "")
    assert [kill.cleared for kill in switch.kills()] == [True, False]


def test_revive_exits_3_and_records_nothing_where_there_is_nothing_to_revive(
    run: Callable[..., Result], switch: PageKillSwitch
) -> None:
    run("kill", "--run", "r1", "--reason", "why")
    result = run("revive", "--reason", "fixed")
    assert result == (3, "nothing to revive: no kill of global is in force\n", "")
    assert switch.verify().seq == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("kill", "--run", "", "--reason", "why"), "run is ''"),
        (("kill", "--tenant", "", "--reason", "why"), "tenant is ''"),
        (("kill", "--run", "r1", "--tenant", "acme", "--reason", "why"), "not allowed with"),
        (("kill", "--run", "a\nb", "--reason", "why"), "control characters"),
        (("kill", "--reason", " "), "reason must not be empty"),
        (("kill",), "--reason is required"),
        (("kill", "--reason", "why", "--timeout", "nan"), "--timeout: 'nan' is no number of seconds"),
        (("kill", "--reason", "why", "--timeout", "-1"), "--timeout: '-1' is no number of seconds"),
        (("kill", "--reason", "why", "--grace", "soon"), "--grace: 'soon' is no number of seconds from 0 up"),
        (("kill", "--rea", "why"), "unrecognized arguments"),
        (("kill", "r1", "--tenant", "acme", "--reason", "why"), "name runs or a tenant, not both"),
        (("maim", "--reason", "why"), "invalid choice"),
    ],
)
def test_usage_errors_exit_2_and_kill_nobody(
    home: Path, run: Callable[..., Result], argv: tuple[str, ...], message: str
) -> None:
    result = run(*argv)
    assert result.code == 2
    assert message in result.err
    assert result.out == ""
    assert not home.exists()


def test_help_exits_0(run: Callable[..., Result]) -> None:
    assert run("kill", "--help").code == 0


def test_a_switch_that_cannot_be_used_exits_5_and_is_named(home: Path, run: Callable[..., Result]) -> None:
    home.write_text("in the way")
    result = run("kill", "--yes", "--reason", "why")
    assert result.code == 5
    assert result.err.startswith(f"agentguard kill: the kill could not be recorded in {home}/control.log")
    assert result.out == ""


def test_the_home_comes_from_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AGENTGUARD_HOME", str(home))
    assert main(["kill", "--run", "r1", "--reason", "why", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["home"] == str(home)
    assert (home / "control.log").exists()


def type_at_terminal(home: Path, typed: str, *argv: str) -> Result:
    """Run the command on a terminal of its own, with `typed` waiting there."""
    leader, follower = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *argv],
            stdin=follower,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(home),
        )
        os.write(leader, typed.encode())
        out, err = process.communicate(timeout=DEADLINE)
    finally:
        os.close(follower)
        with suppress(OSError):
            os.close(leader)
    return Result(process.returncode, out, err)


def test_a_global_kill_asks_on_a_terminal(home: Path) -> None:
    result = type_at_terminal(home, "no\n", "kill", "--reason", "why")
    assert result.code == 1
    assert "Type 'kill all'" in result.err
    assert "nothing was recorded" in result.err
    assert result.out == ""
    assert not home.exists()
    result = type_at_terminal(home, "kill all\n", "kill", "--reason", "why")
    assert result.code == 3
    assert result.out.startswith("killed global (generation 1)")


@pytest.mark.parametrize(
    "argv",
    [("kill", "--yes"), ("kill", "--run", "r1"), ("kill", "--tenant", "acme")],
    ids=["yes", "run", "tenant"],
)
def test_nothing_else_asks(home: Path, argv: tuple[str, ...]) -> None:
    result = type_at_terminal(home, "no\n", *argv, "--reason", "why")
    assert result.code == 3
    assert result.err == ""


def test_a_reason_left_out_is_asked_for_on_a_terminal(home: Path) -> None:
    result = type_at_terminal(home, "bad prompt\n", "kill", "--run", "r1", "--json")
    assert result.code == 3
    assert result.err == "Reason: "
    assert json.loads(result.out)["reason"] == "bad prompt"


def test_kill_imports_nothing_optional(home: Path) -> None:
    program = (
        "import sys\n"
        "from agentguard.cli.commands.kill import main\n"
        "main(['kill', '--yes', '--reason', 'why'])\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    process = subprocess.run(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
        # A coverage run imports much of this by itself.
        env={name: value for name, value in environment(home).items() if not name.startswith("COVERAGE")},
    )
    killed, modules = process.stdout.splitlines()
    assert killed.startswith("killed global")
    names = set(modules.split())
    assert "agentguard" in names
    assert not names & {
        "typer",
        "click",
        "rich",
        "opentelemetry",
        "sqlite3",
        "redis",
        "psycopg",
        "wrapt",
        "asyncio",
    }


# --- which run is meant ------------------------------------------------------------------------


@pytest.fixture
def recorded(home: Path) -> Iterator[Guard]:
    """A store in the home, with two runs whose ids begin alike."""
    with Guard.open(f"sqlite:///{home / 'agentguard.db'}", kill_switch="memory", telemetry=False) as guard:
        for run_id in ("01a20423-1ab7", "01a20423-9999"):
            guard.start("r", run_id=run_id).close()
        yield guard


@pytest.mark.usefixtures("recorded")
def test_the_beginning_of_an_id_is_enough(home: Path, run: Callable[..., Result]) -> None:
    for typed in ("01a20423-1", "01a20423-1ab7"):
        result = run("kill", "--run", typed, "--reason", "why", "--json")
        assert json.loads(result.out)["target"] == "01a20423-1ab7"
        assert json.loads(result.out)["known"] is True
    cleared = run("revive", "--run", "01a20423-1", "--reason", "why", "--json")
    assert (cleared.code, json.loads(cleared.out)["cleared"]) == (0, 2)


@pytest.mark.usefixtures("recorded")
def test_a_beginning_of_several_ids_is_refused_and_they_are_named(
    home: Path, run: Callable[..., Result]
) -> None:
    result = run("kill", "--run", "01a20423", "--reason", "why")
    assert result.code == 2
    assert "several runs begin with '01a20423': 01a20423-1ab7, 01a20423-9999" in result.err
    assert not (home / "control.log").exists()


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("typed", ["nobody", "01a2", "01a20423-2", "%1a20423", "01a20423' OR '1'='1"])
def test_a_run_that_the_store_does_not_have_is_killed_as_typed_and_reported(
    typed: str, run: Callable[..., Result]
) -> None:
    result = run("kill", "--run", typed, "--reason", "why", "--json")
    assert result.code == 3
    facts = json.loads(result.out)
    assert (facts["target"], facts["known"]) == (typed, False)
    assert f"the store has no run {typed}; is the id right?" in result.err


def test_a_store_that_cannot_be_read_is_not_in_the_way(home: Path, run: Callable[..., Result]) -> None:
    home.mkdir()
    (home / "agentguard.db").write_text("no database")
    result = run("kill", "--run", "r1", "--reason", "why", "--json")
    assert result.code == 3
    assert json.loads(result.out)["target"] == "r1"
    assert "known" not in json.loads(result.out)


def test_of_a_store_that_does_not_answer_nothing_is_known(
    home: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTGUARD_STORE", "postgresql://127.0.0.1:1/agentguard")
    monkeypatch.setenv("AGENTGUARD_KILL_SWITCH", "page")  # else it lies where the store is
    result = run("kill", "--run", "r1", "--reason", "why", "--json")
    assert "known" not in json.loads(result.out)
    assert "nobody can tell whether run r1 exists" in result.err


@pytest.mark.usefixtures("recorded")
def test_a_locked_store_is_not_in_the_way(home: Path, run: Callable[..., Result]) -> None:
    with closing(sqlite3.connect(home / "agentguard.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        result = run("kill", "--run", "01a20423-1", "--reason", "why", "--json")
        assert json.loads(result.out)["target"] == "01a20423-1ab7", "readers wait for no writer"


# --- runs whose process is dead, and tenants without a run --------------------------------------

DIES = """
import os, sys
from agentguard import Guard, RunState
with Guard.open(telemetry=False).run("w", run_id=sys.argv[1], tenant="acme"):
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def dead(home: Path) -> str:
    """A run that is RUNNING by its row, and whose process was killed."""
    home.mkdir()
    died = subprocess.run(
        [sys.executable, "-c", DIES, "dead-run"], env=environment(home), timeout=DEADLINE, check=False
    )
    assert died.returncode == -9
    return "dead-run"


@pytest.mark.parametrize(
    "target", [("--run", "dead-run"), ("--tenant", "acme"), ()], ids=["run", "tenant", "global"]
)
def test_the_killer_writes_the_end_of_a_run_whose_process_is_dead(
    home: Path, run: Callable[..., Result], dead: str, target: tuple[str, ...]
) -> None:
    result = run("kill", *target, "--yes", "--reason", "why", "--actor", "ann")
    assert "; ended 1 whose process had died" in result.out
    with Guard.open(f"sqlite:///{home / 'agentguard.db'}", kill_switch="memory", telemetry=False) as guard:
        row = guard.components.store.row(dead)
        assert row is not None
        assert row.state == "KILLED"


def test_the_end_of_a_dead_run_is_written_in_the_store_that_the_environment_names(
    home: Path, run: Callable[..., Result], dead: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in home.glob("agentguard.db*"):  # with what its process had not moved into it yet
        file.rename(tmp_path / file.name)
    store = tmp_path / "agentguard.db"
    monkeypatch.setenv("AGENTGUARD_STORE", f"sqlite:///{store}")
    facts = json.loads(run("kill", "--run", dead, "--reason", "why", "--json").out)
    assert facts["buried"] == 1
    with Guard.open(f"sqlite:///{store}", kill_switch="memory", telemetry=False) as guard:
        assert guard.history(dead)[-1].type == "run_killed"


@pytest.mark.parametrize(
    "command",
    [("runs",), ("summary", "dead-run"), ("show", "dead-run"), ("top", "--once")],
    ids=lambda c: c[0],
)
def test_reading_commands_leave_a_killed_run_to_the_heartbeat_of_a_live_process(
    home: Path, dead: str, switch: PageKillSwitch, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTGUARD_HOME", str(home))
    switch.record(*kill_data("why", tenant="acme", actor="ann"))
    subprocess.run(
        [sys.executable, "-m", "agentguard.cli", *command],
        capture_output=True,
        env=environment(home),
        timeout=DEADLINE,
        check=True,
    )
    with Guard.open(f"sqlite:///{home / 'agentguard.db'}", kill_switch=switch, telemetry=False) as guard:
        assert guard.summary(dead).state is RunState.RUNNING
        assert "run_killed" not in [event.type for event in guard.history(dead)]
        upkeep.beat(guard.runtime)
        assert [event.type for event in guard.history(dead)][-1] == "run_killed"
        assert guard.summary(dead).state is RunState.KILLED


@pytest.mark.usefixtures("recorded")
def test_a_tenant_without_a_live_run_is_killed_and_reported(
    home: Path, run: Callable[..., Result], attach: Callable[..., subprocess.Popen[str]]
) -> None:
    attach()
    result = run("kill", "--tenant", "typo", "--reason", "why")
    assert result.code == 3
    assert "the store has no live run of tenant typo; is the name right?" in result.err
    facts = json.loads(run("kill", "--tenant", "typo", "--reason", "why", "--json").out)
    assert (facts["generation"], facts["live"], facts["live_runs"]) == (2, 1, 0)


def test_a_tenant_with_a_live_run_is_hit(
    home: Path, run: Callable[..., Result], recorded: Guard, attach: Callable[..., subprocess.Popen[str]]
) -> None:
    attach()
    with recorded.run("live", tenant="acme"):
        facts = json.loads(run("kill", "--tenant", "acme", "--reason", "why", "--json").out)
    assert (facts["live"], facts["acknowledged"], facts["live_runs"]) == (1, 1, 1)


def test_revive_needs_no_reason(run: Callable[..., Result], switch: PageKillSwitch) -> None:
    run("kill", "--tenant", "acme", "--reason", "why")
    assert run("revive", "--tenant", "acme").code == 0
    (kill,) = switch.kills()
    assert kill.cleared


# --- what was named, and what goes on ------------------------------------------------------------

HOLDS = """
import sys, time
from pathlib import Path
from agentguard import Guard, guarded_step

@guarded_step
def crunch():
    print("in the body", flush=True)
    while not Path(sys.argv[1]).exists():
        time.sleep(0.01)

with Guard.open(telemetry=False) as guard, guard.run(sys.argv[2], run_id=sys.argv[3]):
    if len(sys.argv) == 4:
        crunch()
    else:
        with guard.run("inner", run_id=sys.argv[4]):
            crunch()
"""


class Holder(NamedTuple):
    """A process whose run is inside a sync body until `let_go`."""

    process: subprocess.Popen[str]
    release: Path

    def let_go(self) -> None:
        self.release.touch()


@pytest.fixture
def hold(home: Path, tmp_path: Path) -> Iterator[Callable[..., Holder]]:
    held: list[Holder] = []

    def start(name: str, run_id: str, *nested: str) -> Holder:
        release = tmp_path / f"release-{run_id}"
        command = [sys.executable, "-c", HOLDS, str(release), name, run_id, *nested]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment(home)
        )
        held.append(Holder(process, release))
        assert process.stdout is not None
        assert process.stdout.readline() == "in the body\n"
        return held[-1]

    yield start
    for holder in held:
        holder.let_go()
        holder.process.communicate(timeout=DEADLINE)


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The store of the runs and of the command; in PostgreSQL, the kills lie there too."""
    if request.param == "postgres":
        url: str = request.getfixturevalue("postgres_url")
        monkeypatch.setenv("AGENTGUARD_STORE", url)
        monkeypatch.setenv("AGENTGUARD_KILL_SWITCH", url)
    return str(request.param)


@pytest.mark.usefixtures("store")
def test_a_body_that_goes_on_is_named_and_the_kill_exits_4(
    run: Callable[..., Result], hold: Callable[[str, str], Holder]
) -> None:
    holder = hold("wild", "wild-run-1")
    result = run("kill", "wild-run-1", "--reason", "why")
    assert result.code == 4
    assert f"run wild-run-1 wild, pid {holder.process.pid} on " in result.out
    assert "main/crunch#1 goes on" in result.out
    assert "--wait waits for it, --hard ends its process" in result.out


SPINS = """
import contextlib, sys
from agentguard import Guard, guarded_step

@guarded_step
def fetch():
    pass

with Guard.open(telemetry=False) as guard, guard.run("wild", run_id="wild-run-1"):
    print("in the run", flush=True)
    try:
        while True:
            with contextlib.suppress(Exception):
                fetch()
    finally:
        sys.stdin.read()
"""


@pytest.mark.usefixtures("store")
def test_code_that_swallows_the_kill_is_told_of_in_the_answer_and_in_the_log(
    home: Path, run: Callable[..., Result], capsys: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SPINS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(home),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in the run\n"
        result = run("kill", "wild-run-1", "--reason", "why", "--wait", "--timeout", "60")
        said = "stopped; main swallowed its stop, and was slowed and cancelled"
        assert (result.code, said in result.out) == (0, True), result
        again = run("kill", "wild-run-1", "--reason", "why", "--json")
        assert again.code == 0
        process.communicate(timeout=DEADLINE)
    assert agentguard_main(["show", "wild-run-1", "--home", str(home)]) == 0
    shown = capsys.readouterr().out
    assert "main went on calling after its stop, 50 times: slowed" in shown
    assert "main went on calling after its stop, 58 times: cancelled" in shown


@pytest.mark.usefixtures("store")
def test_wait_returns_once_nothing_goes_on(
    run: Callable[..., Result], hold: Callable[[str, str], Holder]
) -> None:
    holder = hold("wild", "wild-run-1")
    timer = threading.Timer(1.5, holder.let_go)  # beyond what is waited for anyhow
    timer.start()
    result = run("kill", "wild-run-1", "--reason", "why", "--wait", "--timeout", "30", "--json")
    timer.join()
    facts = json.loads(result.out)
    assert (result.code, facts["runs"][0]["in_flight"]) == (0, [])


@pytest.mark.usefixtures("store")
def test_several_runs_are_killed_by_one_command(
    run: Callable[..., Result], hold: Callable[[str, str], Holder]
) -> None:
    holders = [hold("one", "run-number-1"), hold("two", "run-number-2")]
    for holder in holders:
        holder.let_go()
        holder.process.wait(DEADLINE)
    result = run("kill", "run-number-1", "run-number-2", "--reason", "why")
    assert [line.split(" (")[0] for line in result.out.splitlines() if line.startswith("killed")] == [
        "killed run run-number-1",
        "killed run run-number-2",
    ]


@pytest.mark.usefixtures("store")
def test_runs_are_killed_by_name_once_that_is_confirmed(
    home: Path, run: Callable[..., Result], hold: Callable[[str, str], Holder]
) -> None:
    hold("wild", "wild-run-1")
    hold("wild", "wild-run-2")
    refused = run("kill", "wild", "--reason", "why")
    assert refused.code == 2
    assert "2 live runs are named 'wild': wild-run-" in refused.err
    assert "say --yes" in refused.err
    asked = type_at_terminal(home, "no\n", "kill", "wild", "--reason", "why")
    assert (asked.code, "Type 'kill 2'" in asked.err) == (1, True)
    result = run("kill", "wild", "--reason", "why", "--yes", "--json")
    again = run("kill", "wild", "--reason", "why", "--yes", "--json")  # while their bodies go on
    for killed in (result, again):
        assert killed.code == 4
        assert sorted(json.loads(line)["target"] for line in killed.out.splitlines()) == [
            "wild-run-1",
            "wild-run-2",
        ]


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("target", [("wild-run-1",), ("--tenant", "default"), ("--yes",)])
def test_a_second_kill_still_names_the_body_that_goes_on(
    run: Callable[..., Result],
    hold: Callable[[str, str], Holder],
    target: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    holder = hold("wild", "wild-run-1")
    assert run("kill", "wild-run-1", "--reason", "why").code == 4
    again = run("kill", *target, "--reason", "why")
    assert (again.code, "main/crunch#1 goes on" in again.out) == (4, True)
    waited = run("kill", *target, "--reason", "why", "--wait", "--timeout", "0.2", "--json")
    assert (waited.code, json.loads(waited.out)["runs"][0]["in_flight"]) == (4, ["main/crunch#1"])

    def pause(seconds: float) -> None:
        holder.let_go()
        time.sleep(seconds)

    monkeypatch.setattr(aftermath, "time", SimpleNamespace(monotonic=time.monotonic, sleep=pause))
    ended = run("kill", *target, "--reason", "why", "--wait", "--timeout", "30", "--json")
    assert json.loads(ended.out)["runs"][0]["in_flight"] == []


def move_away(home: Path, run_id: str) -> None:
    """Have a run's process be of another host, which was heard of last 45 seconds ago."""
    url = os.environ.get("AGENTGUARD_STORE")
    heard = time.time_ns() - 45 * 10**9
    if url is None:
        with closing(sqlite3.connect(home / "agentguard.db", isolation_level=None)) as connection:
            connection.execute(
                "UPDATE run SET owner = json_set(owner, '$.host', 'elsewhere'), heartbeat_ns = ? WHERE run_id = ?",
                (heard, run_id),
            )
    else:
        execute(
            url,
            "UPDATE agentguard.run SET owner = jsonb_set(owner::jsonb, '{host}', '\"elsewhere\"')::text, "
            f"heartbeat_ns = {heard} WHERE run_id = '{run_id}'",
        )


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("times", [1, 2])
def test_of_a_process_that_is_not_heard_of_the_kill_says_what_it_knows(
    home: Path, run: Callable[..., Result], hold: Callable[[str, str], Holder], times: int
) -> None:
    """Also of a run that had ended by then; nothing is waited for, and 0 is for what is known to have stopped."""
    holder = hold("wild", "wild-run-1")
    if times == 2:
        assert run("kill", "wild-run-1", "--reason", "why").code == 4
    else:
        holder.process.send_signal(signal.SIGSTOP)
    move_away(home, "wild-run-1")
    try:
        result = run("kill", "wild-run-1", "--reason", "why", "--wait", "--timeout", "1")
        if times == 1:
            assert "ended 1 whose process had died" in result.out
    finally:
        holder.process.send_signal(signal.SIGCONT)
    assert result.code == 4
    said = " on elsewhere: main/crunch#1 was in flight when its process was last heard of, (\\d+) s ago, and "
    heard = re.search(f"{said}nobody can tell from here whether it goes on", result.out)
    assert heard is not None, result.out
    assert int(heard[1]) >= 45
    assert "--wait waits for it" not in result.out
    facts = json.loads(run("kill", "wild-run-1", "--reason", "why", "--json").out)
    assert facts["runs"][0]["unheard_s"] >= 45
    assert "runs" not in json.loads(run("kill", "--tenant", "default", "--reason", "why", "--json").out)


@pytest.mark.usefixtures("store")
def test_a_run_that_has_ended_gives_signs_of_life_while_a_body_of_it_goes_on(
    home: Path, run: Callable[..., Result], hold: Callable[[str, str], Holder]
) -> None:
    hold("wild", "wild-run-1")
    run("kill", "wild-run-1", "--reason", "why")
    url = os.environ.get("AGENTGUARD_STORE") or f"sqlite:///{home / 'agentguard.db'}"
    with Guard.open(url, kill_switch="memory", telemetry=False) as guard:
        store = guard.components.store
        before = store.row("wild-run-1")
        assert before is not None
        assert before.state == "KILLED"
        wait_until(lambda: store.row("wild-run-1").heartbeat_ns > before.heartbeat_ns)  # type: ignore[union-attr]


@pytest.mark.usefixtures("store")
def test_the_body_of_a_nested_run_is_named_where_the_run_around_it_is_killed(
    home: Path, run: Callable[..., Result], hold: Callable[..., Holder]
) -> None:
    hold("outer", "outer-run-1", "inner-run-1")
    for _ in range(2):
        result = run("kill", "outer-run-1", "--reason", "why")
        assert result.code == 4
        assert "run inner-run-1 inner, pid " in result.out


@pytest.mark.usefixtures("store")
def test_the_beginning_of_an_id_hits_the_run_in_any_store(
    run: Callable[..., Result], hold: Callable[[str, str], Holder]
) -> None:
    hold("wild", "wild-run-1")
    hold("wild", "wild-row-2")
    refused = run("kill", "wild-r", "--reason", "why")
    assert (refused.code, "no run wild-r" in refused.err) == (3, True), "6 characters are too few"
    hit = run("kill", "wild-run", "--reason", "why", "--json")
    facts = json.loads(hit.out)
    assert (hit.code, facts["target"], facts["known"]) == (4, "wild-run-1", True)
    assert [found["run_id"] for found in facts["runs"]] == ["wild-run-1"]
    hold("wild", "wild-run-3")
    several = run("kill", "wild-run", "--reason", "why")
    assert several.code == 2
    assert "several runs begin with 'wild-run': " in several.err


@pytest.mark.usefixtures("store")
def test_a_run_that_no_store_has_is_reported_though_processes_acted(
    run: Callable[..., Result], hold: Callable[[str, str], Holder]
) -> None:
    hold("wild", "wild-run-1")
    for argv in (("kill", "--run", "some-name"), ("kill", "nonexistent-name")):
        result = run(*argv, "--reason", "why")
        assert (result.code, "the store has no run " in result.err) == (3, True)
        said = f"recorded a kill of run {argv[-1]} (generation "
        assert (result.out.startswith(said), "acknowledged" in result.out) == (True, False)
    nobody = run("kill", "--tenant", "typo", "--reason", "why")
    assert (nobody.code, "no live run of tenant typo" in nobody.err) == (3, True)


def test_a_server_that_is_away_is_not_in_the_way_and_nobody_can_tell(
    home: Path,
    run: Callable[..., Result],
    hold: Callable[[str, str], Holder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    holder = hold("wild", "wild-run-1")
    away = f"postgresql://nobody:secret@127.0.0.1:{free_port()}/agentguard"
    monkeypatch.setenv("AGENTGUARD_STORE", away)
    monkeypatch.setenv("AGENTGUARD_KILL_SWITCH", "page")  # else it lies where the store is
    result = run("kill", "wild-run-1", "--reason", "why", "--json")
    facts = json.loads(result.out)
    assert (result.code, facts["target"], facts["acknowledged"]) == (4, "wild-run-1", 1)
    assert "known" not in facts
    assert "nobody can tell whether run wild-run-1 exists, " in result.err
    assert "secret" not in result.err + result.out
    holder.let_go()
    holder.process.wait(DEADLINE)
    with Guard.open(f"sqlite:///{home / 'agentguard.db'}", kill_switch="memory", telemetry=False) as guard:
        assert guard.summary("wild-run-1").state is RunState.KILLED


def test_a_global_kill_where_nobody_can_be_asked_wants_yes(home: Path, run: Callable[..., Result]) -> None:
    result = run("kill", "--reason", "why")
    assert result.code == 1
    assert "stops every run of every tenant" in result.err
    assert "say --yes, or name runs or a tenant" in result.err
    assert not home.exists()
