"""An exception at any line of the guard's own code: a signal handler raises it, or calls the guard itself.

A tracer raises at each line in turn.  Whatever the line, log, fold, row and accounts agree afterwards, no
reservation is held by nobody, no transaction stays open, no lock is held, and the next step works.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import linecache
import sqlite3
import sys
import threading
import warnings
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    closing,
    contextmanager,
    suppress,
)
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest

import agentguard
from agentguard import Budget, Guard, RunState, Usage, guarded_step
from agentguard._loading import LEARNING, LOADING
from agentguard.audit.verify import reconstruct

# What is raised in a finaliser is reported by the interpreter.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("what_is_left_is_collected", "no_lock_of_the_process_stays_held"),
]

PACKAGE = str(Path(agentguard.__file__).parent)
importlib.import_module("agentguard.steps.proxies")  # which the first result that goes on loads
COIN = Usage(coins=1)


@guarded_step(usage=COIN)
def work(n: int = 0) -> int:
    return n


@guarded_step(usage=COIN)
def fails() -> None:
    raise OSError("the body's own")


@guarded_step(usage=COIN)
async def awaited() -> int:
    await asyncio.sleep(0)
    return 1


@guarded_step(usage=COIN)
def items() -> Iterator[int]:
    yield from range(2)


@guarded_step(usage=COIN)
async def async_items() -> AsyncIterator[int]:
    for n in range(2):
        yield n


def call_async() -> None:
    asyncio.run(awaited())  # type: ignore[arg-type]


def exhaust() -> None:
    list(items())


def leave_early() -> None:
    opened = items()
    next(opened)
    opened.close()


def drop() -> None:
    next(items())


def exhaust_async() -> None:
    async def main() -> list[int]:
        return [item async for item in async_items()]

    asyncio.run(main())


# --- results that go on -------------------------------------------------------------------------


async def one() -> int:
    return 1


@guarded_step(usage=COIN)
def coroutine() -> Awaitable[int]:
    return one()


@guarded_step(usage=COIN)
def task() -> Awaitable[int]:
    return asyncio.ensure_future(one())


class Later:
    """An object that is awaited."""

    def __await__(self) -> Generator[object, None, int]:
        return one().__await__()


@guarded_step(usage=COIN)
def awaitable() -> Later:
    return Later()


def awaits(step: Callable[[], Awaitable[int]]) -> Callable[[], None]:
    async def main() -> None:
        assert await step() == 1

    return lambda: asyncio.run(main())


class Stream:
    """What an SDK gives for a stream: an iterator, a block, and closed by hand."""

    def __init__(self) -> None:
        self._items = iter(range(2))

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        return next(self._items)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._items = iter(())


class AsyncStream:
    """The same, async."""

    def __init__(self) -> None:
        self._items = iter(range(2))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> int:
        for item in self._items:
            return item
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        self._items = iter(())


@guarded_step(usage=COIN)
def iterator() -> Iterator[int]:
    return iter([1, 2])


@guarded_step(usage=COIN)
def stream() -> Stream:
    return Stream()


@guarded_step(usage=COIN)
def async_stream() -> AsyncStream:
    return AsyncStream()


@guarded_step(usage=COIN, kind="llm")
def opens_stream() -> AbstractContextManager[Stream]:
    @contextmanager
    def opened() -> Iterator[Stream]:
        yield Stream()

    return opened()


@guarded_step(usage=COIN, kind="llm")
def opens_async_stream() -> AbstractAsyncContextManager[AsyncStream]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[AsyncStream]:
        yield AsyncStream()

    return opened()


def leave_stream() -> None:
    with stream() as opened:
        next(opened)


def open_stream() -> None:
    with opens_stream() as opened:
        next(opened)


def leave_async_stream() -> None:
    async def main() -> None:
        async with async_stream() as opened:
            await anext(opened)

    asyncio.run(main())


def open_async_stream() -> None:
    async def main() -> None:
        async with opens_async_stream() as opened:
            await anext(opened)

    asyncio.run(main())


def here() -> Any:
    run = agentguard.current_run()
    assert run is not None
    return run


def one_now() -> int:
    return 1


def step_in_a_block() -> None:
    with here().step("block", usage=COIN):
        pass


DRIVERS: dict[str, Callable[[], object]] = {
    "sync": work,
    "failing": fails,
    "async": call_async,
    "generator": exhaust,
    "left generator": leave_early,
    "dropped generator": drop,
    "async generator": exhaust_async,
    "run.call": lambda: here().call("call", one_now, usage=COIN),
    "key": lambda: here().call("call", one_now, usage=COIN, key="k"),
    "block": step_in_a_block,
    "coroutine": awaits(coroutine),
    "task": awaits(task),
    "awaitable": awaits(awaitable),
    "unused": coroutine,
    "iterator": lambda: list(iterator()),
    "stream": lambda: list(stream()),
    "left stream": leave_stream,
    "opened stream": open_stream,
    "left async stream": leave_async_stream,
    "opened async stream": open_async_stream,
}


class AtLine:
    """Acts at the n-th line of the guard's own code that runs in this thread."""

    def __init__(self, line: int, act: Callable[[], None]) -> None:
        self.left = line
        self.act = act
        self.acted = False

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line" and not self.acted and _may_raise(frame):
            self.left -= 1
            if self.left < 0:
                self.acted = True
                sys.settrace(None)
                self.act()
        return self


