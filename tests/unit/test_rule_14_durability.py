"""Rule 14: what each durability promises, what buffered mode excludes, and what memory:// refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentguard import Budget, Guard, guarded_step
from agentguard.stores import _wal_sync
from agentguard.stores.sqlite import SQLiteEventStore

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
def test_rule_14_memory_cannot_promise_what_outlives_it(durability: str) -> None:
    with pytest.raises(ValueError, match="promises nothing across the process's death"):
        _ = Guard.open("memory://", durability=durability, kill_switch="memory").parts


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
def test_rule_14_what_was_reported_survives_a_kill_9(url: str, durability: str) -> None:
    killed_after_twenty_steps(url, durability)
    with opened(url, "process") as guard:
        assert [event.type for event in guard.history("r1")].count("step_completed") == 20
        assert guard.verify()


def test_rule_14_buffered_may_lose_a_tail_and_nothing_else(url: str) -> None:
    killed_after_twenty_steps(url, "buffered")
    with opened(url, "process") as guard:
        events = guard.history("r1")
        assert 2 <= len(events) <= 42
        assert guard.verify()


def test_rule_14_only_power_waits_for_the_disk(url: str, syncs: list[int]) -> None:
    with opened(url, "process") as guard, guard.run("r"):
        work()
        assert syncs == []
        careful()
        assert len(syncs) == 2, "its start before the body, its outcome before the caller has it"
        work()
        assert len(syncs) == 2


def test_rule_14_a_step_that_asks_for_more_writes_what_was_buffered_before_it(
    url: str, syncs: list[int]
) -> None:
    with opened(url, "buffered") as guard, guard.run("r") as run:
        work()
        assert syncs == []
        careful()
        assert len(syncs) == 2
        assert [event.seq for event in guard.history(run.id)] == list(range(1, 7))


def test_rule_14_a_tenants_budget_is_written_through(url: str) -> None:
    """Other processes charge it too, and must not find it behind."""
    with opened(url, "buffered") as guard:
        guard.set_tenant_budget("acme", Budget(steps=5))
        with guard.run("r", tenant="acme"):
            work()
            store = guard.parts.store
            assert isinstance(store, SQLiteEventStore)
            assert store._database().buffer.queue == []


def test_rule_14_a_buffered_run_is_not_attached_to_from_another_process(url: str) -> None:
    program = (
        "import sys\n"
        "from agentguard import AgentGuardError, Guard\n"
        "with Guard.open(sys.argv[1], kill_switch='memory', telemetry=False) as guard:\n"
        "    try:\n"
        "        with guard.attach('r1') as run:\n"
        "            run.call('w', lambda: 1)\n"
        "    except AgentGuardError as error:\n"
        "        print(type(error).__name__, error)\n"
        "    else:\n"
        "        print('attached')\n"
    )
    for durability in ("buffered", "process"):
        file = url.replace("events.db", f"{durability}.db")
        with opened(file, durability) as guard, guard.run("r", run_id="r1"):
            work()
            child = subprocess.run(
                [sys.executable, "-c", program, file],
                capture_output=True,
                text=True,
                timeout=DEADLINE,
                check=True,
            )
            with guard.attach("r1"):  # from this process it is the same memory
                work()
        if durability == "process":
            assert child.stdout == "attached\n"
        else:
            assert f"is buffered in the memory of process {os.getpid()}" in child.stdout
            assert "give its guard durability='process'" in child.stdout


def test_rule_14_a_recovered_run_is_no_longer_buffered(url: str) -> None:
    killed_after_twenty_steps(url, "buffered")
    with opened(url, "process") as guard, guard.recover("r1"):
        for _ in range(20):
            work()
        row = guard.parts.store.row("r1")
        assert row is not None
        assert "buffered" not in row.owner


def test_rule_14_a_durability_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="durability must be one of"):
        Guard.open(durability="disk")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_rule_14_a_forked_child_cannot_go_on_with_a_buffered_run(url: str) -> None:
    """What the parent has in memory is not in the file: the child would take its place in the log."""
    program = (
        "import os, sys\n"
        "from agentguard import AgentGuardError, Guard\n"
        "guard = Guard.open(sys.argv[1], durability='buffered', kill_switch='memory', telemetry=False)\n"
        "with guard.run('r') as run:\n"
        "    run.call('w', int)\n"
        "    if os.fork() == 0:\n"
        "        try:\n"
        "            run.call('w', int)\n"
        "        except AgentGuardError as error:\n"
        "            print(type(error).__name__, error, flush=True)\n"
        "        with guard.run('own', detached=True) as own:\n"
        "            own.call('w', int)\n"
        "        print(own.summary(), flush=True)\n"
        "        os._exit(0)\n"
        "    assert os.wait()[1] == 0\n"
        "    run.call('w', int)\n"
        "print(run.summary())\n"
        "print(guard.verify())\n"
        "guard.close()\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, url], capture_output=True, text=True, timeout=DEADLINE, check=True
    )
    refused, own, parent, verified = child.stdout.splitlines()
    assert "so a forked child cannot go on with it; give its guard durability='process'" in refused
    assert own.startswith("own COMPLETED — 1 step in")
    assert parent.startswith("r COMPLETED — 2 steps")
    assert verified.startswith("intact: ")


@pytest.mark.parametrize("durability", ["process", "power"])
def test_rule_14_memory_refuses_a_promise_at_once(durability: str) -> None:
    with pytest.raises(ValueError, match="memory:// promises nothing"):
        Guard.in_memory(durability=durability)
    with pytest.raises(ValueError, match="memory:// promises nothing"):
        Guard.open("memory://", durability=durability)
    Guard.in_memory(durability="buffered").close()


def test_rule_14_another_guard_of_the_same_process_may_attach_to_a_buffered_run(home):
    """They share the buffer; only other processes could not see what is in it."""
    with (
        Guard.open(telemetry=False, durability="buffered") as one,
        Guard.open(telemetry=False, durability="buffered") as other,
    ):
        with one.run("r") as run:
            run.call("f", int)
            with other.attach(run.id, branch="w") as attached:
                attached.call("g", int)
            run.call("h", int)
        assert [e.name for e in one.history(run.id) if e.type == "step_completed"] == ["f", "g", "h"]
        assert one.verify(run.id)
