"""Steps, scopes and values that a log serves instead of running them: the seam to `agentguard.replay`.

A live run with a `player` asks it first.  `None` means: not on record, go live (a recovery past its
prefix); a pure replay never answers so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple, NoReturn, Protocol

from agentguard.budget.account import Amounts
from agentguard.errors import RunStopped
from agentguard.steps.items import Sent
from agentguard.steps.step_call import StepCall


class RecordedOutcome:
    """A recorded outcome: a value, or an exception to raise; `refused`: the body never ran."""

    __slots__ = ("error", "refused", "value")

    def __init__(
        self, value: object = None, error: BaseException | None = None, *, refused: bool = False
    ) -> None:
        self.value = value
        self.error = error
        self.refused = refused

    @property
    def refusal(self) -> RunStopped | None:
        """The stop that the step was refused with, as live: code that swallows it may spin."""
        return self.error if self.refused and isinstance(self.error, RunStopped) else None

    def result(self) -> object:
        """Return the value, or raise the exception."""
        if self.error is not None:
            raise self.error.with_traceback(None)
        return self.value


class ServedItems(NamedTuple):
    """What a log has of a generator: its items, how it ended, and what was sent in for which item.

    `sent` is None where the log does not say.  `left`: whether the program left it before its end.
    `until_cancelled` is there where the program cancelled it: its end is not raised, but waited for.
    `over`: what failed was an iterator, which might have had more items.
    """

    items: list[object]
    end: RecordedOutcome
    sent: dict[int, Sent] | None = None
    left: bool = False
    until_cancelled: Callable[[], Awaitable[None]] | None = None
    over: bool = False

    def differs(self, count: int) -> bool:
        """Return whether leaving after `count` items differs from the live run.

        Which of the tasks around it a stop meets first is timing.
        """
        stopped = isinstance(self.end.error, RunStopped | asyncio.CancelledError)
        return count < len(self.items) or not (self.left or stopped)


class ReplaySource(Protocol):
    """The calls that a player answers, in a replay or a recovery."""

    def watch_loop(self, loop: asyncio.AbstractEventLoop, *, early: bool) -> None:
        """Watch an event loop of the program; `early`: it began inside the run's block."""
        ...

    def continuations(self, step: StepCall) -> tuple[str, ...]:
        """Return the ways in which a recorded result went on; empty for a plain value."""
        ...

    def serve(self, step: StepCall) -> RecordedOutcome | None:
        """Return the recorded outcome of a sync step, or None to run it."""
        ...

    async def serve_async(self, step: StepCall) -> RecordedOutcome | None:
        """Return the recorded outcome of an async step in log order, or None to run it."""
        ...

    def serve_items(self, step: StepCall) -> ServedItems | None:
        """Return the recorded items of a generator and its end, or None to run it."""
        ...

    def sent_otherwise(self, step: StepCall, recorded: str, found: str) -> NoReturn:
        """Raise that the value sent into a generator differs from the recorded one."""
        ...

    def left_items(self, step: StepCall, count: int, served: ServedItems) -> NoReturn:
        """Raise that a generator ended after another number of items than on record."""
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
        """Mark recorded calls as made, by their branch; return how many."""
        ...

    def block(self, step: StepCall) -> None:
        """Refuse a block that is on record, or let it run."""

    def place(self, key: str, pos: int) -> tuple[str, int]:
        """Return the key and place of a value that is asked for in a thread which shares its branch."""
        ...

    def value(self, key: str, pos: int, name: str, scope: str) -> RecordedOutcome | None:
        """Return a recorded value, or None to make it."""
        ...

    def ahead(self, scope: str) -> tuple[Amounts, Amounts] | None:
        """Return spending and reservations that are on record and not yet replayed, or None."""
        ...

    def check_doubt(self) -> None:
        """Raise if another step is in doubt."""

    def open_scope(self, scope: object) -> bool:
        """Return whether the opening of a scope is on record."""
        ...

    def close_scope(self, scope: object) -> bool:
        """Return whether the closing of a scope is on record."""
        ...
