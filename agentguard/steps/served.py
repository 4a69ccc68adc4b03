"""Steps, scopes and values that a log serves instead of running them: the seam to `agentguard.replay`.

A live run with a `player` asks it first.  `None` means: not on record, go live (a recovery past its
prefix); a pure replay never answers so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, NoReturn, Protocol

from agentguard.budget.account import Amounts
from agentguard.errors import RunStopped
from agentguard.steps.items import Sent
from agentguard.steps.model import Step


class RecordedOutcome:
    """A recorded outcome: a value, or an exception to raise."""

    __slots__ = ("error", "value")

    def __init__(self, value: Any = None, error: BaseException | None = None) -> None:
        self.value = value
        self.error = error

    def result(self) -> Any:
        """The value, or the exception raised."""
        if self.error is not None:
            raise self.error.with_traceback(None)
        return self.value


class ServedItems(NamedTuple):
    """What a log has of a generator: its items, how it ended, and what was sent in for which item.

    `sent` is None where the log does not say.  `left`: whether the program left it before its end.
    `until_cancelled` is there where the program cancelled it: its end is not raised, but waited for.
    """

    items: list[Any]
    end: RecordedOutcome
    sent: dict[int, Sent] | None = None
    left: bool = False
    until_cancelled: Callable[[], Awaitable[None]] | None = None

    def differs(self, count: int) -> bool:
        """Whether to leave it after so many items is something else than was done live.

        Which of the tasks around it a stop meets first is timing.
        """
        stopped = isinstance(self.end.error, RunStopped | asyncio.CancelledError)
        return count < len(self.items) or not (self.left or stopped)


class ReplaySource(Protocol):
    """What replay and recovery answer."""

    def meet(self, loop: asyncio.AbstractEventLoop, *, early: bool) -> None:
        """The program runs in this event loop; `early`: which began inside the run's block."""
        ...

    def came(self, step: Step) -> tuple[str, ...]:
        """How a recorded result went on after its function had returned; empty where it was there."""
        ...

    def serve(self, step: Step) -> RecordedOutcome | None:
        """The outcome of a sync step."""
        ...

    async def serve_async(self, step: Step) -> RecordedOutcome | None:
        """The outcome of an async step, delivered in log order."""
        ...

    def serve_items(self, step: Step) -> ServedItems | None:
        """The items of a generator, and how it ended."""
        ...

    def sent_otherwise(self, step: Step, recorded: str, found: str) -> NoReturn:
        """Raise that something else was sent into a generator than is on record."""
        ...

    def left_items(self, step: Step, count: int, served: ServedItems) -> NoReturn:
        """Raise that a generator was left, or went on, after so many items, other than on record."""
        ...

    @property
    def live(self) -> bool:
        """Whether calls that are not on record go live: a recovery."""
        ...

    @property
    def halted(self) -> bool:
        """Whether the program goes no further here: a step is in doubt, or it differs from its log."""
        ...

    def skip(self, done: Callable[[str], bool]) -> int:
        """Take recorded calls as done, by their branch, that the program will not come to."""
        ...

    def block(self, step: Step) -> None:
        """A block begins, which cannot be served: refuse it, or let it go live."""

    def value(self, key: str, pos: int, name: str, scope: str) -> RecordedOutcome | None:
        """A recorded value."""
        ...

    def ahead(self, scope: str) -> tuple[Amounts, Amounts] | None:
        """What of a level's spending and reservations on record the program has not come to yet."""
        ...

    def check_doubt(self) -> None:
        """Raise, while a step waits, if the run cannot go on here because another step is in doubt."""

    def open_scope(self, scope: Any) -> bool:
        """A scope opens; True if that is on record."""
        ...

    def close_scope(self, scope: Any) -> bool:
        """A scope closes; True if that is on record."""
        ...
