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


def test_the_benchmark_of_clients_runs_in_its_smallest_form():
    pytest.importorskip("openai")
    program = (
        "import json\n"
        "from benchmarks.clients import compare\n"
        "if __name__ == '__main__':\n"
        "    print(json.dumps([[row.name, row.value] for row in compare(rounds=1, calls=1)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True, timeout=300
    )
    rows = dict(json.loads(done.stdout))
    assert list(rows) == ["client", "client-disk", "client-at-once"]
    assert all(value > 0 for value in rows.values())
