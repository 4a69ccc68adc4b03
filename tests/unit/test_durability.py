"""Durability: what each durability promises, and what memory:// refuses."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentguard import Guard, guarded_step
from agentguard.stores import _wal_sync

DEADLINE = 60.0


@guarded_step
def work() -> str:
    return "done"


@guarded_step(durability="power")
def careful() -> str:
    return "done"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'events.db'}"


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    really = _wal_sync._sync_file

    def sync(fd: int) -> None:
        made.append(fd)
        really(fd)

    monkeypatch.setattr(_wal_sync, "_sync_file", sync)
    return made


def opened(url: str, durability: str) -> Guard:
    return Guard.open(url, durability=durability, kill_switch="memory", telemetry=False)


@pytest.mark.parametrize("durability", ["process", "power"])
def test_memory_cannot_promise_what_outlives_it(durability: str) -> None:
    with pytest.raises(ValueError, match="promises nothing across the process's death"):
        _ = Guard.open("memory://", durability=durability, kill_switch="memory").components


PROGRAM = """
import os, signal, sys
from agentguard import Guard, guarded_step
url, durability = sys.argv[1:]

@guarded_step
def work(): return "done"

guard = Guard.open(url, durability=durability, kill_switch="memory", telemetry=False)
run = guard.start("r", run_id="r1")
for _ in range(20):
    work()
print("told", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_after_twenty_steps(url: str, durability: str) -> None:
    child = subprocess.run(
        [sys.executable, "-c", PROGRAM, url, durability],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (child.returncode, child.stdout) == (-signal.SIGKILL, "told\n"), child.stderr


@pytest.mark.parametrize("durability", ["process", "power"])
def test_what_was_reported_survives_a_kill_9(url: str, durability: str) -> None:
    killed_after_twenty_steps(url, durability)
    with opened(url, "process") as guard:
        assert [event.type for event in guard.history("r1")].count("step_completed") == 20
        assert guard.verify()


def test_only_power_waits_for_the_disk(url: str, syncs: list[int]) -> None:
    with opened(url, "process") as guard, guard.run("r"):
        work()
        assert syncs == []
        careful()
        assert len(syncs) == 2, "its start before the body, its outcome before the caller has it"
        work()
        assert len(syncs) == 2


@pytest.mark.parametrize("url", [None, "memory://"])
def test_the_durability_that_is_gone_says_what_to_use(url: str | None) -> None:
    with pytest.raises(ValueError, match="'buffered' is gone; use 'process'.*for memory:// leave it out"):
        Guard.open(url, durability="buffered")


def test_a_durability_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="durability must be one of"):
        Guard.open(durability="disk")


@pytest.mark.parametrize("durability", ["process", "power"])
def test_memory_refuses_a_promise_at_once(durability: str) -> None:
    with pytest.raises(ValueError, match="memory:// promises nothing"):
        Guard.in_memory(durability=durability)
    with pytest.raises(ValueError, match="memory:// promises nothing"):
        Guard.open("memory://", durability=durability)
