"""The command line: every command, its JSON, its exit codes, and what it says of bad input."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from agentguard import Budget, BudgetExceededError, Guard, KillSwitchTriggeredError, Run, Usage, guarded_step
from agentguard.cli import lookup, main, output
from agentguard.killswitch.page import PageKillSwitch
from tests import terminal
from tests.servers import free_port

Cli = Callable[..., tuple[int, str, str]]

ESCAPE = "\x1b[31m"
COMMANDS = {
    "demo",
    "runs",
    "show",
    "summary",
    "verify",
    "tail",
    "pause",
    "resume",
    "doctor",
    "kill",
    "revive",
    *("export", "erase", "prune", "tenants", "costs", "top", "approvals", "approve", "deny"),
    *("replay", "recover", "fork", "resolve", "diff", "what-if", "set-budget"),
    "migrate",
    "relay",
    "serve",
    "token",
    *("alerts", "worker", "queue", "end"),
}


@guarded_step(usage=Usage(usd="0.25", emails=1))
def send(to: str, *, body: str = "hello") -> str:
    return f"sent to {to}"


@guarded_step(kind="llm", usage=Usage(usd="0.002", input_tokens=60, output_tokens=10))
def ask(question: str) -> dict[str, str]:
    return {"answer": f"{ESCAPE}red"}


@guarded_step
def fail() -> None:
    raise ValueError(f"no {ESCAPE}good\nat all")


@guarded_step
def forward(to: str) -> str:
    return send(to)


def open_guard(home: Path) -> Guard:
    return Guard.open(f"sqlite:///{home}/agentguard.db", kill_switch=PageKillSwitch(home), telemetry=False)


def record(home: Path) -> None:
    """Four runs and a kill: what most tests look at."""
    with open_guard(home) as guard:
        budget = Budget(usd="10", seconds=60, calls={"send": 20})
        with guard.run("report \N{SNOWMAN}", run_id="report-1", tenant="acme", budget=budget) as run:
            with run.scope("research", Budget(emails=3)):
                send("ann", body="long")
                with run.scope("web"):
                    forward("bob")
            ask("what?")
            with suppress(ValueError):
                fail()
            run.now()
            with guard.run("child", run_id="child-1", tenant="acme"):
                send("cid")
        with (
            suppress(BudgetExceededError),
            guard.run("spender", run_id="report-2", budget=Budget(usd="1"), inputs={"limit": 1}),
        ):
            for _ in range(9):
                send("everybody")
        with suppress(KillSwitchTriggeredError), guard.run("victim", run_id="victim") as run:
            send("one")
            run.kill(f"enough {ESCAPE}", actor="ann")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("recorded") / "home"
    record(home)
    return home


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """The same, to do something to."""
    home = tmp_path / "spoilt"
    record(home)
    return home


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's settings, and what the commands set is taken back."""
    for name in ("AGENTGUARD_HOME", "AGENTGUARD_STORE"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command and give its exit code, output and complaints."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert ESCAPE not in captured.out + captured.err
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return call


@pytest.fixture
def data(cli: Cli) -> Callable[..., Any]:
    """Run a command with --json that has to succeed."""

    def call(*arguments: object) -> Any:
        code, out, err = cli(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return call


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "agentguard.cli", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# --- runs ----------------------------------------------------------------------------------------


def test_runs_lists_the_newest_first(cli: Cli, recorded: Path) -> None:
    code, out, err = cli("runs", "--home", recorded)
    assert (code, err) == (0, "")
    header, *lines = out.splitlines()
    assert header.split() == [
        *("run", "name", "tenant", "state", "steps", "usd", "$/min", "limit", "tokens", "last", "step"),
        *("owner", "started", "duration", "ended", "by"),
    ]
    assert [line.split()[0] for line in lines] == ["victim", "report-2", "child-1", "report-1"]
    assert "run kill: enough \\x1b[31m" in lines[0]
    assert "$1.00" in lines[1]
    assert "usd limit (run)" in lines[1]


def test_runs_as_json_are_the_summaries(data: Callable[..., Any], recorded: Path) -> None:
    with open_guard(recorded) as guard:
        shown = data("runs", "--home", recorded)
        assert [run | guarded.to_data() for run, guarded in zip(shown, guard.runs(), strict=True)] == shown


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        (["--tenant", "acme"], ["child-1", "report-1"]),
        (["--state", "failed"], ["report-2"]),
        (["--state", "KILLED"], ["victim"]),
        (["--tenant", "acme", "--state", "killed"], []),
        (["--limit", "2"], ["victim", "report-2"]),
    ],
    ids=" ".join,
)
def test_runs_are_filtered(
    data: Callable[..., Any], recorded: Path, options: list[str], ids: list[str]
) -> None:
    assert [run["run_id"] for run in data("runs", "--home", recorded, *options)] == ids


def test_no_runs_is_no_error_and_makes_nothing(cli: Cli, data: Callable[..., Any], tmp_path: Path) -> None:
    code, out, _ = cli("runs", "--home", tmp_path / "new")
    assert code == 0
    assert out.startswith("no runs in sqlite:///")
    assert data("runs") == []
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_log_hides_no_other_run(cli: Cli, spoilt: Path) -> None:
    with open_guard(spoilt) as guard:
        run = guard.start("live", run_id="live")
        edit(
            spoilt,
            "UPDATE event SET body = CAST(replace(body, 'live', 'evil') AS BLOB) "
            "WHERE key = (SELECT number FROM run WHERE run_id = 'live') << 32 | 1",
        )
        code, out, err = cli("runs", "--home", spoilt, "--json")
        assert code == 1
        assert [run["run_id"] for run in json.loads(out)][:2] == ["live", "victim"]
        assert err.startswith("agentguard: run live, event 1: its hash does not fit; shown as of ")
        assert cli("summary", "live", "--home", spoilt)[0] == 1
        run.close()


