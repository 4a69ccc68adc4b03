"""Noticing that a replayed program waits for what never comes, outside of any step.

Steps that wait for their turn are looked after by `order.py`.  Here is the rest: in each event loop that
a replay meets, a look now and then whether anything could still happen.  Where nothing can, or nothing
has for `stall_timeout`, the task that the program runs in is cancelled, and the replay's block raises
the difference.  A program without an event loop cannot be woken: its thread would have to be
interrupted inside of whatever it waits in.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

from agentguard.errors import ReplayDivergenceError
from agentguard.replay import divergence as d

if TYPE_CHECKING:
    from agentguard.replay.player import Player

#: How long, in seconds, a loop must have nothing to do and nothing to wait for to count as stalled;
#: a thread that it does not know of may be about to hand it work.
IDLE = 0.2
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
        task = (_main(loop) if early else None) or asyncio.current_task(loop)
        if task is not None:
            now = self._progress = time.monotonic()
            loop.call_soon(self.look, loop, task, now, now)

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

    def look(self, loop: Loop, task: asyncio.Task[Any], due: float, quiet_since: float) -> None:
        """Look whether anything can still happen in a loop."""
        if self._closed or task.done():
            return
        now = time.monotonic()
        if now - due > _LATE:
            self._progress = max(self._progress, now)
        if self._player.order.waited_for or not idle(loop) or not _alone():
            quiet_since = now
        if now - quiet_since >= IDLE or now - self._progress >= self._stall_timeout:
            self._stalled(task)
            self._progress = quiet_since = now
        loop.call_later(LOOK_AGAIN, self.look, loop, task, now + LOOK_AGAIN, quiet_since)

    def _stalled(self, task: asyncio.Task[Any]) -> None:
        call = self._player.first_left()
        expected = "the program to end" if call is None else d.describe(call.start)
        key = None if call is None else call.start.key
        self._player.differs(ReplayDivergenceError(d.ORDER, key, expected, _WAITING))
        self._cancelled.append(task)
        task.cancel()


def _main(loop: Loop) -> asyncio.Task[Any] | None:
    """The task that `run_until_complete` waits for, by the callback that it puts there."""
    tasks = asyncio.all_tasks(loop)
    return next((t for t in tasks if any("run_until_complete" in name for name in _callbacks(t))), None)


def _alone() -> bool:
    """Whether no thread of the program runs beside this one that could hand its loop work."""
    threads = (thread for thread in threading.enumerate() if thread is not threading.current_thread())
    return all(thread.name.startswith(("asyncio_", "agentguard-")) for thread in threads)


def idle(loop: Any) -> bool:
    """Whether a loop has nothing to do and nothing to wait for; a loop that cannot tell never is.

    What it may be waiting for are timers, files, sockets, processes, and threads that it gave work to.
    """
    ready, scheduled = getattr(loop, "_ready", None), getattr(loop, "_scheduled", None)
    if ready is None or scheduled is None:
        return False
    if ready or not all(handle.cancelled() or _is_look(handle) for handle in scheduled):
        return False
    if _waits_for_files(loop) or any(map(_waits_for_thread, asyncio.all_tasks(loop))):
        return False
    return not any(thread.name.startswith("asyncio-waitpid") for thread in threading.enumerate())


def _is_look(handle: Any) -> bool:
    """Whether a timer is one of ours."""
    return getattr(getattr(handle, "_callback", None), "__module__", None) in _OURS


_OURS = (__name__, "agentguard.replay.order")


def _waits_for_files(loop: Any) -> bool:
    """Whether a loop watches more than the socket that wakes it."""
    watched: Any = getattr(getattr(loop, "_selector", None), "get_map", dict)()
    return len(watched or ()) > 1


def _waits_for_thread(task: Any) -> bool:
    """Whether a task waits for a future that a thread will settle, as `asyncio.wrap_future` makes them."""
    waiter = getattr(task, "_fut_waiter", None)
    return any("_chain_future" in name for name in _callbacks(waiter))


def _callbacks(future: Any) -> list[str]:
    """The names of what is called when a future is done."""
    callbacks = getattr(future, "_callbacks", None) or ()
    return [getattr(callback, "__qualname__", "") for callback, _ in callbacks]
