"""Ownership: who may carry on a run, and what becomes of a step that was in flight when its process died."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentguard import (
    AgentGuardError,
    Budget,
    Guard,
    InvalidStateTransitionError,
    RunState,
    RunStopped,
    StepOutcomeUnknownError,
    Usage,
    current_step,
    guarded_step,
)
from agentguard.errors import RunOwnedError
from agentguard.sessions.abandoned import charge_abandoned


def note(what: str) -> None:
    """What a body did, in a file that outlives its process."""
    step = current_step()
    assert step is not None
    with Path(os.environ["NOTES"]).open("a") as file:
        file.write(json.dumps([what, step.attempt, step.idempotency_key]) + "\n")


@guarded_step(effect="read")
def before(n: int) -> int:
    note("before")
    return n + 1


def body(n: int) -> int:
    """Dies the first time, with its effect on the outside done."""
    note("body")
    if os.environ.get("DIES"):
        os.kill(os.getpid(), signal.SIGKILL)
    return n * 10


USES = Usage(usd="0.01")
BY_EFFECT = {
    effect: guarded_step(effect=effect, name="work", usage=USES)(body)
    for effect in ("read", "idempotent", "once")
}


def agent(work: Callable[[int], int]) -> list[int]:
    return [before(1), work(2), before(3)]


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[list[Any]]]:
    path = tmp_path / "notes"
    path.touch()
    monkeypatch.setenv("NOTES", str(path))
    return lambda: [json.loads(line) for line in path.read_text().splitlines()]


def in_process(act: Callable[[Guard], None]) -> int:
    """Let another process act; gives its status as `waitpid` does."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 70
    try:
        os.environ["DIES"] = "1"
        with Guard.open(telemetry=False) as guard:
            act(guard)
        status = 0
    finally:
        os._exit(status)


@pytest.fixture
def guard(home: Path) -> Iterator[Guard]:
    with Guard.open(telemetry=False) as guard:
        yield guard


def crash(work: Callable[[int], int], **options: Any) -> None:
    """A run "r" whose process is killed inside the body of `work`."""

    def live(guard: Guard) -> None:
        with guard.run("program", run_id="r", **options):
            agent(work)

    assert in_process(live) == -signal.SIGKILL


def recover(guard: Guard, work: Callable[[int], int]) -> list[int]:
    with guard.recover("r"):
        return agent(work)


def resolutions(guard: Guard) -> list[tuple[str, str]]:
    events = guard.history("r")
    return [(e.data["as"], e.data["by"]) for e in events if e.type == "step_resolved"]


def holds_together(guard: Guard, work: Callable[[int], int], result: list[int]) -> None:
    """What was recovered verifies, adds up, and can be replayed."""
    assert guard.verify("r")
    assert guard.reconstruct("r") == guard.summary("r")
    with guard.replay("r"):
        assert agent(work) == result


# --- the crash window ----------------------------------------------------------------------------


@pytest.mark.parametrize("effect", ["read", "idempotent"])
def test_what_may_run_twice_runs_again_under_the_same_idempotency_key(
    effect: str, guard: Guard, notes: Callable[[], list[list[Any]]]
) -> None:
    work = BY_EFFECT[effect]
    crash(work)
    assert recover(guard, work) == [2, 20, 4]
    first, dead, again, last = notes()
    assert [first[0], dead[0], again[0], last[0]] == ["before", "body", "body", "before"]
    assert (dead[1], again[1]) == (1, 2)
    assert dead[2] == again[2]
    assert resolutions(guard) == [("retry", f"effect {effect}")]
    assert str(guard.summary("r").usage.usd) == "0.02", "the attempt in doubt is charged its reservation"
    holds_together(guard, work, [2, 20, 4])


def test_a_once_step_pauses_the_run_until_an_operator_has_spoken(
    guard: Guard, notes: Callable[[], list[list[Any]]]
) -> None:
    work = BY_EFFECT["once"]
    crash(work)
    for _ in range(2):  # asking again changes nothing
        with pytest.raises(StepOutcomeUnknownError, match="main/work#1") as caught:
            recover(guard, work)
        assert (caught.value.run_id, caught.value.key) == ("r", "main/work#1")
        assert guard.summary("r").state is RunState.PAUSED
    guard.resolve("r", "main/work#1", "completed", result=20, actor="ann")
    assert guard.summary("r").state is RunState.RUNNING
    assert recover(guard, work) == [2, 20, 4]
    assert [what for what, *_ in notes()] == ["before", "body", "before"]
    assert resolutions(guard) == [("completed", "ann")]
    holds_together(guard, work, [2, 20, 4])


