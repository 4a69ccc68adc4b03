"""What the demo reports to its caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from agentguard.audit.verify import VerifyReport
from agentguard.events.codec import Stored
from agentguard.runs.summary import RunSummary

#: Called with how much is done and a note on it; from any thread.
Progress = Callable[[int, str], None]


class Expectation(NamedTuple):
    """Something that had to be so, and what was found."""

    scene: str
    what: str
    expected: str
    found: str
    held: bool


class Stage(Protocol):
    """Shows the demo while it plays."""

    def scene(self, title: str, story: str) -> None:
        """A new scene begins."""

    def say(self, text: str) -> None:
        """Something happened.  Called from any thread."""

    def progress(self, what: str, total: int) -> AbstractContextManager[Progress]:
        """Something takes a while: `total` units of it."""
        ...

    def expectation(self, expectation: Expectation) -> None:
        """Something was checked."""

    def summary(self, summary: RunSummary) -> None:
        """What a run came to."""

    def log(self, summary: RunSummary, log: Sequence[Stored]) -> None:
        """The log of a run."""

    def report(self, report: VerifyReport) -> None:
        """What `verify` said."""


class Script:
    """A stage, and everything that was expected of what is shown there."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.expectations: list[Expectation] = []
        self._scene = ""

    def scene(self, title: str, story: str) -> None:
        """Begin a scene."""
        self._scene = title
        self.stage.scene(title, story)

    def expect(self, what: str, expected: object, found: object) -> None:
        """Check that two things are equal, and show it."""
        self._check(Expectation(self._scene, what, str(expected), str(found), expected == found))

    def holds(self, what: str, held: bool) -> None:  # noqa: FBT001 - a fact, not an option
        """Check that something is so, and show it."""
        self._check(Expectation(self._scene, what, "yes", "yes" if held else "no", held))

    def _check(self, expectation: Expectation) -> None:
        self.expectations.append(expectation)
        self.stage.expectation(expectation)