def test_long_ids_are_shortened_only_as_far_as_they_stay_apart_in_the_store() -> None:
    first, second = "01a20375-a05e-73b2-aeeb-78c4d96681f7", "01a20375-a058-747a-9a1f-dd2004634096"
    far = "7a796bc9-7167-82ef-873f-e82aa94414ce"
    own = "my-own-id-that-is-long"
    with Guard.in_memory(telemetry=False) as guard:
        for run_id in (far, second, own, first):
            with guard.run("r", run_id=run_id):
                pass
        store = guard.components.store
        assert lookup.short_ids([first], store) == {first: "01a20375-a05e"}, "also where it is listed alone"
        assert lookup.short_ids([second, far, own], store) == {
            second: "01a20375-a058",
            far: "7a796bc9",
            own: own,
        }
        for run_id, short in lookup.short_ids([first, second, far, own], store).items():
            assert lookup.find_run(guard, short) == run_id
        with pytest.raises(lookup.AmbiguousRunError, match=f"{second}, {first}; type more"):
            lookup.find_run(guard, "01a20375-a05")


# --- show, summary -------------------------------------------------------------------------------


def test_show_nests_scopes_and_steps(cli: Cli, recorded: Path) -> None:
    code, out, _ = cli("show", "report-1", "--home", recorded)
    assert code == 0
    said = {line[7:].partition(" s  ")[2] for line in out.splitlines()[1:]}
    assert (
        "run report \N{SNOWMAN} created for tenant acme, limits: $10.00, 60 seconds, 20 calls of send" in said
    )
    assert "  scope research opened, limits: emails 3" in said
    assert "    send#1 started, reserves $0.25, emails 1" in said
    assert "    scope web opened" in said
    assert "      forward#1 started" in said
    assert "        forward#1/send#1 started, reserves $0.25, emails 1" in said
    assert "  ask#1 [llm] started, reserves $0.002, 70 tokens" in said
    assert "  run child opened inside this one: child-1" in said
    assert "  run.now#1 recorded" in said
    assert any(line.startswith("  fail#1 failed in ") and "no \\x1b[31mgood at all" in line for line in said)


def test_show_gives_payloads_if_asked(cli: Cli, recorded: Path) -> None:
    _, plain, _ = cli("show", "report-1", "--home", recorded)
    _, full, _ = cli("show", "report-1", "--home", recorded, "--payloads")
    assert 'send("ann", body="long")' not in plain
    assert 'send("ann", body="long")' in full
    assert '-> "sent to ann"' in full
    assert 'inputs {"limit": 1}' in cli("show", "report-2", "--home", recorded, "--payloads")[1]


def test_long_payloads_are_cut_for_people_alone(cli: Cli, data: Callable[..., Any], tmp_path: Path) -> None:
    with open_guard(tmp_path) as guard, guard.run("long", run_id="long"):
        send("x" * 100_000)
    _, out, _ = cli("show", "long", "--home", tmp_path, "--payloads")
    assert "characters; --json shows all)" in out
    assert len(out) < 10_000
    shown = data("show", "long", "--home", tmp_path, "--payloads")
    assert shown["events"][2]["payload"] == [["x" * 100_000], {}]


def test_show_as_json(data: Callable[..., Any], recorded: Path) -> None:
    shown = data("show", "report-2", "--home", recorded)
    with open_guard(recorded) as guard:
        history = guard.history("report-2")
        assert shown["run"] == guard.summary("report-2").to_data()
    assert [event["seq"] for event in shown["events"]] == [event.seq for event in history]
    assert [event["hash"] for event in shown["events"]] == [event.hash for event in history]
    completed = next(event for event in shown["events"] if event["type"] == "step_completed")
    assert completed["usage"] == {"usd": "0.25", "emails": 1, "steps": 1}
    assert "payload" not in completed


def test_show_control_shows_kills(cli: Cli, data: Callable[..., Any], recorded: Path) -> None:
    _, out, _ = cli("show", "control", "--home", recorded)
    assert "run victim killed by ann: enough \\x1b[31m" in out
    (event,) = data("show", "control", "--home", recorded)["events"]
    assert (event["type"], event["data"]["target"]) == ("kill_set", "victim")


def test_summary_says_what_the_run_came_to(cli: Cli, data: Callable[..., Any], recorded: Path) -> None:
    code, out, _ = cli("summary", "report-2", "--home", recorded)
    assert code == 0
    assert "used     $1.00, emails 4, 4 steps" in out
    assert "ended by BudgetExceededError: usd limit of the run: 1 allowed, 1 spent" in out
    summary = data("summary", "report-2", "--home", recorded)
    assert f"head     {summary['head']['seq']}:{summary['head']['hash']}" in out
    with open_guard(recorded) as guard:
        assert summary == guard.summary("report-2").to_data()


def test_summary_says_in_which_run_it_was_and_what_it_was_labelled_with(
    cli: Cli, data: Callable[..., Any], recorded: Path, tmp_path: Path
) -> None:
    assert "inside   report-1" in cli("summary", "child-1", "--home", recorded)[1]
    with open_guard(tmp_path) as guard, guard.run("r", run_id="labelled", metadata={"who": f"{ESCAPE}me"}):
        pass
    out = cli("summary", "labelled", "--home", tmp_path)[1]
    assert "metadata who='\\x1b[31mme'" in out
    assert ESCAPE not in out


