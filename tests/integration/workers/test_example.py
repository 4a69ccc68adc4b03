"""The example of workers does what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)
EXAMPLE = Path(__file__).parents[3] / "examples/42_workers/office.py"


def test_three_workers_for_two_tenants(empty_postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTGUARD_KILL_SWITCH")  # the store's own: it reaches every host
    done = subprocess.run(
        [sys.executable, EXAMPLE, empty_postgres], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "submitted: 4 of acme, 2 of globex",
        "killed -9: a worker of globex, in the middle of a run",
        "killed: the tenant acme, on both hosts",
        "globex: 2 COMPLETED",
        "acme: 4 KILLED",
        "a run of globex was carried on by another worker: True",
        "letters of globex, by idempotency key: 24",
        "log: intact",
    ]
