"""Delivering recorded outcomes of async steps in log order, and noticing when nobody asks for the next."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

from agentguard.errors import ReplayDivergenceError
from agentguard.replay import divergence as d
from agentguard.replay.tape import Call
from agentguard.steps.gate import TURNS, after_turns

if TYPE_CHECKING:
    from agentguard.replay.player import Player

#: How long, in seconds, a loop must have nothing to do and nothing to wait for to count as stalled;
#: a thread that it does not know of may be about to hand it work.
IDLE = 0.2
_LOOK_AGAIN = 0.02

Loop = asyncio.AbstractEventLoop


class DeliveryOrder:
    """The replay's side of the delivery gate, for all loops of a program."""

    def __init__(self, player: Player, stall_timeout: float) -> None:
        self._player = player
        self._stall_timeout = stall_timeout
        self._waiting: dict[Call, tuple[Loop, asyncio.Future[None]]] = {}
        self._busy = False
        self._watching = False
        self._progress = 0.0

    async def turn(self, call: Call) -> None:
        """Return when it is this call's turn; a call that the program cancelled waits to be again."""
        loop = asyncio.get_running_loop()
        if not self._waiting and self._next() is call and len(asyncio.all_tasks(loop)) == 1:
            call.delivered = True  # nobody else is there to see an order
            return
        future: asyncio.Future[None] = loop.create_future()
        self._waiting[call] = (loop, future)
        self._progress = time.monotonic()
        self._pump(loop)
        try:
            await future
        finally:
            self._waiting.pop(call, None)
            call.delivered = True
            self._pump(loop)

    def _next(self) -> Call | None:
        deliveries = self._player.tape.deliveries
        if self._player.in_doubt:
            # A step of unknown outcome ends this recovery: the order that it would have kept is void.
            return min(self._waiting, key=lambda call: call.start.seq, default=None)
        while deliveries and deliveries[0].delivered:
            deliveries.popleft()
        return deliveries[0] if deliveries else None

    def _pump(self, loop: Loop) -> None:
        """Deliver the next outcome, if somebody waits for it and the last one has sunk in."""
        if self._busy or not self._waiting:
            return
        call = self._next()
        if call is not None and call in self._waiting:
            self._busy = True
            owner = self._waiting[call][0]
            if owner is loop:
                after_turns(owner, TURNS, self._deliver)
            else:
                owner.call_soon_threadsafe(after_turns, owner, TURNS, self._deliver)
        elif not self._watching:
            self._watching = True
            loop.call_soon(self._watch, loop, time.monotonic())

    def _deliver(self) -> None:
        self._busy = False
        call = self._next()
        if call is None or call not in self._waiting:
            for loop, _ in list(self._waiting.values())[:1]:
                self._pump(loop)  # it was cancelled, or taken with the step around it, meanwhile
            return
        call.delivered = True
        self._progress = time.monotonic()
        future = self._waiting[call][1]
        if not future.done():
            future.set_result(None)

    # --- stalls --------------------------------------------------------------------------------

    def _watch(self, loop: Loop, quiet_since: float) -> None:
        """Look whether the program still does anything that could ask for the next outcome."""
        self._watching = False
        call = self._next()
        if self._busy or not self._waiting or (call is not None and call in self._waiting):
            self._pump(loop)
            return
        now = time.monotonic()
        if not _idle(loop):
            quiet_since = now
        if now - quiet_since >= IDLE or now - self._progress >= self._stall_timeout:
            self._stalled(call)
            return
        self._watching = True
        loop.call_later(_LOOK_AGAIN, self._watch, loop, quiet_since)

    def _stalled(self, call: Call | None) -> None:
        asked = ", ".join(waiting.start.key or "" for waiting in self._waiting)
        call = None if call is None else self._player.tape.outermost(call)
        expected = d.describe(call.start) if call is not None else "the program to cancel it, as recorded"
        key = call.start.key if call is not None else asked
        error = ReplayDivergenceError(d.ORDER, key, expected, f"only {asked} asked for")
        first = self._player.differs(error)
        for loop, future in list(self._waiting.values()):
            loop.call_soon_threadsafe(_fail, future, first)


def _fail(future: asyncio.Future[None], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def _idle(loop: Any) -> bool:
    """Whether a loop has nothing to do and nothing to wait for; a loop that cannot tell never is.

    What it may be waiting for are timers, files, sockets, processes, and threads that it gave work to.
    """
    ready, scheduled = getattr(loop, "_ready", None), getattr(loop, "_scheduled", None)
    if ready is None or scheduled is None:
        return False
    if ready or not all(handle.cancelled() for handle in scheduled):
        return False
    if _waits_for_files(loop) or any(map(_waits_for_thread, asyncio.all_tasks(loop))):
        return False
    return not any(thread.name.startswith("asyncio-waitpid") for thread in threading.enumerate())


def _waits_for_files(loop: Any) -> bool:
    """Whether a loop watches more than the socket that wakes it."""
    watched: Any = getattr(getattr(loop, "_selector", None), "get_map", dict)()
    return len(watched or ()) > 1


def _waits_for_thread(task: Any) -> bool:
    """Whether a task waits for a future that a thread will settle, as `asyncio.wrap_future` makes them."""
    waiter = getattr(task, "_fut_waiter", None)
    callbacks = getattr(waiter, "_callbacks", None) or ()
    return any("_chain_future" in getattr(call, "__qualname__", "") for call, _ in callbacks)
