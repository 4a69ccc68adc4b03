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
from collections.abc import Callable
from typing import Any

from agentguard.errors import ReplayDivergenceError
from agentguard.replay import divergence as d
from agentguard.replay.findings import Findings
from agentguard.replay.tape import Call
from agentguard.steps.tasks import first_task

LOOK_AGAIN = 0.02
#: How late, in seconds, a look must come to show that the program kept the loop busy meanwhile.
_LATE = 0.5
_WAITING = "the program waits for something that is no step"

Loop = asyncio.AbstractEventLoop


class Stalls:
    """The looks at the event loops of one replay.

    Args:
        findings: what the replay has found out, and is told.
        busy: whether a step waits for its turn.
        next_call: the first recorded call that was not made.
        stall_timeout: in seconds.
    """

    def __init__(
        self,
        findings: Findings,
        *,
        busy: Callable[[], bool],
        next_call: Callable[[], Call | None],
        stall_timeout: float,
    ) -> None:
        self._findings = findings
        self._busy = busy
        self._next_call = next_call
        self._stall_timeout = stall_timeout
        self._closed = False
        #: The tasks that were cancelled, once for each time.
        self._cancelled: list[asyncio.Task[Any]] = []

    def attend(self, loop: Loop, *, early: bool) -> None:
        """Look after a loop from now on, where the program is in a task.

        `early` is a loop that began inside the replay's block, so that all of its main task belongs to it.
        """
        task = first_task(loop) if early else asyncio.current_task(loop)
        if task is not None:
            self._findings.progress()
            loop.call_soon(self._poll, loop, task, time.monotonic())

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
        if now - due > _LATE or self._busy():
            self._findings.progress()
        if now - self._findings.progressed_at >= self._stall_timeout:
            self._stalled(task)
            self._findings.progress()
        loop.call_later(LOOK_AGAIN, self._poll, loop, task, now + LOOK_AGAIN)

    def _stalled(self, task: asyncio.Task[Any]) -> None:
        call = self._next_call()
        expected = "the program to end" if call is None else d.describe(call.start)
        key = None if call is None else call.start.key
        self._findings.differs(ReplayDivergenceError(d.ORDER, key, expected, _WAITING))
        self._cancelled.append(task)
        task.cancel()
