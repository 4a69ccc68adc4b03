"""What is done a second time: closing, reopening, verifying after an eviction; and options of the store."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from agentguard import Guard, RunState, StoreUnavailableError, guarded_step
from agentguard import heartbeat as heartbeats
from agentguard.audit.verify import verify
from agentguard.cli.timeline import describe
from agentguard.events.model import PROCESSES_SIGNALLED
from agentguard.protocols import abilities_of
from agentguard.sessions import upkeep
from agentguard.stores.memory import MemoryEventStore
from tests.kit import wait_until

DEADLINE = 60.0


@guarded_step
def work() -> str:
    return "done"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'events.db'}"


def opened(url: str, **options: object) -> Guard:
    return Guard.open(url, kill_switch="memory", telemetry=False, **options)  # type: ignore[arg-type]


# --- closing -----------------------------------------------------------------------------------


def test_a_run_whose_end_could_not_be_recorded_is_closed_by_closing_it_again(url: str) -> None:
    with opened(url, store_timeout=0.05) as guard:
        run = guard.start("r")
        work()
        with closing(sqlite3.connect(guard.components.store.path, isolation_level=None)) as other:  # type: ignore[attr-defined]
            other.execute("BEGIN IMMEDIATE")
            for _ in range(2):
                with pytest.raises(StoreUnavailableError, match="was locked for 0.05 s"):
                    run.close()
            other.execute("ROLLBACK")
        assert guard.summary(run.id).state is RunState.RUNNING
        run.close()
        assert guard.summary(run.id).state is RunState.COMPLETED
        head = guard.summary(run.id).head
        run.close()
        assert guard.summary(run.id).head == head, "a third time does nothing"
        assert guard.verify()


# --- heartbeats --------------------------------------------------------------------------------


def heartbeat(guard: Guard, run_id: str) -> int:
    row = guard.components.store.row(run_id)
    assert row is not None
    return row.heartbeat_ns


def test_a_guard_that_is_closed_refuses_what_comes_later(url: str) -> None:
    guard = opened(url)
    with guard.run("first"):
        work()
    guard.close()
    guard.close()
    for use in (guard.runs, guard.verify, lambda: guard.start("second"), lambda: guard.kill(reason="late")):
        with pytest.raises(StoreUnavailableError, match=r"closed; open a new one with Guard\.open"):
            use()


def test_a_guard_beats_for_its_runs(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "INTERVAL", 0.01)
    with opened(url) as guard, guard.run("r") as run:
        begun = heartbeat(guard, run.id)
        wait_until(lambda: heartbeat(guard, run.id) > begun)


def test_a_late_beat_does_not_open_a_closed_guard(url: str) -> None:
    guard = opened(url)
    run = guard.start("r")
    guard.close()
    upkeep.beat(guard.runtime)
    assert guard.runtime.opened is None
    with pytest.raises(StoreUnavailableError, match="is closed"):
        run.close()


def test_beats_end_with_the_guard(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "INTERVAL", 0.01)
    guard = opened(url)
    with guard.run("r"):
        (thread,) = [t for t in threading.enumerate() if t.name == "agentguard-heartbeat" and t.is_alive()][
            -1:
        ]
    guard.close()
    wait_until(lambda: not thread.is_alive())


# --- evictions ---------------------------------------------------------------------------------


def test_verify_says_how_many_runs_memory_has_let_go_of() -> None:
    with Guard.in_memory(telemetry=False) as guard:
        guard.components.store = MemoryEventStore(max_events=20)  # type: ignore[misc]
        guard.components.abilities = abilities_of(guard.components.store)
        runs = []
        for _ in range(6):
            with guard.run("r") as run:
                work()
            runs.append(run.id)
        report = guard.verify()
        assert report
        assert report.evicted > 0
        assert report.runs + report.evicted == 6
        assert f"{report.evicted} runs were evicted from memory" in str(report)
        assert not report.anchored
        with pytest.raises(StoreUnavailableError, match="were evicted from memory"):
            guard.verify(runs[0])
        assert guard.verify(runs[-1])
        heads = {row.run_id: guard.summary(row.run_id).head for row in guard.components.store.rows()}
        assert not verify(guard.components.store, guard.components.store.rows(), heads).anchored


# --- store_timeout -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["option", "url", "environment"])
def test_the_store_timeout_can_be_set(url: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, object] = {"store_timeout": 0.03} if way == "option" else {}
    named: str | None = url if way == "option" else f"{url}?store_timeout=0.03"
    if way == "environment":
        monkeypatch.setenv("AGENTGUARD_STORE", str(named))
        named = None
    with opened(named, **options) as guard:  # type: ignore[arg-type]
        with guard.run("r"):
            work()
        assert Path(guard.components.store.path).name == "events.db"  # type: ignore[attr-defined]
        with closing(sqlite3.connect(guard.components.store.path, isolation_level=None)) as other:  # type: ignore[attr-defined]
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailableError, match=r"was locked for 0\.03 s"):
                guard.start("late")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("store_timeout=soon", "must be seconds, not 'soon'"),
        ("timeout=3", "no option 'timeout'"),
        ("store_timeout=-1", "seconds from 0 up"),
        ("store_timeout=nan", "seconds from 0 up"),
    ],
)
def test_a_wrong_option_of_a_url_is_named(url: str, query: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ = opened(f"{url}?{query}").components


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_a_wrong_store_timeout_is_refused_at_once(url: str, seconds: float) -> None:
    with pytest.raises(ValueError, match="store_timeout must be seconds"):
        opened(url, store_timeout=seconds)


# --- what is seen of other processes' runs -----------------------------------------------------


def test_a_live_run_of_another_process_has_a_duration(url: str) -> None:
    program = (
        "import sys\n"
        "from agentguard import Guard\n"
        "guard = Guard.open(sys.argv[1], kill_switch='memory', telemetry=False)\n"
        "run = guard.start('r', run_id='r1')\n"
        "print('running', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "running\n"
        with opened(url) as guard:
            wait_until(lambda: (guard.summary("r1").duration or 0) > 0.05)
            (listed,) = guard.runs()
            assert listed.duration is not None
            assert listed.duration > 0.05
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            dead = guard.summary("r1").duration
            assert dead is not None
            assert dead == guard.summary("r1").duration, "what is dead does not go on"
    finally:
        child.kill()
        child.communicate()


def test_the_timeline_tells_whom_a_hard_kill_signalled(url: str) -> None:
    with opened(url) as guard:
        processes = [{"pid": 7, "start": 1, "runs": ["r"]}, {"pid": 9, "start": 1, "runs": ["r"]}]
        facts = {"kill": 3, "signal": "SIGTERM", "processes": processes, "actor": "ann"}
        guard.components.switch.record(PROCESSES_SIGNALLED, facts)
        (event,) = guard.history("control")
        assert describe(event) == "SIGTERM sent to pid 7, 9, for the kill of generation 3"
