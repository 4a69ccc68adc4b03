"""Generators: a generator is one step, from its first item to its end, however it ends."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal

import pytest

from agentguard import (
    Budget,
    BudgetExceededError,
    KillSwitchTriggeredError,
    ReplayDivergenceError,
    RunState,
    RunStopped,
    Usage,
    current_step,
    guarded_step,
)
from agentguard.steps.generator_step import GeneratorAbandonedError

closed: list[object] = []


@pytest.fixture(autouse=True)
def _nothing_closed_yet():
    closed.clear()


@guarded_step(usage=Usage(usd="0.25"))
def numbers(n: int = 5):
    """Count."""
    try:
        for i in range(n):
            yield i
    finally:
        closed.append(threading.get_ident())


@guarded_step(usage=Usage(usd="0.25"))
async def async_numbers(n: int = 5):
    """Count."""
    try:
        for i in range(n):
            yield i
            await asyncio.sleep(0)
    finally:
        closed.append(asyncio.current_task())


def step_events(guard, run):
    return [(e.type, e.data) for e in guard.history(run.id) if e.type.startswith("step_")]


def payload_of(guard, run, kind):
    stored = [s for s in guard.components.store.read(run.id) if b'"type":"%s"' % kind.encode() in s.body]
    return json.loads(stored[-1].payload)


async def take(agen, n):
    return [await agen.__anext__() for _ in range(n)]


# --- from the first item ---------------------------------------------------------------------------


def test_nothing_starts_before_the_first_item(guard):
    with guard.run("r") as run:
        items = numbers()
        assert step_events(guard, run) == []
        assert next(items) == 0
        assert [kind for kind, _ in step_events(guard, run)] == ["step_started"]
        items.close()


def test_the_key_is_fixed_at_the_call(guard):
    with guard.run("r") as run:
        first, second = numbers(1), numbers(1)
        assert list(second) == list(first) == [0]
    keys = [e.key for e in guard.history(run.id) if e.type == "step_started"]
    assert keys == ["main/numbers#2", "main/numbers#1"]


def test_one_step_with_its_items_in_order(guard):
    with guard.run("r") as run:
        assert list(numbers(4)) == [0, 1, 2, 3]
    (started, _), (completed, data) = step_events(guard, run)
    assert (started, completed) == ("step_started", "step_completed")
    assert data["items"] == 4
    assert "closed_early" not in data
    assert payload_of(guard, run, "step_completed") == [0, 1, 2, 3]
    assert run.spent == Usage(usd="0.25") + Usage.from_amounts({"steps": 1})


def test_async_one_step_with_its_items_in_order(guard):
    async def main():
        return [item async for item in async_numbers(4)]

    with guard.run("r") as run:
        assert asyncio.run(main()) == [0, 1, 2, 3]
    assert payload_of(guard, run, "step_completed") == [0, 1, 2, 3]
    assert run.spent.steps == 1


def test_an_empty_generator_is_a_step(guard):
    with guard.run("r") as run:
        assert list(numbers(0)) == []
    assert step_events(guard, run)[-1][1]["items"] == 0


def test_a_generator_that_is_never_asked_is_no_step(guard):
    with guard.run("r") as run:
        numbers()
        asyncio.run(async_numbers().aclose())
    assert step_events(guard, run) == []


def test_too_many_items_are_not_kept(guard):
    @guarded_step(max_items_bytes=20)
    def words():
        for _ in range(10):
            yield "word"

    with guard.run("r") as run:
        assert len(list(words())) == 10
    data = step_events(guard, run)[-1][1]
    assert data["items"] == 10
    assert "max_items_bytes=20" in data["unreplayable"]
    assert payload_of(guard, run, "step_completed") == []


def test_an_item_that_cannot_be_encoded(guard):
    @guarded_step
    def things():
        yield 1
        yield object()

    with guard.run("r") as run:
        list(things())
    assert "object" in step_events(guard, run)[-1][1]["unreplayable"]


# --- the end by the user ---------------------------------------------------------------------------


def test_closed_by_the_user(guard):
    with guard.run("r") as run:
        items = numbers()
        assert [next(items), next(items)] == [0, 1]
        items.close()
        assert closed == [threading.get_ident()]
        with pytest.raises(StopIteration):
            next(items)
        items.close()
    kind, data = step_events(guard, run)[-1]
    assert (kind, data["closed_early"], data["items"]) == ("step_completed", True, 2)
    assert payload_of(guard, run, "step_completed") == [0, 1]


def test_async_closed_by_the_user(guard):
    async def main():
        items = async_numbers()
        await take(items, 2)
        await items.aclose()
        assert len(closed) == 1
        with pytest.raises(StopAsyncIteration):
            await items.__anext__()
        await items.aclose()

    with guard.run("r") as run:
        asyncio.run(main())
    kind, data = step_events(guard, run)[-1]
    assert (kind, data["closed_early"], data["items"]) == ("step_completed", True, 2)


def test_dropped_by_the_user(guard):
    """A finaliser only enqueues; the next step, or the run's end, settles it."""
    with guard.run("r") as run:
        items = numbers()
        next(items)
        del items
        gc.collect()
        assert [kind for kind, _ in step_events(guard, run)] == ["step_started"]
        list(numbers(1))
        assert step_events(guard, run)[1][1]["closed_early"] is True
    assert run.spent.usd == Decimal("0.5")


