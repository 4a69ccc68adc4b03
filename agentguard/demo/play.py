"""The demo from its first scene to its last; everything that is claimed is checked."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import agentguard
from agentguard.demo.evidence import check_evidence
from agentguard.demo.folder import Folder
from agentguard.demo.scenes import Scenes
from agentguard.demo.stage import Expectation, Script, Stage
from agentguard.runs.summary import RunSummary


class Ending(NamedTuple):
    """What the demo came to."""

    home: Path
    runs: list[RunSummary]
    expectations: list[Expectation]
    #: From the kill's record to the CancelledError in the body, in milliseconds.
    kill_latency_ms: float | None

    @property
    def ok(self) -> bool:
        """Whether everything was as expected."""
        return bool(self.expectations) and all(expectation.held for expectation in self.expectations)

    def to_data(self, *, kept: bool) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "ok": self.ok,
            "home": str(self.home) if kept else None,
            "runs": [run.to_data() for run in self.runs],
            "expectations": [expectation._asdict() for expectation in self.expectations],
            "kill_latency_ms": self.kill_latency_ms,
        }


def play(root: Path | None, stage: Stage, *, keep: bool = False) -> Ending:
    """Play the demo on the text files of a folder, by default the installed package.

    Raises:
        ValueError: the folder has no text files.
    """
    folder = Folder((root or Path(agentguard.__file__).parent).resolve())
    script = Script(stage)
    with _home(keep=keep) as home:
        scenes = Scenes(home, folder, script)
        runs = scenes.play()
        check_evidence(home, runs, script)
    return Ending(home, runs, script.expectations, scenes.kill_latency_ms)


@contextmanager
def _home(*, keep: bool) -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="agentguard-demo-"))
    try:
        yield home
    finally:
        if not keep:
            shutil.rmtree(home, ignore_errors=True)
