"""The benchmarks that look inside run with the code as it is; what they find is reported, and never tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("group", ["breakdown", "kill"])
def test_a_benchmark_runs(group, tmp_path):
    found = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", group, "--json", str(found)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    rows = json.loads(found.read_text())["rows"]
    assert rows
    assert all(row["value"] > 0 for row in rows)
