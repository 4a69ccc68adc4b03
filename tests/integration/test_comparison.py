"""What `make compare` says of agentguard holds, and its adapters stay small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"


def found(adapter: str) -> dict[str, Any]:
    command = [sys.executable, str(PEERS / "measure.py"), str(PEERS / "adapters" / f"{adapter}.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return json.loads(done.stdout.splitlines()[-1].removeprefix("found: "))


def test_the_comparison_finds_what_agentguard_promises() -> None:
    facts = found("agentguard")
    assert [facts[row] for row in ("one after another", "64 threads", "64 tasks")] == [100, 100, 100]
    assert (facts["bad limits taken"], facts["bad costs taken"]) == ([], [])
    assert facts["calls that raise"] == 100
    assert facts["stop swallowed"] == "100; BudgetExceededError"
    assert "ms" in facts["kill to check"]
    assert "ms" in facts["kill to body"]


def test_the_comparison_finds_what_agentguard_promises_of_a_log() -> None:
    facts = found("agentguard_durable")
    assert facts["replay of 5 steps: bodies run"] == 0
    assert facts["kill -9 in step 3 of 5: bodies run"] == "1, 2, 3; StepOutcomeUnknownError"
    assert "ms" in facts["kill to check"]
    assert "ms" in facts["kill to body"]


def test_an_adapter_has_at_most_40_lines() -> None:
    adapters = sorted((PEERS / "adapters").glob("*.py"))
    assert adapters
    assert [path.name for path in adapters if len(path.read_text().splitlines()) > 40] == []