def test_async_dropped_by_the_user(guard):
    async def main():
        items = async_numbers()
        await take(items, 1)
        del items
        gc.collect()
        await asyncio.sleep(0)
        await take(async_numbers(1), 1)

    with guard.run("r") as run:
        asyncio.run(main())
    completed = [data for kind, data in step_events(guard, run) if kind == "step_completed"]
    assert completed[0]["closed_early"] is True


def test_broken_out_of_a_loop(guard):
    with guard.run("r") as run:
        for item in numbers():
            if item == 1:
                break
    assert step_events(guard, run)[-1][1]["items"] == 2


def test_the_body_raises(guard):
    @guarded_step(usage=Usage(usd="0.25"))
    def broken():
        yield 1
        raise ZeroDivisionError

    with guard.run("r") as run:
        items = broken()
        assert next(items) == 1
        with pytest.raises(ZeroDivisionError):
            next(items)
        with pytest.raises(StopIteration):
            next(items)
    kind, data = step_events(guard, run)[-1]
    assert (kind, data["error"]["type"]) == ("step_failed", "ZeroDivisionError")
    assert run.spent.usd == Decimal("0.25")


def test_send_throw_and_the_value_returned(guard):
    @guarded_step
    def talk():
        heard = yield "hello"
        try:
            yield heard
        except LookupError as error:
            yield repr(error)
        return "bye"

    with guard.run("r"):
        items = talk()
        assert next(items) == "hello"
        assert items.send("you") == "you"
        assert items.throw(LookupError("what")) == "LookupError('what')"
        with pytest.raises(StopIteration) as end:
            next(items)
        assert end.value.value == "bye"


def test_yield_from_a_guarded_generator(guard):
    @guarded_step
    def inner():
        yield 1
        return "returned"

    def outer():
        result = yield from inner()
        yield result

    with guard.run("r"):
        assert list(outer()) == [1, "returned"]


def test_throwing_into_one_that_never_began(guard):
    with guard.run("r") as run:
        items = numbers()
        with pytest.raises(LookupError, match="early"):
            items.throw(LookupError("early"))
        with pytest.raises(StopIteration):
            next(items)
        with pytest.raises(TypeError, match="just-started"):
            numbers().send(1)
    assert step_events(guard, run) == []


def test_throwing_into_an_async_one_that_never_began(guard):
    async def main():
        items = async_numbers()
        with pytest.raises(LookupError, match="early"):
            await items.athrow(LookupError("early"))
        with pytest.raises(LookupError, match="late"):
            await items.athrow(LookupError("late"))
        with pytest.raises(StopAsyncIteration):
            await items.__anext__()
        with pytest.raises(TypeError, match="just-started"):
            await async_numbers().asend(1)

    with guard.run("r") as run:
        asyncio.run(main())
    assert step_events(guard, run) == []


def test_async_send_and_throw_reach_the_body(guard):
    @guarded_step
    async def talk():
        heard = yield "hello"
        try:
            yield heard
        except LookupError as error:
            yield repr(error)

    async def main():
        items = talk()
        assert await items.__anext__() == "hello"
        assert await items.asend("you") == "you"
        assert await items.athrow(LookupError("what")) == "LookupError('what')"
        with pytest.raises(StopAsyncIteration):
            await items.__anext__()

    with guard.run("r"):
        asyncio.run(main())


