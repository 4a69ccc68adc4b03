"""The commands that operate: export, erase, prune, tenants, top, approvals, approve, deny."""

from __future__ import annotations

import io
import json
import os
import platform
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agentguard import ApprovalDeniedError, Budget, Guard, Usage, guarded_step
from agentguard.cli import main
from agentguard.monitoring import LiveRuns
from agentguard.stores.memory import MemoryEventStore
from agentguard.testing import FakeClock, FakeIds

Cli = Callable[..., tuple[int, str, str]]


@guarded_step(usage=Usage(usd="0.25"))
def pay(amount: int) -> str:
    return f"paid {amount}"


@guarded_step(approval=True)
def refund(order: str, *, amount: int) -> str:
    return f"refunded {order}"


@pytest.fixture(autouse=True)
def environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `--store` and `--home` set in this process is taken back."""
    monkeypatch.setenv("AGENTGUARD_STORE", "to be restored")
    monkeypatch.delenv("AGENTGUARD_STORE")


@pytest.fixture
def guard(home: Path) -> Iterator[Guard]:
    with Guard.open(telemetry=False, ids=FakeIds()) as guard:
        yield guard


@pytest.fixture
def cli(capsysbinary: pytest.CaptureFixture[bytes]) -> Cli:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsysbinary.readouterr()
        return code, captured.out.decode(), captured.err.decode()

    return call


@pytest.fixture
def data(cli: Cli) -> Callable[..., Any]:
    def call(*arguments: object) -> Any:
        code, out, err = cli(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return call


def a_run(guard: Guard, name: str = "billing", **options: Any) -> str:
    with guard.run(name, **options) as run:
        pay(7)
    return run.id


# --- export --------------------------------------------------------------------------------------


def test_export_writes_what_the_guard_exports(
    guard: Guard, cli: Cli, data: Callable[..., Any], tmp_path: Path
) -> None:
    run_id = a_run(guard)
    guard.kill(run="nobody", reason="why")
    for what, arguments in ((run_id, ["run-"]), ("control", ["control"]), (None, ["--all"])):
        expected = io.BytesIO()
        runs, events = guard.export(what, expected)
        file = tmp_path / "out.jsonl"
        assert data("export", *arguments, "-o", file) == {"path": str(file), "runs": runs, "events": events}
        code, out, _ = cli("export", *arguments)
        assert code == 0
        wanted = expected.getvalue().decode().splitlines()[1:]  # the first line says when
        assert out.splitlines()[1:] == wanted
        assert file.read_text().splitlines()[1:] == wanted
    code, out, _ = cli("export", run_id, "-o", file)
    assert (code, out) == (0, f"wrote 5 events of 1 log to {file}\n")


def test_an_export_is_a_store_for_every_command(
    guard: Guard, cli: Cli, data: Callable[..., Any], tmp_path: Path
) -> None:
    run_id = a_run(guard)
    guard.kill(run="nobody", reason="from the export")
    cli("export", "--all", "-o", tmp_path / "all.jsonl")
    store = f"file://{tmp_path / 'all.jsonl'}"
    elsewhere = ("--store", store, "--home", tmp_path / "nowhere")
    assert [run["run_id"] for run in data("runs", *elsewhere)] == [run_id]
    assert data("verify", *elsewhere)["events"] == 6
    assert "from the export" in cli("show", "control", *elsewhere)[1]
    assert data("show", "control", *elsewhere)["events"][0]["type"] == "kill_set"
    assert data("tenants", *elsewhere) == []
    code, _, err = cli("erase", run_id, "--yes", *elsewhere)
    assert (code, "read-only" in err) == (5, True)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("arguments", [[], ["run-1", "--all"], ["control", "--all"]])
def test_export_is_told_what(cli: Cli, arguments: list[str]) -> None:
    code, _, err = cli("export", *arguments)
    assert code == 2
    assert "RUN or `control`, or say --all" in err


def test_an_export_that_cannot_be_written_leaves_nothing(guard: Guard, cli: Cli, tmp_path: Path) -> None:
    run_id = a_run(guard)
    code, _, err = cli("export", run_id, "-o", tmp_path / "no" / "out.jsonl")
    assert (code, err) == (
        5,
        f"agentguard: [Errno 2] No such file or directory: '{tmp_path}/no/out.jsonl'\n",
    )
    code, _, err = cli("export", run_id, "-o", tmp_path)
    assert (code, err) == (5, f"agentguard: [Errno 21] Is a directory: '{tmp_path}'\n")
    assert cli("export", "nobody", "-o", tmp_path / "out.jsonl")[0] == 3
    assert list(tmp_path.iterdir()) == []


# --- erase and prune -----------------------------------------------------------------------------


def test_erase_drops_payloads_and_says_how_many(guard: Guard, cli: Cli, data: Callable[..., Any]) -> None:
    first, second = a_run(guard), a_run(guard)
    assert data("erase", first, "--yes", "--actor", "ann") == {"run_id": first, "payloads": 2}
    assert guard.history(first)[-1].data == {"actor": "ann"}
    code, out, _ = cli("erase", second, "--yes")
    assert (code, out) == (0, f"erased 2 payloads of run {second}; its log still verifies\n")
    assert guard.verify()
    assert [event["payload"] for event in data("show", first, "--payloads")["events"]] == [None] * 6


def test_erase_refuses_a_live_run_an_unknown_one_and_the_control_log(guard: Guard, cli: Cli) -> None:
    with guard.run("live") as run:
        code, _, err = cli("erase", run.id, "--yes")
        assert (code, "RUNNING" in err) == (1, True)
    assert cli("erase", "nobody", "--yes")[0] == 3
    assert cli("erase", "control", "--yes")[0] == 3


@pytest.mark.parametrize(
    "command", [["erase", "run-1"], ["prune", "--older-than", "0s"]], ids=["erase", "prune"]
)
def test_without_a_terminal_it_has_to_be_meant(
    guard: Guard, cli: Cli, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = a_run(guard)
    monkeypatch.setattr(sys, "stdin", io.StringIO(command[0] + "\n"))
    code, _, err = cli(*command)
    assert (code, "--yes" in err) == (2, True)
    assert [run.run_id for run in guard.runs()] == [run_id]
    assert any(stored.payload for stored in guard.components.store.read(run_id))


def test_pruning_is_asked_for_at_a_terminal(guard: Guard, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = a_run(guard)
    stdin = io.StringIO("yes\n")
    monkeypatch.setattr(stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", stdin)
    code, _, err = cli("prune", "--older-than", "0s")
    assert (code, "drops every run that ended before" in err) == (1, True)
    assert [run.run_id for run in guard.runs()] == [run_id]


@pytest.mark.parametrize(("answer", "code"), [("no", 1), ("", 1), ("erase", 0)])
def test_at_a_terminal_it_asks(
    guard: Guard, cli: Cli, answer: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = a_run(guard)
    stdin = io.StringIO(answer + "\n")
    monkeypatch.setattr(stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", stdin)
    ended, _, err = cli("erase", run_id)
    assert ended == code
    assert f"erases all that was captured of run {run_id} (billing)" in err
    erased = not any(stored.payload for stored in guard.components.store.read(run_id))
    assert erased is (code == 0)


def test_prune_drops_what_ended_longer_ago(home: Path, cli: Cli, data: Callable[..., Any]) -> None:
    clock = FakeClock()  # it stands at the beginning of 2026, and the command goes by the real one
    with Guard.open(telemetry=False, ids=FakeIds(), clock=clock) as guard:
        old = a_run(guard)
        clock.advance(timedelta(days=31))
        young = a_run(guard)
        assert data("prune", "--older-than", "2026-01-31", "--yes", "--actor", "ann")["runs"] == [old]
        assert [run.run_id for run in guard.runs()] == [young]
        assert guard.history("control")[0].data["actor"] == "ann"
        code, out, _ = cli("prune", "--older-than", "52w", "--yes")
        assert (code, out) == (0, "pruned 0 runs\n")


@pytest.mark.parametrize("age", ["0s", "0m", "0h", "0d", "0w", "2100-01-01T00:00:00+00:00", "2100-01-01"])
def test_an_age_or_a_date(guard: Guard, data: Callable[..., Any], age: str) -> None:
    run_id = a_run(guard)
    assert data("prune", "--older-than", age, "--yes")["runs"] == [run_id]


@pytest.mark.parametrize("age", ["", "5", "d", "-1d", "1y", "1.5d", "yesterday", "2026-13-01", "999999999w"])
def test_what_is_neither_an_age_nor_a_date(cli: Cli, age: str) -> None:
    code, _, err = cli("prune", f"--older-than={age}", "--yes")
    assert code == 2
    assert "90d" in err


def test_where_nothing_has_run_there_is_nothing_to_prune(data: Callable[..., Any], home: Path) -> None:
    assert data("prune", "--older-than", "1d", "--yes")["runs"] == []
    assert list(home.iterdir()) == []


# --- tenants and top -----------------------------------------------------------------------------


def test_tenants_shows_budgets_and_what_is_spent(guard: Guard, cli: Cli, data: Callable[..., Any]) -> None:
    assert data("tenants") == []
    guard.set_tenant_budget("acme", Budget(usd="10"), "day")
    guard.set_tenant_budget("other", Budget(emails=3))
    a_run(guard, tenant="acme")
    assert data("tenants") == [
        {"tenant": "acme", "per": "day", "budget": {"usd": "10"}, "spent": {"usd": "0.25", "steps": 1}},
        {"tenant": "other", "per": None, "budget": {"emails": 3}, "spent": {}},
    ]
    code, out, _ = cli("tenants")
    assert code == 0
    assert [line.split() for line in out.splitlines()][1][:3] == ["acme", "this", "day"]
    assert "emails 3" in out
    assert "nothing" in out


def test_top_shows_live_runs_those_that_spent_most_first(
    guard: Guard, cli: Cli, data: Callable[..., Any]
) -> None:
    a_run(guard, name="over")
    with guard.run("little", tenant="acme"), guard.run("much", detached=True) as much:
        pay(1)
        much.pause("wait")
        assert [run["name"] for run in data("top")] == ["much", "little"]
        assert [run["name"] for run in data("top", "-n", "1")] == ["much"]
        assert [run["name"] for run in data("top", "--tenant", "acme")] == ["little"]
        code, out, _ = cli("top")
        assert code == 0
        assert [line.split()[1] for line in out.splitlines()] == ["name", "much", "little"]
        assert "PAUSED" in out
        much.resume()
    code, out, _ = cli("top", "--once")
    assert (code, out.strip()) == (0, "no run is live")
    assert cli("top", "--tenant", "")[0] == 2


def test_top_reads_a_log_on_from_where_it_was(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long run costs no more at each look than what it did since the last one."""
    live, asked = LiveRuns(guard.components.store, guard.components.clock), []
    read = guard.components.store.read
    with guard.run("long") as run:
        pay(1)
        assert live.read()[0].summary.steps == 1
        monkeypatch.setattr(
            guard.components.store, "read", lambda run_id, after=0: asked.append(after) or read(run_id, after)
        )
        pay(2)
        assert live.read()[0].summary.steps == 2
        assert asked == [4]
        assert live.read()[0].summary.run_id == run.id
    assert live.read() == []


