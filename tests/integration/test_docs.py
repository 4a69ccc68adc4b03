"""The blocks of code on the pages run as they stand, each page in a process and a folder of its own."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: A block, and the comment before it, if there is one, which says what becomes of it: `pytest`, a file of
#: tests; `needs x`, a part of the page's program where the package x is installed; all else is no part of it.
BLOCK = re.compile(r"(?:<!-- ([\w .-]+) -->\n)?```python\n(.*?)```", re.DOTALL)
#: What a program prints, if it is shown right behind it.
SHOWN = re.compile(r"```python\n[^`]*?```\n\n```text\n(.*?)```", re.DOTALL)
#: Other tests follow these.
FOLLOWED = {"quickstart.md"}
#: The package that a page is about, where it has a name of its own.
PACKAGES = {
    "anthropic": "anthropic",
    "langchain": "langchain",
    "litellm": "litellm",
    "mcp": "mcp",
    "openai": "openai",
    "openai-agents": "agents",
    "pydantic-ai": "pydantic_ai",
}


def pages() -> list[Path]:
    found = [page for page in (ROOT / "docs").rglob("*.md") if page.name not in FOLLOWED]
    return [
        page
        for page in [ROOT / "README.md", *sorted(found)]
        if page.exists() and BLOCK.search(page.read_text())
    ]


def run(arguments: list[str], folder: Path, **settings: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AGENTGUARD_")}
    environment |= {"AGENTGUARD_HOME": str(folder / "home"), **settings}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def in_program(said: str) -> bool:
    needed = said.removeprefix("needs ") if said.startswith("needs ") else None
    return not said or (needed is not None and importlib.util.find_spec(needed) is not None)


def masked(text: str) -> str:
    """Without what differs from time to time: ids and durations."""
    return re.sub(r"\d+\.\d+ s\b", "T", re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", text))


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_the_code_on_a_page_runs(page: Path, tmp_path: Path, providers: dict[str, str]) -> None:
    if page.parent.name == "integrations" and page.stem in PACKAGES:
        pytest.importorskip(PACKAGES[page.stem])
    text = page.read_text()
    blocks = BLOCK.findall(text)
    program = "\n".join(code for said, code in blocks if in_program(said))
    (tmp_path / "page.py").write_text(program)
    printed = masked(run(["-W", "error", "page.py"], tmp_path, **providers))
    for shown in SHOWN.findall(text):
        assert masked(shown) in printed
    tests = [code for said, code in blocks if said == "pytest"]
    for number, code in enumerate(tests):
        (tmp_path / f"test_page_{number}.py").write_text(code)
    if tests:
        (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
        run(["-m", "pytest", "-q", "-p", "no:langsmith_plugin", "-p", "no:cacheprovider"], tmp_path)