@pytest.mark.parametrize("command", ["show", "summary", "verify", "tail", "pause", "resume"])
class TestRunsAreNamedByTheirIds:
    def test_an_unknown_one(self, command: str, cli: Cli, recorded: Path) -> None:
        code, out, err = cli(command, "nobody", "--home", recorded)
        assert (code, out) == (3, "")
        assert err == "agentguard: no run nobody in this store; `agentguard runs` lists them\n"

    def test_a_beginning_that_several_have(self, command: str, cli: Cli, recorded: Path) -> None:
        code, out, err = cli(command, "report", "--home", recorded)
        assert (code, out) == (2, "")
        assert "several runs begin with 'report': report-1, report-2; type more of the id" in err

    def test_an_empty_one(self, command: str, cli: Cli, recorded: Path) -> None:
        code, _, err = cli(command, "", "--home", recorded)
        assert code == 2
        assert "RUN must have 1 to 200 characters, not 0" in err

    def test_a_beginning_that_one_has(self, command: str, cli: Cli, recorded: Path) -> None:
        code, out, err = cli(command, "vic", "--home", recorded)
        if command in ("pause", "resume"):
            assert code == 1
            assert err.startswith("agentguard: run victim cannot go from KILLED to ")
        else:
            assert (code, err) == (0, "")
            assert out


# --- stores that are not there -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("store", "code", "said"),
    [
        ("sqlite:///missing.db", 5, "there is no store at missing.db"),
        ("memory://", 2, "lives in the process that uses it"),
        ("mysql://host/db", 2, "no event store for 'mysql://host/db'; known are "),
        ("sqlite://missing.db", 2, "names no file"),
        ("sqlite:////dev/null/x.db", 5, "there is no store at /dev/null/x.db"),
    ],
)
@pytest.mark.parametrize(
    "command", [["runs"], ["show", "x"], ["verify"], ["tail"], ["pause", "x"]], ids=" ".join
)
def test_a_store_that_cannot_be_used(command: list[str], store: str, code: int, said: str, cli: Cli) -> None:
    ended, out, err = cli(*command, "--store", store)
    assert (ended, out) == (code, "")
    assert said in err


def test_nothing_is_wrong_where_nothing_has_run(cli: Cli, data: Callable[..., Any], tmp_path: Path) -> None:
    assert data("verify", "--home", tmp_path / "new")["events"] == 0
    assert data("show", "control", "--home", tmp_path / "new")["events"] == []
    assert cli("tail", "--home", tmp_path / "new")[0] == 5
    assert list(tmp_path.iterdir()) == []


def test_the_control_log_is_no_run(cli: Cli, recorded: Path) -> None:
    for command in ("summary", "tail", "pause"):
        assert cli(command, "control", "--home", recorded)[0] == 3