def test_the_step_is_current_inside_and_not_outside(guard):
    @guarded_step
    def names():
        for _ in range(2):
            yield current_step().key

    with guard.run("r"):
        for name in names():
            assert name == "main/names#1"
            assert current_step() is None


# --- asked while it runs: the error of a plain generator, for who asked too early alone ---------------

EARLY = {
    "the next item": lambda items: items.send(None),
    "throw": lambda items: items.throw(LookupError("early")),
    "close": lambda items: items.close(),
}
ASYNC_EARLY = {
    "the next item": lambda items: items.asend(None),
    "throw": lambda items: items.athrow(LookupError("early")),
    "close": lambda items: items.aclose(),
}


def completed_once(guard, run):
    started, completed = step_events(guard, run)
    assert (started[0], completed[0]) == ("step_started", "step_completed")
    assert guard.verify(), guard.verify()


@pytest.mark.parametrize("ask", EARLY.values(), ids=EARLY)
def test_a_generator_that_asks_itself_goes_on(guard, ask):
    @guarded_step
    def itself():
        yield 1
        with pytest.raises(ValueError, match="already executing"):
            ask(items)
        yield 2

    with guard.run("r") as run:
        items = itself()
        assert list(items) == [1, 2]
    completed_once(guard, run)


@pytest.mark.parametrize("ask", EARLY.values(), ids=EARLY)
def test_a_generator_that_another_thread_asks_goes_on(guard, ask):
    running, answer = threading.Event(), threading.Event()

    @guarded_step
    def slow():
        running.set()
        assert answer.wait(60)
        yield 1
        yield 2

    with guard.run("r") as run:
        items, found = slow(), []
        consumer = threading.Thread(target=run.bind(lambda: found.append(next(items))))
        consumer.start()
        assert running.wait(60)
        with pytest.raises(ValueError, match="already executing"):
            ask(items)
        answer.set()
        consumer.join()
        assert [*found, *items] == [1, 2]
    completed_once(guard, run)


@pytest.mark.parametrize("ask", ASYNC_EARLY.values(), ids=ASYNC_EARLY)
def test_an_async_generator_that_another_task_asks_goes_on(guard, ask):
    async def main():
        running, answer = asyncio.Event(), asyncio.Event()

        @guarded_step
        async def slow():
            running.set()
            await answer.wait()
            yield 1
            yield 2

        async with guard.run("r") as run:
            items = slow()
            first = asyncio.ensure_future(items.asend(None))
            await running.wait()
            with pytest.raises(RuntimeError, match="already running"):
                await ask(items)
            answer.set()
            assert [await first, *[item async for item in items]] == [1, 2]
        return run

    completed_once(guard, asyncio.run(main()))


@pytest.mark.parametrize("ask", ASYNC_EARLY.values(), ids=ASYNC_EARLY)
def test_an_async_generator_that_waits_for_its_approval_is_asked_for_once(guard, ask):
    @guarded_step(approval=True)
    async def asked():
        yield 1
        yield 2

    async def main():
        async with guard.run("r") as run:
            items = asked()
            first = asyncio.ensure_future(items.asend(None))
            while not guard.approvals():
                await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="already running"):
                await ask(items)
            guard.approve(run.id, "main/asked#1")
            assert [await first, *[item async for item in items]] == [1, 2]
        return run

    completed_once(guard, asyncio.run(main()))


# --- the end of the run ----------------------------------------------------------------------------


def test_open_at_the_end_of_the_run(guard):
    with guard.run("r") as run:
        items = numbers()
        next(items)
    kinds = [e.type for e in guard.history(run.id)]
    assert kinds[-2:] == ["step_failed", "run_completed"]
    data = step_events(guard, run)[-1][1]
    assert data["outcome"] == "abandoned"
    assert run.spent.usd == Decimal("0.25")
    with pytest.raises(GeneratorAbandonedError):
        next(items)


def test_an_abandoned_generator_can_still_be_closed(guard):
    """Its body is closed where its consumer closes it, in its own thread."""
    with guard.run("r"):
        items = numbers()
        next(items)
    assert closed == []
    items.close()
    assert closed == [threading.get_ident()]


def test_an_abandoned_async_generator_can_still_be_closed(guard):
    async def main():
        async with guard.run("r"):
            items = async_numbers()
            await take(items, 1)
        with pytest.raises(GeneratorAbandonedError):
            await items.__anext__()
        await items.aclose()
        assert len(closed) == 1

    asyncio.run(main())