def test_top_finds_the_wild_run_below_any_number_of_newer_ones(
    guard: Guard, data: Callable[..., Any]
) -> None:
    with ExitStack() as stack:
        stack.enter_context(guard.run("wild", detached=True, budget=Budget(usd="0.5")))
        pay(1)
        for number in range(25):
            stack.enter_context(guard.run(f"small-{number}", detached=True))
        for order in ("spend", "rate", "age", "limit"):
            [first] = data("top", "-n", "1", "--sort", order)
            assert first["name"] == "wild"
        assert first["usd_per_minute"] == "0.25"
        assert first["nearest_limit"] == {"resource": "usd", "share": 0.5}
        assert first["last_step"] == "pay"
        assert first["owner"] == {"host": platform.node(), "pid": os.getpid(), "alive": True}
        assert len(data("top", "--name", "small-1*")) == 11


def test_a_run_whose_process_is_gone_is_shown_as_such(
    guard: Guard, cli: Cli, data: Callable[..., Any], home: Path
) -> None:
    program = (
        "import os\nfrom agentguard import Guard\n"
        "with Guard.open(telemetry=False).run('lost', run_id='lost-run'):\n    os._exit(1)"
    )
    environment = os.environ | {"AGENTGUARD_HOME": str(home)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    for command in ("runs", "top"):
        assert data(command)[0]["owner"]["alive"] is False
        out = cli(command)[1]
        assert "process gone: agentguard recover lost-run --module pkg.mod:fn" in out


def test_runs_are_chosen_by_name_and_time_and_ordered_by_spend(
    guard: Guard, cli: Cli, data: Callable[..., Any]
) -> None:
    a_run(guard, name="billing")
    with guard.run("idle"):
        pass
    assert [run["name"] for run in data("runs")] == ["idle", "billing"]
    assert [run["name"] for run in data("runs", "--sort", "spend")] == ["billing", "idle"]
    assert [run["name"] for run in data("runs", "--name", "bill*")] == ["billing"]
    assert len(data("runs", "--since", "1h")) == 2
    assert data("runs", "--since", "2199-01-01") == []
    code, _, err = cli("runs", "--since", "yesterday")
    assert (code, "--since 'yesterday' is neither an age" in err) == (2, True)
    code, _, err = cli("runs", "--sort", "beauty")
    assert (code, "invalid choice: 'beauty' (choose from 'spend', 'rate', 'age'" in err) == (2, True)
    for pattern in ("", "nobody"):
        assert cli("runs", "--name", pattern)[1].startswith("no runs like this in sqlite:///")


def test_columns_are_those_that_are_named(guard: Guard, cli: Cli) -> None:
    a_run(guard)
    code, out, _ = cli("runs", "--columns", "name,usd")
    assert (code, [line.split() for line in out.splitlines()]) == (0, [["name", "usd"], ["billing", "$0.25"]])
    code, _, err = cli("runs", "--columns", "nme")
    assert (code, "there is no column 'nme'; known are run, name" in err) == (2, True)


@pytest.mark.parametrize("command", ["runs", "summary RUN", "show RUN", "tail", "tail RUN", "top"])
def test_times_have_a_date_and_a_zone_and_utc_where_that_is_asked_for(
    command: str, guard: Guard, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        with guard.run("billing") as run:
            pay(7)
            arguments = command.replace("RUN", run.id).split()
            assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+05:30", cli(*arguments)[1])
            assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00", cli(*arguments, "--utc")[1])
    finally:
        monkeypatch.undo()
        time.tzset()


# --- which runs and events -----------------------------------------------------------------------


@pytest.fixture
def hours() -> Iterator[Guard]:
    """A store with a run of each of the last hours: 3 h ago, 2 h ago, 1 h ago (which lives), and two of now."""
    clock = FakeClock(datetime.now(UTC) - timedelta(hours=3))
    with Guard.open(telemetry=False, ids=FakeIds(), clock=clock) as guard, ExitStack() as stack:
        a_run(guard, name="first", tenant="acme")
        clock.advance(3600)
        a_run(guard, name="second")
        clock.advance(3600)
        stack.enter_context(guard.run("crawl-1", run_id="lives", tenant="acme"))
        pay(1)
        clock.advance(3600)
        paused = stack.enter_context(guard.run("crawl-2", run_id="paused", detached=True))
        paused.pause("tea")
        a_run(guard, name="last", detached=True)
        yield guard


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], {"crawl-1", "crawl-2", "last"}),
        (["-n", "1000"], {"first", "second", "crawl-1", "crawl-2", "last"}),
        (["--since", "90m"], {"crawl-1", "crawl-2", "last"}),
        (["--since", "90m", "-n", "1"], {"last"}),
        (["--name", "crawl*"], {"crawl-1", "crawl-2"}),
        (["--name", "first", "--since", "90m"], set()),
        (["--state", "running"], {"crawl-1"}),
        (["--state", "PAUSED"], {"crawl-2"}),
        (["--state", "completed", "--since", "150m"], {"second", "last"}),
        (["--tenant", "acme", "--since", "90m"], {"crawl-1"}),
        (["--since", "2199-01-01"], set()),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_tail_shows_the_events_that_are_asked_for(
    hours: Guard, cli: Cli, options: list[str], names: set[str]
) -> None:
    code, out, _ = cli("tail", *options, "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert {hours.summary(event["run_id"]).name for event in events} == names


def test_tail_of_a_run_shows_its_events_since_a_time(hours: Guard, cli: Cli) -> None:
    types = [
        json.loads(line)["type"] for line in cli("tail", "paused", "--since", "30m", "--json")[1].splitlines()
    ]
    assert types == ["run_created", "run_started", "run_paused"]
    assert cli("tail", "lives", "--since", "30m")[1] == ""
    assert len(cli("tail", "lives", "-n", "1")[1].splitlines()) == 1


def test_tail_puts_the_events_of_those_runs_first_that_have_the_most_of_something(
    hours: Guard, cli: Cli
) -> None:
    with hours.run("dear", detached=True) as run:
        for amount in range(3):
            pay(amount)
    everything = cli("tail", "-n", "1000", "--json")[1].splitlines()
    for sort in ("spend", "age"):
        shown = cli("tail", "-n", "1000", "--sort", sort, "--json")[1].splitlines()
        assert sorted(shown) == sorted(everything)
        runs = list(dict.fromkeys(json.loads(line)["run_id"] for line in shown))
        assert len(runs) == 6
        assert runs[0] == (run.id if sort == "spend" else "lives")
        at = [everything.index(line) for line in shown if json.loads(line)["run_id"] == runs[0]]
        assert at == sorted(at)


def test_tail_shows_the_columns_that_are_asked_for(hours: Guard, cli: Cli) -> None:
    code, out, _ = cli("tail", "lives", "--columns", "seq, type,key,usd,spent")
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["1", "run_created", "-", "-", "-"],
        ["2", "run_started", "-", "-", "-"],
        ["3", "step_started", "main/pay#1", "-", "-"],
        ["4", "step_completed", "main/pay#1", "$0.25", "$0.25"],
    ]
    assert set(cli("tail", "--columns", "run", "--state", "paused")[1].split()) == {"paused"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--columns", "seq,colour"], "there is no column 'colour'; known are time, run, seq"),
        (["--columns", ""], "there is no column ''"),
        (["--sort", "spend", "-f"], "leave it out with -f"),
        (["lives", "--sort", "spend"], "where a run is named"),
    ],
)
def test_what_tail_cannot_show_is_refused(hours: Guard, cli: Cli, options: list[str], said: str) -> None:
    code, out, err = cli("tail", *options)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())


