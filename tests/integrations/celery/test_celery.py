"""Tasks of a real Celery, on Valkey, are runs: what is delivered again is carried on and not repeated."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from agentguard import RunState
from tests.kit import wait_until
from tests.servers import Valkey

pytest.importorskip("celery")
HERE = Path(__file__).parent


class Office:
    """The tasks, and workers of theirs."""

    def __init__(self, tasks: ModuleType, folder: Path) -> None:
        self.tasks = tasks
        self.folder = folder
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self, concurrency: int = 2, pool: str = "prefork") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "celery", "-A", "celery_office", "worker", "--pool", pool]
        command += ["--concurrency", str(concurrency), "--loglevel", "info", "-n", f"w{len(self.workers)}@%h"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        with (self.folder / "worker.log").open("ab") as log:
            worker = subprocess.Popen(
                command, cwd=HERE, stdout=log, stderr=log, env={**os.environ}, start_new_session=True
            )
        self.workers.append(worker)
        return worker

    def told(self) -> list[str]:
        file = self.folder / "told"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.split()[0] for line in lines]

    def pids(self, told: str) -> list[int]:
        lines = (self.folder / "told").read_text().splitlines()
        return [int(line.split()[1]) for line in lines if line.startswith(f"{told} ")]

    def stop(self) -> None:
        for worker in self.workers:
            if worker.poll() is not None:
                continue
            os.killpg(worker.pid, signal.SIGCONT)
            worker.send_signal(signal.SIGQUIT)
            try:
                worker.wait(15)
            except subprocess.TimeoutExpired:  # its pool waits for answers that nobody takes any more
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait(60)


@pytest.fixture
def office(own_redis: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    monkeypatch.setenv("OFFICE_BROKER", own_redis.url)
    monkeypatch.setenv("OFFICE_FOLDER", str(tmp_path))
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.delitem(sys.modules, "celery_office", raising=False)
    office = Office(importlib.import_module("celery_office"), tmp_path)
    yield office
    office.stop()
    office.tasks.app.close()
    office.tasks.guard.close()
    sys.modules.pop("celery_office", None)


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_task_is_a_run(office: Office, pool: str) -> None:
    office.start(pool=pool)
    (office.folder / "gate").touch()
    sent = office.tasks.letters.delay("a", "gate", "b")
    assert sent.get(timeout=60) == ["a", "gate", "b"]
    summary = office.tasks.guard.summary(f"celery-{sent.id}")
    assert (summary.name, summary.state, summary.steps) == ("letters", RunState.COMPLETED, 3)
    assert (summary.tenant, summary.budget.steps) == ("of-a", 10)
    assert summary.metadata == {"celery.task": "celery_office.letters", "celery.id": sent.id}
    assert office.tasks.guard.verify()


def test_a_task_whose_worker_died_is_carried_on(office: Office) -> None:
    office.start()
    sent = office.tasks.letters.delay("a", "gate", "b")
    wait_until(lambda: "waits" in office.told(), 60)
    os.kill(office.pids("waits")[0], signal.SIGKILL)
    wait_until(lambda: office.told().count("waits") == 2, 60)
    (office.folder / "gate").touch()
    assert sent.get(timeout=60) == ["a", "gate", "b"]
    assert office.told() == ["a", "waits", "waits", "b"], "what was done is not done again"
    types = [event.type for event in office.tasks.guard.history(f"celery-{sent.id}")]
    assert types.count("run_recovered") == 1
    assert office.tasks.guard.verify()


def test_a_task_that_is_delivered_again_after_its_end_gives_its_recorded_result(office: Office) -> None:
    office.start()
    (office.folder / "gate").touch()
    letters = office.tasks.letters
    sent = letters.delay("a", "gate", "b")
    assert sent.get(timeout=60) == ["a", "gate", "b"]
    told = office.told()
    sent.forget()
    again = letters.apply_async(("a", "gate", "b"), task_id=sent.id)
    assert again.get(timeout=60) == ["a", "gate", "b"]
    assert office.told() == told


def test_a_task_that_is_delivered_while_it_runs_is_done_once(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.start()
    letters = office.tasks.letters
    sent = letters.delay("a", "gate", "b")
    wait_until(lambda: "waits" in office.told(), 60)
    letters.apply_async(("a", "gate", "b"), task_id=sent.id)
    log = office.folder / "worker.log"
    wait_until(lambda: "ignored" in log.read_text().lower(), 60)  # it was told to come later
    (office.folder / "gate").touch()
    assert sent.get(timeout=60) == ["a", "gate", "b"]
    assert office.told() == ["a", "waits", "b"]


@pytest.fixture
def visible_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker gives a task that nobody has confirmed to another worker after 2 s."""
    monkeypatch.setenv("OFFICE_VISIBLE_AFTER", "2")


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
@pytest.mark.usefixtures("visible_soon")
def test_a_task_whose_worker_is_gone_as_a_whole_is_carried_on_by_another(office: Office, pool: str) -> None:
    first = office.start(pool=pool)
    sent = office.tasks.letters.delay("a", "gate", "b")
    wait_until(lambda: "waits" in office.told())
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    (office.folder / "gate").touch()
    office.start(pool=pool)
    assert sent.get(timeout=60) == ["a", "gate", "b"]
    assert office.told() == ["a", "waits", "waits", "b"], "what was done is not done again"
    types = [event.type for event in office.tasks.guard.history(f"celery-{sent.id}")]
    assert types.count("run_recovered") == 1
    assert office.tasks.guard.verify()


