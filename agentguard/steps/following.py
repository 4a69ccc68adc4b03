"""A result that is not there yet: the step goes on until what its function returned is done.

A plain function may return a coroutine, a future, an iterator, an SDK's stream, or the block that opens
one.  The driver is chosen by what comes back: an awaitable goes on until it is awaited to its end, an
iterator item by item until it is exhausted or closed, a block until it is left.  What the caller gets in
place of an object keeps the object's own attributes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from agentguard._loading import LOADING
from agentguard.events.data import StepEnded
from agentguard.steps import aio, outcome, phases
from agentguard.steps.current import CURRENT
from agentguard.steps.generator_step import GeneratorAbandonedError
from agentguard.steps.generators import GuardedAsyncGenerator, GuardedGenerator
from agentguard.steps.items import counter_of
from agentguard.steps.kinds import AWAITED, Kind, is_value, kind_of
from agentguard.steps.model import Step
from agentguard.steps.spec import Args, AsyncFunction, Kwargs
from agentguard.steps.stand_ins import AsyncIteratorItems, IteratorItems

if TYPE_CHECKING:
    from agentguard.budget.account import Amounts
    from agentguard.steps.proxies import _Proxy

T = TypeVar("T")

#: Of these modules, iterators have no attributes that anybody asks for.
_BARE_ITERATORS = frozenset({"builtins", "itertools"})
#: The result was dropped, or open at the run's end.
_UNUSED = "unused"


def follow(step: Step, result: Any, args: Args, kwargs: Kwargs) -> object:
    """Return what goes on in place of a result; its step stays open until that is done.

    Raises:
        TypeError: it cannot be followed; the step failed, and the message says how to write it.
    """
    kind = kind_of(type(result))
    pending = PendingResult(step, result, args, kwargs)
    if kind is Kind.COROUTINE:
        return pending.awaited("coroutine")
    if kind is Kind.FUTURE and result.get_loop() is asyncio._get_running_loop():
        return _task(pending.awaited("future"), result)
    if kind is Kind.FUTURE or kind is Kind.FOREIGN:
        pending.refuse()
    if type(result).__module__ in _BARE_ITERATORS:
        return pending.items() if hasattr(result, "__next__") else pending.async_items()
    return _proxy(result, pending)


def _proxy(result: object, pending: PendingResult) -> _Proxy:
    with LOADING:
        from agentguard.steps.proxies import proxy_class  # noqa: PLC0415 - see there

    return proxy_class(type(result))(result, pending)


async def run_to_end(step: Step, fn: AsyncFunction, args: Args, kwargs: Kwargs) -> object:
    """Run an async step to its end, or what is left of one that has begun; its result may go on."""
    # Whatever raises, wherever: as in the sync driver.
    try:
        try:
            if not step.entered:
                await aio.begin(step, args, kwargs)
            result = await aio.in_body(step, fn, args, kwargs)
            if kind_of(type(result)) is not None and not is_value(result, step.spec.kind):
                return follow(step, result, args, kwargs)
            done = phases.settled(step, result, args, kwargs)
        except BaseException as error:
            if step.entered:
                await aio.close(step, outcome.failed(step, error))
            raise
        await aio.close(step, done)
    except BaseException as error:
        phases.rescue(step, error)
        raise
    return result


def _task(pending: Coroutine[object, object, object], future: object = None) -> asyncio.Task[object]:
    """Return a task in place of a future, since code asks futures for more than to be awaited."""
    name = future.get_name() if isinstance(future, asyncio.Task) else None
    return asyncio.get_running_loop().create_task(pending, name=name)


class PendingResult:
    """One result under way, and its step.

    It holds the step until what goes on does, so that the run's end settles the step of one that is never
    awaited, iterated or entered.
    """

    __slots__ = ("__weakref__", "_args", "_kwargs", "_result", "_step", "state", "used")

    def __init__(self, step: Step, result: Any, args: Args, kwargs: Kwargs) -> None:
        self._step = step
        self._result = result
        self._args = args
        self._kwargs = kwargs
        self.used = False
        self.state = "open"
        step.live_run.in_flight.hold(self)
        if step.span is not None:
            step.span.suspend()

    @property
    def step(self) -> Step:
        """The step."""
        return self._step

    def _take(self, how: str, state: str = "taken") -> None:
        self.state = state
        self._step.continuations = (*self._step.continuations, how)

    # --- ways to go on -------------------------------------------------------------------------

    def _go_on(self, how: str, tried: str, begin: Callable[[], T]) -> T:
        """Return what goes on and holds the step from here on, once; what cuts this short ends the step."""
        if self.state != "open":
            raise self._abandoned(tried)
        try:
            self._take(how)
            return begin()
        except BaseException as error:
            phases.rescue(self._step, error)
            raise

    async def awaited(self, how: str = "awaited") -> object:
        """Await the result to its end."""
        if self.state != "open":
            raise self._abandoned("awaited")
        try:
            self._take(how)
            phases.check_before_body(self._step)
            return await run_to_end(self._step, self._awaitable, self._args, self._kwargs)
        except BaseException as error:
            phases.rescue(self._step, error)
            raise

    def _awaitable(self, *args: object, **kwargs: object) -> Awaitable[object]:
        return self._result  # type: ignore[no-any-return]

    def items(self, iterator: object = None) -> GuardedGenerator:
        """Go on item by item."""

        def begin() -> GuardedGenerator:
            inner = IteratorItems(self._result if iterator is None else iterator)
            return GuardedGenerator.of_step(self._step, inner, self._args, self._kwargs, self._result)

        return self._go_on("items", "iterated", begin)

    def async_items(self, iterator: object = None) -> GuardedAsyncGenerator:
        """Go on item by item, each awaited."""

        def begin() -> GuardedAsyncGenerator:
            inner = AsyncIteratorItems(self._result if iterator is None else iterator)
            return GuardedAsyncGenerator.of_step(self._step, inner, self._args, self._kwargs, self._result)

        return self._go_on("async items", "iterated", begin)

    def entered(self) -> Block:
        """Go on as a block."""
        return self._go_on("block", "entered", lambda: Block(self._step, self._args, self._kwargs))

    def refuse(self) -> NoReturn:
        """Fail the step of a result that cannot be followed."""
        self._take("refused")
        self._result.cancel()
        raise TypeError(
            f"{self._step.name} returned a {type(self._result).__name__} of another thread or event loop, "
            "where nothing can follow it: guard the function that runs there, and hand it over by "
            "run.bind(...)"
        )

    # --- as a holder of the step ---------------------------------------------------------------

    def _abandoned(self, how: str) -> BaseException:
        stop = self._step.live_run.stop if self.state == "abandoned" else None
        what = f"what {self._step.key} returned"
        return stop or GeneratorAbandonedError(f"{what} can be {how} once, in its run")

    def abandon(self) -> None:
        """Settle the step: it was dropped, or the run ends while nobody has awaited, iterated or entered it.

        An object whose methods were used has done its work: a client, or a pipeline of one.
        """
        if self.state == "open":
            self._take(_UNUSED, "abandoned")
        if self.state != "abandoned":
            return
        if self.used:
            data: StepEnded = {"unreplayable": "an object that was used, and never awaited"}
            done = outcome.completed(self._charge(), None, data)
        else:
            error = GeneratorAbandonedError(f"what {self._step.key} returned was never awaited or read")
            done = outcome.failed(self._step, error, outcome.ABANDONED)
        phases.close(self._step, done)

    forgotten = abandon

    def _charge(self) -> Amounts:
        step = self._step
        if callable(step.spec.usage):  # of what awaiting it gives
            return outcome.settled_or_reserved(step)
        return outcome.usage_of(step, self._result, self._args, self._kwargs)

    def __del__(self) -> None:
        # A finaliser may run anywhere, also inside our own locks: it only enqueues.
        if getattr(self, "state", "") == "open":
            self._step.live_run.in_flight.orphans.append(self)


class Block:
    """A step that goes on while a block is open, and perhaps the stream that the block opened."""

    __slots__ = ("__weakref__", "_args", "_kwargs", "_step", "_stream", "_value")

    def __init__(self, step: Step, args: Args, kwargs: Kwargs) -> None:
        self._step = step
        self._args = args
        self._kwargs = kwargs
        self._value: object = None
        self._stream: _Proxy | None = None
        step.live_run.in_flight.hold(self)

    @property
    def step(self) -> Step:
        """The step."""
        return self._step

    def abandon(self) -> None:
        """Settle the step: the run ends while it is open."""
        error = GeneratorAbandonedError("a block that was open at the end of the run")
        phases.close(self._step, outcome.failed(self._step, error, outcome.ABANDONED))

    def opened(self, value: object) -> object:
        """Return what the block hands out, followed where it is a stream."""
        self._value = value
        if kind_of(type(value)) is not Kind.OBJECT:
            return value
        self._stream = _proxy(value, PendingResult(self._step, value, self._args, self._kwargs))
        return self._stream

    def enter(self, manager: AbstractContextManager[object]) -> object:
        """Enter a block as the step's body."""
        before = CURRENT.get()
        try:
            phases.check_before_body(self._step)
            CURRENT.set(self._step)
            value = manager.__enter__()
            CURRENT.set(before)
            return self.opened(value)
        except BaseException as error:
            CURRENT.set(before)
            phases.rescue(self._step, error)
            raise

    async def aenter(self, manager: AbstractAsyncContextManager[object]) -> object:
        """Enter an async block as the step's body."""
        try:
            phases.check_before_body(self._step)
            return self.opened(await self._opening(manager))
        except BaseException as error:
            phases.rescue(self._step, error)
            raise

    async def _opening(self, manager: AbstractAsyncContextManager[object]) -> object:
        try:
            return await aio.in_body(self._step, manager.__aenter__, (), {})
        except BaseException as error:
            await aio.close(self._step, outcome.failed(self._step, error))
            raise

    def left(self) -> None:
        """The block is over, and so is the step, unless its stream was read to the end before."""
        try:
            self._left()
        except BaseException as error:
            phases.rescue(self._step, error)
            raise

    def _left(self) -> None:
        if self._step.key not in self._step.live_run.log.fold.open:
            return
        if self._stream is not None and self._stream._self_items is not None:
            self._stream._self_items.forgotten()
            return
        value: object = self._value
        counter = counter_of(self._step.spec)
        if counter is not None:
            counter.add(value)
            value = counter
        done = phases.settled(self._step, value, self._args, self._kwargs)
        data: StepEnded = {"unreplayable": "a block, not a function"}
        phases.close(self._step, outcome.completed(done.usage or {}, None, data))


