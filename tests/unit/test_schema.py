"""Old formats: schema versions, one snapshot for `verify`, and a memory store that is full."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from agentguard import (
    Budget,
    Guard,
    LogIntegrityError,
    RunState,
    RunStopped,
    StoreUnavailableError,
    guarded_step,
)
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.codec import Stored
from agentguard.events.model import Record
from agentguard.protocols import abilities_of
from agentguard.runs.fold import RunFold
from agentguard.runs.state import RunState as State
from agentguard.stores import _sql
from agentguard.stores.memory import MemoryEventStore


@guarded_step
def tool(value: object = None) -> object:
    return value


# --- events ----------------------------------------------------------------------------------------


def test_events_are_decoded_by_the_version_they_carry(guard):
    """A body without later fields reads with their defaults; the present version is left out of it."""
    with guard.run("r") as run:
        tool()
    for stored in guard.components.store.read(run.id):
        assert codec.decode(stored.body).v == ev.SCHEMA_VERSION == 1
        assert b'"v":' not in stored.body
    old = b'{"seq":1,"type":"run_created","at_ns":5,"name":"r","data":{"tenant":"t"},"unknown":"field"}'
    record = codec.decode(old)
    assert (record.seq, record.pos, record.attempt, record.v) == (1, 0, 0, 1)
    fold = RunFold("r1")
    fold.apply(record, codec.chain(fold.hash, old))
    assert (fold.name, fold.tenant, fold.budget, fold.state) == ("r", "t", Budget(), State.CREATED)


def test_an_event_of_a_newer_schema_is_refused_wherever_it_is_read(guard):
    with guard.run("r") as run:
        tool()
    store = guard.components.store
    head = store.last(run.id)
    body = codec.encode(Record(head.seq + 1, ev.PAYLOAD_ERASED, 0, v=ev.SCHEMA_VERSION + 1))
    newer = Stored(head.seq + 1, body, codec.chain(head.hash, body))
    store.append(store.row(run.id).number, [newer])
    for reading in (
        lambda: guard.history(run.id),
        lambda: guard.reconstruct(run.id),
        lambda: guard.events(),
    ):
        with pytest.raises(LogIntegrityError, match="newer"):
            reading()


def test_an_event_of_an_unknown_type_changes_nothing():
    """What a later version may add is kept and passed over by the fold."""
    fold = RunFold("r1")
    created = Record(1, ev.RUN_CREATED, 0, name="r", data={"tenant": "t"})
    unknown = Record(2, "moon_phase", 0, data={"waxing": True})
    for record in (created, unknown):
        body = codec.encode(record)
        fold.apply(codec.decode(body), codec.chain(fold.hash, body))
    assert (fold.seq, fold.state) == (2, State.CREATED)


def test_event_bytes_are_never_rewritten(guard):
    """Reading, folding, verifying and summing up leave every byte as it was."""
    with guard.run("r") as run:
        tool()
    before = list(guard.components.store.read(run.id))
    guard.history(run.id)
    guard.reconstruct(run.id)
    guard.verify()
    guard.summary(run.id)
    assert list(guard.components.store.read(run.id)) == before


def test_verify_sees_row_and_events_in_one_moment(sqlite_guard):
    """While a run is written to, its row and its log never seem to disagree."""
    stop = threading.Event()
    faults = []

    def verify() -> None:
        while not stop.is_set():
            report = sqlite_guard.verify()
            if not report:
                faults.append(str(report))

    watcher = threading.Thread(target=verify)
    watcher.start()
    for _ in range(15):
        with suppress(RunStopped), sqlite_guard.run("r", budget=Budget(steps=3)) as run:
            run.pause()
            run.resume()
            for _ in range(4):
                tool()
    stop.set()
    watcher.join(30)
    assert faults == []


# --- a full memory store ---------------------------------------------------------------------------


@pytest.fixture
def small(guard) -> MemoryEventStore:
    guard.components.store = MemoryEventStore(max_events=40)
    guard.components.abilities = abilities_of(guard.components.store)
    return guard.components.store


def is_held(store: MemoryEventStore, run_id: str) -> bool:
    try:
        return bool(list(store.read(run_id)))
    except StoreUnavailableError as error:
        assert "evicted" in str(error)
        return False


def test_whole_ended_runs_are_evicted_oldest_first(guard, small):
    runs = []
    for n in range(10):
        with guard.run(f"r{n}") as run:
            tool()
            tool()
        runs.append(run)
    held = [run for run in runs if is_held(small, run.id)]
    assert held == runs[-len(held) :]
    assert 0 < len(held) < 10
    for run in runs:
        assert guard.summary(run.id) == run.summary()
        assert guard.summary(run.id).state is RunState.COMPLETED
    assert [row.name for row in guard.runs()] == [f"r{n}" for n in reversed(range(10))]
    for run in held:
        assert guard.verify(run.id)
        assert guard.reconstruct(run.id) == guard.summary(run.id)


def test_an_eviction_says_so(guard, small):
    with guard.run("first") as first:
        tool()
    for _ in range(10):
        with guard.run("later"):
            tool()
    for question in (guard.history, guard.reconstruct, guard.verify):
        with pytest.raises(StoreUnavailableError, match=f"{first.id} were evicted"):
            question(first.id)
    assert guard.summary(first.id).usage.steps == 1


def test_live_runs_that_fill_it_are_refused_further_steps(guard, small):
    with guard.run("r") as run:
        with pytest.raises(StoreUnavailableError, match="max_events"):
            for _ in range(1000):
                tool()
        with pytest.raises(StoreUnavailableError):
            tool()
        done = run.spent.steps
    assert run.state is RunState.COMPLETED
    assert guard.summary(run.id).usage.steps == done
    assert guard.verify(run.id)


def test_what_has_started_may_still_end(guard, small):
    """The last step to be admitted gets its outcome on record, full or not."""
    with guard.run("r") as run:

        def fill() -> None:
            with suppress(StoreUnavailableError):
                for _ in range(1000):
                    tool()

        run.call("outer", fill)
    events = guard.history(run.id)
    assert [(e.type, e.name) for e in events][-2:] == [("step_completed", "outer"), ("run_completed", "r")]
    assert guard.verify(run.id)


def test_a_record_has_its_sequence_first():
    """What `verify` and stores in SQL rely on without decoding."""
    body = codec.encode(Record(17, ev.STEP_STARTED, 1, key="k"))
    assert body.startswith(b'{"seq":17,"type":"step_started",')
    assert list(msgspec.json.decode(body)) == ["seq", "type", "at_ns", "key"]


def test_memory_promises_no_durability():
    for durability in ("process", "power"):
        with pytest.raises(ValueError, match="memory://"):
            Guard.open("memory://", durability=durability).components  # noqa: B018
    with Guard.open("memory://", kill_switch="memory", telemetry=False) as guard:
        with guard.run("r"):
            tool()


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_migrations_are_numbered_from_one_without_a_gap_and_none_twice(backend: str) -> None:
    numbers = [number for number, _ in _sql.migrations(backend)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_an_event_of_a_type_that_is_not_known_is_passed_over(guard: Guard, tmp_path: Path) -> None:
    """As an older reader does with what a newer agentguard puts on record: alerts, say."""

    def program() -> None:
        tool()
        tool()

    with guard.run("r", run_id="r") as run:
        log = run.live_run.log
        tool()
        log.decide(lambda: log.act([Record(0, "from_the_future", 1, key="main/x#1", data={"usd": 5})]))
        tool()
        spent = run.spent
    log.decide(lambda: log.act([Record(0, "from_the_future", 2)]))  # after its end, too
    assert guard.verify("r")
    assert guard.reconstruct("r") == guard.summary("r")
    assert guard.summary("r").usage == spent
    with guard.replay("r"):
        program()
    assert [event.type for event in guard.history("r")].count("from_the_future") == 2
    guard.export("r", tmp_path / "r.jsonl")
    with Guard.open(f"file://{tmp_path / 'r.jsonl'}", telemetry=False) as exported:
        assert exported.verify()
        assert exported.summary("r") == guard.summary("r")
