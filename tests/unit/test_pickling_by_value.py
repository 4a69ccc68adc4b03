"""cloudpickle, dill and joblib take functions of `__main__`, of notebooks and closures by value, guarded ones too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("pickled_by_value.py")
JOBLIB = Path(__file__).with_name("joblib_workers.py")
NAMES = ["plain", "later", "items", "later items", "module", "module later", "unguarded", "method"]


def run(*arguments: str, program: Path = PROGRAM) -> str:
    done = subprocess.run(
        [sys.executable, str(program), *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("library", ["cloudpickle", "dill"])
def test_guarded_functions_of_a_program_are_guarded_where_they_arrive(library: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    file = str(tmp_path / "functions.pickle")
    run("dump", library, file)
    assert run("load", library, file).splitlines() == [f"{name} 11 1" for name in NAMES]


def test_joblibs_workers_call_the_guarded_functions_of_a_program_under_its_budget() -> None:
    """And a function that is guarded is not called outside of a run there either."""
    pytest.importorskip("joblib")
    said = json.loads(run(program=JOBLIB))
    assert said["results"] == [0, 2, 4]
    assert said["keys"] == [f"main/worker-{n}/double#1" for n in range(3)]
    assert said["refused"] == "steps"
    assert "no run is active here" in said["outside"]