@pytest.mark.parametrize("option", ["--tenant", "--name", "--state"])
def test_what_chooses_among_runs_is_refused_where_one_is_named(hours: Guard, cli: Cli, option: str) -> None:
    code, _, err = cli("tail", "lives", option, "running")
    assert (code, f"{option} chooses among all runs; leave it out" in err) == (2, True)


def test_tail_goes_on_with_what_is_asked_for_alone(hours: Guard, home: Path) -> None:
    command = [sys.executable, "-m", "agentguard.cli", "tail", "-f", "--name", "wanted", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env=os.environ | {"AGENTGUARD_HOME": str(home)}
    ) as process:
        assert process.stdout is not None
        a_run(hours, name="other", detached=True)
        with hours.run("wanted", detached=True) as run:
            pay(1)
        told = [json.loads(process.stdout.readline()) for _ in range(5)]
        process.kill()
    assert {event["run_id"] for event in told} == {run.id}


def test_who_looks_before_the_first_run_sees_it_begin(home: Path) -> None:
    command = [sys.executable, "-m", "agentguard.cli"]
    environment = os.environ | {"AGENTGUARD_HOME": str(home), "TERM": "xterm", "COLUMNS": "80"}
    screen, theirs = pty.openpty()
    top = subprocess.Popen([*command, "top", "--interval", "0.1"], stdout=theirs, env=environment)
    os.close(theirs)
    tail = subprocess.Popen([*command, "tail", "-f", "--json"], stdout=subprocess.PIPE, env=environment)
    assert tail.stdout is not None
    with ExitStack() as stack:
        for process in (top, tail):
            stack.callback(process.wait)
            stack.callback(process.kill)
        shown = b""
        while b"no run is live" not in shown:
            shown += os.read(screen, 65536)
        with Guard.open(telemetry=False) as guard, guard.run("the-first") as run:
            assert json.loads(tail.stdout.readline())["run_id"] == run.id
            while b"the-first" not in shown:
                shown += os.read(screen, 65536)
        for process in (top, tail):
            process.send_signal(signal.SIGINT)
        with suppress(OSError):  # what it still writes must not keep it
            while os.read(screen, 65536):
                pass
        assert (top.wait(), tail.wait()) == (0, 130)
        tail.stdout.close()
    os.close(screen)


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ([], {"lives", "paused"}),
        (["--since", "30m"], {"paused"}),
        (["--state", "running"], {"lives"}),
        (["--state", "PAUSED", "--since", "2h"], {"paused"}),
    ],
)
@pytest.mark.usefixtures("hours")
def test_top_shows_the_live_runs_that_are_asked_for(
    data: Callable[..., Any], options: list[str], ids: set[str]
) -> None:
    assert {run["run_id"] for run in data("top", *options)} == ids


