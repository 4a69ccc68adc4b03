"""Erasing payloads and pruning runs: nothing of the data stays, and the log still verifies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agentguard import (
    AgentGuardError,
    Guard,
    InvalidStateTransitionError,
    ReplayDivergenceError,
    RunState,
    RunStopped,
    guarded_step,
)
from agentguard.errors import RunNotFoundError
from agentguard.testing import FakeClock, FakeIds

NEEDLE = "a-needle-in-the-haystack"


@guarded_step
def look_up(name: str) -> str:
    return f"{name} found"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["memory", "sqlite"])
def guard(request: pytest.FixtureRequest, clock: FakeClock, home: Path) -> Iterator[Guard]:
    options = {"telemetry": False, "clock": clock, "ids": FakeIds()}
    opened = Guard.in_memory(**options) if request.param == "memory" else Guard.open(**options)
    with opened as guard:
        yield guard


def a_run(guard: Guard, name: str = "r") -> str:
    with guard.run(name, inputs={"for": NEEDLE}) as run:
        look_up(NEEDLE)
        run.record("note", lambda: NEEDLE)
    return run.id


def test_an_erased_run_holds_no_payload_and_no_salt_and_still_verifies(guard: Guard) -> None:
    run_id = a_run(guard)
    other = a_run(guard)
    before, anchor = guard.history(run_id), guard.summary(run_id).head
    assert guard.erase(run_id, actor="ann") == 4
    stored = list(guard.components.store.read(run_id))
    assert [event.payload for event in stored] == [None] * len(stored)
    row = guard.components.store.row(run_id)
    assert row is not None
    assert row.salt is None
    after = guard.history(run_id)
    assert [event.hash for event in after[:-1]] == [event.hash for event in before]
    assert (after[-1].type, after[-1].data) == ("payload_erased", {"actor": "ann"})
    assert guard.verify(run_id, anchors={run_id: anchor})
    assert guard.summary(run_id) == guard.reconstruct(run_id)
    assert guard.summary(run_id).state is RunState.COMPLETED
    assert guard.verify()
    assert sum(event.payload is not None for event in guard.components.store.read(other)) == 4


def test_an_erasure_is_on_record_in_the_control_log(guard: Guard) -> None:
    run_id = a_run(guard)
    guard.erase(run_id, actor="ann")
    (record,) = guard.history("control")
    assert record.type == "payload_erased"
    assert record.data == {"run": run_id, "tenant": "default", "actor": "ann"}
    assert guard.verify("control")


def test_erasing_again_does_nothing(guard: Guard) -> None:
    run_id = a_run(guard)
    guard.erase(run_id)
    events = guard.history(run_id)
    assert guard.erase(run_id) == 0
    assert guard.history(run_id) == events
    assert len(guard.history("control")) == 1


def test_a_live_run_cannot_be_erased(guard: Guard) -> None:
    with guard.run("r") as run:
        look_up(NEEDLE)
        with pytest.raises(AgentGuardError, match=f"{run.id} is RUNNING") as caught:
            guard.erase(run.id)
        assert not isinstance(caught.value, InvalidStateTransitionError)
    assert guard.erase(run.id) == 2
    with pytest.raises(RunNotFoundError):
        guard.erase("nobody")


def test_an_outcome_after_the_erasure_leaves_no_payload(guard: Guard) -> None:
    started, finish = threading.Event(), threading.Event()

    def body(name: str) -> str:
        started.set()
        assert finish.wait(60)
        return name

    with guard.run("r") as run:
        worker = threading.Thread(target=run.bind(lambda: run.call("slow", body, NEEDLE)))
        worker.start()
        assert started.wait(60)
    assert guard.erase(run.id) == 1
    finish.set()
    worker.join()
    assert [event.type for event in guard.history(run.id)][-2:] == ["payload_erased", "step_completed"]
    assert all(event.payload is None for event in guard.components.store.read(run.id))
    assert guard.verify(run.id)


def test_erasure_has_the_effect_of_not_captured(guard: Guard) -> None:
    run_id = a_run(guard)
    guard.erase(run_id)
    with pytest.raises(ReplayDivergenceError, match="erased") as caught, guard.replay(run_id):
        look_up(NEEDLE)
    assert caught.value.kind == "not_replayable"


def test_payloads_dropped_behind_the_logs_back_are_a_fault(guard: Guard) -> None:
    run_id = a_run(guard)
    guard.components.store.erase(run_id)
    report = guard.verify(run_id)
    assert not report
    assert "no erasure is on record" in report.faults[0].problem


def test_nothing_of_an_erased_payload_is_left_on_the_disk(home: Path) -> None:
    with Guard.open(telemetry=False) as guard:
        run_id = a_run(guard)
        assert any(NEEDLE.encode() in file.read_bytes() for file in home.rglob("*") if file.is_file())
        guard.erase(run_id)
        for file in home.rglob("*"):
            assert not file.is_file() or NEEDLE.encode() not in file.read_bytes(), file


@pytest.mark.parametrize("way", ["replay", "recover", "fork"])
def test_a_log_that_was_not_read_to_its_end_keeps_nothing_that_is_erased(home: Path, way: str) -> None:
    """A reader that stayed open would pin what it can see, in the file beside the log."""
    secret = "a text of a person"

    def program(text: str, steps: int = 9) -> None:
        for _ in range(steps):
            look_up(text)

    with Guard.open(telemetry=False) as guard:
        with guard.run("r") as origin:
            program(secret)
        if way == "replay":
            left = guard.replay(origin.id)
        elif way == "fork":
            left = guard.fork(origin.id, at=origin.summary().head.seq - 2)
        else:
            with suppress(RunStopped), guard.run("r") as crashed:
                program(secret)
                crashed.drain(0)
            left = guard.recover(crashed.id)
        with suppress(ReplayDivergenceError), left:
            program("another text", 2)
        if way != "replay":
            guard.kill(run=left.id, reason="done with it")
        for run_id in {origin.id, left.id}:
            guard.erase(run_id)
        for file in home.rglob("*.db*"):
            assert secret.encode() not in file.read_bytes(), file


# --- pruning -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "older_than",
    ["1h", "60m", timedelta(hours=1), datetime(2026, 1, 1, 4, tzinfo=UTC)],
    ids=["hours", "minutes", "timedelta", "datetime"],
)
def test_prune_drops_runs_that_ended_before_then_and_nothing_else(
    guard: Guard, clock: FakeClock, older_than: object
) -> None:
    old = a_run(guard, "old")
    clock.advance(timedelta(hours=4))
    young = a_run(guard, "young")
    clock.advance(timedelta(hours=1))
    with guard.run("live") as live:
        assert guard.prune(older_than) == [old]
        assert [run.run_id for run in guard.runs()] == [live.id, young]
        with pytest.raises(RunNotFoundError):
            guard.history(old)
    assert guard.verify()


def test_a_long_run_is_judged_by_its_end(guard: Guard, clock: FakeClock) -> None:
    with guard.run("long") as run:
        clock.advance(7200)
    assert guard.prune("1h") == []
    clock.advance(3601)
    assert guard.prune("1h") == [run.id]


def test_pruned_runs_are_on_record_and_no_fault_against_their_anchors(guard: Guard) -> None:
    anchors = {run_id: guard.summary(run_id).head for run_id in (a_run(guard), a_run(guard))}
    first, second = anchors
    guard.components.clock.advance(1)  # type: ignore[attr-defined]
    guard.prune(0, actor="ann")
    (record,) = guard.history("control")
    assert record.type == "payload_erased"
    assert record.data["actor"] == "ann"
    assert {run["run"]: (run["seq"], run["hash"]) for run in record.data["pruned"]} == anchors
    assert guard.verify(anchors=anchors)
    forged = {first: anchors[first]._replace(hash="0" * 64), second: (99, "0" * 64)}
    assert [fault.run_id for fault in guard.verify(anchors=forged).faults] == [first, second]
    lost = guard.verify(anchors={"nobody": (1, "0" * 64)})
    assert "it is gone" in lost.faults[0].problem


def test_what_a_live_run_may_be_recovered_from_stays(guard: Guard, clock: FakeClock) -> None:
    """Runs inside it at any depth, and where it was forked from, with the runs inside that."""
    with guard.run("origin") as origin, guard.run("in the origin") as inside:
        look_up("a")
    lonely = a_run(guard, "lonely")
    with guard.run("live") as live:
        with guard.run("nested") as nested, guard.run("deeper") as deeper:
            look_up("a")
        with guard.fork(origin.id, at=2, new_run_id="fork"):
            clock.advance(1)
            assert guard.prune(0) == [lonely]
            kept = {run.run_id for run in guard.runs()}
            assert kept == {origin.id, inside.id, live.id, nested.id, deeper.id, "fork"}
    clock.advance(1)
    assert set(guard.prune(0)) == kept


def test_pruning_nothing_records_nothing(guard: Guard) -> None:
    a_run(guard)
    assert guard.prune("1h") == []
    assert guard.history("control") == []


def test_more_runs_than_one_record_takes_are_all_on_record(
    guard: Guard, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentguard.audit.erasure._BATCH", 2)
    runs = {a_run(guard) for _ in range(5)}
    clock.advance(1)
    assert set(guard.prune(0)) == runs
    records = guard.history("control")
    assert [len(record.data["pruned"]) for record in records] == [2, 2, 1]
    assert {run["run"] for record in records for run in record.data["pruned"]} == runs


@pytest.mark.parametrize(
    ("older_than", "error"),
    [
        (-1, ValueError),
        (90, ValueError),
        (0.5, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (timedelta(seconds=-1), ValueError),
        (datetime(2026, 1, 1), ValueError),  # noqa: DTZ001 - that is the point
        (True, TypeError),
        ("yesterday", ValueError),
        (None, TypeError),
    ],
)
def test_an_age_that_is_none_is_refused(guard: Guard, older_than: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="older_than"):
        guard.prune(older_than)