def test_a_body_that_raises_after_the_end_of_the_run_has_its_one_outcome(guard):
    """The run's end has settled it; its consumer hears what it raised all the same."""

    async def main():
        going_on = asyncio.Event()

        @guarded_step(usage=Usage(usd="0.25"))
        async def raises_late():
            yield 1
            await going_on.wait()
            raise ZeroDivisionError

        async with guard.run("r") as run:
            items = raises_late()
            assert await take(items, 1) == [1]
            late = asyncio.create_task(take(items, 1))
            await asyncio.sleep(0)
        going_on.set()
        with pytest.raises(ZeroDivisionError):
            await late
        return run

    run = asyncio.run(main())
    outcomes = [(kind, data["outcome"]) for kind, data in step_events(guard, run)[1:]]
    assert outcomes == [("step_failed", "abandoned")]
    assert run.spent.usd == Decimal("0.25")
    assert guard.verify(run.id)


def test_abandoned_after_a_stop(guard):
    with suppress(RunStopped), guard.run("r", budget=Budget(usd="0.25")) as run:
        items = numbers()
        next(items)
        list(numbers())
    data = step_events(guard, run)[-1][1]
    assert data["outcome"] == "abandoned"
    assert run.spent.usd == Decimal("0.25")
    with pytest.raises(BudgetExceededError):
        next(items)


def test_the_body_is_not_closed_in_another_thread(guard):
    """The run ends in one thread while a generator of another is open."""
    opened, over = threading.Event(), threading.Event()
    raised = []

    def consumer() -> None:
        items = numbers()
        next(items)
        opened.set()
        assert over.wait(60)
        assert closed == []
        try:
            next(items)
        except GeneratorAbandonedError as error:
            raised.append(error)
        items.close()

    with guard.run("r") as run:
        thread = threading.Thread(target=run.bind(consumer))
        thread.start()
        assert opened.wait(60)
    over.set()
    thread.join(60)
    assert len(raised) == 1
    assert closed == [thread.ident]


# --- stops -----------------------------------------------------------------------------------------


def test_the_stop_is_looked_for_at_every_item(guard):
    with pytest.raises(KillSwitchTriggeredError), guard.run("r") as run:
        seen = []
        for item in numbers():
            seen.append(item)
            if item == 1:
                run.kill("enough")
    assert seen == [0, 1]
    kind, data = step_events(guard, run)[-1]
    assert (kind, data["error"]["type"]) == ("step_failed", "KillSwitchTriggeredError")
    assert closed == [threading.get_ident()]


def test_async_the_stop_is_looked_for_at_every_item(guard):
    async def main(run):
        seen = []
        async for item in async_numbers():
            seen.append(item)
            if item == 1:
                run.kill("enough")
        return seen

    with pytest.raises(KillSwitchTriggeredError), guard.run("r") as run:
        asyncio.run(main(run))
    assert run.state is RunState.KILLED
    assert len(closed) == 1


def test_an_async_generator_is_cancelled_while_it_makes_an_item(guard):
    @guarded_step
    async def stuck():
        yield 1
        await asyncio.Event().wait()
        yield 2

    async def main():
        items = stuck()
        assert await items.__anext__() == 1
        waiting = asyncio.ensure_future(items.__anext__())
        await asyncio.sleep(0)
        guard.kill(reason="stuck")
        await waiting

    with pytest.raises(KillSwitchTriggeredError), guard.run("r"):
        asyncio.run(main())


def test_an_async_generator_cancelled_by_its_consumer(guard):
    @guarded_step
    async def stuck():
        yield 1
        await asyncio.Event().wait()

    async def main():
        items = stuck()
        await items.__anext__()
        waiting = asyncio.ensure_future(items.__anext__())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    with guard.run("r") as run:
        asyncio.run(main())
    assert step_events(guard, run)[-1][1]["outcome"] == "cancelled"


def test_a_refused_generator_makes_no_item(guard):
    with pytest.raises(BudgetExceededError), guard.run("r", budget=Budget(usd="0.2")):
        next(numbers())
    assert closed == []


def test_usage_of_a_generator(guard):
    """A callable usage is asked at the end, with None for a result; `settle` goes before it."""

    @guarded_step(reserve=Usage(tokens=100), usage=lambda result, n: Usage(tokens=n))
    def stream(n):
        yield from range(n)

    @guarded_step(reserve=Usage(tokens=100), usage=lambda result, n: Usage(tokens=n))
    def settling(n):
        yield n
        current_step().settle(Usage(tokens=7))

    with guard.run("r", budget=Budget(tokens=1000)) as run:
        list(stream(10))
        assert run.spent.tokens == 10
        list(settling(10))
        assert run.spent.tokens == 17