@pytest.mark.usefixtures("hours")
def test_top_has_no_run_that_has_ended(cli: Cli) -> None:
    code, _, err = cli("top", "--state", "failed")
    assert (code, "see `agentguard runs --state failed`" in err) == (2, True)


def test_summary_counts_what_cannot_be_replayed(guard: Guard, cli: Cli, data: Callable[..., Any]) -> None:
    with guard.run("r") as run:
        pay(1)
        run.call("handle", object)
        run.record("thing", lambda: object())
        live = data("summary", run.id)
    assert (live["unreplayable"], data("summary", run.id)["unreplayable"]) == (2, 2)
    assert "2 results cannot be replayed" in cli("summary", run.id)[1]
    assert cli("show", run.id)[1].count("[not replayable: ") == 2
    assert guard.verify(run.id)
    clean = a_run(guard)
    assert data("summary", clean)["unreplayable"] == 0
    assert "cannot be replayed" not in cli("summary", clean)[1]


def test_top_at_a_terminal_goes_on_until_it_is_interrupted(guard: Guard, home: Path) -> None:
    with guard.run("watched"):
        leader, follower = pty.openpty()
        environment = os.environ | {"AGENTGUARD_HOME": str(home), "TERM": "xterm", "COLUMNS": "120"}
        program = "import signal; from agentguard.cli import main; raise SystemExit(main())"
        command = [sys.executable, "-c", program, "top", "--interval", "0.1"]
        process = subprocess.Popen(command, env=environment, stdin=follower, stdout=follower, stderr=follower)
        os.close(follower)
        seen = b""
        while seen.count(b"watched") < 2:  # the deadline is pytest's
            seen += os.read(leader, 4096)
        process.send_signal(2)
        with suppress(OSError):
            while os.read(leader, 4096):
                pass
        assert process.wait(60) == 0
        os.close(leader)


