"""The files of a folder, and guarded tools that do real work on them.

The prices are made up; no tool costs anything.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import os
import time
import warnings
from decimal import Decimal
from pathlib import Path
from threading import Event
from typing import Any

from agentguard.budget.model import Usage
from agentguard.decorators import guarded_step

MEASURING = Decimal("0.002")
READING = Decimal("0.010")
REVIEWING = Decimal("0.025")

_MOST_FILES = 150
_MOST_BYTES = 256 * 1024
_LONG_LINE = 100


class Folder:
    """A folder's text files, at most 150 of them, by their paths inside it.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names = tuple(_text_files(root))
        if not self.names:
            raise ValueError(f"{root} has no text files of at most {_MOST_BYTES // 1024} KB to work on")
        #: What was reviewed, as the bodies themselves saw it.
        self.reviewed: list[str] = []
        self.watching = Event()
        self.cancelled_ns: int | None = None

    @guarded_step(effect="read")
    def list_files(self) -> list[str]:
        """The folder's text files."""
        return list(self.names)

    @guarded_step(effect="read", usage=Usage(usd=MEASURING, files=1))
    def measure(self, name: str) -> dict[str, int]:
        """How many lines a file has, and how many of them say TODO or FIXME."""
        lines = self._text(name).splitlines()
        todos = sum("TODO" in line or "FIXME" in line for line in lines)
        return {"lines": len(lines), "todos": todos}

    @guarded_step(effect="read", usage=Usage(usd=READING, files=1))
    def longest_part(self, name: str) -> str:
        """The longest function of a Python file, or the longest line of another."""
        text = self._text(name)
        if functions := _functions(text) if name.endswith(".py") else []:
            longest = max(functions, key=_length)
            return f"{longest.name}(), {_length(longest)} lines"
        return f"a line of {max(map(len, text.splitlines()), default=0)} characters"

    @guarded_step(effect="read", usage=Usage(usd=READING, files=1))
    def fingerprint(self, name: str) -> str:
        """The SHA-256 of a file."""
        return hashlib.sha256((self.root / name).read_bytes()).hexdigest()

    @guarded_step(effect="read", usage=Usage(usd=REVIEWING, files=1))
    def review(self, name: str) -> int:
        """How many lines of a file are too long or end in blanks."""
        self.reviewed.append(name)
        lines = self._text(name).splitlines()
        # As long as a call of a quick model takes, so that many are in flight at once.
        time.sleep(0.05)
        return sum(len(line) > _LONG_LINE or line != line.rstrip() for line in lines)

    @guarded_step(effect="read", usage=Usage(usd=READING))
    async def watch(self) -> None:
        """Wait until a file changes."""
        before = self._changes()
        self.watching.set()
        try:
            while self._changes() == before:  # noqa: ASYNC110 - a folder sets no event
                await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            self.cancelled_ns = time.time_ns()
            raise

    def _changes(self) -> list[Any]:
        files = (self.root / name for name in self.names)
        return [path.stat().st_mtime_ns if path.exists() else None for path in files]

    def _text(self, name: str) -> str:
        return (self.root / name).read_text("utf-8", "replace")


def _text_files(root: Path) -> list[str]:
    found: list[str] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(s for s in subfolders if not s.startswith((".", "__pycache__")))
        for name in sorted(names):
            path = Path(folder) / name
            if not name.startswith(".") and _is_text(path):
                found.append(path.relative_to(root).as_posix())
                if len(found) == _MOST_FILES:
                    return found
    return found


def _is_text(path: Path) -> bool:
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return False
        with path.open("rb") as file:
            return b"\0" not in file.read(1024)
    except OSError:
        return False


def _functions(text: str) -> list[ast.FunctionDef]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return []
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def _length(function: ast.FunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1
