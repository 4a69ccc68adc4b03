"""How the memory store takes back what was done inside `exclusive`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any


class Undo:
    """What takes back each act, the oldest first; empty outside of a block."""

    __slots__ = ("_steps", "active")

    def __init__(self) -> None:
        self.active = False
        self._steps: list[Callable[[], object]] = []

    def note(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call `function(*arguments)` should the block be left by an exception."""
        if self.active:
            self._steps.append(partial(function, *arguments))

    def mend(self) -> None:
        """Take back everything that was noted, of a block that is gone."""
        while self._steps:
            self._steps.pop()()
        self.active = False

    @contextmanager
    def block(self) -> Iterator[None]:
        """Take back what was noted inside if an exception leaves it; blocks nest."""
        outermost = not self.active
        mark = len(self._steps)
        try:
            self.active = True
            yield
            if outermost:
                self._steps.clear()
                self.active = False
        except BaseException:
            while len(self._steps) > mark:
                self._steps.pop()()
            if outermost:
                self.active = False
            raise
