"""The commands that run again: replay, recover, fork, resolve, diff, what-if, and show --at."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agentguard import Guard, StepOutcomeUnknownError
from agentguard.cli import main
from agentguard.cli.program import load_program, own_guard

Cli = Callable[..., tuple[int, str, str]]

AGENT = """
import os
from dataclasses import dataclass
from agentguard import Budget, Guard, Usage, guarded_step

guard = Guard.open(telemetry=False)
TOLD = os.environ.get("TOLD")  # a file of what really happened


class NoAddressError(Exception):
    pass


@dataclass
class Mail:
    to: str
    text: str


def tell(what):
    with open(TOLD, "a") as file:
        file.write(what + "\\n")


@guarded_step(usage=Usage(usd="0.01", emails=1))
def send(to, text):
    tell(f"sent {to}")
    return f"sent to {to}"


@guarded_step(effect="read")
def look_up(name):
    tell(f"looked up {name}")
    if name == "nobody":
        raise NoAddressError(name)
    return f"{name}@example.org"


@guard.run("mail", budget=Budget(usd="0.03"))
def mail_all(mails: list[Mail], crash_at: str = ""):
    sent = 0
    for mail in mails:
        try:
            address = look_up(mail.to)
        except NoAddressError:
            continue
        if mail.to == crash_at and not os.environ.get("CALM"):
            os.kill(os.getpid(), 9)
        send(address, mail.text)
        sent += 1
    with guard.run("inside"):
        look_up("ann")
    return sent


@guard.run("later")
async def later(name: str):
    print("the agent prints")
    return look_up(name)


def plain(run, inputs):
    with run.scope("part"):
        look_up(inputs)
    return "done"


def other_arguments(run, inputs):
    with run.scope("part"):
        look_up(inputs + "!")


def with_run(run):
    return plain(run, run.inputs)


def once_more(run, inputs):
    plain(run, inputs)
    look_up(inputs)


def nothing():
    return None


def too_many(a, b, c):
    pass


@guarded_step
def in_doubt(text):
    tell("began")
    if not os.environ.get("CALM"):
        os.kill(os.getpid(), 9)
    return text


@guard.run("doubtful")
def doubtful():
    look_up("bob")
    return in_doubt("x")
