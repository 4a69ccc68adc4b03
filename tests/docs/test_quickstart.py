"""Who follows the quickstart as it is written gets what it shows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("typer")

PAGE = Path(__file__).parents[2] / "docs" / "quickstart.md"
BLOCK = re.compile(r"(?:<!-- ([\w.]+) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
ID = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]+)*\b")
PROCESS = re.compile(r"pid \d+ on [\w.-]+")
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d|\d+(\.\d+)? ?(s|ms|µs)\b")


def words(line: str) -> list[str]:
    return PROCESS.sub("P", TIME.sub("T", ID.sub("ID", line))).split()


def contains(line: str, shown: str) -> bool:
    """Whether the words that are shown are in the line, in their order: a wide terminal has more columns."""
    rest = iter(words(line))
    return all(word in rest for word in words(shown))


def assert_shows(printed: str, shown: str) -> None:
    lines = shown.strip().splitlines()
    assert len(printed.strip().splitlines()) == len(lines), printed
    for line, expected in zip(printed.strip().splitlines(), lines, strict=True):
        assert contains(line, expected), f"{expected!r} is shown, and it is {line!r}"


class Terminal:
    """Two terminals of one user, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("AGENTGUARD_")}
        self.environment["AGENTGUARD_HOME"] = str(folder / "home")

    def start(self, command: str) -> subprocess.Popen[str]:
        program, *arguments = shlex.split(command)
        own = {"python": [sys.executable], "agentguard": [sys.executable, "-m", "agentguard.cli"]}
        return subprocess.Popen(
            [*own[program], *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str) -> str:
        process = self.start(command)
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == 0, printed
        return printed


@pytest.fixture
def blocks(tmp_path: Path) -> list[tuple[str, str]]:
    """The commands of the page and what it shows for them, without the installation; its files are written."""
    found = []
    for name, language, text in BLOCK.findall(PAGE.read_text()):
        if name:
            (tmp_path / name).write_text(text)
        else:
            found.append((language, text))
    begin = next(n for n, (_, text) in enumerate(found) if text == "python first.py\n")
    return found[begin:]


def test_the_quickstart_gives_what_it_shows(blocks: list[tuple[str, str]], tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    shell = iter(blocks)
    run_id = ""
    for command in ("python first.py", "agentguard runs", "agentguard show", "agentguard verify"):
        (_, typed), (_, shown) = next(shell), next(shell)
        assert typed.startswith(command)
        printed = terminal.run(f"{command} {run_id}" if command.endswith("show") else typed)
        run_id = run_id or next(iter(ID.findall(printed)), "")
        assert_shows(printed, shown)

    (_, typed), (_, shown) = next(shell), next(shell)
    night = terminal.start(typed)
    assert night.stdout is not None
    first = night.stdout.readline()
    assert_shows(first, shown)
    (_, typed), (_, shown) = next(shell), next(shell)
    command = first.partition(": ")[2]
    assert words(command) == words(typed)
    time.sleep(1)  # as a user would take, and more: so that it has done a step or two
    assert_shows(terminal.run(command), shown)
    _, shown = next(shell)
    rest, _ = night.communicate(timeout=30)
    assert_shows(rest, shown)

    (_, typed), (_, shown) = next(shell), next(shell)
    steps = re.compile(r"(KILLED) +\d+")
    assert_shows(steps.sub(r"\1", terminal.run(typed)), steps.sub(r"\1", shown))
    assert next(shell, None) is None


def test_the_first_program_is_the_example_of_twelve_lines(tmp_path: Path) -> None:
    """`tests/integration/test_examples.py` runs it against a local server."""
    example = PAGE.parents[1] / "examples" / "05_five_dollars.py"
    for page in (PAGE, PAGE.parents[1] / "README.md"):
        program = next(text for name, _, text in BLOCK.findall(page.read_text()) if name == "five_dollars.py")
        assert example.read_text().endswith(program), page.name
        assert len(program.splitlines()) <= 12
