"""A result that is not there yet: the step goes on until what its function returned is done."""

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import inspect
import io
import itertools
import unittest.mock
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Self

import pytest

from agentguard import (
    Budget,
    BudgetExceededError,
    Guard,
    KillSwitchTriggeredError,
    ReplayDivergenceError,
    RunStopped,
    Usage,
    current_step,
    guarded_step,
)
from agentguard.steps.generator_step import StreamOverError

USED = Usage(usd="0.01")
BOUND = Usage(usd="0.50")


async def fetch(n: int) -> int:
    if n == 7:
        raise ConnectionError("no network")
    await asyncio.sleep(0.01)
    return n * 2


def plain(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


class Client:
    def fetch(self, n: int) -> Any:
        return fetch(n)


class Lazy:
    """An awaitable of one's own."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __await__(self) -> Any:
        return fetch(self.n).__await__()


AWAITABLES: dict[str, Callable[[int], Any]] = {
    "decorated": plain(fetch),
    "lambda": lambda n: fetch(n),
    "partial of a lambda": functools.partial(lambda n: fetch(n)),
    "method": Client().fetch,
    "task": lambda n: asyncio.create_task(fetch(n)),
    "future": lambda n: asyncio.ensure_future(fetch(n)),
    "gather": lambda n: asyncio.gather(fetch(n)),
    "to_thread": lambda n: asyncio.to_thread(_in_thread, n),
    "executor": lambda n: asyncio.get_running_loop().run_in_executor(None, _in_thread, n),
    "object": lambda n: Lazy(n),
}
forms = pytest.mark.parametrize("form", AWAITABLES)


def _in_thread(n: int) -> int:
    if n == 7:
        raise ConnectionError("no network")
    return n * 2


def value(result: Any) -> Any:
    return result[0] if isinstance(result, list) else result


def types(guard: Guard, run: Any) -> list[str]:
    return [event.type for event in guard.history(run.id) if event.type.startswith("step_")]


# --- awaitables ----------------------------------------------------------------------------------


@forms
def test_an_awaitable_goes_on_until_it_is_awaited(form: str) -> None:
    seen: list[int] = []

    def usage(result: Any) -> Usage:
        seen.append(value(result))
        return USED

    step = guarded_step(name="fetch", usage=usage, reserve=BOUND)(AWAITABLES[form])

    async def program() -> None:
        async with guard.run("r", budget=Budget(usd=1)) as run:
            going = step(21)
            assert types(guard, run) == ["step_started"]
            assert value(await going) == 42
            assert types(guard, run) == ["step_started", "step_completed"]
        assert seen == [42]
        assert run.spent.usd == USED.usd

    with Guard.in_memory() as guard:
        asyncio.run(program())


@forms
def test_its_error_is_the_steps_and_free_on_holds(form: str) -> None:
    step = guarded_step(name="fetch", usage=USED, free_on=(ConnectionError,))(AWAITABLES[form])

    async def program() -> None:
        async with guard.run("r", budget=Budget(usd=1)) as run:
            with pytest.raises(ConnectionError):
                await step(7)
        assert types(guard, run) == ["step_started", "step_failed"]
        assert run.spent.usd == 0

    with Guard.in_memory() as guard:
        asyncio.run(program())


@forms
def test_it_is_replayed_as_an_awaitable_without_its_function(form: str) -> None:
    calls: list[int] = []

    def function(n: int) -> Any:
        calls.append(n)
        return AWAITABLES[form](n)

    step = guarded_step(name="fetch")(function)

    async def agent() -> list[Any]:
        return [await step(1), await step(2)]

    async def program() -> None:
        async with guard.run("r") as run:
            live = await agent()
        async with guard.replay(run.id):
            assert await agent() == live
        assert calls == [1, 2]

    with Guard.in_memory() as guard:
        asyncio.run(program())


@pytest.mark.parametrize("form", ["decorated", "lambda", "method", "task", "future"])
def test_a_stop_cancels_it(form: str) -> None:
    ended: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    functions: dict[str, Callable[[], Any]] = {
        "decorated": plain(slow),
        "lambda": lambda: slow(),
        "method": lambda: slow(),
        "task": lambda: asyncio.create_task(slow()),
        "future": lambda: asyncio.ensure_future(slow()),
    }
    step = guarded_step(name="slow")(functions[form])

    async def program() -> None:
        with pytest.raises(KillSwitchTriggeredError):
            async with guard.run("r") as run:
                asyncio.get_running_loop().call_later(0.02, run.kill, "enough")
                with pytest.raises(KillSwitchTriggeredError):
                    await step()
        assert ended == ["cancelled"]
        assert types(guard, run) == ["step_started", "step_failed"]

    with Guard.in_memory() as guard:
        asyncio.run(program())


def test_a_stop_between_call_and_await_is_met_before_the_body() -> None:
    ran: list[int] = []

    async def body() -> None:
        ran.append(1)

    step = guarded_step(name="late")(lambda: body())

    async def program() -> None:
        with pytest.raises(KillSwitchTriggeredError):
            async with guard.run("r") as run:
                going = step()
                run.kill("enough")
                with pytest.raises(KillSwitchTriggeredError):
                    await going
        assert ran == []

    with Guard.in_memory() as guard, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the coroutine that was not to run
        asyncio.run(program())
        gc.collect()


def test_one_that_is_never_awaited_is_abandoned_and_charged() -> None:
    step = guarded_step(name="fetch", usage=USED)(lambda n: Lazy(n))
    with Guard.in_memory() as guard:
        with guard.run("kept", budget=Budget(usd=1)) as run:
            kept = step(1)
        assert types(guard, run) == ["step_started", "step_failed"]
        assert run.spent.usd == USED.usd
        failed = guard.history(run.id)[-2]
        assert failed.data["outcome"] == "abandoned"
        with pytest.raises(Exception, match="awaited once, in its run"):
            asyncio.run(_await(kept))
        with guard.run("dropped", budget=Budget(usd=1)) as run:
            step(1)
            gc.collect()
            step(2)
        assert types(guard, run).count("step_failed") == 2


class Pipeline(Lazy):
    """An object to work with, that can be awaited too."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.commands: list[str] = []

    def set(self, name: str) -> None:
        self.commands.append(name)


@pytest.mark.parametrize("usage", [USED, lambda result: Usage(usd=5)], ids=["known", "of the result"])
def test_an_object_that_is_used_and_never_awaited_is_done(usage: Any) -> None:
    step = guarded_step(name="pipeline", usage=usage, reserve=USED)(lambda n: Pipeline(n))
    with Guard.in_memory() as guard:
        with guard.run("kept", budget=Budget(usd=1)) as run:
            kept = step(1)
            kept.set("a")
        assert kept.commands == ["a"]
        assert types(guard, run) == ["step_started", "step_completed"]
        assert run.spent.usd == USED.usd
        with pytest.raises(Exception, match="awaited once, in its run"):
            asyncio.run(_await(kept))
        with guard.run("dropped", budget=Budget(usd=1)) as run:
            step(1).set("a")
            gc.collect()
            step(2).commands.append("an attribute is no use of it")
        assert sorted(types(guard, run))[:2] == ["step_completed", "step_failed"]


def test_an_object_that_is_used_is_still_awaited() -> None:
    async def program() -> None:
        async with guard.run("r") as run:
            going = guarded_step(name="pipeline")(lambda n: Pipeline(n))(7)
            going.set("a")
            with pytest.raises(ConnectionError):
                await going
        assert types(guard, run) == ["step_started", "step_failed"]

    with Guard.in_memory() as guard:
        asyncio.run(program())


def test_a_pipeline_of_redis_is_no_abandoned_step() -> None:
    redis = pytest.importorskip("redis.asyncio")
    client = redis.Redis(port=9)
    with Guard.in_memory() as guard:
        with guard.run("r") as run:
            pipeline = guarded_step(client.pipeline)()
            pipeline.set("name", "value")
        assert types(guard, run) == ["step_started", "step_completed"]


async def _await(going: Any) -> Any:
    return await going


def test_it_is_awaited_once() -> None:
    step = guarded_step(name="fetch")(lambda n: Lazy(n))

    async def program() -> None:
        async with guard.run("r"):
            going = step(1)
            assert await going == 2
            with pytest.raises(Exception, match="once"):
                await going

    with Guard.in_memory() as guard:
        asyncio.run(program())


def test_a_timeout_holds_for_a_coroutine_behind_a_plain_decorator() -> None:
    step = guarded_step(timeout=0.02)(plain(_forever))

    async def program() -> None:
        async with guard.run("r") as run:
            with pytest.raises(TimeoutError):
                await step()
        assert types(guard, run) == ["step_started", "step_failed"]

    with Guard.in_memory() as guard:
        asyncio.run(program())


async def _forever() -> None:
    await asyncio.sleep(30)


def test_its_body_is_inside_the_step() -> None:
    inner = guarded_step(name="inner")(lambda: 1)

    async def body() -> str:
        step = current_step()
        assert step is not None
        step.settle(Usage(usd="0.03"))
        inner()
        return step.key

    step = guarded_step(name="outer", usage=USED)(lambda: body())

    async def program() -> None:
        async with guard.run("r", budget=Budget(usd=1)) as run:
            assert await step() == "main/outer#1"
            assert current_step() is None
        assert run.spent.usd == Usage(usd="0.03").usd
        assert "main/outer#1/inner#1" in [event.key for event in guard.history(run.id)]

    with Guard.in_memory() as guard:
        asyncio.run(program())


def test_many_at_once_are_charged_each_and_never_beyond() -> None:
    step = guarded_step(name="fetch", usage=USED)(lambda n: fetch(n))

    async def one() -> Any:
        return await step(1)

    async def program() -> None:
        with pytest.raises(BudgetExceededError):
            async with guard.run("r", budget=Budget(usd="0.10")) as run:
                await asyncio.gather(*(one() for _ in range(30)), return_exceptions=True)
        assert run.spent.usd == Budget(usd="0.10").usd

    with Guard.in_memory() as guard:
        asyncio.run(program())


def test_run_call_follows_what_comes_back() -> None:
    async def agent(run: Any) -> Any:
        return await run.call("fetch", lambda n: fetch(n), 4)

    async def program() -> None:
        async with guard.run("r") as run:
            assert await agent(run) == 8
        assert types(guard, run) == ["step_started", "step_completed"]
        async with guard.replay(run.id) as again:
            assert await agent(again) == 8

    with Guard.in_memory() as guard:
        asyncio.run(program())


# --- @guard.run ----------------------------------------------------------------------------------


def test_a_run_over_a_plain_function_goes_on_until_it_is_awaited() -> None:
    inner = guarded_step(name="inner")(fetch)

    async def program() -> None:
        @guard.run("agent")
        @plain
        async def agent(n: int) -> int:
            return await inner(n)

        going = agent(4)
        assert guard.runs()[0].state == "RUNNING"
        assert await going == 8
        (row,) = guard.runs()
        assert (row.state, row.steps) == ("COMPLETED", 1)
        with pytest.raises(ConnectionError):
            await agent(7)
        assert guard.runs()[0].state == "FAILED"

    with Guard.in_memory() as guard:
        asyncio.run(program())


def test_a_run_over_a_plain_function_gives_its_stop() -> None:
    inner = guarded_step(name="inner")(fetch)

    async def program() -> None:
        @guard.run("agent", budget=Budget(steps=1))
        @plain
        async def agent() -> None:
            with contextlib.suppress(RunStopped):
                await inner(1)
                await inner(2)

        with pytest.raises(BudgetExceededError):
            await agent()

    with Guard.in_memory() as guard:
        asyncio.run(program())


@pytest.mark.parametrize("result", [lambda: iter([1]), lambda: (n for n in [1])])
def test_a_run_over_a_function_that_returns_an_iterator_is_refused(result: Callable[[], Any]) -> None:
    with Guard.in_memory() as guard:

        @guard.run("agent")
        def agent() -> Any:
            return result()

        with pytest.raises(TypeError, match="by `with guard.run"):
            agent()
        assert guard.runs()[0].state == "FAILED"


@pytest.mark.parametrize("native", [True, False], ids=["async def", "plain"])
@pytest.mark.parametrize(
    "result", [lambda: iter([1]), lambda: AsyncStream(), lambda: guarded_step(lambda: AsyncStream())()]
)
def test_a_run_over_a_coroutine_that_gives_a_stream_is_refused(
    native: bool, result: Callable[[], Any]
) -> None:
    async def agent() -> Any:
        await asyncio.sleep(0)
        return result()

    async def program() -> None:
        with pytest.raises(TypeError, match="by `with guard.run"):
            await guard.run("agent")(agent if native else plain(agent))()
        assert guard.runs()[0].state == "FAILED"

    with Guard.in_memory() as guard:
        asyncio.run(program())


# --- iterators -----------------------------------------------------------------------------------


class Stream:
    """As an SDK's stream is: items, attributes, a block, and close()."""

    def __init__(self, items: int = 3) -> None:
        self._items = iter(range(items))
        self.response = "200 OK"
        self.closed = 0

    def __iter__(self) -> Iterator[int]:
        yield from self._items

    def __next__(self) -> int:
        return next(self._items)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed += 1


class AsyncStream:
    def __init__(self, items: int = 3) -> None:
        self._items = iter(range(items))
        self.response = "200 OK"
        self.closed = 0

    async def __aiter__(self) -> AsyncIterator[int]:
        for item in self._items:
            yield item

    async def __anext__(self) -> int:
        await asyncio.sleep(0)
        try:
            return next(self._items)
        except StopIteration:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        self.closed += 1


ITERATORS: dict[str, Callable[[], Any]] = {
    "generator": lambda: (n for n in range(3)),
    "iter": lambda: iter([0, 1, 2]),
    "map": lambda: map(int, "012"),
    "filter": lambda: filter(lambda n: n < 3, [0, 1, 2, 3]),
    "zip": lambda: (n for n, _ in zip(range(3), range(3), strict=True)),
    "itertools": lambda: itertools.islice(itertools.count(), 3),
    "stream": lambda: Stream(),
}


@pytest.mark.parametrize("form", ITERATORS)
def test_an_iterator_goes_on_until_it_is_exhausted(form: str) -> None:
    step = guarded_step(name="stream", usage=USED)(ITERATORS[form])

    def agent() -> list[int]:
        return list(step())

    with Guard.in_memory() as guard:
        with guard.run("r", budget=Budget(usd=1)) as run:
            items = step()
            assert next(items) == 0
            assert types(guard, run) == ["step_started"]
            assert list(items) == [1, 2]
            assert types(guard, run) == ["step_started", "step_completed"]
            assert run.spent.usd == USED.usd
        with guard.run("again") as run:
            assert agent() == [0, 1, 2]
        with guard.replay(run.id):
            assert agent() == [0, 1, 2]


@pytest.mark.parametrize("form", ITERATORS)
def test_a_stop_ends_an_iterator_at_its_next_item(form: str) -> None:
    step = guarded_step(name="stream")(ITERATORS[form])
    with Guard.in_memory() as guard:
        with pytest.raises(KillSwitchTriggeredError):
            with guard.run("r") as run:
                items = step()
                next(items)
                run.kill("enough")
                with pytest.raises(KillSwitchTriggeredError):
                    next(items)
        assert types(guard, run) == ["step_started", "step_failed"]


def test_a_stream_keeps_its_attributes_its_block_and_its_close() -> None:
    streams: list[Stream] = []

    def open_stream() -> Stream:
        streams.append(Stream())
        return streams[-1]

    step = guarded_step(name="stream", usage=USED)(open_stream)
    with Guard.in_memory() as guard:
        with guard.run("r") as run:
            with step() as stream:
                assert isinstance(stream, Stream)
                assert stream.response == "200 OK"
                assert next(stream) == 0
            closed = step()
            closed.close()
        ends = [event for event in guard.history(run.id) if event.type == "step_completed"]
        assert [(end.data["items"], end.data["closed_early"]) for end in ends] == [(1, True), (0, True)]
        assert all(stream.closed for stream in streams)


def test_a_stream_left_open_is_abandoned_and_one_dropped_is_settled() -> None:
    step = guarded_step(name="stream", usage=USED)(lambda: Stream())
    with Guard.in_memory() as guard:
        with guard.run("r") as run:
            kept = step()
            next(kept)
            next(step())
            gc.collect()
        assert sorted(types(guard, run)) == ["step_completed", "step_failed", "step_started", "step_started"]
        assert run.spent.usd == 2 * USED.usd
        with pytest.raises(Exception, match="yields no more"):
            next(kept)


@pytest.mark.parametrize("native", [True, False], ids=["async def", "lambda"])
def test_an_async_stream_goes_on_after_it_was_awaited(native: bool) -> None:
    async def open_stream() -> AsyncStream:
        await asyncio.sleep(0)
        return AsyncStream()

    step = guarded_step(name="stream", usage=USED)(open_stream if native else lambda: open_stream())

    async def agent() -> list[int]:
        async with await step() as stream:
            assert not hasattr(stream, "__agentguard__")
            return [item async for item in stream]

    async def program() -> None:
        async with guard.run("r", budget=Budget(usd=1)) as run:
            stream = await step()
            assert stream.response == "200 OK"
            assert await anext(stream) == 0
            assert types(guard, run) == ["step_started"]
            await stream.close()
            assert types(guard, run) == ["step_started", "step_completed"]
        async with guard.run("again") as run:
            assert await agent() == [0, 1, 2]
        assert types(guard, run) == ["step_started", "step_completed"]
        async with guard.replay(run.id):
            assert await agent() == [0, 1, 2]

    with Guard.in_memory() as guard:
        asyncio.run(program())


def test_an_async_stream_of_a_plain_function_is_stopped_in_its_wait() -> None:
    class Slow(AsyncStream):
        async def __anext__(self) -> int:
            await asyncio.sleep(30)
            return 1

    step = guarded_step(name="stream")(lambda: Slow())

    async def program() -> None:
        with pytest.raises(KillSwitchTriggeredError):
            async with guard.run("r") as run:
                asyncio.get_running_loop().call_later(0.02, run.kill, "enough")
                with pytest.raises(KillSwitchTriggeredError):
                    async for _ in step():
                        pass

    with Guard.in_memory() as guard:
        asyncio.run(program())


# --- blocks --------------------------------------------------------------------------------------


class Rows:
    """An iterator of one's own, which raises at one item and has more after it."""

    def __init__(self, bad: int = 2) -> None:
        self.bad = bad
        self.number = 0
        self.closed = 0

    def _next(self, end: type[Exception]) -> int:
        self.number += 1
        if self.number == self.bad:
            raise ValueError("a bad row")
        if self.number > 3:
            raise end
        return self.number

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> int:
        return self._next(StopIteration)

    def close(self) -> None:
        self.closed += 1


class AsyncRows(Rows):
    __iter__ = None  # type: ignore[assignment]
    __next__ = None  # type: ignore[assignment]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> int:
        return self._next(StopAsyncIteration)

    async def close(self) -> None:  # type: ignore[override]
        self.closed += 1


class Waits(AsyncRows):
    """Makes no item before it is told to."""

    def __init__(self) -> None:
        super().__init__(0)
        self.asked = asyncio.Event()
        self.told = asyncio.Event()

    async def __anext__(self) -> int:
        self.asked.set()
        await self.told.wait()
        return await super().__anext__()


async def each(rows: Any, ask: Callable[[Any], Any] = next) -> list[object]:
    """What comes of asking until there are no more, whatever is raised."""
    seen: list[object] = []
    while True:
        try:
            item = ask(rows)
            seen.append(await item if inspect.isawaitable(item) else item)
        except (StopIteration, StopAsyncIteration):
            return seen
        except ValueError as error:
            seen.append(str(error))


@pytest.mark.parametrize(("rows", "ask"), [(Rows, next), (AsyncRows, anext)], ids=["sync", "async"])
def test_an_iterator_that_has_raised_does_not_say_that_there_is_no_more(
    rows: Callable[[], Any], ask: Callable[[Any], Any]
) -> None:
    read = guarded_step(usage=USED)(lambda: rows())
    guard = Guard.in_memory()
    with guard.run("r") as run, pytest.raises(StreamOverError, match=r"main/.*#1 raised"):
        asyncio.run(each(read(), ask))
    assert types(guard, run) == ["step_started", "step_failed"]
    with guard.replay(run.id), pytest.raises(StreamOverError):
        asyncio.run(each(read(), ask))


def test_an_iterator_whose_item_took_too_long_does_not_say_that_there_is_no_more() -> None:
    async def main() -> None:
        waits = Waits()
        read = guarded_step(usage=USED)(lambda: waits)
        async with guard.run("r"):
            rows = read()
            asking = asyncio.ensure_future(anext(rows))
            await waits.asked.wait()
            asking.cancel()  # as `asyncio.wait_for` does when time is up
            waits.told.set()
            with pytest.raises(asyncio.CancelledError):
                await asking
            with pytest.raises(StreamOverError):
                await anext(rows)

    guard = Guard.in_memory()
    asyncio.run(main())


@pytest.mark.parametrize("bad", [2, 0], ids=["raised", "exhausted"])
def test_a_stream_is_closed_after_its_step_has_ended(bad: int) -> None:
    async def main() -> None:
        plain_rows, async_rows = Rows(bad), AsyncRows(bad)
        async with guard.run("r"):
            for made, ask in ((plain_rows, next), (async_rows, anext)):
                rows: Any = guarded_step(lambda made=made: made)()
                with contextlib.suppress(StreamOverError):
                    await each(rows, ask)
                if inspect.isawaitable(closing := rows.close()):
                    await closing
        assert (plain_rows.closed, async_rows.closed) == (1, 1)

    guard = Guard.in_memory()
    asyncio.run(main())


def test_a_generator_that_has_raised_is_over_as_always() -> None:
    def rows() -> Iterator[int]:
        yield 1
        with pytest.raises(ValueError, match="already executing"):
            next(reading)
        raise ValueError("a bad row")

    read = guarded_step(lambda: rows())
    with Guard.in_memory().run("r"):
        reading = read()
        assert asyncio.run(each(reading)) == [1, "a bad row"]


class Manager:
    """As `client.messages.stream(...)` is: the request is sent where the block begins."""

    def __init__(self) -> None:
        self.stream = Stream()

    def __enter__(self) -> Stream:
        return self.stream

    def __exit__(self, *exc: object) -> None:
        self.stream.close()


class AsyncManager:
    async def __aenter__(self) -> AsyncStream:
        return AsyncStream()

    async def __aexit__(self, *exc: object) -> None: ...


def test_the_block_that_opens_a_models_stream_goes_on_until_it_is_left() -> None:
    step = guarded_step(name="ask", kind="llm", usage=USED)(lambda: Manager())
    with Guard.in_memory() as guard:
        with guard.run("r", budget=Budget(usd=1)) as run:
            with step() as stream:
                assert stream.response == "200 OK"
                assert list(stream) == [0, 1, 2]
            with step() as stream:
                assert types(guard, run)[-1] == "step_started"
        assert types(guard, run) == ["step_started", "step_completed"] * 2
        with pytest.raises(ReplayDivergenceError) as caught:
            with guard.replay(run.id):
                step()
        assert caught.value.kind == "not_replayable"


def test_an_async_block_that_opens_a_models_stream_goes_on_until_it_is_left() -> None:
    step = guarded_step(name="ask", kind="llm", usage=USED)(lambda: AsyncManager())

    async def program() -> None:
        async with guard.run("r") as run:
            async with step() as stream:
                assert [item async for item in stream] == [0, 1, 2]
        assert types(guard, run) == ["step_started", "step_completed"]

    with Guard.in_memory() as guard:
        asyncio.run(program())


def test_a_generator_block_is_followed_and_its_error_is_the_steps() -> None:
    @contextlib.contextmanager
    def opened(fails: bool) -> Iterator[str]:
        if fails:
            raise ConnectionError("no network")
        yield "open"

    step = guarded_step(name="open", usage=USED, free_on=(ConnectionError,))(opened)
    with Guard.in_memory() as guard:
        with guard.run("r", budget=Budget(usd=1)) as run:
            with step(False) as value:
                assert value == "open"
            with pytest.raises(ConnectionError):
                with step(True):
                    pass
        assert types(guard, run) == ["step_started", "step_completed", "step_started", "step_failed"]
        assert run.spent.usd == USED.usd


# --- what cannot be followed, and values ---------------------------------------------------------


def test_a_future_of_another_thread_is_refused_with_the_way_to_write_it() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool, Guard.in_memory() as guard:
        step = guarded_step(name="submit")(lambda: pool.submit(sum, [1]))
        with guard.run("r") as run:
            with pytest.raises(TypeError, match=r"run\.bind"):
                step()
        assert types(guard, run) == ["step_started", "step_failed"]


def test_a_future_of_another_loop_is_refused() -> None:
    loop = asyncio.new_event_loop()
    step = guarded_step(name="submit")(loop.create_future)
    with Guard.in_memory() as guard, guard.run("r"):
        with pytest.raises(TypeError, match="event loop"):
            step()
    loop.close()


VALUES: dict[str, Callable[[], Any]] = {
    "list": lambda: [1],
    "str": lambda: "text",
    "dict view": lambda: {"a": 1}.keys(),
    "range": lambda: range(3),
    "file": lambda: io.StringIO("a\nb\n"),
    "lock": lambda: contextlib.nullcontext(),
    "mock": lambda: unittest.mock.Mock(),
    "none": lambda: None,
}


@pytest.mark.parametrize("form", VALUES)
def test_values_are_there_at_once(form: str) -> None:
    made = VALUES[form]()
    step = guarded_step(name="value")(lambda: made)
    with Guard.in_memory() as guard, guard.run("r") as run:
        assert step() is made
        assert types(guard, run) == ["step_started", "step_completed"]