def test_a_swallowed_doubt_does_not_end_the_run(guard: Guard, notes: Callable[[], list[list[Any]]]) -> None:
    work = BY_EFFECT["once"]
    crash(work)
    with pytest.raises(StepOutcomeUnknownError), guard.recover("r"):
        before(1)
        try:
            work(2)
        except Exception:
            pass
        before(3)  # nothing goes live beside a step in doubt
    assert guard.summary("r").state is RunState.PAUSED
    assert [what for what, *_ in notes()] == ["before", "body"]


@guarded_step(effect="idempotent")
def around(n: int) -> int:
    note("around")
    return BY_EFFECT["once"](n)


@pytest.mark.parametrize("waits", ["sync", "async"])
def test_a_recovery_of_a_run_in_doubt_says_so_again_and_does_not_wait_for_an_operator(
    waits: str, guard: Guard, notes: Callable[[], list[list[Any]]]
) -> None:
    """Even where something else has to go live first: the step around it, which may run again."""
    step = around if waits == "sync" else guarded_step(effect="idempotent", name="around")(_around_later)

    def work(n: int) -> int:
        return step(n) if waits == "sync" else asyncio.run(step(n))

    crash(work)
    for _ in range(2):
        with pytest.raises(StepOutcomeUnknownError) as caught:
            recover(guard, work)
        assert caught.value.key == "main/around#1/work#1"
        assert guard.summary("r").state is RunState.PAUSED
    guard.resolve("r", "main/around#1/work#1", "completed", result=20)
    assert recover(guard, work) == [2, 20, 4]
    assert [what for what, *_ in notes()].count("body") == 1


async def _around_later(n: int) -> int:
    note("around")
    return BY_EFFECT["once"](n)


def test_an_operator_may_have_it_tried_again(guard: Guard, notes: Callable[[], list[list[Any]]]) -> None:
    work = BY_EFFECT["once"]
    crash(work)
    guard.resolve("r", "main/work#1", "retry", actor="ann")
    assert recover(guard, work) == [2, 20, 4]
    assert [what for what, *_ in notes()] == ["before", "body", "body", "before"]
    holds_together(guard, work, [2, 20, 4])


def failure_of(act: Callable[[], Any]) -> tuple[type[BaseException], str]:
    with pytest.raises(AgentGuardError) as caught:
        act()
    return type(caught.value), str(caught.value)


def test_an_operator_may_say_that_it_failed(guard: Guard, notes: Callable[[], list[list[Any]]]) -> None:
    work = BY_EFFECT["once"]
    crash(work)
    guard.resolve("r", "main/work#1", "failed", result="the bank never saw it", actor="ann")
    said = failure_of(lambda: recover(guard, work))
    assert "the bank never saw it" in said[1]
    assert guard.summary("r").state is RunState.FAILED
    assert failure_of(lambda: _replayed(guard, work)) == said


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (
            ("main/before#1", "retry"),
            AgentGuardError,
            "has an outcome, or never started; in doubt: main/work#1",
        ),
        (("main/nothing#1", "retry"), AgentGuardError, "in doubt: main/work#1"),
        (("main/work#1", "perhaps"), ValueError, "must be one of retry, completed, failed, not 'perhaps'"),
    ],
    ids=["an outcome", "no such step", "another word"],
)
def test_what_an_operator_cannot_say(
    arguments: tuple[str, str],
    error: type[Exception],
    said: str,
    guard: Guard,
    notes: Callable[[], list[list[Any]]],
) -> None:
    crash(BY_EFFECT["once"])
    length = len(guard.history("r"))
    with pytest.raises(error, match=said):
        guard.resolve("r", *arguments)
    assert len(guard.history("r")) == length


@pytest.mark.parametrize(
    ("answer", "result", "bodies"),
    [("retry", [2, 20, 4], 2), (("completed", 21), [2, 21, 4], 1)],
    ids=["retry", "completed"],
)
def test_a_probe_is_asked_with_the_idempotency_key(
    answer: Any, result: list[int], bodies: int, guard: Guard, notes: Callable[[], list[list[Any]]]
) -> None:
    asked: list[str] = []
    work = guarded_step(name="work", probe=lambda key: asked.append(key) or answer)(body)
    crash(work)
    assert recover(guard, work) == result
    assert asked == [notes()[1][2]]
    assert [what for what, *_ in notes()].count("body") == bodies
    assert [by for _, by in resolutions(guard)] == ["probe"]
    holds_together(guard, work, result)
    assert len(asked) == 1, "a replay asks nobody"