# --- from the log --------------------------------------------------------------------------------


def replayed(step: Step, continued: tuple[str, ...], args: Args, kwargs: Kwargs) -> object:
    """Return what stands for a recorded result that went on, as `continued` says.

    Raises:
        ReplayDivergenceError: it was a block, which no log can serve.
    """
    player = step.live_run.player
    assert player is not None  # noqa: S101 - it has said how the result went on
    if "block" in continued:
        player.block(step)
    if continued[-1] == _UNUSED:
        player.serve(step)
        stream = RecordedStream(step, iter(()))
        return _nothing(step) if continued[0] in AWAITED else stream
    if continued[0] not in AWAITED:
        driver = GuardedGenerator if continued[0] == "items" else GuardedAsyncGenerator
        return RecordedStream(step, driver.recorded(step, args, kwargs))
    pending = _recorded_later(step, continued[1:], args, kwargs)
    return _task(pending) if continued[0] == "future" else pending


async def _recorded_later(step: Step, rest: tuple[str, ...], args: Args, kwargs: Kwargs) -> object:
    if rest:
        return replayed(step, rest, args, kwargs)
    player = step.live_run.player
    assert player is not None  # noqa: S101 - it has said how the result went on
    served = await player.serve_async(step)
    assert served is not None  # noqa: S101 - as above
    return served.result()


async def _nothing(step: Step) -> NoReturn:
    raise GeneratorAbandonedError(f"what {step.key} returned was never awaited, by the log")


class RecordedStream:
    """The items of an object that went on, from the log: the object itself is not there."""

    def __init__(self, step: Step, items: Any) -> None:
        self._step = step
        self._items = items

    def __iter__(self) -> Iterator[object]:
        return self

    def __next__(self) -> object:
        return next(self._items)

    def __aiter__(self) -> AsyncIterator[object]:
        return self

    async def __anext__(self) -> object:
        return await anext(self._items)

    def __enter__(self) -> object:
        return self

    def __exit__(self, *exc: object) -> None:
        self._items.close()

    async def __aenter__(self) -> object:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._items.aclose()

    def close(self) -> object:
        """Leave the items that are left; awaitable where they are."""
        return self._items.aclose() if hasattr(self._items, "aclose") else self._items.close()

    aclose = close

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"what {self._step.key} returned is served from the log, which has its items and not .{name}"
        )
