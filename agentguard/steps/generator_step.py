"""What a generator under guard is, sync or async: when its step starts, what it records, and how it ends.

`step_started` comes with the first item asked for; the stop is looked for at every item; the outcome
keeps the items in order up to a size.  Each item is made with the step as the current position, and
never across a `yield`, so that nothing leaks into the consumer's context.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator, Mapping
from contextvars import Token
from typing import Any, Self

from msgspec import structs

from agentguard.errors import AgentGuardError, RunStopped
from agentguard.steps import outcome, phases, spinning
from agentguard.steps.current import CURRENT, restore_position
from agentguard.steps.flow import check, open_step, prepare
from agentguard.steps.items import NOTHING, Items, Sent, sent_value, thrown
from agentguard.steps.model import InRun, Step
from agentguard.steps.served import RecordedOutcome, ServedItems
from agentguard.steps.spec import Args, Function, Kwargs, StepSpec

#: On the way out with one of these, a program is not held against its log.
ENDS_PROGRAMS = (KeyboardInterrupt, SystemExit, asyncio.CancelledError)


class GeneratorAbandonedError(AgentGuardError):
    """The run ended while a guarded generator was open; its step is settled, and it yields no more."""


class StreamOverError(AgentGuardError):
    """An iterator was asked for more after it had raised, or was cancelled: its step had ended with that."""


def _recorded(served: ServedItems) -> Generator[object, None, object]:
    """The items of the log one by one, then its end."""
    yield from served.items
    return served.end.result()


class GeneratorStep:
    """What both kinds of generator share: when the step starts, and how it ends."""

    __slots__ = (
        "__weakref__",
        "_args",
        "_fn",
        "_goes_on",
        "_inner",
        "_items",
        "_kwargs",
        "_recorded",
        "_result",
        "_served",
        "_step",
        "state",
    )

    def __init__(
        self,
        spec: StepSpec,
        position: InRun,
        fn: Function,
        args: Args,
        kwargs: Kwargs,
        *,
        attributes: Mapping[str, object] | None = None,
    ) -> None:
        step = open_step(spec, position, args, kwargs)
        step.attributes = attributes
        self._set_up(step, fn, args, kwargs)

    def _set_up(
        self,
        step: Step,
        fn: Function | None,
        args: Args,
        kwargs: Kwargs,
    ) -> None:
        self._step = step
        self._fn = fn
        self._args = args
        self._kwargs = kwargs
        self._inner: Any = None  # a generator, or what has its methods
        #: Whether it may have more items after an error: an iterator, and no generator.
        self._goes_on = False
        self._result: object = None
        self._recorded: Iterator[object] = iter(())
        self._served = ServedItems([], RecordedOutcome())
        self._items = Items(step.spec, step.recorder)
        self.state = "new"  # then starting, of an async one that waits for its first item; open; over; closed

    @classmethod
    def of_step(cls, step: Step, inner: object, args: Args, kwargs: Kwargs, result: object) -> Self:
        """Return a generator of a step that is under way: `inner` was made by its function, as `result`."""
        guarded = cls.recorded(step, args, kwargs)
        guarded._inner, guarded._result = inner, result
        guarded._goes_on = not (hasattr(inner, "gi_running") or hasattr(inner, "ag_running"))
        step.live_run.in_flight.hold(guarded)
        guarded.state = "open"
        return guarded

    @classmethod
    def recorded(cls, step: Step, args: Args, kwargs: Kwargs) -> Self:
        """Return a generator whose items are on record."""
        guarded = cls.__new__(cls)
        guarded._set_up(step, None, args, kwargs)
        return guarded

    @property
    def step(self) -> Step:
        """The step."""
        return self._step

    def _serve(self) -> bool:
        """Take the items from the log, where it has them."""
        player = self._step.live_run.player
        if player is None:
            return False
        prepare(self._step, self._args, self._kwargs)
        try:
            served = player.serve_items(self._step)
        except RunStopped as stop:
            spinning.refused(self._step, stop)
            raise
        if served is None:
            return False
        if (refusal := served.end.refusal) is not None:
            spinning.refused(self._step, refusal)
        self.state = "served"
        self._step.live_run.in_flight.hold(self)
        self._served = served
        self._recorded = _recorded(served)
        return True

    def _next_recorded(self, how: str, value: object) -> object:
        """The next item of the log, if what is sent in for it is what was."""
        player = self._step.live_run.player
        assert player is not None  # noqa: S101 - it has served them
        served = self._served
        sent, number = served.sent, self._items.count + 1
        self._items.count = number
        try:
            if served.left and number > len(served.items):
                player.left_items(self._step, number, served)
            if sent is not None:
                then, now = sent.get(number, NOTHING), self._sent(how, value)
                if then != now:
                    player.sent_otherwise(self._step, f"{then} for item {number}", str(now))
            return next(self._recorded)
        except BaseException:
            self._ended()
            if served.over:
                self.state = "over"
            raise

    def leave_served(self) -> None:
        """Hold where the items of the log are left against what was done live."""
        if self.state != "served":
            return
        self._ended()
        player, served = self._step.live_run.player, self._served
        if player is not None and served.differs(self._items.count):
            player.left_items(self._step, self._items.count, served)

    def _sent(self, how: str, value: Any) -> Sent:
        """What is sent in, as it is put on record."""
        recorder = self._step.recorder
        return thrown(recorder, value) if how in ("throw", "athrow") else sent_value(recorder, value)

    def _opened(self) -> None:
        self._step.entered = True
        assert self._fn is not None  # noqa: S101 - without it, the items are on record
        self._inner = self._fn(*self._args, **self._kwargs)
        self._step.live_run.in_flight.hold(self)  # first, so that the run's end finds it
        self.state = "open"
        if self._step.span is not None:
            self._step.span.suspend()

    def _ended(self) -> bool:
        """Mark it closed; False if it was already."""
        before, self.state = self.state, "closed"
        if before == "served":  # nothing of it goes on record
            self._step.live_run.in_flight.held.pop(self._step, None)
        return before == "open"

    def _is_over(self, error: BaseException) -> outcome.Outcome:
        """Return the outcome of a step that failed with an item, and note whether there may be more."""
        failed = self._failed(error)
        if self._goes_on and not isinstance(error, RunStopped):
            self.state = "over"
            failed = structs.replace(failed, data=(failed.data or {}) | {"over": True})
        return failed

    def _check_over(self) -> None:
        """Refuse to say that there are no more items where that is not known."""
        if self.state == "over":
            raise StreamOverError(
                f"{self._step.key} raised or was cancelled as it made an item, and its step ended with that: "
                "what it returned yields no more here. To wait for an item with a time limit, keep its task: "
                "asyncio.wait({task}, timeout=...)"
            )

    def _rescued(self, before: InRun | None, error: BaseException) -> None:
        """Leave nothing behind where something was raised between two lines of this driver."""
        if CURRENT.get() is self._step:
            CURRENT.set(before)
        if self.state in ("new", "starting", "closed"):
            phases.rescue(self._step, error)

    def _enter(self) -> Token[InRun | None]:
        if self._step.span is not None:
            self._step.span.resume()
        return CURRENT.set(self._step)

    def _feed(self, how: str, value: object) -> Token[InRun | None]:
        """Enter the body to send something in, which is put on record as it is now."""
        if value is not None:
            self._items.sent(self._sent(how, value))
        return self._enter()

    def _exit(self, token: Token[InRun | None]) -> None:
        restore_position(token)
        if self._step.span is not None:
            self._step.span.suspend()

    def _check(self) -> None:
        if self.state == "abandoned":
            stop = self._step.live_run.stops.stop
            raise stop or GeneratorAbandonedError(
                f"run {self._step.live_run.run_id} has ended; {self._step.key} yields no more"
            )
        live_run = self._step.live_run
        try:
            check(live_run, self._step.scope_key)
        except RunStopped as stop:
            draining = live_run.stops.draining
            if draining is None or draining.released or stop is not draining.stop:
                raise  # a drain lets what is in flight finish

    def _completed(self, *, early: bool) -> outcome.Outcome:
        step, counter = self._step, self._items.counter
        result = self._result if counter is None else counter
        try:
            usage = outcome.usage_of(step, result, self._args, self._kwargs)
            if early and counter is not None and step.settled is None:
                usage = outcome.at_least(step.request.reserve, usage)
        except BaseException as error:  # noqa: BLE001 - of a bad `usage=`; raised once it is on record
            return self._failed(error)
        payload, data = self._items.outcome()
        if early:
            data["closed_early"] = True
        return outcome.completed(usage, payload, data)

    def _failed(self, error: BaseException, how: str | None = None) -> outcome.Outcome:
        """The outcome of a generator that raised, with the items it had made."""
        done = outcome.failed(self._step, error, how)
        payload, data = self._items.outcome()
        data |= done.data or {}
        return structs.replace(done, payload=payload, data=data)

    def __del__(self) -> None:
        # A finaliser may run anywhere, also inside our own locks: it only enqueues.
        state = getattr(self, "state", "new")
        if state == "open" or (state == "served" and self._served.differs(self._items.count)):
            self._step.live_run.in_flight.orphans.append(self)

    def forgotten(self) -> None:
        """Settle the step of a generator that its consumer dropped; the inner one closes itself."""
        self.leave_served()
        if self._ended():
            phases.close(self._step, self._completed(early=True))

    def abandon(self) -> None:
        """Settle the step: the run ends while this is open."""
        if self.state in ("open", "abandoned"):
            self.state = "abandoned"
            error = GeneratorAbandonedError("open at the end of the run")
            phases.close(self._step, self._failed(error, outcome.ABANDONED))
