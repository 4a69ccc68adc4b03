"""A call that is cancelled, or interrupted, while its step waits to be admitted: on record, and raised again.

It waits for an approval, or for a run that is paused.  Nothing of it has happened, and the program goes on
from there, so its replay and its recovery must come to the same place.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from agentguard import AgentGuardError, Budget, Event, Guard, Run, current_run, guarded_step
from agentguard.errors import ReplayDivergenceError

Call = Callable[[], Awaitable[Any]]


def active_run() -> Run:
    run = current_run()
    assert run is not None
    return run


async def until_a_step_waits(*, paused: bool) -> None:
    """The body of a step that a replay serves: it returns once another step waits to be admitted."""
    run = active_run()
    if paused:
        run.pause("look")
    async with asyncio.timeout(60):
        while not run.live_run.time.waiters:
            await asyncio.sleep(0)


watch = guarded_step(name="watch")(until_a_step_waits)


@guarded_step
async def number(n: int) -> int:
    return n


@guarded_step(approval=True)
async def refund(n: int) -> int:
    return n


@guarded_step(approval=True, key="refund-7")
async def refund_by_key(n: int) -> int:
    return n


@guarded_step(approval=True)
async def refunds(n: int) -> AsyncIterator[int]:
    yield n


async def drained() -> list[int]:
    return [n async for n in refunds(5)]


async def in_a_scope() -> int:
    async with active_run().scope("s", Budget(steps=5)):
        return await refund(5)


async def in_a_body() -> int:
    return await guarded_step(name="outer")(lambda: refund(5))()


async def cancelled_by_hand(call: Call, *, paused: bool) -> str:
    task = asyncio.ensure_future(call())
    await watch(paused=paused)
    task.cancel()
    try:
        return f"came {await task}"
    except asyncio.CancelledError:
        return "cancelled"


async def cancelled_by_its_group(call: Call, *, paused: bool) -> str:
    async def fails() -> None:
        await watch(paused=paused)
        raise LookupError

    came = "done"
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            group.create_task(call())  # type: ignore[arg-type]
    except* LookupError:
        came = "the group failed"
    return came


async def out_of_time(call: Call, *, paused: bool) -> str:
    """A timeout whose clock is the watching step, so that no machine is too slow for it."""
    try:
        async with asyncio.timeout(None) as limit:
            watching = asyncio.ensure_future(watch(paused=paused))
            watching.add_done_callback(lambda _: limit.reschedule(0))
            await asyncio.sleep(0)
            return f"came {await call()}"
    except TimeoutError:
        return "no answer"


CANCELS = [cancelled_by_hand, cancelled_by_its_group, out_of_time]
APPROVALS = {
    "a step": lambda: refund(5),
    "a step with a key": lambda: refund_by_key(5),
    "a generator": drained,
    "in a scope": in_a_scope,
    "in a body": in_a_body,
    "a call": lambda: active_run().call("refund", number, 5, approval=True),
}


def given_up(events: list[Event]) -> list[Event]:
    return [event for event in events if event.type == "step_refused" and "error" in event.data]


def cut_off(guard: Guard, program: Callable[[], Any]) -> str:
    """Return the id of a run whose process is gone after `program`."""
    run = guard.run("r")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: (run.__enter__(), program())).result()
    guard.runtime.live.pop(run.id, None)
    return run.id


async def going_on(cancel: Any, call: Call, *, paused: bool) -> tuple[str, int]:
    came = await cancel(call, paused=paused)
    if paused:
        active_run().resume()
    return came, await number(3)


@pytest.mark.parametrize("cancel", CANCELS)
@pytest.mark.parametrize("call", APPROVALS.values(), ids=APPROVALS)
def test_a_call_cancelled_while_it_waits_for_an_approval_is_cancelled_again(
    guard: Guard, cancel: Any, call: Call
) -> None:
    with guard.run("r") as run:
        live = asyncio.run(going_on(cancel, call, paused=False))
    (event,) = given_up(guard.history(run.id))
    assert event.data["outcome"] == "cancelled"
    with guard.replay(run.id, stall_timeout=2):
        assert asyncio.run(going_on(cancel, call, paused=False)) == live
    run_id = cut_off(guard, lambda: asyncio.run(cancel(call, paused=False)))
    with guard.recover(run_id, take_over=True):
        assert asyncio.run(going_on(cancel, call, paused=False)) == live
    assert len(given_up(guard.history(run_id))) == 1
    assert guard.verify()


@pytest.mark.parametrize("cancel", CANCELS)
def test_a_call_cancelled_while_the_run_is_paused_is_cancelled_again(guard: Guard, cancel: Any) -> None:
    with guard.run("r") as run:
        live = asyncio.run(going_on(cancel, lambda: number(1), paused=True))
    assert len(given_up(guard.history(run.id))) == 1
    with guard.replay(run.id, stall_timeout=2):
        assert asyncio.run(going_on(cancel, lambda: number(1), paused=True)) == live


def test_what_was_given_up_used_nothing_and_waits_for_nobody(guard: Guard) -> None:
    with guard.run("r", budget=Budget(steps=9, calls={"refund": 1})) as run:
        asyncio.run(going_on(cancelled_by_hand, lambda: refund(5), paused=False))
        assert guard.approvals() == []
        with pytest.raises(AgentGuardError, match="waits for an approval"):
            guard.approve(run.id, "main/task#1/refund#1")
    assert run.summary().steps == 2


def test_a_key_that_was_given_up_can_be_called_again(guard: Guard) -> None:
    async def twice() -> tuple[str, int]:
        came = await cancelled_by_hand(lambda: refund_by_key(5), paused=False)
        task = asyncio.ensure_future(refund_by_key(5))
        await grants()
        return came, await task

    @guarded_step
    async def grants() -> None:
        while not guard.approvals():
            await asyncio.sleep(0)
        (asked,) = guard.approvals()
        guard.approve(asked.run_id, asked.key)

    with guard.run("r") as run:
        live = asyncio.run(twice())
    assert live == ("cancelled", 5)
    with guard.replay(run.id, stall_timeout=2):
        assert asyncio.run(twice()) == live
    started = [e for e in guard.history(run.id) if e.type == "step_started" and e.key == "key:refund-7"]
    assert [event.attempt for event in started] == [1]


def test_a_program_that_no_longer_cancels_differs(guard: Guard) -> None:
    with guard.run("r") as run:
        asyncio.run(cancelled_by_hand(lambda: refund(5), paused=False))

    async def waits() -> None:
        await asyncio.gather(asyncio.ensure_future(refund(5)), watch(paused=False))

    with (
        pytest.raises(ReplayDivergenceError, match="the program to cancel it"),
        guard.replay(run.id, stall_timeout=0.1),
    ):
        asyncio.run(waits())


def test_a_fork_and_what_if_go_past_a_call_that_was_given_up(guard: Guard) -> None:
    with guard.run("r") as run:
        live = asyncio.run(going_on(cancelled_by_hand, lambda: refund(5), paused=False))
    with guard.fork(run.id, at=guard.summary(run.id).head.seq):
        assert asyncio.run(going_on(cancelled_by_hand, lambda: refund(5), paused=False)) == live
    assert guard.what_if(run.id, Budget(steps=9)).unknown_beyond is None
    with guard.run("r") as other:
        asyncio.run(going_on(cancelled_by_hand, lambda: refund(5), paused=False))
    assert not guard.diff(run.id, other.id)


# --- sync code, interrupted ----------------------------------------------------------------------


class SoftTimeLimitError(Exception):
    """What a job's time limit raises, from a signal handler."""