def test_a_probe_may_know_of_a_failure_and_a_replay_raises_the_same(
    guard: Guard, notes: Callable[[], list[list[Any]]]
) -> None:
    work = guarded_step(name="work", probe=lambda key: ("failed", "declined"))(body)
    crash(work)
    live = failure_of(lambda: recover(guard, work))
    assert "declined" in live[1]
    replayed = failure_of(lambda: _replayed(guard, work))
    assert replayed == live


def _replayed(guard: Guard, work: Callable[[int], int]) -> None:
    with guard.replay("r"):
        agent(work)


def test_a_probe_that_cannot_tell_leaves_it_to_an_operator(
    guard: Guard, notes: Callable[[], list[list[Any]]]
) -> None:
    work = guarded_step(name="work", probe=lambda key: None)(body)
    crash(work)
    with pytest.raises(StepOutcomeUnknownError):
        recover(guard, work)
    assert guard.summary("r").state is RunState.PAUSED


def test_a_probe_that_says_something_else_is_told_so(
    guard: Guard, notes: Callable[[], list[list[Any]]]
) -> None:
    work = guarded_step(name="work", probe=lambda key: True)(body)
    crash(work)
    with pytest.raises(TypeError, match=r"probe must give 'retry', .* not True"):
        recover(guard, work)


# --- who may -------------------------------------------------------------------------------------


def test_two_processes_recover_at_once_and_the_loser_is_told_who_has_it(
    guard: Guard, notes: Callable[[], list[list[Any]]]
) -> None:
    work = BY_EFFECT["read"]
    crash(work)
    ready, start, told, release = os.pipe(), os.pipe(), os.pipe(), os.pipe()

    def contend() -> None:
        with Guard.open(telemetry=False) as own:
            run = own.recover("r")
            os.write(ready[1], b".")
            os.read(start[0], 1)
            try:
                with run:
                    os.write(told[1], f"{os.getpid()} has it\n".encode())
                    os.read(release[0], 1)
                    agent(work)
            except RunOwnedError as error:
                os.write(told[1], f"{os.getpid()} refused: {error.owner}\n".encode())

    pids = [_forked(contend) for _ in range(2)]
    for _ in pids:
        os.read(ready[0], 1)
    os.write(start[1], b"..")
    said = b""
    while said.count(b"\n") < 2:
        said += os.read(told[0], 1000)
    os.write(release[1], b"..")
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]
    lines = said.decode().splitlines()
    (winner,) = [line.split()[0] for line in lines if line.endswith("has it")]
    (refused,) = [line for line in lines if "refused" in line]
    assert f"process {winner} on " in refused or "another process, just now" in refused
    assert [event.type for event in guard.history("r")].count("run_recovered") == 1
    assert guard.summary("r").state is RunState.COMPLETED
    holds_together(guard, work, [2, 20, 4])