def test_a_file_that_is_no_store(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("no database, by any means\n" * 100)
    code, _, err = cli("runs", "--store", f"sqlite:///{tmp_path}/notes.db")
    assert code == 5
    assert "this is no SQLite database" in err


def test_nothing_has_run_here_yet(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("show", "x", "--home", tmp_path)
    assert code == 5
    assert "nothing has run here" in err


def test_reading_leaves_the_kill_switch_alone(cli: Cli, spoilt: Path) -> None:
    """A damaged page must not hide the log of what happened."""
    (spoilt / "kill.page").write_bytes(b"damaged")
    for command in (["runs"], ["show", "victim"], ["summary", "victim"], ["tail"], ["verify"]):
        assert cli(*command, "--home", spoilt)[0] == 0
    assert (spoilt / "kill.page").read_bytes() == b"damaged"


@pytest.fixture
def writer(spoilt: Path) -> Iterator[None]:
    """Another process holds the database in the middle of a write transaction."""
    program = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('BEGIN IMMEDIATE')\n"
        "db.execute(\"INSERT INTO account VALUES ('x', '{}')\")\n"
        "print('holding', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(spoilt / "agentguard.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        yield
        process.communicate()


@pytest.mark.usefixtures("writer")
def test_commands_work_while_another_process_writes(cli: Cli, spoilt: Path) -> None:
    commands = [
        *(["runs"], ["show", "victim"], ["summary", "victim"], ["tail"], ["verify"], ["doctor"]),
        *(["kill", "--tenant", "x", "--reason", "y"], ["revive", "--tenant", "x", "--reason", "y"]),
    ]
    codes = {command[0]: cli(*command, "--home", spoilt)[0] for command in commands}
    assert codes == dict.fromkeys(codes, 0) | {"kill": 3}


# --- verify --------------------------------------------------------------------------------------


def edit(home: Path, *statements: str) -> None:
    """Do to the database what its triggers forbid."""
    with closing(sqlite3.connect(home / "agentguard.db")) as connection, connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)


def test_verify_of_everything(cli: Cli, data: Callable[..., Any], recorded: Path) -> None:
    code, out, _ = cli("verify", "--home", recorded)
    assert code == 0
    assert out.startswith("intact: ")
    assert "of 4 runs; no anchor given: truncation not excluded" in out
    report = data("verify", "--home", recorded)
    assert report.keys() == {
        "intact",
        "anchored",
        "runs",
        "events",
        "evicted",
        "pruned",
        "left_out",
        "faults",
    }
    shown = [
        data("show", run, "--home", recorded)
        for run in ("report-1", "report-2", "child-1", "victim", "control")
    ]
    assert report["events"] == sum(len(log["events"]) for log in shown)


def test_verify_against_anchors(cli: Cli, data: Callable[..., Any], recorded: Path) -> None:
    runs = data("runs", "--home", recorded)
    control = data("show", "control", "--home", recorded)["events"][-1]
    anchors = [f"{run['run_id']}={run['head']['seq']}:{run['head']['hash']}" for run in runs]
    anchors.append(f"control={control['seq']}:{control['hash']}")
    options = [option for anchor in anchors for option in ("--anchor", anchor)]
    assert data("verify", "--home", recorded, *options)["anchored"] is True
    assert data("verify", "report-2", "--home", recorded, "--anchor", anchors[1])["anchored"] is True
    # One that is left out leaves its end unproven.
    assert data("verify", "--home", recorded, *options[2:])["anchored"] is False


@pytest.mark.parametrize("anchored", ["victim", "gone", "control"])
def test_verify_against_an_anchor_that_does_not_fit(anchored: str, cli: Cli, recorded: Path) -> None:
    code, out, _ = cli("verify", "--home", recorded, "--anchor", f"{anchored}=1:{'0' * 64}")
    assert code == 1
    assert f"run {anchored}, event " in out


def test_verify_finds_that_the_control_log_was_cut(cli: Cli, spoilt: Path) -> None:
    code, out, _ = cli("verify", "control", "--home", spoilt, "--anchor", f"control=7:{'0' * 64}")
    assert code == 1
    assert "run control, event 2: the log ends before event 7, which an anchor names" in out


@pytest.mark.parametrize(
    "anchor", ["victim", "victim=1", "victim=0:" + "0" * 64, "victim=1:abc", "=1:" + "0" * 64]
)
def test_verify_refuses_what_is_no_anchor(anchor: str, cli: Cli, recorded: Path) -> None:
    code, _, err = cli("verify", "--home", recorded, "--anchor", anchor)
    assert code == 2
    assert "is not RUN=SEQ:HASH" in err


def test_verify_refuses_the_anchor_of_another_run(cli: Cli, recorded: Path) -> None:
    code, _, err = cli("verify", "victim", "--home", recorded, "--anchor", f"child-1=1:{'0' * 64}")
    assert code == 2
    assert "--anchor names child-1, and only victim is verified" in err


def test_verify_names_the_run_and_event_that_was_edited(cli: Cli, spoilt: Path) -> None:
    edit(
        spoilt,
        "UPDATE event SET body = CAST(replace(body, '250000000', '150000000') AS BLOB) "
        "WHERE key = (SELECT number FROM run WHERE run_id = 'report-2') << 32 | 4",
    )
    code, out, _ = cli("verify", "--home", spoilt)
    assert code == 1
    assert "NOT intact: 1 at fault among" in out
    assert "  run report-2, event 4: its hash does not fit" in out
    code, out, _ = cli("verify", "report-2", "--home", spoilt, "--json")
    assert code == 1
    (fault,) = json.loads(out)["faults"]
    assert (fault["run_id"], fault["seq"]) == ("report-2", 4)
    assert cli("verify", "victim", "--home", spoilt)[0] == 0


def test_verify_finds_an_edited_control_log(cli: Cli, spoilt: Path) -> None:
    log = spoilt / "control.log"
    log.write_bytes(log.read_bytes().replace(b"enough", b"enuogh"))
    code, out, _ = cli("verify", "--home", spoilt)
    assert code == 1
    assert "run control, event 1: " in out


# --- tail ----------------------------------------------------------------------------------------


def test_tail_shows_the_newest_events(cli: Cli, recorded: Path) -> None:
    code, out, _ = cli("tail", "--home", recorded, "-n", 2)
    assert code == 0
    assert [line.split()[2] for line in out.splitlines()] == ["victim", "victim"]
    assert "run killed" in out
    assert cli("tail", "--home", recorded, "-n", 0)[1] == ""


def test_tail_finds_the_newest_of_a_tenant_behind_those_of_others(
    data: Callable[..., Any], cli: Cli, recorded: Path
) -> None:
    _, out, _ = cli("tail", "--home", recorded, "--tenant", "acme", "-n", 3, "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert [(e["run_id"], e["type"]) for e in events][-1] == ("report-1", "run_completed")
    assert len(events) == 3
    _, out, _ = cli("tail", "--home", recorded, "--tenant", "acme", "-n", 1000, "--json")
    wanted = sum(len(data("show", run, "--home", recorded)["events"]) for run in ("report-1", "child-1"))
    assert len(out.splitlines()) == wanted


def test_tail_of_a_run(cli: Cli, recorded: Path) -> None:
    _, out, _ = cli("tail", "report-2", "--home", recorded, "-n", 3, "--json")
    assert [json.loads(line)["type"] for line in out.splitlines()] == [
        "step_completed",
        "step_refused",
        "run_failed",
    ]


def test_tail_refuses_a_tenant_beside_a_run(cli: Cli, recorded: Path) -> None:
    assert cli("tail", "victim", "--tenant", "acme", "--home", recorded)[0] == 2


def test_tail_follows_a_run_to_its_end(tmp_path: Path) -> None:
    with open_guard(tmp_path) as guard:
        run = guard.start("live", run_id="live")
        with start("tail", "live", "-f", "--json", "--home", tmp_path) as process:
            assert process.stdout is not None
            first = [json.loads(process.stdout.readline())["type"] for _ in range(2)]
            assert first == ["run_created", "run_started"]
            run.call("late", lambda: 1)
            late = [json.loads(process.stdout.readline())["type"] for _ in range(2)]
            assert late == ["step_started", "step_completed"]
            run.close()
            rest, err = process.communicate(timeout=60)
    assert [json.loads(line)["type"] for line in rest.splitlines()] == ["run_completed"]
    assert (process.returncode, err) == (0, "")


def test_tail_follows_all_runs_until_interrupted(spoilt: Path) -> None:
    with start("tail", "-f", "-n", 1, "--home", spoilt) as process:
        assert process.stdout is not None
        assert "run killed" in process.stdout.readline()
        with open_guard(spoilt) as guard, guard.run("more", run_id="more"):
            assert process.stdout.readline().split()[2:4] == ["more", "1"]
        process.send_signal(2)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")


# --- pause, resume -------------------------------------------------------------------------------


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Run]:
    with open_guard(tmp_path / "home") as guard:
        run = guard.start("live", run_id="live")
        yield run
        with suppress(KillSwitchTriggeredError):
            run.close()


def test_pause_and_resume(live: Run, cli: Cli, data: Callable[..., Any], tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert data("pause", "live", "--reason", "lunch", "--home", home) == {"run_id": "live", "state": "PAUSED"}
    assert re.search(r"run paused by \S+: lunch", cli("show", "live", "--home", home)[1])
    code, _, err = cli("pause", "live", "--home", home)
    assert (code, err) == (1, "agentguard: run live cannot go from PAUSED to PAUSED\n")
    code, out, _ = cli("resume", "li", "--home", home)
    assert (code, out) == (0, "run live resumed\n")
    assert live.call("after", lambda: 1) == 1
    assert cli("pause", "live", "--home", home)[:2] == (
        0,
        "run live paused; steps in flight finish, no other begins\n",
    )
    assert data("resume", "live", "--home", home) == {"run_id": "live", "state": "RUNNING"}


# --- kill, revive --------------------------------------------------------------------------------


def test_kill_reaches_a_run_and_the_log_says_so(live: Run, cli: Cli, tmp_path: Path) -> None:
    home = tmp_path / "home"
    code, out, _ = cli("kill", "--run", "live", "--reason", "enough", "--home", home)
    assert code == 0
    assert "1 live, 1 acknowledged" in out
    with pytest.raises(KillSwitchTriggeredError):
        live.check()
    assert cli("revive", "--run", "live", "--home", home, "--reason", "better")[0] == 0
    assert cli("revive", "--run", "live", "--home", home, "--reason", "better")[0] == 3


def test_kill_imports_nothing_that_is_slow(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from agentguard.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "slow = {'typer', 'rich', 'opentelemetry'} & {m.split('.')[0] for m in sys.modules}\n"
        "assert not slow, slow\n"
        "sys.exit(code)\n"
    )
    command = [
        sys.executable,
        "-c",
        program,
        "kill",
        "--tenant",
        "t",
        "--reason",
        "r",
        "--home",
        str(tmp_path),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (3, "")


# --- doctor --------------------------------------------------------------------------------------


def findings(out: str) -> dict[str, tuple[str, str]]:
    return {check["check"]: (check["status"], check["detail"]) for check in json.loads(out)["checks"]}


def test_doctor_finds_nothing_wrong(cli: Cli, data: Callable[..., Any], spoilt: Path) -> None:
    code, out, _ = cli("doctor", "--home", spoilt)
    assert code == 0
    assert f"ok    home          {spoilt} (mode 0700)\n" in out
    examined = data("doctor", "--home", spoilt)
    assert examined["ok"] is True
    assert {"check", "status", "detail"} == examined["checks"][0].keys()
    checked = findings(json.dumps(examined))
    assert checked["store"][1].endswith("schema 3, newest run victim")
    assert checked["control log"] == ("ok", "1 records, chain intact")
    status, said = checked["kill"]
    assert (status, said.partition(";")[0]) == ("note", "run victim is killed by ann: enough \\x1b[31m")
    assert said.endswith("agentguard revive --run victim")
    assert checked["telemetry"][1].startswith("OpenTelemetry SDK ")
    assert "cli" in checked["extras"][1]


def test_what_doctor_prints_can_be_shown_to_others(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("AGENTGUARD_STORE", f"postgresql://ann:sekrit@127.0.0.1:{port}/x?store_timeout=0.1")
    monkeypatch.setenv("AGENTGUARD_KILL_SWITCH", f"redis://:sekrit@127.0.0.1:{port}/0?password=sekrit")
    monkeypatch.setenv("AGENTGUARD_ALERT_WEBHOOK", "https://hooks.example/T0/sekrit")
    monkeypatch.setenv("AGENTGUARD_BUDGET", "usd=5,calls.kind:llm=20")
    code, out, err = cli("doctor")
    assert (code, err) == (1, "")
    assert "sekrit" not in out
    assert f"AGENTGUARD_STORE=postgresql://127.0.0.1:{port}/x" in out
    assert "AGENTGUARD_ALERT_WEBHOOK=https://hooks.example, AGENTGUARD_BUDGET=usd=5,calls.kind:llm=20" in out
    assert re.search(rf"FAULT store +postgresql://127.0.0.1:{port}/x: ", out)
    assert re.search(rf"FAULT kill server +redis://127.0.0.1:{port}/0: ", out)
    monkeypatch.setenv("AGENTGUARD_KILL_SWITCH", "redis://[sekrit")
    code, out, _ = cli("doctor", "--store", "sqlite:///x.db")
    assert (code, "sekrit" in out) == (1, False)


def test_doctor_looks_at_an_export_too(cli: Cli, spoilt: Path, tmp_path: Path) -> None:
    """It has no schema, and nobody writes to it; where no page is, there is none to rebuild."""
    path, empty = tmp_path / "all.jsonl", tmp_path / "empty"
    assert cli("export", "--all", "-o", path, "--home", spoilt)[0] == 0
    empty.mkdir(mode=0o700)
    code, out, _ = cli("doctor", "--repair", "--json", "--home", empty, "--store", f"file://{path}")
    checked = findings(out)
    assert (code, checked["store"][0]) == (0, "ok")
    assert "schema" not in checked["store"][1]
    assert not {"store file", "repair"} & checked.keys()
    assert list(empty.iterdir()) == []


def test_doctor_complains_of_what_only_the_system_can_say(
    cli: Cli, spoilt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, another owner, and files that cannot be written: for root, who may, they are made up."""
    with monkeypatch.context() as system:
        system.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**40, 7 * 2**20))  # type: ignore[attr-defined]
        code, out, _ = cli("doctor", "--json", "--home", spoilt)
    assert (code, findings(out)["disk"]) == (
        0,
        (
            "note",
            f"7 MB free under {spoilt}; without room, steps are refused: free some, or "
            "agentguard prune --older-than 90d",
        ),
    )
    with monkeypatch.context() as system:
        system.setattr(os, "getuid", lambda: spoilt.stat().st_uid + 1)
        code, out, _ = cli("doctor", "--json", "--home", spoilt)
    assert (code, findings(out)["home"][0]) == (1, "FAULT")
    assert "belongs to uid" in findings(out)["home"][1]
    assert "set AGENTGUARD_HOME to a directory of yours" in findings(out)["home"][1]
    with monkeypatch.context() as system:
        system.setattr(os, "access", lambda _, mode: not mode & os.W_OK)
        code, out, _ = cli("doctor", "--json", "--home", spoilt)
    assert code == 1
    assert "cannot be written" in findings(out)["home"][1]
    assert "steps are refused: chmod 600 " in findings(out)["store file"][1]


def test_doctor_makes_nothing(cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("doctor")
    assert code == 0
    assert "is not there yet; the first run makes it" in out
    assert list(tmp_path.iterdir()) == []


def test_doctor_complains_of_a_home_that_is_open_to_others(cli: Cli, spoilt: Path) -> None:
    spoilt.chmod(0o755)
    (spoilt / "agentguard.db").chmod(0o644)
    code, out, _ = cli("doctor", "--home", spoilt, "--json")
    assert code == 1
    assert findings(out)["home"] == ("FAULT", f"{spoilt} is open to others (mode 0755): chmod 700 {spoilt}")
    assert findings(out)["store file"][0] == "note"


def test_doctor_complains_of_a_home_that_is_a_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    code, out, _ = cli("doctor", "--home", tmp_path / "home", "--json")
    assert code == 1
    assert findings(out)["home"][0] == "FAULT"


def test_doctor_repairs_a_damaged_page(cli: Cli, spoilt: Path) -> None:
    (spoilt / "kill.page").write_bytes(b"x" * 20_000)
    code, out, _ = cli("doctor", "--home", spoilt, "--json")
    assert code == 1
    assert findings(out)["kill page"][0] == "FAULT"
    code, out, _ = cli("doctor", "--home", spoilt, "--repair", "--json")
    assert code == 0
    assert findings(out)["repair"] == ("ok", "the kill page was rebuilt from 1 control records")
    assert findings(out)["kill page"][0] == "ok"
    assert cli("doctor", "--home", spoilt)[0] == 0


def test_doctor_accepts_a_loss_only_when_told(cli: Cli, spoilt: Path) -> None:
    (spoilt / "control.log").write_bytes(b"")
    assert cli("doctor", "--home", spoilt)[0] == 1
    assert cli("doctor", "--home", spoilt, "--repair")[0] == 1
    assert cli("doctor", "--home", spoilt, "--accept-loss")[0] == 2
    assert cli("doctor", "--home", spoilt, "--repair", "--accept-loss")[0] == 0
    assert cli("doctor", "--home", spoilt)[0] == 0


def test_doctor_names_the_damaged_control_record(cli: Cli, spoilt: Path) -> None:
    log = spoilt / "control.log"
    log.write_bytes(log.read_bytes().replace(b"enough", b"enuogh"))
    code, out, _ = cli("doctor", "--home", spoilt, "--json")
    assert code == 1
    status, detail = findings(out)["control log"]
    assert status == "FAULT"
    assert detail.startswith("record 1: ")


def test_doctor_says_that_the_page_is_missing(cli: Cli, spoilt: Path) -> None:
    (spoilt / "kill.page").unlink()
    code, out, _ = cli("doctor", "--home", spoilt, "--json")
    assert code == 0
    assert findings(out)["kill page"][0] == "note"
    assert not (spoilt / "kill.page").exists()


def test_doctor_complains_of_a_newer_schema(cli: Cli, spoilt: Path) -> None:
    edit(spoilt, "PRAGMA user_version = 99")
    code, out, _ = cli("doctor", "--home", spoilt, "--json")
    assert code == 1
    assert "has schema 99" in findings(out)["store"][1]


def test_doctor_notes_what_dead_processes_left(cli: Cli, spoilt: Path) -> None:
    program = (
        "import os, sys\n"
        "from agentguard import Guard\n"
        "Guard.open(telemetry=False).start('left', run_id='left')\n"
        "os._exit(0)\n"
    )
    subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"AGENTGUARD_HOME": str(spoilt)}, check=True
    )
    code, out, _ = cli("doctor", "--home", spoilt, "--json")
    assert code == 0
    assert findings(out)["live files"][0] == "note"
    status, said = findings(out)["runs"]
    assert (status, said.partition(";")[0]) == ("note", "1 not ended though their process is gone: left")
    assert "carry on: agentguard recover left --module pkg.mod:fn" in said
    assert cli("end", "left", "--failed", "nobody carries it on", "--home", spoilt)[0] == 0
    assert "runs" not in findings(cli("doctor", "--home", spoilt, "--json")[1])


# --- the command itself --------------------------------------------------------------------------


def test_help_names_every_command_and_exit_code(cli: Cli) -> None:
    code, out, _ = cli("--help")
    assert code == 0
    named = {line.split()[1] for line in out.partition("Commands")[2].splitlines() if line.startswith("│ ")}
    assert named >= COMMANDS
    assert "5: the store or the kill switch cannot be used" in out


#: Groups of commands, and the commands in them.
GROUPS = {"alerts": ["list", "watch", "test"], "token": ["add", "list", "revoke"]}


@pytest.mark.parametrize(
    "command",
    [
        *sorted(COMMANDS - GROUPS.keys()),
        *(f"{name} {each}" for name, them in GROUPS.items() for each in them),
    ],
)
def test_every_command_has_help_and_json(command: str, cli: Cli) -> None:
    code, out, _ = cli(*command.split(), "--help")
    assert (code, "--json" in out) == (0, True)


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["nonsense"], ["show"]),
        *(["runs", "--state", "odd"], ["runs", "--limit", "0"], ["runs", "--limit", "9" * 30]),
        *(["runs", "--tenant", ""], ["runs", "--tenant", "\udcff"], ["tail", "-n", "x"], ["doctor", "odd"]),
    ],
    ids=ascii,
)
def test_a_wrong_command_line_ends_with_2(arguments: list[str], cli: Cli) -> None:
    assert cli(*arguments)[0] == 2


@pytest.mark.parametrize(
    "command",
    [["runs"], ["show", "victim"], ["tail"], ["export", "victim"], ["--help"], ["revive"]],
    ids=" ".join,
)
def test_streams_that_are_closed_or_full_are_no_traceback(command: list[str], recorded: Path) -> None:
    words = [sys.executable, "-m", "agentguard.cli", *command]
    environment = os.environ | {"AGENTGUARD_HOME": str(recorded)}
    for redirected in (">&-", "<&- >&-", ">/dev/full"):
        told = ["sh", "-c", f'exec "$@" {redirected}', "sh", *words]
        ended = subprocess.run(told, env=environment, stderr=subprocess.PIPE, text=True, check=False)
        assert "Traceback" not in ended.stderr
        assert "Exception ignored" not in ended.stderr
        if "full" in redirected:
            assert ended.returncode != 0


@pytest.mark.parametrize(
    "command",
    [["runs"], ["tail"], ["doctor"], ["pause", "x"], ["kill", "--reason", "r", "--yes"], ["revive"]],
    ids=lambda words: words[0],
)
def test_a_home_or_a_store_that_is_empty_is_not_taken_for_another(
    command: list[str], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a shell's variable that is not set."""
    monkeypatch.chdir(tmp_path)
    for option in ["--home"] if command[0] in ("kill", "revive") else ["--home", "--store"]:
        code, out, err = cli(*command, option, "")
        assert (code, out) == (2, "")
        assert re.search(f"{option}:? must not be empty; leave it out for the default", err)
    assert list(tmp_path.iterdir()) == []


def test_version(cli: Cli) -> None:
    code, out, _ = cli("--version")
    assert code == 0
    assert out.startswith("agentguard 0.")


def test_kill_and_revive_after_a_global_option_are_passed_on(cli: Cli, tmp_path: Path) -> None:
    """Typer knows them too, for its help; what it is given comes to the same."""
    from agentguard.cli import app

    assert app.run(["kill", "--tenant", "t", "--reason", "r", "--home", str(tmp_path), "--json"]) == 3
    assert (tmp_path / "control.log").exists()


@pytest.fixture
def completed(recorded: Path) -> Callable[[str], list[str]]:
    """What the shell is told for a line that ends where the cursor is."""

    def completed(words: str) -> list[str]:
        environment = os.environ | {
            "_AGENTGUARD_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
            "AGENTGUARD_HOME": str(recorded),
        }
        command = [sys.executable, "-m", "agentguard.cli"]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ran.stderr == ""
        return ran.stdout.split()

    return completed


def test_completion_knows_commands_and_runs(completed: Callable[[str], list[str]]) -> None:
    assert set(completed("agentguard ")) == COMMANDS
    assert completed("agentguard show rep") == ["report-2", "report-1"]
    assert completed("agentguard show --store=sqlite:///none.db x") == []
    assert completed("agentguard kill rep") == completed("agentguard end rep") == ["report-2", "report-1"]
    assert completed("agentguard kill --reason why report-1 vic") == ["victim"]
    assert completed("agentguard revive --run vic") == ["victim"]


@pytest.mark.parametrize("command", ["kill", "revive", "runs", "top"])
def test_completion_knows_every_option_that_the_help_names(
    cli: Cli, completed: Callable[[str], list[str]], command: str
) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", cli(command, "--help")[1]))
    assert set(completed(f"agentguard {command} --")) | {"--help"} == named | {"--help"}


def test_completion_knows_what_an_option_takes(completed: Callable[[str], list[str]]) -> None:
    assert completed("agentguard runs --sort ") == ["spend", "rate", "age", "limit"]
    assert completed("agentguard runs --state RUN") == ["RUNNING"]


def test_without_the_cli_extra_there_is_a_clear_message() -> None:
    program = (
        "import sys; sys.modules['typer'] = None; from agentguard.cli import main; sys.exit(main(['runs']))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr == (
        "agentguard: the command line needs the package 'typer': pip install 'agentguard[cli]' "
        "(only kill and revive work without)\n"
    )


def test_a_reader_that_goes_away_is_no_error(recorded: Path) -> None:
    with start("show", "report-1", "--home", recorded) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


def test_output_that_the_terminal_cannot_write_is_escaped(recorded: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    with start("runs", "--home", recorded, env=environment) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "report \\u2603" in out


def on_a_terminal(home: Path, *arguments: str, columns: int = 80, **environment: str) -> str:
    """What a command writes to a terminal, of 80 columns by default."""
    command = [sys.executable, "-m", "agentguard.cli", *arguments, "--home", str(home)]
    return terminal.on_a_terminal(command, os.environ | environment, columns)


def test_a_terminal_gets_colours_and_lines_that_fit(recorded: Path) -> None:
    lines = terminal.without_styles(on_a_terminal(recorded, "runs", NO_COLOR="1")).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["run", "name", "state", "steps", "usd", "ended", "by"]
    assert "\x1b[31m" in on_a_terminal(recorded, "runs")
    assert "\x1b[3" not in on_a_terminal(recorded, "runs", NO_COLOR="1")


@pytest.mark.parametrize(
    ("columns", "whole"),
    [
        (32, ["victim", "KILLED", "-"]),
        (40, ["victim", "victim", "KILLED", "-"]),
        (60, ["victim", "victim", "KILLED", "-", "run", "kill:"]),
        (80, ["victim", "victim", "KILLED", "0", "-", "run", "kill:"]),
    ],
)
def test_a_narrow_terminal_has_fewer_columns_and_not_halves_of_them(
    home: Path, columns: int, whole: list[str]
) -> None:
    """Though what ended a run is told at length."""
    with open_guard(home) as guard, suppress(KillSwitchTriggeredError), guard.run("victim", run_id="victim"):
        guard.kill(run="victim", reason="it went on and on, and nobody knew why it did " * 3)
        send("nobody")
    shown = on_a_terminal(home, "runs", columns=columns, NO_COLOR="1")
    lines = terminal.without_styles(shown).splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[1].split()[: len(whole)] == whole


def test_an_id_that_a_listing_has_shortened_is_accepted(home: Path, cli: Cli) -> None:
    """Whatever else the listing shows, or leaves out."""
    with open_guard(home) as guard:
        for _ in range(3):
            with guard.run("billing") as run:
                pass
    line = on_a_terminal(home, "runs", "-n", "1", NO_COLOR="1").splitlines()[1]
    short = line.split()[0]
    assert run.id.startswith(short)
    assert len(short) < len(run.id)
    code, out, _ = cli("summary", short, "--json", "--home", home)
    assert (code, json.loads(out)["run_id"]) == (0, run.id)
    assert cli("kill", short, "--reason", "why", "--json", "--home", home)[1].count(run.id) == 1


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("duration", "said"),
    [
        (None, "-"),
        (0.00004, "40 µs"),
        (0.0421, "42.1 ms"),
        (12.34, "12.3 s"),
        (600, "10 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_are_said_in_the_unit_that_fits(duration: float | None, said: str) -> None:
    assert output.seconds(duration) == said


def test_budgets_are_said_in_words() -> None:
    counted = Budget(usd="1.5", tokens=10_000, steps=3, seconds=1.5, emails=2)
    assert output.limits(counted) == "$1.50, 10,000 tokens, 3 steps, emails 2, 1.5 seconds"
    others = Budget(repeats=2, calls={"f": 3}, warn_at=0.5, enforce=False)
    assert output.limits(others) == "3 calls of f, repeats 2, warning at 50%, not enforced"
    assert output.limits(Budget()) == "none"


# --- costs ---------------------------------------------------------------------------------------


def test_costs_shows_where_the_money_went(cli: Cli, data: Callable[..., Any], home: Path) -> None:
    with Guard.open(telemetry=False) as guard, guard.run("mail", tenant="acme"):
        send("ann")
        ask("why?")

    code, out, err = cli("costs", "--by", "step")
    assert (code, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["step", "usd"],
        ["send", "$0.25"],
        ["ask", "$0.002"],
        ["total", "$0.252"],
    ]
    found = data("costs", "--by", "tenant", "--since", "1h")
    assert (found["total"], found["costs"][0]["key"]) == ({"usd": "0.252", "steps": 2}, "acme")
    assert data("costs", "--tenant", "nobody")["costs"] == []

    code, out, err = cli("costs", "--by", "name", "--csv")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "name,usd,steps,tokens,input_tokens,output_tokens,cached_tokens,unpriced",
        "mail,0.252,2,70,60,10,0,0",
    ]


def test_costs_takes_no_name_for_a_formula(cli: Cli, home: Path) -> None:
    with Guard.open(telemetry=False) as guard, guard.run("=cmd()"):
        send("ann")

    assert "\n'=cmd(),0.25," in cli("costs", "--by", "name", "--csv")[1]


@pytest.mark.parametrize("arguments", [["--since", "yesterday"], ["--by", "colour"], ["--csv", "--json"]])
def test_costs_refuses_what_it_cannot_answer(cli: Cli, home: Path, arguments: list[str]) -> None:
    assert cli("costs", *arguments)[0] == 2


def test_costs_of_a_store_that_is_not_there_yet_are_nothing(cli: Cli, home: Path) -> None:
    assert cli("costs")[:2] == (0, "nothing was charged here\n")


@pytest.mark.parametrize("name", ["h?x", "h%41", "h#x", "h x", "h;x"])
def test_a_home_may_have_any_name(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    home = tmp_path / name
    monkeypatch.setenv("AGENTGUARD_HOME", str(home))
    with Guard.open(telemetry=False) as guard, guard.run("report", run_id="report-1"):
        send("ann")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    found = {
        "runs": "report",
        "show report-1": "report",
        "verify report-1": "intact: 5 events",
        "doctor": "ok",
    }
    for command, part in found.items():
        code, out, err = cli(*command.split(), "--home", home)
        assert (code, err) == (0, ""), command
        assert part in out
    facts = json.loads(cli("kill", "report-1", "--reason", "stop", "--home", home, "--json")[1])
    assert facts["known"] is True
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
