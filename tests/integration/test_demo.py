"""`agentguard demo`: real files, a real second process, and an exit code that means something."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agentguard.audit.verify import VerifyReport
from agentguard.cli import main
from agentguard.demo import forgery
from agentguard.demo.folder import Folder
from agentguard.demo.play import Ending, play
from agentguard.demo.stage import Expectation, Progress
from agentguard.events.codec import Stored
from agentguard.runs.summary import RunSummary


class Recorder:
    """A stage that writes everything down."""

    def __init__(self) -> None:
        self.scenes: list[str] = []
        self.played_ms = 0.0
        self.said: list[str] = []
        self.progressed: list[int] = []
        self.reports: list[VerifyReport] = []
        self.logs: dict[str, list[Stored]] = {}

    def scene(self, title: str, story: str) -> None:
        self.scenes.append(title)

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Progress]:
        yield lambda done, note: self.progressed.append(done)

    def expectation(self, expectation: Expectation) -> None:
        pass

    def summary(self, summary: RunSummary) -> None:
        pass

    def log(self, summary: RunSummary, log: Sequence[Stored]) -> None:
        self.logs[summary.name] = list(log)

    def report(self, report: VerifyReport) -> None:
        self.reports.append(report)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three text files, and others that are none of the demo's business."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "main.py").write_text("def run():\n    # TODO: everything\n    return 1\n\n\n")
    (root / "odd.py").write_text("def broken(:\n")
    (root / "notes.txt").write_text("one\ntwo \n")
    (root / "picture.bin").write_bytes(b"\0\1\2")
    (root / ".hidden").write_text("no")
    (root / "__pycache__").mkdir()
    (root / "__pycache__" / "old.py").write_text("no")
    return root


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ending, Recorder]:
    """The demo, played once on a small folder."""
    root = tmp_path_factory.mktemp("project")
    for number in range(5):
        (root / f"file{number}.txt").write_text("line\n" * (number + 1))
    recorder = Recorder()
    began = time.time()
    ending = play(root, recorder)
    recorder.played_ms = (time.time() - began) * 1000
    return ending, recorder


def test_everything_that_is_claimed_holds(played: tuple[Ending, Recorder]) -> None:
    ending, _ = played
    assert [e for e in ending.expectations if not e.held] == []
    assert ending.ok
    assert len(ending.expectations) > 15


def test_the_runs_end_as_they_should(played: tuple[Ending, Recorder]) -> None:
    surveyor, polisher, watcher = played[0].runs
    assert (surveyor.name, surveyor.state, surveyor.usage["files"]) == ("surveyor", "COMPLETED", 11)
    assert (polisher.name, polisher.state, str(polisher.usage.usd)) == ("polisher", "FAILED", "1")
    assert polisher.termination is not None
    assert polisher.termination["type"] == "BudgetExceededError"
    assert (watcher.name, watcher.state) == ("watcher", "KILLED")
    assert watcher.termination is not None
    assert watcher.termination["scope"] == "run"


def test_the_kill_came_from_another_process_and_was_timed(played: tuple[Ending, Recorder]) -> None:
    ending, recorder = played
    (reported,) = [line for line in recorder.said if line.startswith("the killing process")]
    assert f"pid {os.getpid()}" not in reported
    assert "1 live, 1 acknowledged" in reported
    assert ending.kill_latency_ms is not None
    assert 0 < ending.kill_latency_ms <= recorder.played_ms


def test_the_forgery_is_caught_and_the_original_is_not_suspected(played: tuple[Ending, Recorder]) -> None:
    ending, recorder = played
    genuine, forged = recorder.reports
    assert genuine
    assert genuine.anchored
    assert [fault.run_id for fault in forged.faults] == [ending.runs[1].run_id]


def test_the_logs_are_read_back(played: tuple[Ending, Recorder]) -> None:
    ending, recorder = played
    assert {run.name: run.head.seq for run in ending.runs} == {n: len(e) for n, e in recorder.logs.items()}


def test_progress_is_told_while_it_runs(played: tuple[Ending, Recorder]) -> None:
    progressed = played[1].progressed
    assert progressed[:5] == [1, 2, 3, 4, 5]
    assert max(progressed) == 40


def test_nothing_is_left_behind(played: tuple[Ending, Recorder]) -> None:
    assert not played[0].home.exists()


def test_folder_takes_text_files_alone(folder: Path) -> None:
    assert Folder(folder).names == ("main.py", "notes.txt", "odd.py")


def test_demo_of_a_folder_ends_with_0(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--path", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "3 files, 8 lines, 1 of them say TODO or FIXME" in out
    assert "longest part run(), 3 lines" in out
    assert "40 of 40 reviews" in out
    assert "InvalidStateTransitionError" in out
    assert "NOT intact: 1 at fault" in out
    assert "NOT SO" not in out
    assert "expectations held" in out


def test_demo_ends_with_1_if_an_expectation_fails(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgery, "edit", lambda *_: None)  # so that nothing is there to be caught

    assert main(["demo", "--path", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "NOT SO named: expected run " in out
    assert "not so: Somebody edits the log: named" in out


def test_demo_as_json_and_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--path", str(folder), "--json", "--keep"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown.keys() == {"ok", "home", "runs", "expectations", "kill_latency_ms"}
    assert shown["ok"] is True
    assert shown["expectations"][0].keys() == {"scene", "what", "expected", "found", "held"}

    assert main(["verify", "--home", shown["home"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == 3


def test_demo_on_a_terminal_shows_its_progress(folder: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "agentguard.cli", "demo", "--keep", "--path", str(folder)]
    settings = os.environ | {"COLUMNS": "80", "TERM": "xterm-256color"}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=settings) as process:
        os.close(theirs)
        written = b""
        with suppress(OSError):  # how a terminal ends whose other side has gone
            while part := os.read(ours, 65536):
                written += part
    os.close(ours)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.decode())
    kept = re.search(r"Kept in (\S+);", shown)
    assert kept is not None
    shutil.rmtree(kept[1])
    assert process.returncode == 0
    assert re.search(r"files\s+━+\s+3/3", shown)
    assert "reviews" in shown


@pytest.mark.parametrize("there", [True, False], ids=["empty", "missing"])
def test_demo_refuses_a_folder_it_cannot_work_on(
    there: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    if there:
        root.mkdir()
    assert main(["demo", "--path", str(root)]) == 2
    assert "root" in capsys.readouterr().err


def test_demo_needs_the_cli_extra_alone(folder: Path, tmp_path: Path) -> None:
    """With every other optional package hidden, in a process of its own, on a bare home."""
    hidden = ["opentelemetry.sdk", "langchain", "langchain_core", "cryptography", "mcp", "pytest", "redis"]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden!r})); "
        "from agentguard.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AGENTGUARD_")}
    environment |= {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state"), "NO_COLOR": "1"}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, "demo", "--path", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert not (tmp_path / "state").exists()
    assert "\x1b" not in ran.stdout


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the commands set in the environment is taken back."""
    monkeypatch.setenv("AGENTGUARD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AGENTGUARD_STORE", "")