def test_a_usage_that_gives_no_usage_fails_the_step_at_its_end(guard):
    """Also where the consumer closes early; the step is charged its reservation."""

    @guarded_step(reserve=Usage(tokens=100), usage=lambda result: "much")
    def stream():
        yield 1

    @guarded_step(reserve=Usage(tokens=100), usage=lambda result: "much")
    async def async_stream():
        yield 1

    async def consume():
        async for _ in async_stream():
            pass

    def close_early():
        items = stream()
        next(items)
        items.close()

    with guard.run("r") as run:
        for consumed in (lambda: list(stream()), close_early, lambda: asyncio.run(consume())):
            before = run.spent.tokens
            with pytest.raises(TypeError, match="usage must give a Usage, not str"):
                consumed()
            kind, data = step_events(guard, run)[-1]
            assert (kind, data["error"]["type"], data["items"]) == ("step_failed", "TypeError", 1)
            assert run.spent.tokens - before == 100


# --- what is returned, and what is sent in ---------------------------------------------------------

ran: list[object] = []


@dataclass(frozen=True)
class Total:
    """What a generator may return."""

    of: int


@guarded_step
def summed(*, n: int) -> Generator[int, None, Total]:
    """Count, and give the sum."""
    ran.append(n)
    yield from range(n)
    return Total(sum(range(n)))


@guarded_step
def echo():
    """Give back what is sent in, and in the end all of it."""
    ran.append("echo")
    got = []
    while (said := (yield len(got))) is not None:
        got.append(said)
    return got


@guarded_step
async def async_echo():
    """Give back what is sent in."""
    said = yield "?"
    while said is not None:
        said = yield said


@guarded_step
def stubborn():
    """Say what was thrown in."""
    while True:
        try:
            yield "quiet"
        except (KeyError, ValueError) as error:
            yield repr(error)


def told(*values):
    """Send values into `echo`, and give what comes back and is returned."""
    talk = echo()
    out = [next(talk)]
    try:
        for value in (*values, None):
            out.append(talk.send(value))
    except StopIteration as end:
        return out, end.value


def replayed(guard, program, again=None):
    """What a program gives live, and what it, or another one, gives in a replay."""
    with guard.run("r") as run:
        live = program()
    ran.clear()
    with guard.replay(run.id):
        after = (again or program)()
    assert ran == []
    return live, after


def test_what_a_generator_returns_comes_back_in_a_replay(guard):
    def program():
        return (yield from summed(n=4))

    def whole():
        items = program()
        out = []
        try:
            while True:
                out.append(next(items))
        except StopIteration as end:
            return out, end.value

    live, again = replayed(guard, whole)
    assert again == live == ([0, 1, 2, 3], Total(6))


def test_a_returned_value_that_would_not_come_back_is_said_so(guard):
    @guarded_step
    def gives():
        yield 1
        return object()

    with guard.run("r") as run:
        assert list(gives()) == [1]
    assert "what it returned" in step_events(guard, run)[-1][1]["unreplayable"]
    with pytest.raises(ReplayDivergenceError) as caught, guard.replay(run.id):
        list(gives())
    assert caught.value.kind == "not_replayable"


def test_values_sent_in_are_checked_as_arguments(guard):
    live, again = replayed(guard, lambda: told("a", {"b": 2}))
    assert again == live == ([0, 1, 2], ["a", {"b": 2}])
    for other in (("a", {"b": 3}), ("a", None), ("a", {"b": 2}, "more")):
        with pytest.raises(ReplayDivergenceError) as caught:
            replayed(guard, lambda: told("a", {"b": 2}), lambda other=other: told(*other))
        assert (caught.value.kind, caught.value.key) == ("arguments", "main/echo#1")
    assert caught.value.expected == "next() for item 4"
    assert caught.value.found == 'send("more")'


def test_values_sent_into_an_async_generator_are_checked(guard):
    def program(said):
        async def main():
            talk = async_echo()
            out = [await anext(talk), await talk.asend(said)]
            await talk.aclose()
            return out

        return lambda: asyncio.run(main())

    assert replayed(guard, program("a")) == (["?", "a"], ["?", "a"])
    with pytest.raises(ReplayDivergenceError, match=r"arguments"):
        replayed(guard, program("a"), program("b"))


