"""The delivery gate: outcomes of concurrent async steps reach their consumers one at a time, in log order.

Without it, two results that land in one turn of the event loop could be seen together live and apart
in a replay, and a program that acts on who came first would go another way.  So that both look the
same, the loop gets some turns after each delivery before the next.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

#: Turns of the loop between two deliveries: enough for a task to finish and its waiter to wake.
TURNS = 4


def after_turns(loop: asyncio.AbstractEventLoop, turns: int, then: Callable[[], None]) -> None:
    """Call `then` after some turns of the loop, or after fewer where nothing is left to run in it.

    Two turns with nothing else to run say so, since the loop looks for files, threads and timers in between.
    One that does not show what it has to run, as uvloop, is given all its turns.
    """
    loop.call_soon(_turn, loop, turns - 1, False, then)  # noqa: FBT003


def _turn(loop: asyncio.AbstractEventLoop, turns: int, was_idle: bool, then: Callable[[], None]) -> None:  # noqa: FBT001
    is_idle = not getattr(loop, "_ready", True)
    if turns <= 0 or (was_idle and is_idle):
        then()
    else:
        loop.call_soon(_turn, loop, turns - 1, is_idle, then)


class Gate:
    """The live gate of one run in one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._ties = count()
        self._busy = False

    async def turn(self, seq: int) -> None:
        """Return when the outcome with this sequence may be handed out."""
        future: asyncio.Future[None] = self._loop.create_future()
        heapq.heappush(self._waiting, (seq, next(self._ties), future))
        if not self._busy:
            # Never at once, as in a replay: the step that is asked for next must not be overtaken.
            self._busy = True
            after_turns(self._loop, TURNS, self._next)
        await future

    def _next(self) -> None:
        while self._waiting:
            _, _, future = heapq.heappop(self._waiting)
            if not future.done():  # cancelled while it waited
                future.set_result(None)
                after_turns(self._loop, TURNS, self._next)
                return
        self._busy = False
