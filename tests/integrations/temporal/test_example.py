"""The example of Temporal does what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.temporal import temporal_server

pytest.importorskip("temporalio")
EXAMPLE = Path(__file__).parents[3] / "examples/43_temporal/office.py"


def test_a_worker_dies_a_limit_is_met_and_a_workflow_is_killed(tmp_path: Path) -> None:
    with temporal_server(tmp_path) as server:
        done = subprocess.run(
            [sys.executable, EXAMPLE, server.address],
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "killed -9: the worker that was sending a letter",
        "the workflow: 6 letters",
        "letters, by idempotency key: 6",
        "its run: COMPLETED, log intact",
        "twelve letters: BudgetExceededError: letters",
        "killed: KillSwitchTriggeredError",
        "on record: True",
    ]