@pytest.fixture
def no_lock_of_the_process_stays_held() -> Iterator[None]:
    """Else the first thread of a later test that needs one would wait for ever."""
    yield
    with ThreadPoolExecutor(1) as pool:
        for lock in (LOADING, LEARNING):
            assert pool.submit(lock.acquire, blocking=False).result()
            pool.submit(lock.release).result()


def _may_raise(frame: FrameType) -> bool:
    """Whether a signal handler can come in here: Python looks for signals where something is called.

    Not before a lock of C is left at the end of its block, where a tracer would come in.
    """
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).partition("#")[0].strip()
    return line not in ("with self._mutex:", "with self._writing:", "with LOADING:", "with LEARNING:")


def traced(line: int, act: Callable[[], None], program: Callable[[], object]) -> bool:
    """Run a program, and act at one line of it; False if it has not so many lines."""
    tracer = AtLine(line, act)
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        program()
    except (OSError, KeyboardInterrupt):
        pass
    finally:
        sys.settrace(before)
    return tracer.acted


def interrupt() -> None:
    raise KeyboardInterrupt


@contextmanager
def opened(url: str) -> Iterator[Guard]:
    with warnings.catch_warnings(), Guard.open(url, kill_switch="memory", telemetry=False) as guard:
        # asyncio's own clean-up is cut short too, which it warns of.
        warnings.simplefilter("ignore")
        yield guard


@pytest.fixture(params=["memory", "sqlite"])
def guard(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guard]:
    with opened("memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'events.db'}") as guard:
        yield guard


def stride(guard: Guard) -> int:
    """Each line in memory; of the many of a store in a file, one in three."""
    return 1 if guard.components.store.url == "memory://" else 3


def first(case: object, apart: int) -> int:
    """The line to begin at: every case has its own, so that together they come to all lines that they share."""
    return zlib.crc32(str(case).encode()) % apart


def others_can_write(guard: Guard, run_id: str) -> None:
    """Another process and another thread find nothing locked."""
    store = guard.components.store
    if path := getattr(store, "path", None):
        with closing(sqlite3.connect(path, timeout=5)) as other:
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")
    lock, taken = store.lock_for(run_id), []

    def take() -> None:
        if lock.acquire(timeout=10):  # the heartbeat may hold it for a moment
            taken.append(True)
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    assert taken, "the lock is held by a block that is gone"