# --- approvals -----------------------------------------------------------------------------------


@pytest.fixture
def waiting(guard: Guard, eventually: Callable[..., None]) -> Iterator[list[Any]]:
    """A run with a step that waits for an approval; gives the list that its end is put into."""
    ended: list[Any] = []

    def work() -> None:
        with guard.run("support", run_id="support-1"):
            try:
                ended.append(refund("A-1", amount=5))
            except ApprovalDeniedError as error:
                ended.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    eventually(guard.approvals)
    eventually(lambda: any(e.type == "approval_requested" for e in guard.history("support-1")))
    yield ended
    if not ended:
        guard.deny("support-1", "main/refund#1")
    worker.join(60)


def test_approvals_says_what_waits_and_what_it_was_called_with(
    waiting: list[Any], cli: Cli, data: Callable[..., Any]
) -> None:
    [found] = data("approvals")
    assert found.pop("asked_ns") > 0
    assert found == {
        "run_id": "support-1",
        "key": "main/refund#1",
        "name": "refund",
        "arguments": [["A-1"], {"amount": 5}],
        "limit": None,
        "seq": 3,
        "timeout": None,
    }
    code, out, _ = cli("approvals")
    assert code == 0
    assert out.splitlines()[1].split() == ["support-1", "main/refund#1", "3", 'refund("A-1",', "amount=5)"]