@pytest.mark.usefixtures("visible_soon")
def test_a_task_whose_worker_is_paused_for_longer_than_the_broker_waits_is_done_once(office: Office) -> None:
    first = office.start()
    sent = office.tasks.letters.delay("a", "gate", "b")
    wait_until(lambda: "waits" in office.told())
    os.killpg(first.pid, signal.SIGSTOP)
    office.start()
    log = office.folder / "worker.log"
    wait_until(lambda: "ignored" in log.read_text().lower())  # it has it, and was told to come later
    (office.folder / "gate").touch()
    os.killpg(first.pid, signal.SIGCONT)
    assert sent.get(timeout=60) == ["a", "gate", "b"]
    assert office.told() == ["a", "waits", "b"]
    types = [event.type for event in office.tasks.guard.history(f"celery-{sent.id}")]
    assert types.count("run_recovered") == 0
    assert office.tasks.guard.verify()


def test_a_stop_fails_the_task_and_is_not_retried(office: Office) -> None:
    office.start()
    sent = office.tasks.greedy.delay()
    with pytest.raises(Exception, match="BudgetExceededError.*steps limit of the run: 2 allowed"):
        sent.get(timeout=60)
    assert office.told() == ["greedy-0", "greedy-1"]
    assert [run.state for run in office.tasks.guard.runs()] == [RunState.FAILED]


def test_a_kill_ends_the_task(office: Office) -> None:
    office.start()
    sent = office.tasks.letters.delay("a", "gate", "b")
    wait_until(lambda: "waits" in office.told(), 60)
    office.tasks.guard.kill(reason="enough", tenant="of-a")
    (office.folder / "gate").touch()
    with pytest.raises(Exception, match="KillSwitchTriggeredError.*enough"):
        sent.get(timeout=60)
    assert [run.state for run in office.tasks.guard.runs()] == [RunState.KILLED]
    assert office.told() == ["a", "waits"]


def test_a_retry_of_celerys_is_a_run_of_its_own(office: Office) -> None:
    office.start()
    sent = office.tasks.retried.delay()
    assert sent.get(timeout=60) == "done"
    runs = {run.run_id: run.state for run in office.tasks.guard.runs()}
    assert runs == {
        f"celery-{sent.id}": RunState.FAILED,
        f"celery-{sent.id}-1": RunState.COMPLETED,
    }


def test_called_by_hand_a_task_is_a_run_without_celery(office: Office) -> None:
    (office.folder / "gate").touch()
    assert office.tasks.letters("a", "gate", "b") == ["a", "gate", "b"]
    [run] = office.tasks.guard.runs()
    assert (run.name, run.tenant, run.metadata) == ("letters", "of-a", {})


def test_a_task_without_a_guard_says_what_is_missing(office: Office) -> None:
    from agentguard_celery import GuardedTask

    @office.tasks.app.task(base=GuardedTask)
    def lonely() -> None: ...

    with pytest.raises(TypeError, match="pass guard="):
        lonely()