def agrees(guard: Guard, run: Any) -> None:
    """Log, row and live state say the same, and nothing is reserved."""
    row = guard.components.store.row(run.id)
    assert row is not None
    assert guard.verify(run.id)
    fold = reconstruct(guard.components.store, row)
    assert fold.open == {}
    assert not any(fold.account.reserved.values())
    assert guard.reconstruct(run.id) == guard.summary(run.id) == run.summary()


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_interruption_at_any_line_of_a_step_leaves_nothing_behind(guard: Guard, driver: str) -> None:
    interrupt_steps(guard, driver, stride(guard))


@pytest.mark.long
@pytest.mark.parametrize("driver", DRIVERS)
def test_an_interruption_at_each_line_of_a_step_leaves_nothing_behind_in_a_file(
    tmp_path: Path, driver: str
) -> None:
    with opened(f"sqlite:///{tmp_path / 'events.db'}") as guard:
        interrupt_steps(guard, driver, 1)


@pytest.mark.parametrize("driver", ["sync", "generator", "left stream"])
def test_an_interruption_at_any_line_of_a_step_that_can_be_interrupted_otherwise(
    guard: Guard, driver: str
) -> None:
    interrupt_steps(guard, driver, stride(guard), interrupt_threads=True)


def charges_once(run: Any, step: Callable[[], object]) -> None:
    """Check what a step costs; a stream in a circle is collected at any time, and charged with the next step."""
    spent = run.spent["coins"]
    assert step() == 1
    if run.spent["coins"] != spent + 1:
        gc.collect()
        assert step() == 1
        spent = run.spent["coins"]
        assert step() == 1
        assert run.spent["coins"] == spent + 1


def interrupt_steps(guard: Guard, driver: str, apart: int, *, interrupt_threads: bool = False) -> None:
    line, more = first(driver, apart), True
    while more:
        with guard.run("r", budget=Budget(coins=100), interrupt_threads=interrupt_threads) as run:
            work(0)
            more = traced(line, interrupt, DRIVERS[driver])
            others_can_write(guard, run.id)
            assert agentguard.current_step() is None
            assert work(1) == 1  # which settles what was dropped, too
            charges_once(run, lambda: work(1))
        assert run.state is RunState.COMPLETED
        agrees(guard, run)
        line += apart
    assert line > 50


def handlers(run: Any) -> dict[str, Callable[[], object]]:
    def pause() -> None:
        run.pause()
        run.resume()

    return {
        "pause": pause,
        "now": run.now,
        "step": lambda: work(9),
        "remaining": lambda: run.remaining["coins"],
        "summary": run.summary,
    }


@pytest.mark.parametrize("what", ["pause", "now", "step", "remaining", "summary"])
def test_a_handler_may_call_the_guard_at_any_line_of_a_step(guard: Guard, what: str) -> None:
    """The decision that is under way is made again."""
    line, more = 0, True
    while more:
        with guard.run("r", budget=Budget(coins=100)) as run:
            work(0)
            more = traced(line, lambda: handlers(run)[what](), work)
            assert work(1) == 1
            assert run.spent["coins"] == 3 + (what == "step" and more)
        assert run.state is RunState.COMPLETED
        agrees(guard, run)
        line += stride(guard)


def test_a_handler_s_step_counts_against_the_limit_of_the_decision_under_way(guard: Guard) -> None:
    """One coin is left: the step that is being admitted and the handler's cannot both have it."""
    line, more = 0, True
    while more:
        with suppress(agentguard.RunStopped), guard.run("r", budget=Budget(coins=1)) as run:
            more = traced(line, lambda: suppressed(work), lambda: suppressed(work))
        assert guard.summary(run.id).usage["coins"] <= 1
        assert guard.verify(run.id)
        line += stride(guard)


def suppressed(fn: Callable[[], object]) -> None:
    with suppress(agentguard.RunStopped):
        fn()


def run_block(guard: Guard) -> None:
    with guard.run("r", tenant="t", budget=Budget(coins=9)):
        work()


