"""An office: a guard on PostgreSQL, agents that tell what they do, and worker processes."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from agentguard import Guard
from agentguard.workers.submission import SubmittedRun
from tests.kit import wait_until

HERE = Path(__file__).parent
#: A worker that is silent for so long counts as dead, in tests that do not wait for that.
PATIENT = ("--heartbeat", "1", "--stalled-after", "60")
#: In those that do.
FAST = ("--heartbeat", "0.5", "--stalled-after", "6")


class OfficeOfTest:
    """What a test sees of its agents and workers."""

    def __init__(self, folder: Path, agents: ModuleType) -> None:
        self.folder = folder
        self.agents = agents
        self.guard: Guard = agents.guard
        self.workers: list[subprocess.Popen[bytes]] = []

    def worker(self, *options: str) -> subprocess.Popen[bytes]:
        """Start a worker."""
        command = [sys.executable, "-m", "agentguard.cli", "worker", "--app", "worker_office:guard"]
        with (self.folder / "workers.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, *(options or PATIENT)], cwd=HERE, stdout=log, stderr=log, env={**os.environ}
            )
        self.workers.append(process)
        return process

    def told(self) -> list[str]:
        """What agents told, without who told it."""
        file = self.folder / "told"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.rpartition(" ")[0] for line in lines]

    def times(self, text: str) -> int:
        return Counter(self.told())[text]

    def until(self, text: str, times: int = 1) -> None:
        """Wait until an agent has told something."""
        wait_until(lambda: self.times(text) >= times, 60)

    def open_gate(self, name: str) -> None:
        (self.folder / f"gate-{name}").touch()

    def fails(self, name: str, times: int) -> None:
        (self.folder / f"fails-{name}").write_text(str(times))

    def ends(self, run: SubmittedRun) -> str:
        """Wait until a run has ended, and its job is gone; gives its state."""
        state = run.wait(60)
        wait_until(lambda: not [queue for queue in self.guard.queue() if queue.running], 60)
        return str(state)

    def log(self) -> str:
        return (self.folder / "workers.log").read_text("utf-8", "replace")

    def close(self) -> None:
        for process in self.workers:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        self.guard.close()


@pytest.fixture
def office(postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OfficeOfTest]:
    """An office on a database of the test's own."""
    with _office(postgres_url, tmp_path, monkeypatch) as office:
        yield office


def _office(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> _Closing:
    monkeypatch.setenv("AGENTGUARD_STORE", url)
    monkeypatch.setenv("OFFICE_FOLDER", str(folder))
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.delitem(sys.modules, "worker_office", raising=False)
    return _Closing(OfficeOfTest(folder, importlib.import_module("worker_office")))


class _Closing:
    def __init__(self, office: OfficeOfTest) -> None:
        self.office = office

    def __enter__(self) -> OfficeOfTest:
        return self.office

    def __exit__(self, *failure: object) -> None:
        self.office.close()
        sys.modules.pop("worker_office", None)
        if failure[0] is not None and (self.office.folder / "workers.log").exists():
            sys.stdout.write(self.office.log())


@pytest.fixture
def open_office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], _Closing]:
    """Open an office on another database."""
    return lambda url: _office(url, tmp_path, monkeypatch)