def test_show_at_says_which_step_waits(waiting: list[Any], guard: Guard, cli: Cli) -> None:
    asked = next(e for e in guard.history("support-1") if e.type == "approval_requested")
    out = cli("show", "support-1", "--at", asked.seq)[1]
    assert "waiting  main/refund#1, for an approval" in out.splitlines()


def test_what_was_not_captured_cannot_be_shown(
    guard: Guard, cli: Cli, eventually: Callable[..., None]
) -> None:
    secret = guarded_step(name="wipe", approval=True, capture="none")(lambda disk: None)

    def work() -> None:
        with guard.run("r", run_id="r-1"):
            secret("sda")

    worker = threading.Thread(target=work)
    worker.start()
    eventually(guard.approvals)
    assert "wipe(...)" in cli("approvals")[1]
    assert cli("approve", "r-1")[0] == 0
    worker.join(60)


def test_approve_lets_the_step_run(
    waiting: list[Any], data: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    assert data("approve", "support", "main/refund#1", "--reason", "fine", "--actor", "ann") == {
        "run_id": "support-1",
        "key": "main/refund#1",
        "decision": "granted",
    }
    eventually(lambda: waiting)
    assert waiting == ["refunded A-1"]
    assert data("approvals") == []


def test_deny_refuses_the_step_that_waits_alone(
    waiting: list[Any], cli: Cli, eventually: Callable[..., None]
) -> None:
    code, out, _ = cli("deny", "support-1", "--reason", "no money", "--actor", "ann")
    assert (code, out) == (0, "denied main/refund#1 of run support-1\n")
    eventually(lambda: waiting)
    assert (waiting[0].reason, waiting[0].actor) == ("no money", "ann")


def test_a_decision_about_nothing_is_refused(guard: Guard, cli: Cli) -> None:
    run_id = a_run(guard)
    for command in ("approve", "deny"):
        said = f"agentguard: no step of run {run_id} waits; it is COMPLETED\n"
        assert cli(command, run_id) == (2, "", said)
    code, _, err = cli("deny", run_id, "main/refund#1")
    assert (code, "waits for an approval" in err) == (1, True)
    assert cli("approve", "control")[0] == 3
    assert cli("approve", "nobody")[0] == 3


@pytest.mark.parametrize("command", [["tenants"], ["top"], ["approvals"]])
def test_looking_changes_nothing_on_the_disk(command: list[str], cli: Cli, home: Path) -> None:
    assert cli(*command)[0] == 0
    assert list(home.iterdir()) == []
    with Guard.open(telemetry=False, ids=FakeIds()) as guard:
        a_run(guard)
    before = {file.name for file in home.iterdir()}
    (home / "kill.page").unlink()
    assert cli(*command)[0] == 0
    assert {file.name for file in home.iterdir()} - {"agentguard.db-wal", "agentguard.db-shm"} <= before - {
        "kill.page"
    }


def test_payloads_that_are_no_json_are_shown_in_base64(
    guard: Guard, cli: Cli, data: Callable[..., Any]
) -> None:
    class Codec:
        @staticmethod
        def encode(value: bytes) -> bytes:
            return value

        decode = encode

    with guard.run("binary") as run:
        run.call("read", lambda: b"\xff\x00", codec=Codec)
    assert data("show", run.id, "--payloads")["events"][-2]["payload"] == {"base64": "/wA="}
    assert "/wA=" in cli("show", run.id, "--payloads")[1]


def test_a_memory_store_cannot_be_operated_from_outside(cli: Cli) -> None:
    assert MemoryEventStore.url == "memory://"
    for command in (["top"], ["approvals"], ["tenants"], ["export", "--all"]):
        assert cli(*command, "--store", "memory://")[0] == 2