"""


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run a command and give its exit code, output and complaints."""
    for name in ("AGENTGUARD_HOME", "AGENTGUARD_STORE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # what a command sets is taken back
    monkeypatch.delenv("AGENTGUARD_STORE")

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return call


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program, a file of what it did, and the folder of both as the current one."""
    path = tmp_path / "agent.py"
    path.write_text(AGENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.delitem(sys.modules, "agent", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield path
    sys.modules.pop("agent", None)


def told(agent: Path) -> list[str]:
    """What has really happened since the last look."""
    path = agent.with_name("told")
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def run_it(agent: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run the agent in a process of its own, as a script that others import."""
    command = [sys.executable, "-c", f"from agent import *\n{code}"]
    return subprocess.run(command, cwd=agent.parent, capture_output=True, text=True, check=False)


def last(name: str) -> str:
    """The newest run of that name."""
    with Guard.open(kill_switch="memory", telemetry=False) as guard:
        return next(run.run_id for run in guard.runs() if run.name == name)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state directory of a run that met its limit at the fourth mail, one address unknown."""
    folder = tmp_path_factory.mktemp("once")
    (folder / "agent.py").write_text(AGENT)
    mails = ", ".join(f"Mail({name!r}, 'hi')" for name in ("ann", "nobody", "bob", "cid", "dan"))
    code = f"from agent import *\ntry: mail_all([{mails}])\nexcept Exception as e: print(type(e).__name__)"
    environment = os.environ | {"AGENTGUARD_HOME": str(folder / "home"), "TOLD": str(folder / "told")}
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "BudgetExceededError\n"
    return folder / "home"


@pytest.fixture
def mailed(agent: Path, once: Path) -> str:
    """That run, in the test's own state directory."""
    ignored = shutil.ignore_patterns("live")  # signs of life of that process
    shutil.copytree(once, os.environ["AGENTGUARD_HOME"], dirs_exist_ok=True, ignore=ignored)
    return last("mail")


@pytest.fixture
def live(agent: Path) -> Iterator[str]:
    """A run that another process has open, which has done all that `plain` does."""
    code = "run = guard.start('plain', inputs='ann'); plain(run, 'ann'); print(run.id, flush=True); input()"
    command = [sys.executable, "-c", f"from agent import *\n{code}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        yield owner.stdout.readline().strip()
        owner.kill()


# --- replay --------------------------------------------------------------------------------------


def test_replay_calls_a_decorated_function_with_the_recorded_arguments(
    cli: Cli, agent: Path, mailed: str
) -> None:
    """Dataclasses among them are rebuilt through the annotations; the recorded stop comes back."""
    code, out, err = cli("replay", mailed, "--module", "agent:mail_all")
    assert (code, err) == (0, "")
    assert out.startswith(f"replayed run {mailed}: 8 steps from the log, no body ran\n")
    assert "ended as recorded: FAILED, BudgetExceededError: usd limit of the run" in out
    assert told(agent) == []


def test_replay_of_a_file_finds_exceptions_that_a_script_had_raised(cli: Cli, agent: Path) -> None:
    call = "if __name__ == '__main__':\n    mail_all([Mail('nobody', 'x'), Mail('ann', 'y')])\n"
    agent.write_text(f"{AGENT}\n{call}")
    subprocess.run([sys.executable, agent], check=True)
    assert told(agent)
    code, out, _ = cli("replay", last("mail"), "-m", agent)
    assert code == 2
    code, out, _ = cli("replay", last("mail"), "-m", f"{agent}:mail_all")
    assert (code, told(agent)) == (0, [])
    assert out.endswith("ended as recorded: COMPLETED, gave 1\n")


def test_replay_of_a_coroutine_function_keeps_what_it_prints_out_of_the_json(cli: Cli, agent: Path) -> None:
    assert run_it(agent, "import asyncio; asyncio.run(later('ann'))").returncode == 0
    assert told(agent) == ["looked up ann"]
    code, out, err = cli("replay", last("later"), "-m", "agent:later", "--json")
    assert (code, err) == (0, "the agent prints\n")
    data = json.loads(out)
    assert data["result"] == "ann@example.org"
    assert (data["state"], data["replayed"], data["steps"]) == ("COMPLETED", True, 1)
    assert data["divergence"] is data["error"] is None
    assert told(agent) == []


@pytest.mark.parametrize(("function", "code"), [("plain", 0), ("with_run", 0), ("nothing", 1)])
def test_replay_calls_a_plain_function_by_its_signature(
    function: str, code: int, cli: Cli, agent: Path
) -> None:
    run_it(agent, "with guard.run('plain', inputs='ann') as run: plain(run, 'ann')")
    assert told(agent)
    assert cli("replay", last("plain"), "-m", f"agent:{function}")[0] == code
    assert told(agent) == []


def test_replay_shows_the_first_difference_side_by_side(cli: Cli, agent: Path) -> None:
    run_it(agent, "with guard.run('plain', inputs='ann') as run: plain(run, 'ann')")
    code, out, _ = cli("replay", last("plain"), "-m", "agent:other_arguments")
    assert code == 1
    first, header, difference, *log = out.splitlines()
    assert first.endswith(": arguments at main/look_up#1")
    assert header.split() == ["recorded", "now"]
    assert difference.split() == ["≠", '[["ann"],', "{}]", '[["ann!"],', "{}]"]
    assert log[0] == "in the log:"
    assert log[-1].endswith("look_up#1 started")
    code, out, _ = cli("replay", last("plain"), "-m", "agent:other_arguments", "--json")
    assert code == 1
    found = json.loads(out)["divergence"]
    assert found == {
        "kind": "arguments",
        "key": "main/look_up#1",
        "expected": [["ann"], {}],
        "found": [["ann!"], {}],
    }


def test_replay_of_a_run_that_is_still_live_says_how_far_the_log_goes(cli: Cli, live: str) -> None:
    """As long as the program is the same; what it does beyond the log is a difference like any other."""
    code, out, err = cli("replay", live, "-m", "agent:plain")
    assert (code, "no body ran" in out) == (0, True)
    assert "the log has no end: the run is live, or has crashed" in err
    code, out, _ = cli("replay", live, "-m", "agent:once_more")
    assert code == 1
    assert out.startswith(f"NOT the same as run {live}: missing at main/look_up#2\n")
    assert "in the log:" not in out  # it is not there


def test_replay_without_a_program_checks_adds_up_and_shows(cli: Cli, mailed: str) -> None:
    code, out, err = cli("replay", mailed)
    assert (code, err) == (0, "")
    assert "send#1 started" in out
    assert "\nadds up to FAILED, used $0.03, emails 3, 8 steps\nintact: " in out
    code, out, _ = cli("replay", mailed, "--json")
    data = json.loads(out)
    assert (code, data["intact"], data["state"], data["replayed"]) == (0, True, "FAILED", False)


def spoil(statement: str) -> None:
    """Do to the database what its triggers forbid."""
    path = Path(os.environ["AGENTGUARD_HOME"], "agentguard.db")
    with closing(sqlite3.connect(path)) as connection, connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(statement)


def test_replay_refuses_a_log_that_was_altered(cli: Cli, agent: Path, mailed: str) -> None:
    spoil("UPDATE event SET body = CAST(replace(body, 'send', 'dens') AS BLOB) WHERE key & 4294967295 = 5")
    for arguments in (["replay", mailed], ["replay", mailed, "-m", "agent:mail_all"]):
        code, out, err = cli(*arguments)
        assert code == 1
        assert "event 5: its hash does not fit" in out + err
    code, out, _ = cli("replay", mailed, "--json")
    assert code == 1
    assert json.loads(out)["intact"] is False
    assert json.loads(out)["faults"][0]["seq"] == 5


def test_replay_of_an_export_needs_neither_the_store_nor_the_run_id(
    cli: Cli, agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine, that is; runs inside come along."""
    assert run_it(agent, "mail_all([Mail('ann', 'x')])").returncode == 0
    run_id = last("mail")
    assert cli("export", run_id, "-o", tmp_path / "run.jsonl")[0] == 0
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setenv("AGENTGUARD_HOME", str(elsewhere))
    told(agent)
    code, out, err = cli("replay", "--export", tmp_path / "run.jsonl", "-m", "agent:mail_all")
    assert (code, err) == (0, "")
    assert run_id in out
    assert told(agent) == []
    assert not elsewhere.exists()
    monkeypatch.delenv("AGENTGUARD_STORE")
    assert cli("replay", run_id, "--store", f"file://{tmp_path}/run.jsonl")[0] == 0


def test_replay_without_a_run_is_for_exports(cli: Cli, mailed: str) -> None:
    code, _, err = cli("replay")
    assert code == 2
    assert "name a RUN" in err


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("agent", "is not pkg.mod:fn, nor path/file.py:fn"),
        (":fn", "is not pkg.mod:fn"),
        ("no_such_module_at_all:fn", "cannot import no_such_module_at_all"),
        ("no/such.py:fn", "there is no file no/such.py"),
        ("agent:nobody", "there is no function nobody in agent"),
        ("agent:AGENTS.x", "there is no function AGENTS.x in agent"),
        ("agent:too_many", "it must take (), (run), (inputs) or (run, inputs)"),
        ("agent:mail_all", "does not take the recorded arguments"),
    ],
)
def test_a_program_that_cannot_be_called(target: str, said: str, cli: Cli, agent: Path) -> None:
    run_it(agent, "import asyncio; asyncio.run(later(name='ann'))")
    code, out, err = cli("replay", last("later"), "-m", target)
    assert (code, out) == (2, "")
    assert said in err


def test_arguments_that_are_not_on_record(cli: Cli, agent: Path) -> None:
    run_it(agent, "with guard.run('later') as run: look_up('ann')")
    code, _, err = cli("replay", last("later"), "-m", "agent:later")
    assert code == 2
    assert "are not on record" in err


def test_progress_is_shown_on_a_terminal_for_a_long_log(agent: Path) -> None:
    code = "with guard.run('long', inputs=6000) as run:\n for n in range(6000): run.call('n', abs, n)"
    assert run_it(agent, code).returncode == 0
    path = agent.with_name("again.py")
    path.write_text("def again(run, inputs):\n    for n in range(inputs): run.call('n', abs, n)\n")
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "agentguard.cli", "replay", last("long"), "-m", "again:again"]
    with subprocess.Popen(command, cwd=agent.parent, stdout=subprocess.PIPE, stderr=child) as process:
        os.close(child)
        shown = b""
        while True:
            try:
                shown += os.read(parent, 65536)
            except OSError:
                break
        assert process.stdout is not None
        out = process.stdout.read().decode()
    os.close(parent)
    assert process.returncode == 0
    assert "6,000 steps from the log" in out
    assert b"/12003" in shown


# --- recover, resolve ----------------------------------------------------------------------------


def test_recover_carries_on_what_was_killed(cli: Cli, agent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mails = "[Mail('ann', 'x'), Mail('bob', 'x')]"
    assert run_it(agent, f"mail_all({mails}, crash_at='bob')").returncode == -signal.SIGKILL
    assert told(agent) == ["looked up ann", "sent ann@example.org", "looked up bob"]
    monkeypatch.setenv("CALM", "1")
    code, out, err = cli("recover", last("mail"), "--module", "agent:mail_all")
    assert (code, err) == (0, "")
    assert told(agent) == ["sent bob@example.org", "looked up ann"]
    assert out == f"recovered run {last('mail')}: COMPLETED, gave 2\n  1 of its 4 steps ran now\n"
    code, _, err = cli("recover", last("mail"), "--module", "agent:mail_all")
    assert code == 1
    assert "cannot go from COMPLETED to RUNNING" in err


def test_recover_says_who_owns_a_live_run_and_takes_it_over_only_when_told(cli: Cli, live: str) -> None:
    code, _, err = cli("recover", live, "-m", "agent:plain")
    assert code == 1
    with Guard.open(kill_switch="memory", telemetry=False) as guard:
        row = guard.components.store.row(live)
        assert row is not None
        assert f"process {row.owner['pid']} on " in err
    assert cli("recover", live, "-m", "agent:plain", "--take-over")[0] == 0


@pytest.mark.parametrize("as_json", [False, True], ids=["said", "json"])
def test_recover_with_another_program_shows_the_difference(cli: Cli, live: str, *, as_json: bool) -> None:
    json_too = ["--json"] if as_json else []
    code, out, _ = cli("recover", live, "-m", "agent:other_arguments", "--take-over", *json_too)
    assert code == 1
    if as_json:
        data = json.loads(out)
        assert (data["divergence"]["kind"], data["run"]["state"]) == ("arguments", "RUNNING")
    else:
        assert out.startswith(f"NOT the same as run {live}: arguments at main/look_up#1\n")
        assert "in the log:" in out
    assert cli("recover", live, "-m", "agent:plain")[0] == 0, "it was given back, for the right program"


def test_a_step_in_doubt_ends_with_6_and_resolve_goes_on(
    cli: Cli, agent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_it(agent, "doubtful()").returncode == -signal.SIGKILL
    assert told(agent) == ["looked up bob", "began"]
    run_id, key = last("doubtful"), "main/in_doubt#1"
    monkeypatch.setenv("CALM", "1")
    code, _, err = cli("recover", run_id, "-m", "agent:doubtful")
    assert code == 6
    assert f"agentguard resolve {run_id} '{key}' retry|completed|failed" in err
    assert cli("summary", run_id)[1].count("PAUSED") == 1

    code, out, _ = cli("resolve", run_id, key, "completed", "--result", '"by hand"', "--json")
    assert code == 0
    assert json.loads(out) == {"run_id": run_id, "key": key, "outcome": "completed", "state": "RUNNING"}
    code, out, _ = cli("recover", run_id, "-m", "agent:doubtful", "--json")
    assert code == 0
    assert json.loads(out)["result"] == "by hand"
    assert told(agent) == []
    assert cli("replay", run_id, "-m", "agent:doubtful")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["main/in_doubt#1", "perhaps"], 2, "'perhaps' is not one of"),
        (["main/in_doubt#1", "completed", "--result", "by hand"], 2, "--result is no JSON"),
        (["main/in_doubt#1", "retry", "--result", "1"], 2, "--result goes with completed or failed"),
        (["main/look_up#1", "retry"], 1, "in doubt: main/in_doubt#1"),
        (["main/in_doubt#1", "failed", "--result", "no luck"], 0, ""),
        (["main/in_doubt#1", "retry"], 0, ""),
    ],
)
def test_what_may_be_said_of_a_step(
    arguments: list[str], code: int, said: str, cli: Cli, agent: Path
) -> None:
    run_it(agent, "doubtful()")
    ended, out, err = cli("resolve", last("doubtful"), *arguments)
    assert ended == code
    assert said in err
    assert bool(out) is (code == 0)


# --- fork, diff, what-if, show --at --------------------------------------------------------------


def test_fork_with_another_budget(cli: Cli, agent: Path, mailed: str) -> None:
    code, out, _ = cli("fork", mailed, "--at", 8, "--usd", "1", "--id", "more", "-m", "agent:mail_all")
    assert code == 0
    assert out.startswith("forked run more: COMPLETED, gave 4\n")
    assert told(agent)[0] == "looked up bob"
    with Guard.open(kill_switch="memory", telemetry=False) as guard:
        assert str(guard.summary("more").budget["usd"]) == "1"
        assert str(guard.summary("more").usage.usd) == "0.04"
    assert cli("replay", "more", "-m", "agent:mail_all")[0] == 0
    assert told(agent) == []


def test_fork_without_a_program_waits_to_be_recovered(cli: Cli, agent: Path, mailed: str) -> None:
    code, out, _ = cli("fork", mailed, "--at", 8, "--counter", "emails=2", "--id", "waits")
    assert code == 0
    assert "agentguard recover waits --module pkg.mod:fn" in out
    code, out, _ = cli("recover", "waits", "-m", "agent:mail_all")
    assert code == 1
    assert "FAILED, BudgetExceededError: emails limit of the run: 2 allowed, 2 spent" in out
    assert told(agent) == ["looked up bob", "sent bob@example.org", "looked up cid"]


def test_fork_without_a_program_as_json(cli: Cli, agent: Path, mailed: str) -> None:
    code, out, _ = cli("fork", mailed, "--at", 8, "--id", "waits", "--json")
    data = json.loads(out)
    assert (code, data["run"]["run_id"], data["run"]["state"]) == (0, "waits", "RUNNING")
    assert (data["result"], data["error"], data["divergence"]) == (None, None, None)
    assert told(agent) == []


def test_fork_at_an_event_that_is_not_there(cli: Cli, mailed: str) -> None:
    code, _, err = cli("fork", mailed, "--at", 999)
    assert code == 2
    assert "has events 1 to 21, not 999" in err


def test_diff_of_two_runs(cli: Cli, agent: Path, mailed: str) -> None:
    assert cli("diff", mailed, mailed)[:2] == (0, f"the same: {mailed} and {mailed}\n")
    run_it(agent, "mail_all([Mail('ann', 'hi'), Mail('bob', 'hi')])")
    other = last("mail")
    code, out, _ = cli("diff", mailed, other)
    assert code == 1
    assert "arguments at main/look_up#2 (call 3 of branch main)" in out
    assert '≠  [["nobody"], {}]' in out
    code, out, _ = cli("diff", mailed, other, "--json")
    data = json.loads(out)
    assert (data["same"], data["a"], data["b"]) == (False, mailed, other)
    assert data["differences"][0] == {
        "kind": "arguments",
        "branch": "main",
        "pos": 3,
        "key": "main/look_up#2",
        "a": [["nobody"], {}],
        "b": [["bob"], {}],
    }


def test_diff_cuts_long_values_for_people_alone(cli: Cli, agent: Path) -> None:
    ids = []
    for start in (0, 1):
        code = f"run.call('take', lambda n: None, [*range({start}, 99)])"
        assert run_it(agent, f"with guard.run('long') as run: {code}").returncode == 0
        ids.append(last("long"))
    code, out, _ = cli("diff", *ids)
    assert code == 1
    assert "… 46 more lines; --json shows all" in out
    (found,) = json.loads(cli("diff", *ids, "--json")[1])["differences"]
    assert found["a"][0][0] == [*range(99)]


def test_diff_says_what_hung_on_timing_alone(cli: Cli, agent: Path) -> None:
    ids = []
    for order in ("bob", "ann"), ("ann", "bob"):
        code = f"""
with suppress(BudgetExceededError), guard.run('raced', budget=Budget(steps=1)) as run:
    calls = {{name: run.bind(look_up) for name in ('ann', 'bob')}}
    for name in {order}:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(calls[name], name)
"""
        imports = "from concurrent.futures import ThreadPoolExecutor\nfrom contextlib import suppress\n"
        ran = run_it(agent, f"{imports}from agentguard import BudgetExceededError\n{code}")
        assert ran.returncode == 0, ran.stderr
        ids.append(last("raced"))
    code, out, _ = cli("diff", *ids)
    assert code == 0
    assert out.startswith("the same: ")
    assert "that only one of them still made before its stop: timing, no difference" in out
    assert json.loads(cli("diff", *ids, "--json")[1])["timing"]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (
            ["--usd", "0.01"],
            1,
            "stops at event 11 (main/send#2): usd limit 0.01, 0.01 spent, 0.01 more requested",
        ),
        (["--counter", "emails=2"], 1, "stops at event 15 (main/send#3): emails limit 2, 2 spent"),
        (["--steps", "3"], 1, "steps limit 3, 3 spent"),
        (["--usd", "5"], 0, "does not stop; unknown beyond seq 20"),
        (["--usd", "5", "--tokens", "0"], 0, "does not stop"),
        ([], 2, "name a limit"),
        (["--usd", "x"], 2, "usd"),
        (["--counter", "emails"], 2, "is not NAME=N"),
        (["--counter", "max_usd=3"], 2, "max_usd"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_if(options: list[str], code: int, said: str, cli: Cli, mailed: str) -> None:
    ended, out, err = cli("what-if", mailed, *options)
    assert ended == code
    assert said in out + err


def test_what_if_as_json(cli: Cli, mailed: str) -> None:
    data = json.loads(cli("what-if", mailed, "--usd", "0.01", "--json")[1])
    assert data == {
        "run_id": mailed,
        "would_stop": True,
        "seq": 11,
        "key": "main/send#2",
        "resource": "usd",
        "limit": "0.01",
        "spent": "0.01",
        "requested": "0.01",
        "unknown_beyond": None,
    }


def test_show_at_an_event(cli: Cli, agent: Path, mailed: str) -> None:
    code, out, _ = cli("show", mailed, "--at", 11)
    assert code == 0
    facts = dict(line.split(None, 1) for line in out.splitlines()[1:])
    assert facts["state"] == "RUNNING"
    assert facts["used"] == "$0.01, emails 1, 4 steps"
    assert facts["reserved"] == "$0.01, emails 1, 1 step"
    assert facts["open"] == "main/send#2, since event 11"
    data = json.loads(cli("show", mailed, "--at", 11, "--json")[1])
    assert data["spent"] == {"usd": "0.01", "emails": 1, "steps": 4}
    assert [step["key"] for step in data["open_steps"]] == ["main/send#2"]
    assert cli("show", mailed, "--at", 999)[0] == 2
    assert cli("show", "control", "--at", 1)[0] == 2
    assert json.loads(cli("show", mailed, "--at", 21, "--json")[1])["state"] == "FAILED"


def test_show_at_inside_a_scope(cli: Cli, agent: Path) -> None:
    run_it(agent, "with guard.run('plain') as run: plain(run, 'ann')")
    data = json.loads(cli("show", last("plain"), "--at", 5, "--json")[1])
    (scope,) = data["open_scopes"]
    assert (scope["path"], scope["spent"], scope["stopped"]) == ("part", {"steps": 1}, None)
    lines = cli("show", last("plain"), "--at", 5)[1].splitlines()
    assert "scope    part: used 1 step" in lines
    assert not any(line.startswith("reserved") for line in lines), "nothing is in flight"


def test_the_guard_of_the_program_is_found(agent: Path, tmp_path: Path) -> None:
    program = load_program("agent:mail_all")
    own = own_guard(program, f"sqlite:///{os.environ['AGENTGUARD_HOME']}/agentguard.db")
    assert own is sys.modules["agent"].guard
    assert own_guard(program, "sqlite:///another.db") is None
    own.close()


def test_an_unknown_outcome_has_an_exit_code_of_its_own() -> None:
    from agentguard.cli import exit_codes

    assert exit_codes.code_of(StepOutcomeUnknownError("run", "key")) == exit_codes.WAITING == 6


@pytest.mark.parametrize("name", ["nobody", "control"])
def test_neither_nobody_nor_the_control_log_is_a_run(name: str, cli: Cli, mailed: str) -> None:
    for command in (
        ["replay", name],
        ["recover", name, "-m", "json:loads"],
        ["fork", name, "--at", "1"],
        ["resolve", name, "k", "retry"],
        ["diff", mailed, name],
        ["what-if", name, "--usd", "1"],
        ["erase", name, "--yes"],
    ):
        assert cli(*command)[0] == 3, command
    assert cli("show", "nobody", "--at", "1")[0] == 3


def test_resolving_a_step_of_a_run_that_has_ended_says_nothing_of_carrying_on(cli: Cli, agent: Path) -> None:
    """Its result was not captured, so that no replay could hand it out; now one can."""
    code = "run.call('secret', lambda: 7, capture='none')"
    assert run_it(agent, f"with guard.run('kept') as run: {code}").returncode == 0
    code, out, _ = cli("resolve", last("kept"), "main/secret#1", "completed", "--result", "7")
    assert code == 0
    assert out.endswith("is to count as completed; the run is COMPLETED\n")
