"""Whatever spans two logs is one act: a process may be killed at any act of its store.

The program has nested runs, in scopes and in bodies, and the budgets of a tenant and of a conversation.  It is
killed after each act in turn, carried on, and then everything has to add up: events, summaries and accounts,
with nothing reserved.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "crashes" / "every_act.py"


@pytest.mark.timeout(1200)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize(
    "stride", [pytest.param(0, id="once"), pytest.param(5, id="twice", marks=pytest.mark.long)]
)
def test_a_crash_after_any_act_loses_and_doubles_nothing(tmp_path: Path, stride: int) -> None:
    ended = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path / "homes"), str(stride)],
        capture_output=True,
        text=True,
        timeout=1100,
        check=False,
    )
    *problems, acts = ended.stdout.splitlines() or [""]
    assert (problems, ended.stderr, ended.returncode) == ([], "", 0)
    assert int(acts) > 40
