"""Noticing that a replayed program waits for what never comes, outside of any step.

Steps that wait for their turn are looked after by `order.py`.  Here is the rest: in each event loop that
a replay meets, a look now and then whether the program has come to a call.  Where it has come to none for
`stall_timeout`, the task that the program runs in is cancelled, and the replay's block raises the
difference.  A program without an event loop cannot be woken: its thread would have to be interrupted
inside of whatever it waits in.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from agentguard.errors import ReplayDivergenceError
from agentguard.replay import divergence as d
from agentguard.steps.tasks import first_task

if TYPE_CHECKING:
    from agentguard.replay.player import Player

LOOK_AGAIN = 0.02
#: How late, in seconds, a look must come to show that the program kept the loop busy meanwhile.
_LATE = 0.5
_WAITING = "the program waits for something that is no step"

Loop = asyncio.AbstractEventLoop


class Stalls:
    """The looks at the event loops of one replay."""

    def __init__(self, player: Player, stall_timeout: float) -> None:
        self._player = player
        self._stall_timeout = stall_timeout
        self._progress = time.monotonic()
        self._closed = False
        #: The tasks that were cancelled, once for each time.
        self._cancelled: list[asyncio.Task[Any]] = []

    def attend(self, loop: Loop, *, early: bool) -> None:
        """Look after a loop from now on, where the program is in a task.

        `early` is a loop that began inside the replay's block, so that all of its main task belongs to it.
        """
        task = first_task(loop) if early else asyncio.current_task(loop)
        if task is not None:
            now = self._progress = time.monotonic()
            loop.call_soon(self._poll, loop, task, now)

    def progress(self) -> None:
        """The program has come to a call."""
        self._progress = time.monotonic()

    def close(self) -> None:
        """The program has ended."""
        self._closed = True
        try:
            here = asyncio.current_task()
        except RuntimeError:
            return
        for task in self._cancelled:
            if task is here:  # that was for this block, and is over with it
                task.uncancel()

    def _poll(self, loop: Loop, task: asyncio.Task[Any], due: float) -> None:
        """Cancel the program's task if it has made no call for `stall_timeout`."""
        if self._closed or task.done():
            return
        now = time.monotonic()
        if now - due > _LATE or self._player.order.waited_for:
            self._progress = max(self._progress, now)
        if now - self._progress >= self._stall_timeout:
            self._stalled(task)
            self._progress = now
        loop.call_later(LOOK_AGAIN, self._poll, loop, task, now + LOOK_AGAIN)

    def _stalled(self, task: asyncio.Task[Any]) -> None:
        call = self._player.first_left()
        expected = "the program to end" if call is None else d.describe(call.start)
        key = None if call is None else call.start.key
        self._player.differs(ReplayDivergenceError(d.ORDER, key, expected, _WAITING))
        self._cancelled.append(task)
        task.cancel()
