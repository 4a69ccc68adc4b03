"""Branches: lines of control inside a run, and the logical keys that are numbered within them.

A key is `branch path / name # n`: the n-th call of that name in that branch, fixed when the step is
called.  It never depends on which of two concurrent calls arrives first.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio

MAIN = "main"
#: What the branch of an attachment without a name begins with.
UNNAMED = "attach#"


def key_segment(name: str) -> str:
    """Return a name as part of a key, its separators escaped."""
    return name.replace("%", "%25").replace("/", "%2F").replace("#", "%23")


def check_branch(name: object) -> str:
    """Return the name or path of a branch, or say what is wrong with it.

    Raises:
        TypeError: it is no str.
        ValueError: it is empty, or has control characters.
    """
    if not isinstance(name, str):
        raise TypeError(f"branch must be a str, not {type(name).__name__}")
    if not name or not name.isprintable():
        raise ValueError(f"branch must have at least one character and no control characters: {name!r}")
    return name


def scope_part(name: str) -> str:
    """Return a scope's name as part of its path.

    Example:
        >>> scope_part("search"), scope_part("a/b"), scope_part("run"), scope_part("tenant:acme")
        ('search', 'a%2Fb', '%72un', '%74enant:acme')
    """
    part = name.replace("%", "%25").replace("/", "%2F")
    if part == "run" or part.startswith(("run:", "tenant:", "account:")):
        part = f"%{ord(part[0]):x}{part[1:]}"
    return part


def branch_of(key: str, data: Mapping[str, object] | None = None) -> str:
    """Return the branch that a recorded call was made in: its event's data says it where its key does not."""
    named = None if data is None else data.get("branch")
    return str(named) if named else key.rpartition("/")[0]


class TaskBranches(Protocol):
    """The branches of tasks that were made before the run met their event loop."""

    def branch_here(self, branch: Branch) -> Branch:
        """Return the branch of the code that runs now."""
        ...

    def add(self, branch: Branch, loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[object]]:
        """Give the tasks of a loop their branches; return those with one of their own."""
        ...


class Branch:
    """One line of control; hands out keys and child branches.  Safe to share between threads.

    Example:
        >>> branch = Branch(MAIN)
        >>> branch.next_key("search"), branch.next_key("search"), branch.child("task").path
        ('main/search#1', 'main/search#2', 'main/task#1')
    """

    __slots__ = ("_calls", "_counts", "_highest", "path", "tasks")

    def __init__(self, path: str) -> None:
        self.path = path
        self._counts: dict[str, count[int]] = {}
        self._calls = count(1)
        self._highest: dict[str, int] = {}
        #: Branches of tasks that were made before the run met their event loop, by task.
        self.tasks: TaskBranches | None = None

    def __deepcopy__(self, memo: object) -> Branch:
        return self  # a copy would hand out the same keys

    def next_key(self, part: str) -> str:
        """Return the key of the next call."""
        counter = self._counts.get(part)
        if counter is None:
            counter = self._counts.setdefault(part, count(1))
        return f"{self.path}/{part}#{next(counter)}"

    def next_call(self, part: str) -> tuple[str, int]:
        """Return the key of a recorded call, and its index in the branch."""
        counter = self._counts.get(part)
        if counter is None:
            return self.next_key(part), next(self._calls)
        return f"{self.path}/{part}#{next(counter)}", next(self._calls)

    def next_pos(self) -> int:
        """The place of a call that brings its own key."""
        return next(self._calls)

    def child(self, label: str) -> Branch:
        """Return a new branch that begins here."""
        return Branch(self.next_key(key_segment(label)))

    def here(self) -> Branch:
        """Return the branch of the code that runs now."""
        return self if self.tasks is None else self.tasks.branch_here(self)

    def passed(self, key: str) -> None:
        """Go on numbering after a key that is on record."""
        path, _, last = key.rpartition("/")
        if path == self.path and "#" in last:
            part, _, number = last.rpartition("#")
            self._highest[part] = max(int(number), self._highest.get(part, 0))
            self._counts[part] = count(self._highest[part] + 1)
