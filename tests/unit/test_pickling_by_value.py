"""cloudpickle, dill and joblib take functions of `__main__`, of notebooks and closures by value, guarded ones too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("pickled_by_value.py")
NAMES = ["plain", "later", "items", "later items", "module", "module later", "unguarded", "method"]


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("library", ["cloudpickle", "dill"])
def test_guarded_functions_of_a_program_are_guarded_where_they_arrive(library: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    file = str(tmp_path / "functions.pickle")
    run("dump", library, file)
    assert run("load", library, file).splitlines() == [f"{name} 11 1" for name in NAMES]