def nested_block(guard: Guard) -> None:
    with guard.run("r", tenant="t", budget=Budget(coins=9)), guard.run("nested", budget=Budget(coins=5)):
        work()


def scope_block(guard: Guard) -> None:
    with guard.run("r", tenant="t") as run, run.scope("s", budget=Budget(coins=5)):
        work()


def step_block(guard: Guard) -> None:
    with guard.run("r", tenant="t") as run, run.step("block", usage=COIN):
        pass


def async_blocks(guard: Guard) -> None:
    async def main() -> None:
        async with guard.run("r", tenant="t") as run, run.step("block", usage=COIN):
            await awaited()  # type: ignore[misc]

    asyncio.run(main())


BLOCKS = [run_block, nested_block, scope_block, step_block, async_blocks]


@pytest.mark.parametrize(
    "apart", [pytest.param(7, id="some lines"), pytest.param(1, id="most lines", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("block", BLOCKS)
def test_an_interruption_at_any_line_of_entering_and_leaving_a_block_ends_it(
    guard: Guard, block: Callable[[Guard], None], apart: int
) -> None:
    interrupt_block(guard, block, stride(guard) * apart)


def interrupt_block(guard: Guard, block: Callable[[Guard], None], apart: int) -> None:
    """No run stays RUNNING, no step in flight, nothing is current, and the books of the tenant are right."""
    line, more = first(block.__name__, apart), True
    while more:
        guard.set_tenant_budget("t", Budget(coins=10**6))
        before = guard.tenants()[0].spent["coins"]
        more = traced(line, interrupt, lambda: block(guard))
        assert agentguard.current_run() is None
        books_are_right(guard, before)
        line += apart
    assert line > 100


def books_are_right(guard: Guard, before: int) -> None:
    """The newest runs have ended, with nothing in flight, and add up to what the tenant has spent on them."""
    runs = list(takewhile(lambda run: run.name != "last", guard.runs(limit=10)))
    assert [run for run in runs if not run.state.final or run.open_steps] == []
    assert all(guard.verify(run.run_id) for run in runs)
    charged = ("step_completed", "step_failed")
    events = [event for run in runs for event in guard.history(run.run_id) if event.type in charged]
    used = sum(event.usage["coins"] for event in events if event.usage)
    assert guard.tenants()[0].spent["coins"] == before + used
    guard.set_tenant_budget("t", Budget(coins=before + used + 1))
    with guard.run("last", tenant="t"):
        work()  # there is room, so nothing is reserved


def test_an_interruption_at_any_line_of_a_question_leaves_the_next_ones_right(guard: Guard) -> None:
    guard.set_tenant_budget("t", Budget(coins=10**6))
    with guard.run("r", tenant="t") as run:
        work()

    def ask() -> tuple[object, ...]:
        return guard.verify(run.id), guard.tenants(), guard.summary(run.id), len(guard.history(run.id))

    line, more, answers = 0, True, ask()
    while more:
        more = traced(line, interrupt, ask)
        assert ask() == answers
        with guard.run("next") as after:
            work()
        assert guard.summary(after.id).steps == 1  # read now, and from no snapshot of before
        line += 3
    assert line > 100


@pytest.mark.parametrize("nth", range(1, 6))
def test_an_interruption_right_after_a_commit_charges_a_nested_run_once(
    nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was cut short may stand on record: the log is asked before it is done again."""
    with opened("memory://") as guard:
        store = guard.components.store
        exclusive, left = store.exclusive, [nth]

        @contextmanager
        def cut_short(run_id: str) -> Iterator[None]:
            with exclusive(run_id):
                yield
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt

        guard.set_tenant_budget("t", Budget(coins=10**6))
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(store, "exclusive", cut_short)
            nested_block(guard)
        books_are_right(guard, 0)
        for run in guard.runs():
            closed = [event.key for event in guard.history(run.run_id) if event.type == "scope_closed"]
            assert len(closed) == len(set(closed))
