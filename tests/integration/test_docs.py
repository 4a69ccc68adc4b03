"""The blocks of code on the pages run as they stand, each page in a process and a folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "export-format.md", *sorted((DOCS / "how-to").glob("*.md"))]
#: A block, and the comment before it, if there is one: `<!-- pytest -->` is a file of tests; other
#: comments say that a block is no part of the page's program.
BLOCK = re.compile(r"(?:<!-- ([\w ]+) -->\n)?```python\n(.*?)```", re.DOTALL)


def run(arguments: list[str], folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AGENTGUARD_")}
    environment["AGENTGUARD_HOME"] = str(folder / "home")
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_on_a_page_runs(page: Path, tmp_path: Path) -> None:
    blocks = BLOCK.findall(page.read_text())
    assert blocks, "a page without code has nothing to run"
    program = "\n".join(code for said, code in blocks if not said)
    (tmp_path / "page.py").write_text(program)
    run(["-W", "error", "page.py"], tmp_path)
    tests = [code for said, code in blocks if said == "pytest"]
    for number, code in enumerate(tests):
        (tmp_path / f"test_page_{number}.py").write_text(code)
    if tests:
        (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
        run(["-m", "pytest", "-q", "-p", "no:langsmith_plugin", "-p", "no:cacheprovider"], tmp_path)
