"""What `make compare` says of agentguard holds, and its adapters stay small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"


def test_the_comparison_finds_what_agentguard_promises() -> None:
    command = [sys.executable, str(PEERS / "measure.py"), str(PEERS / "adapters" / "agentguard.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    found = json.loads(done.stdout)
    assert [found[row] for row in ("one after another", "64 threads", "64 tasks")] == [100, 100, 100]
    assert (found["bad limits taken"], found["bad costs taken"]) == ([], [])
    assert found["calls that raise"] == 100
    assert found["stop swallowed"] == {"calls": 100, "what says so": "BudgetExceededError"}


def test_an_adapter_has_at_most_40_lines() -> None:
    adapters = sorted((PEERS / "adapters").glob("*.py"))
    assert adapters
    assert [path.name for path in adapters if len(path.read_text().splitlines()) > 40] == []
