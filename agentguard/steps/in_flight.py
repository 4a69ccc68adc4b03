"""What is under way in this process inside a run: bodies, generators, nested runs, loops, warnings.

It has no lock of its own that could be held with the log's: its sets are changed in one step each, and
copied before they are walked.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Protocol

from agentguard.budget.account import Amounts
from agentguard.errors import RunStopped
from agentguard.steps.gate import Gate
from agentguard.steps.step_call import StepCall

_log = logging.getLogger("agentguard")

Warned = dict[str, object]
OnWarning = Callable[[Warned], None]


class Body(Protocol):
    """A body in flight, which a stop cancels or interrupts."""

    scope: str

    def stop(self, stop: RunStopped) -> None:
        """Cancel it; called from any thread."""


class Holder(Protocol):
    """What holds a step open between the calls of its consumer: a generator, a block, a pending result."""

    @property
    def step(self) -> StepCall:
        """The step."""
        ...

    def abandon(self) -> None:
        """Settle the step at the end of the run, unless that is not this holder's to do."""


class Orphan(Protocol):
    """A generator that its consumer dropped."""

    def forgotten(self) -> None:
        """Settle its step."""


class NestedRun(Protocol):
    """A live run that was opened inside this one.  It has the same lock."""

    @property
    def scope_around(self) -> str:
        """The scope of this run that it lies in."""
        ...

    def end(self, stop: RunStopped) -> None:
        """Stop it."""

    def spent_so_far(self) -> Amounts:
        """Return what it has used, the runs inside it included; the lock is held."""
        ...

    def reserved(self) -> Amounts:
        """Return what its steps in flight hold; the lock is held."""
        ...


class TaskFactory(Protocol):
    """What gives the tasks of an event loop their branches; the runs that use it share it."""

    #: Tasks made inside runs that are not done yet.
    alive: int

    def count(self, made: Iterable[asyncio.Future[object]], in_flight: InFlight) -> None:
        """Count tasks made inside a run, whose outcomes may have to be delivered in turn."""

    def release(self, live_run_id: int) -> None:
        """Note that a run is over."""


def _no_loop() -> None:
    """Stand for a weak reference to none."""


class InFlight:
    """What one run has under way in this process."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self.bodies: set[Body] = set()
        #: What holds each step that is open between the calls of its consumer, until its outcome is on
        #: record: so the run's end finds the steps whose holder is gone and has not settled them.
        self.held: dict[StepCall, weakref.ref[Holder]] = {}
        #: Generators that were dropped while they were open.
        self.orphans: collections.deque[Orphan] = collections.deque()
        #: The live runs that were opened inside this one, and stop with it.
        self.children: list[NestedRun] = []
        #: The event loops that this run has met, and the task factories it uses there.
        self.loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, TaskFactory]
        self.loops = weakref.WeakKeyDictionary()
        #: The one that was met last: most often that of the next step.
        self.latest_loop: Callable[[], asyncio.AbstractEventLoop | None] = _no_loop
        self._gates: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Gate] = weakref.WeakKeyDictionary()
        #: Whether tasks were made inside the run, so that outcomes may have to be delivered in turn.
        self.concurrent = False
        self.on_warning: OnWarning | None = None
        #: Warnings on record that `on_warning` has not been told of: it is called without the lock.
        self.pending_warnings: list[Warned] = []

    def factories(self) -> Iterator[TaskFactory]:
        """Yield the task factories that the run uses, while other threads meet their loops."""
        for ref in self.loops.keyrefs():
            loop = ref()
            if loop is not None and (factory := self.loops.get(loop)) is not None:
                yield factory

    def stop(self, stop: RunStopped, scopes: Collection[str]) -> None:
        """Stop the bodies and the nested runs in some scopes."""
        for body in tuple(self.bodies) if stop.cancels else ():
            if body.scope in scopes:
                body.stop(stop)
        for child in tuple(self.children):
            if child.scope_around in scopes:
                child.end(stop)

    def hold(self, holder: Holder) -> None:
        """Note who holds a step; it takes the place of the one that did."""
        self.held[holder.step] = weakref.ref(holder)

    def holders(self) -> list[tuple[StepCall, Holder | None]]:
        """Return the steps that are held, each with its holder, or None where that is gone."""
        while True:
            try:
                return [(step, holder()) for step, holder in list(self.held.items())]
            except RuntimeError:  # another thread opened or closed one meanwhile
                continue

    def settle_orphans(self) -> None:
        """Settle the generators that were dropped; the log's lock is not held."""
        while self.orphans:
            self.orphans.popleft().forgotten()

    def gate(self, loop: asyncio.AbstractEventLoop) -> Gate | None:
        """Return the delivery gate of a loop, where more than one task of a run is under way in it."""
        factory = self.loops.get(loop)
        if factory is None or not factory.alive:
            return None
        gate = self._gates.get(loop)
        if gate is None:
            gate = self._gates[loop] = Gate(loop)
        return gate

    def warned(self, data: Warned) -> None:
        """Keep a warning for the run's owner, who is told of it once the lock is free."""
        if self.on_warning is not None:
            self.pending_warnings.append(data)

    def tell_warnings(self) -> None:
        """Call `on_warning` for what is pending; the log's lock is not held."""
        while self.pending_warnings and self.on_warning is not None:
            try:
                data = self.pending_warnings.pop(0)
            except IndexError:  # another thread was faster
                return
            try:
                self.on_warning(data)
            except Exception:  # noqa: BLE001 - a user's callback must not harm the step
                _log.exception("on_warning= of run %s failed", self._run_id)

    def forget(self) -> None:
        """Begin anew in a forked child: all of this is the parent's."""
        self.bodies.clear()
        self.children.clear()
        self.held.clear()