def test_an_exception_thrown_in_is_checked(guard):
    def program(error):
        def main():
            items = stubborn()
            out = [next(items), items.throw(error), next(items)]
            items.close()
            return out

        return main

    live, again = replayed(guard, program(KeyError("k")))
    assert again == live == ["quiet", "KeyError('k')", "quiet"]
    for other in (KeyError("j"), ValueError("k")):
        with pytest.raises(ReplayDivergenceError, match=r"arguments"):
            replayed(guard, program(KeyError("k")), program(other))
    live, again = replayed(guard, program(KeyError))
    assert again == live == ["quiet", "KeyError()", "quiet"]
    with pytest.raises(ReplayDivergenceError, match=r"arguments"):
        replayed(guard, program(KeyError), program(ValueError))


def test_an_exception_that_ends_a_generator_is_checked_too(guard):
    def program(error):
        def main():
            items = numbers(3)
            next(items)
            with suppress(LookupError):
                items.throw(error)

        return main

    replayed(guard, program(KeyError("k")))
    with pytest.raises(ReplayDivergenceError, match=r"arguments"):
        replayed(guard, program(KeyError("k")), program(IndexError("k")))


def test_what_is_sent_in_is_compared_after_redaction(guard):
    secret = {"password": "hunter2"}
    live, again = replayed(guard, lambda: told_items(secret), lambda: told_items({"password": "other"}))
    assert again == live


def told_items(value):
    talk = counts_words()
    out = [next(talk), talk.send(value)]
    talk.close()
    return out


@guarded_step
def counts_words():
    """Count what is sent in."""
    count = 0
    while True:
        yield count
        count += 1


def test_what_is_sent_in_counts_for_the_size(guard):
    @guarded_step(max_items_bytes=100)
    def listens():
        while (yield 1):
            pass

    with guard.run("r") as run:
        talk = listens()
        next(talk)
        talk.send("x" * 200)
        talk.close()
    assert step_events(guard, run)[-1][1]["unreplayable"] == "more than max_items_bytes=100"


def test_what_is_returned_counts_for_the_size(guard):
    @guarded_step(max_items_bytes=100)
    def ends_long():
        yield 1
        return "x" * 200

    with guard.run("r") as run:
        assert list(ends_long()) == [1]
    _, data = step_events(guard, run)[-1]
    assert data["unreplayable"] == "more than max_items_bytes=100"
    with (
        pytest.raises(ReplayDivergenceError, match="more than max_items_bytes=100"),
        guard.replay(run.id),
    ):
        list(ends_long())


def test_what_a_codec_makes_counts_for_the_size(guard):
    class Codec:
        def encode(self, items):
            return b"x" * 200

        def decode(self, payload):
            return [payload]

    @guarded_step(codec=Codec(), max_items_bytes=100)
    def coded():
        yield 1

    with guard.run("r") as run:
        assert list(coded()) == [1]
    _, data = step_events(guard, run)[-1]
    assert data["unreplayable"] == "more than max_items_bytes=100"


def test_a_codec_keeps_the_items_beside_what_was_sent_and_returned(guard):
    class Codec:
        def encode(self, items):
            return b"\xff" + bytes(items)

        def decode(self, payload):
            return list(payload[1:])

    @guarded_step(codec=Codec())
    def counts():
        said = yield 1
        yield said
        return "done"

    def program(said):
        def main():
            talk = counts()
            out = [next(talk), talk.send(said)]
            try:
                next(talk)
            except StopIteration as end:
                return out, end.value

        return main

    live, again = replayed(guard, program(7))
    assert again == live == ([1, 7], "done")
    with pytest.raises(ReplayDivergenceError, match=r"arguments"):
        replayed(guard, program(7), program(8))


@pytest.mark.parametrize("items", [[1, "two", None], [1.5, 2], [2, Total(1)]], ids=str)
def test_items_come_back_as_they_were_whatever_the_annotation_makes_of_them(guard, items):
    @guarded_step
    def gives() -> Iterator[float]:
        yield from items

    @guarded_step
    def gives_totals() -> Iterator[Total | int]:
        yield from items

    step = gives_totals if Total(1) in items else gives
    live, again = replayed(guard, lambda: list(step()))
    assert [(type(item), item) for item in again] == [(type(item), item) for item in live]
