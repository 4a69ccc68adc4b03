"""Delivering recorded outcomes of async steps in log order, and noticing when nobody asks for the next."""

from __future__ import annotations

import asyncio
import time

from agentguard.errors import ReplayDivergenceError
from agentguard.replay import divergence as d
from agentguard.replay.findings import Findings
from agentguard.replay.stalls import LOOK_AGAIN
from agentguard.replay.tape import Call, Tape
from agentguard.steps.gate import TURNS, after_turns

Loop = asyncio.AbstractEventLoop


class DeliveryOrder:
    """The replay's side of the delivery gate, for all loops of a program."""

    def __init__(self, tape: Tape, findings: Findings, stall_timeout: float) -> None:
        self._tape = tape
        self._findings = findings
        self._stall_timeout = stall_timeout
        self._waiting: dict[Call, tuple[Loop, asyncio.Future[None]]] = {}
        self._busy = False
        self._watching = False
        self._progress = 0.0

    @property
    def waited_for(self) -> bool:
        """Whether a step waits for its turn."""
        return bool(self._waiting)

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
        deliveries = self._tape.deliveries
        if self._findings.in_doubt:
            # A step of unknown outcome ends this recovery: the order that it would have kept is void.
            return min(self._waiting, key=lambda call: call.start.seq, default=None)
        while deliveries and deliveries[0].delivered:
            deliveries.popleft()
        return deliveries[0] if deliveries else None

    def _pump(self, loop: Loop) -> None:
        """Deliver the next outcome, if a step waits for it and the turns after the last one are over."""
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
            loop.call_soon(self._watch, loop)

    def _deliver(self) -> None:
        self._busy = False
        call = self._next()
        if call is None or call not in self._waiting:
            for loop, _ in list(self._waiting.values())[:1]:
                self._pump(loop)  # it was cancelled, or taken with the step around it, meanwhile
            return
        call.delivered = True
        self._progress = time.monotonic()
        self._findings.progress()
        future = self._waiting[call][1]
        if not future.done():
            future.set_result(None)

    # --- stalls --------------------------------------------------------------------------------

    def _watch(self, loop: Loop) -> None:
        """Look whether the program has asked for the next outcome in time."""
        self._watching = False
        call = self._next()
        if self._busy or not self._waiting or (call is not None and call in self._waiting):
            self._pump(loop)
            return
        if time.monotonic() - self._progress >= self._stall_timeout:
            self._stalled(call)
            return
        self._watching = True
        loop.call_later(LOOK_AGAIN, self._watch, loop)

    def _stalled(self, call: Call | None) -> None:
        asked = ", ".join(waiting.start.key or "" for waiting in self._waiting)
        call = None if call is None else self._tape.outermost(call)
        expected = d.describe(call.start) if call is not None else "the program to cancel it, as recorded"
        key = call.start.key if call is not None else asked
        error = ReplayDivergenceError(d.ORDER, key, expected, f"only {asked} asked for")
        first = self._findings.differs(error)
        for loop, future in list(self._waiting.values()):
            loop.call_soon_threadsafe(_fail, future, first)


def _fail(future: asyncio.Future[None], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