@guarded_step(approval=True)
def pay(n: int) -> int:
    return n


@guarded_step(approval=True)
def payments(n: int) -> Iterator[int]:
    yield n


@guarded_step
def log(n: int) -> int:
    return n


@contextlib.contextmanager
def interrupted(error: type[BaseException]) -> Iterator[None]:
    """Raise `error` in this thread, by a signal, once a step of the active run waits."""
    run, here, over = active_run(), threading.get_ident(), threading.Event()

    def handler(_signal: int, _frame: FrameType | None) -> None:
        raise error

    def raises() -> None:
        while not run.live_run.time.waiters:
            if over.wait(0.001):
                return
        signal.pthread_kill(here, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=raises)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def as_is(_error: type[BaseException]) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def interrupts(how: Any, call: Callable[[], Any], error: type[BaseException]) -> tuple[str, int]:
    try:
        with how(error):
            came = f"came {call()}"
    except error:
        came = "interrupted"
    return came, log(3)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this platform has no SIGUSR1")
@pytest.mark.parametrize("error", [SoftTimeLimitError, TimeoutError, KeyboardInterrupt])
@pytest.mark.parametrize(
    "call", [lambda: pay(5), lambda: list(payments(5))], ids=["a function", "a generator"]
)
def test_a_call_interrupted_while_it_waits_raises_the_same_again(
    guard: Guard, call: Callable[[], Any], error: type[BaseException]
) -> None:
    with guard.run("r") as run:
        live = interrupts(interrupted, call, error)
    assert live == ("interrupted", 3)
    (event,) = given_up(guard.history(run.id))
    assert "outcome" not in event.data
    with guard.replay(run.id):
        assert interrupts(as_is, call, error) == live


