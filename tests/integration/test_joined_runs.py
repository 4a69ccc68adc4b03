"""A run that nobody owns: any process joins it, and a step with a key is done once over all of them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agentguard import (
    Budget,
    BudgetExceededError,
    Guard,
    KillSwitchTriggeredError,
    NoActiveRunError,
    ReplayDivergenceError,
    RunState,
    Usage,
    current_step,
    guarded_step,
)
from agentguard.cli import main
from agentguard.errors import DuplicateKeyError, RunOwnedError
from tests.kit import wait_until

PROGRAM = Path(__file__).parent / "crashes" / "joined.py"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENTGUARD_HOME", str(tmp_path / "home"))
    return tmp_path


def deliver(home: Path, call: str, *, dies: bool = False) -> str:
    """What a process says that makes the call."""
    command = [sys.executable, str(PROGRAM), "run-1", call, str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == (-signal.SIGKILL if dies else 0), done.stderr
    return done.stdout.strip()


def told(home: Path) -> list[str]:
    return (home / "told").read_text().split()


# --- calls that are made again -------------------------------------------------------------------


def test_a_completed_call_gives_its_recorded_result_in_every_process(home: Path) -> None:
    assert [deliver(home, "once") for _ in range(3)] == ["['once']"] * 3
    assert told(home) == ["once"]


def test_a_failed_call_runs_again_as_another_attempt(home: Path) -> None:
    assert [deliver(home, "failing") for _ in range(2)] == ["OSError"] * 2
    assert told(home) == ["failing"] * 2
    guard = Guard.open()
    starts = [event for event in guard.history("run-1") if event.type == "step_started"]
    assert [(event.key, event.attempt) for event in starts] == [("key:the call", 1), ("key:the call", 2)]


def test_a_read_in_doubt_runs_again(home: Path) -> None:
    (home / "read").touch()
    deliver(home, "read", dies=True)
    assert deliver(home, "read") == "['read']"
    assert told(home) == ["read"] * 2


def test_a_once_call_in_doubt_pauses_the_run_until_an_operator_has_said_what_became_of_it(home: Path) -> None:
    (home / "once").touch()
    deliver(home, "once", dies=True)
    assert deliver(home, "once") == "StepOutcomeUnknownError"
    guard = Guard.open()
    assert guard.summary("run-1").state is RunState.PAUSED
    guard.resolve("run-1", "key:the call", "completed", result=["by hand"])
    assert deliver(home, "once") == "['by hand']"
    assert told(home) == ["once"]
    assert guard.verify("run-1")


def test_what_a_body_had_called_is_not_repeated_when_the_body_runs_again(home: Path) -> None:
    (home / "outer-third").touch()
    deliver(home, "outer", dies=True)
    assert deliver(home, "outer") == "['outer-first', 'outer-second', 'outer-third']"
    assert told(home) == ["outer-first", "outer-second", "outer-third", "outer-third"]


def test_a_once_step_in_doubt_inside_a_body_asks_an_operator(home: Path) -> None:
    (home / "outer-second").touch()
    deliver(home, "outer", dies=True)
    assert deliver(home, "outer") == "StepOutcomeUnknownError"
    guard = Guard.open()
    [inner] = [key for key in guard.summary("run-1").open_steps if key != "key:the call"]
    guard.resolve("run-1", inner, "completed", result="outer-second")
    assert deliver(home, "outer") == "['outer-first', 'outer-second', 'outer-third']"
    assert told(home) == ["outer-first", "outer-second", "outer-third"]
    assert guard.end("run-1") is RunState.COMPLETED
    assert guard.summary("run-1").usage.steps == guard.reconstruct("run-1").usage.steps


def test_concurrent_calls_in_a_body_are_served_and_carried_on(home: Path) -> None:
    (home / "c-c").touch()
    deliver(home, "concurrent", dies=True)
    assert deliver(home, "concurrent") == "['c-a', 'c-b', 'c-c']"
    assert sorted(told(home)) == ["c-a", "c-b", "c-c", "c-c"]
    assert deliver(home, "concurrent") == "['c-a', 'c-b', 'c-c']"


def test_the_idempotency_key_stays_over_processes(home: Path) -> None:
    keys = []

    def note() -> None:
        keys.append(current_step().idempotency_key)
        raise OSError("no luck")

    for _ in range(2):
        with Guard.open() as guard, pytest.raises(OSError, match="no luck"):
            with guard.run("r", run_id="run-1", if_exists="join") as run:
                run.call("note", note, key="k")
    assert len(keys) == 2
    assert len(set(keys)) == 1


def test_other_arguments_under_the_same_key_are_refused(home: Path) -> None:
    with Guard.in_memory() as guard, guard.run("r", run_id="a", if_exists="join") as run:
        assert run.call("add", int, "1", key="k") == 1
        with pytest.raises(ReplayDivergenceError, match="arguments"):
            run.call("add", int, "2", key="k")


def test_a_call_that_is_still_under_way_here_is_not_begun_again() -> None:
    begun, end = threading.Event(), threading.Event()

    def body() -> int:
        begun.set()
        end.wait(60)
        return 7

    with Guard.in_memory() as guard, guard.run("r", run_id="a", if_exists="join") as run:
        thread = threading.Thread(target=run.bind(lambda: run.call("b", body, key="k")))
        thread.start()
        begun.wait(60)
        with pytest.raises(DuplicateKeyError):
            run.call("b", body, key="k")
        end.set()
        thread.join()
        assert run.call("b", body, key="k") == 7


# --- one run -------------------------------------------------------------------------------------


def test_the_budget_is_one_for_all_that_join(home: Path) -> None:
    @guarded_step(usage=Usage(mails=1))
    def mail() -> None: ...

    guards = [Guard.open(telemetry=False) for _ in range(4)]
    sent = []

    def work(guard: Guard) -> None:
        with pytest.raises(BudgetExceededError):
            with guard.run("r", run_id="run-1", if_exists="join", budget=Budget(mails=20)):
                while True:
                    mail()
                    sent.append(1)

    threads = [threading.Thread(target=work, args=(guard,)) for guard in guards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sent) == 20
    assert guards[0].summary("run-1").state is RunState.FAILED
    assert guards[0].verify("run-1")


def test_leaving_the_block_does_not_end_the_run_and_end_does() -> None:
    guard = Guard.in_memory()
    with guard.run("r", run_id="a", if_exists="join"):
        pass
    assert guard.summary("a").state is RunState.RUNNING
    assert guard.end("a", error=ValueError("the workflow failed")) is RunState.FAILED
    assert guard.summary("a").termination["type"] == "ValueError"
    assert guard.end("a") is RunState.FAILED, "it has ended"
    with guard.run("r", run_id="a", if_exists="join") as run, pytest.raises(NoActiveRunError):
        run.call("late", int)


def test_an_end_charges_what_is_in_doubt(home: Path) -> None:
    (home / "once").touch()
    deliver(home, "once", dies=True)
    guard = Guard.open()
    assert guard.end("run-1") is RunState.COMPLETED
    summary = guard.summary("run-1")
    assert (list(summary.open_steps), summary.usage.steps) == ([], 1)
    assert guard.verify("run-1")


def test_a_run_with_a_living_owner_is_joined_and_not_ended() -> None:
    guard = Guard.in_memory()
    with guard.run("r", run_id="a") as owner:
        with guard.run("r", run_id="a", if_exists="join") as run:
            assert run.call("one", int, "1", key="k") == 1
        with pytest.raises(RunOwnedError):
            guard.end("a")
        assert owner.state is RunState.RUNNING
    assert guard.summary("a").state is RunState.COMPLETED


def test_a_kill_ends_a_run_that_nobody_is_in(home: Path) -> None:
    with Guard.open() as guard, guard.run("r", run_id="a", if_exists="join"):
        pass
    guard = Guard.open()
    guard.kill(reason="enough", run="a")
    assert guard.summary("a").state is RunState.KILLED
    with pytest.raises(KillSwitchTriggeredError, match="enough"):
        with guard.run("r", run_id="a", if_exists="join") as run:
            run.call("late", int)


def test_a_late_outcome_of_an_attempt_that_was_given_up_changes_nothing(home: Path) -> None:
    """An orchestrator takes a worker for dead that is only slow, and its call is made elsewhere."""
    begun, end = threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        end.wait(60)
        return "slow"

    slow_guard, other = Guard.open(), Guard.open()
    got = []

    def zombie() -> None:
        with slow_guard.run("r", run_id="a", if_exists="join") as run:
            got.append(run.call("work", slow, key="k", effect="idempotent"))

    thread = threading.Thread(target=zombie)
    thread.start()
    begun.wait(60)
    # As in another process: a guard of its own folds the log by itself.
    with other.run("r", run_id="a", if_exists="join") as run:
        inside = []

        def quick() -> str:
            end.set()
            thread.join()
            inside.extend(event.type for event in other.history("a"))
            return "quick"

        assert run.call("work", quick, key="k", effect="idempotent") == "quick"
        assert run.call("work", quick, key="k", effect="idempotent") == "quick"
    assert "step_completed" not in inside
    assert other.verify("a")


@pytest.mark.parametrize("options", [{"if_exists": "join"}, {"if_exists": "jion", "run_id": "a"}])
def test_an_option_that_cannot_be_is_named(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="if_exists must be"):
        Guard.in_memory().run("r", **options)  # type: ignore[arg-type]


# --- an operator ends it -------------------------------------------------------------------------


@pytest.fixture
def command(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("AGENTGUARD_STORE", "to be restored")
    monkeypatch.delenv("AGENTGUARD_STORE")

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments])
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    ("options", "state", "why"),
    [
        ([], "COMPLETED", {"type": "completed"}),
        (
            ["--failed", "the customer is gone"],
            "FAILED",
            {"type": "agentguard.errors.RunGivenUpError", "message": "the customer is gone"},
        ),
    ],
)
def test_an_operator_ends_a_run_that_nobody_owns_on_record(
    command: Callable[..., tuple[int, str, str]], options: list[str], state: str, why: dict[str, str]
) -> None:
    with Guard.open(telemetry=False) as guard, guard.run("r", run_id="order-17", if_exists="join") as run:
        run.call("one", int, key="k")
        said = ["--actor", "ann", "--reason", "nobody will"]
        code, out, _ = command("end", "order-1", *options, *said)
        assert (code, out) == (0, f"run order-17 ended: {state}\n")
        assert guard.summary("order-17").termination == why
        own, ordered = guard.history("order-17")[-1], guard.history("control")[-1]
        assert (own.data["actor"], own.data["reason"]) == ("ann", "nobody will")
        assert (ordered.data["action"], ordered.data["actor"], ordered.data["seq"]) == ("end", "ann", own.seq)
        assert "run order-17 ended by ann: nobody will" in command("show", "control")[1]
        assert "by ann: nobody will" in command("show", "order-17")[1]
        assert guard.verify()


def test_an_operator_is_told_that_a_run_has_ended_otherwise_or_is_owned(
    command: Callable[..., tuple[int, str, str]],
) -> None:
    with Guard.open(telemetry=False) as guard:
        with pytest.raises(KillSwitchTriggeredError), guard.run("r", run_id="owned"):
            code, _, err = command("end", "owned")
            assert (code, "process" in err) == (1, True)
            guard.kill(run="owned", reason="stop")
            wait_until(lambda: guard.summary("owned").state is RunState.KILLED)
            control = len(guard.history("control"))
            code, out, _ = command("end", "owned", "--json")
            assert (code, json.loads(out)) == (1, {"run_id": "owned", "state": "KILLED"})
            assert command("end", "owned")[1] == "run owned had ended before: KILLED\n"
            assert len(guard.history("control")) == control, "nothing was done"
    assert command("end", "nobody")[0] == 3
    assert command("end", "owned", "--failed", "")[0] == 2


def test_who_ends_a_run_from_a_program_is_on_record_where_it_is_said(home: Path) -> None:
    with Guard.open(telemetry=False) as guard:
        for run_id, said in (("a", {}), ("b", {"actor": "ann"})):
            with guard.run("r", run_id=run_id, if_exists="join"):
                pass
            guard.end(run_id, **said)  # type: ignore[arg-type]
        assert [event.data["run"] for event in guard.history("control")] == ["b"]