def _forked(act: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        act()
        status = 0
    finally:
        os._exit(status)


@pytest.mark.parametrize("how", ["completed", "failed", "killed"])
def test_what_has_ended_never_recovers(how: str, guard: Guard) -> None:
    try:
        with guard.run("program", run_id="r") as run:
            if how == "killed":
                run.kill("enough")
            if how == "failed":
                raise LookupError
    except (LookupError, RunStopped):
        pass
    with pytest.raises(InvalidStateTransitionError) as caught, guard.recover("r"):
        pass
    assert caught.value.__notes__ == ["an ended run never recovers: fork it, with a new budget, to carry on"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_process_that_is_asked_to_end_ends_its_run(error: type[BaseException], guard: Guard) -> None:
    with pytest.raises(error), guard.run("program", run_id="r"):
        raise error
    assert guard.summary("r").state is RunState.FAILED


def test_a_paused_run_whose_owner_is_dead_stays_paused_and_can_be_recovered(
    guard: Guard, notes: Callable[[], list[list[Any]]]
) -> None:
    def live(own: Guard) -> None:
        with own.run("program", run_id="r") as run:
            before(1)
            run.pause("look at it first")
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_process(live) == -signal.SIGKILL
    assert guard.summary("r").state is RunState.PAUSED
    guard.resume("r")
    work = BY_EFFECT["read"]
    assert recover(guard, work) == [2, 20, 4]
    assert [what for what, *_ in notes()] == ["before", "body", "before"]


def test_if_exists_recover_opens_or_carries_on(guard: Guard, notes: Callable[[], list[list[Any]]]) -> None:
    """The one line for a service that is started again."""
    work = BY_EFFECT["read"]

    def service(own: Guard) -> None:
        with own.run("program", run_id="r", if_exists="recover", budget=Budget(usd="1")) as run:
            assert run.summary().budget == Budget(usd="1")
            agent(work)

    assert in_process(service) == -signal.SIGKILL
    service(guard)
    assert guard.summary("r").state is RunState.COMPLETED
    assert [what for what, *_ in notes()] == ["before", "body", "body", "before"]
    with pytest.raises(InvalidStateTransitionError):
        service(guard)


def test_a_decorated_function_recovers_its_run_when_it_is_called_again(
    guard: Guard, notes: Callable[[], list[list[Any]]]
) -> None:
    def service(own: Guard) -> None:
        @own.run("program", run_id="r", if_exists="recover")
        def program() -> list[int]:
            return agent(BY_EFFECT["read"])

        assert program() == [2, 20, 4]

    assert in_process(service) == -signal.SIGKILL
    service(guard)
    assert guard.summary("r").state is RunState.COMPLETED
    assert [what for what, *_ in notes()] == ["before", "body", "body", "before"]


def test_a_nested_run_that_may_be_recovered_is_served_in_a_recovery_and_in_a_replay(
    guard: Guard, notes: Callable[[], list[list[Any]]]
) -> None:
    """The log of the run around it says what it is, and not the store alone."""
    work = BY_EFFECT["read"]

    def program(own: Guard) -> list[int]:
        with own.run("part", run_id="part", if_exists="recover"):
            first = before(1)
        return [first, work(2), before(3)]

    def live(own: Guard) -> None:
        with own.run("program", run_id="r"):
            program(own)

    assert in_process(live) == -signal.SIGKILL
    with guard.recover("r"):
        assert program(guard) == [2, 20, 4]
    done = len(notes())
    with guard.replay("r"):
        assert program(guard) == [2, 20, 4]
    assert len(notes()) == done == 4
    assert guard.verify()
    assert [guard.summary(run).state for run in ("r", "part")] == [RunState.COMPLETED] * 2


def test_a_run_is_not_recovered_inside_another_whose_log_does_not_have_it(
    guard: Guard, notes: Callable[[], list[list[Any]]]
) -> None:
    crash(BY_EFFECT["read"])
    with guard.run("other") as other:
        with pytest.raises(ValueError, match=f"run_id='r'.*not in the log of run {other.id}.*detached=True"):
            guard.run("program", run_id="r", if_exists="recover")
        with guard.run("program", run_id="r", if_exists="recover", detached=True):
            assert agent(BY_EFFECT["read"]) == [2, 20, 4]
    assert guard.summary("r").state is RunState.COMPLETED
    assert other.spent["steps"] == 0


def test_a_run_with_a_step_in_flight_is_not_pruned_before_its_reservation_is_settled(
    guard: Guard, notes: Callable[[], list[list[Any]]]
) -> None:
    """What it holds of an account that other runs share could never be given back without its log."""
    crash(BY_EFFECT["once"], account="jobs", account_budget=Budget(usd=1))
    guard.kill(run="r", reason="it is over")
    assert guard.summary("r").open_steps == ("main/work#1",)
    assert guard.prune("0s") == []
    account = guard.account("jobs")
    assert account is not None
    assert account.reserved.usd == USES.usd
    charge_abandoned(guard.components, "ann")
    assert guard.prune("0s") == ["r"]
    settled = guard.account("jobs")
    assert settled is not None
    assert (settled.reserved.usd, settled.spent.usd) == (0, USES.usd)


def test_a_run_that_lives_here_is_not_recovered_beside_itself(guard: Guard) -> None:
    with (
        guard.run("program", run_id="r"),
        pytest.raises(RunOwnedError, match=f"process {os.getpid()} on "),
        guard.recover("r"),
    ):
        pass