# --- still waiting when the process died ---------------------------------------------------------


@pytest.fixture
def left(sqlite_guard: Guard, tmp_path: Path) -> Path:
    """A file to copy the store to: the copy stands for what the process leaves behind that dies there."""
    return tmp_path / "left.db"


def copy_store(guard: Guard, left: Path) -> None:
    with closing(sqlite3.connect(guard.components.store.path)) as store:  # type: ignore[attr-defined]
        with closing(sqlite3.connect(left)) as copy:
            store.backup(copy)


def test_a_call_that_waited_for_its_approval_waits_on_beside_later_calls_on_record(
    sqlite_guard: Guard, left: Path
) -> None:
    async def program(guard: Guard, then: Callable[[], None]) -> list[int]:
        asked = asyncio.ensure_future(refund(5))
        later = [await number(1), await number(2)]
        await watch(paused=False)
        then()
        await guarded_step(name="operator")(grants)(guard)
        return [await asked, *later]

    async def grants(guard: Guard) -> None:
        (asked,) = guard.approvals()
        guard.approve(asked.run_id, asked.key)

    with sqlite_guard.run("r") as run:
        live = asyncio.run(program(sqlite_guard, lambda: copy_store(sqlite_guard, left)))
    recovered_as(live, left, run.id, program)
    assert live == [5, 1, 2]


def test_a_call_that_waited_for_a_resume_goes_on_beside_later_calls_on_record(
    sqlite_guard: Guard, left: Path
) -> None:
    async def program(guard: Guard, then: Callable[[], None]) -> list[int]:
        live = guard is sqlite_guard
        if live:
            guard.pause(run.id)
        waiting = asyncio.ensure_future(number(5))
        await asyncio.sleep(0)
        if live:
            await until_a_step_waits(paused=False)
            guard.resume(run.id)
        later = [await number(1), await number(2)]
        then()
        return [await waiting, *later]

    with sqlite_guard.run("r") as run:
        live = asyncio.run(program(sqlite_guard, lambda: copy_store(sqlite_guard, left)))
    recovered_as(live, left, run.id, program)
    assert live == [5, 1, 2]


def recovered_as(live: list[int], left: Path, run_id: str, program: Callable[..., Any]) -> None:
    """A recovery of what was left, and a replay of the whole, come to the same."""
    with Guard.open(f"sqlite:///{left}", kill_switch="memory", telemetry=False) as guard:
        with guard.recover(run_id, take_over=True):
            assert asyncio.run(program(guard, lambda: None)) == live
        with guard.replay(run_id):
            assert asyncio.run(program(guard, lambda: None)) == live
