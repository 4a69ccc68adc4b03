"""Programs that go the same way again, in a replay and in a recovery, after what left little on record.

A CancelledError that nobody asked for, a refusal before the stop of its scope, further attempts at a
`key=` whose first one crashed; and what a recovery cancels because it can go no further.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from agentguard import (
    ApprovalDeniedError,
    Budget,
    BudgetExceededError,
    Guard,
    Usage,
    current_run,
    current_step,
    guarded_step,
)
from agentguard.errors import DuplicateKeyError, ReplayDivergenceError, StepOutcomeUnknownError

Program = Callable[[], Awaitable[Any]]


def cut_off(guard: Guard, program: Callable[[], Any]) -> str:
    """Return the id of a run whose process is gone after `program`."""
    run = guard.run("r")
    with ThreadPoolExecutor(1) as pool, suppress(KeyboardInterrupt):
        pool.submit(lambda: (run.__enter__(), program())).result()
    guard.runtime.live.pop(run.id, None)
    return run.id


# --- a CancelledError that nobody asked for ------------------------------------------------------


async def of_an_inner_task() -> None:
    inner = asyncio.ensure_future(asyncio.Event().wait())
    asyncio.get_running_loop().call_soon(inner.cancel)
    await inner


async def of_a_gather() -> None:
    inner = asyncio.ensure_future(asyncio.Event().wait())
    asyncio.get_running_loop().call_soon(inner.cancel)
    await asyncio.gather(inner, asyncio.sleep(0))


async def of_an_executor() -> None:
    waiting: Future[None] = Future()
    waiting.cancel()
    await asyncio.wrap_future(waiting)


async def raised() -> None:
    raise asyncio.CancelledError("connection closed")


async def of_a_step_inside() -> None:
    await guarded_step(raised)()


UNASKED = [of_an_inner_task, of_a_gather, of_an_executor, raised, of_a_step_inside]


@guarded_step(effect="read")
async def number(n: int) -> int:
    return n


async def in_turn(step: Callable[[], Awaitable[None]]) -> str:
    try:
        await step()
    except asyncio.CancelledError:
        return "cancelled"
    return "done"


async def in_a_gather(step: Callable[[], Awaitable[None]]) -> list[str]:
    outcomes = await asyncio.gather(number(1), step(), number(2), return_exceptions=True)
    return [type(outcome).__name__ for outcome in outcomes]


async def in_a_task_group(step: Callable[[], Awaitable[None]]) -> list[bool]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(task) for task in (number(1), step(), number(2))]  # type: ignore[arg-type, var-annotated]
    return [task.cancelled() for task in tasks]


async def in_a_scope(step: Callable[[], Awaitable[None]]) -> str:
    with current_run().scope("s", Budget(steps=5)):
        return await in_turn(step)


async def going_on(place: Callable[[Any], Awaitable[Any]], step: Any) -> tuple[Any, int, int]:
    came = await place(step)
    task = asyncio.current_task()
    assert task is not None
    return came, await number(3), task.cancelling()


@pytest.mark.parametrize("place", [in_turn, in_a_gather, in_a_task_group, in_a_scope])
@pytest.mark.parametrize("body", UNASKED)
def test_a_cancelled_error_that_nobody_asked_for_is_raised_again(
    guard: Guard, body: Callable[[], Awaitable[None]], place: Callable[[Any], Awaitable[Any]]
) -> None:
    ran: list[str] = []

    async def through() -> None:
        ran.append("")
        await body()

    step = guarded_step(effect="read")(through)
    with guard.run("r") as run:
        live = asyncio.run(going_on(place, step))
    failed = [e for e in guard.history(run.id) if e.type == "step_failed"]
    assert failed
    assert all((event.data or {}).get("outcome") is None for event in failed)
    with guard.replay(run.id, stall_timeout=2):
        assert asyncio.run(going_on(place, step)) == live
    run_id = cut_off(guard, lambda: asyncio.run(place(step)))  # type: ignore[arg-type]
    with guard.recover(run_id, take_over=True):
        assert asyncio.run(going_on(place, step)) == live
    assert len(ran) == 2


def test_a_cancelled_error_that_the_program_asked_for_is_on_record_as_cancelled(guard: Guard) -> None:
    entered: list[asyncio.Event] = []

    @guarded_step(effect="read")
    async def waits() -> None:
        entered[-1].set()
        await asyncio.Event().wait()

    async def cancels() -> str:
        entered.append(asyncio.Event())
        task = asyncio.create_task(in_turn(waits))
        await entered[-1].wait()
        task.cancel()
        return await task

    with guard.run("r") as run:
        assert asyncio.run(cancels()) == "cancelled"
    (failed,) = (event for event in guard.history(run.id) if event.type == "step_failed")
    assert (failed.data or {})["outcome"] == "cancelled"


# --- a refusal before the stop of its scope ------------------------------------------------------


@guarded_step(approval=True)
def refund(n: int) -> int:
    return n


@guarded_step(approval=True)
async def refund_later(n: int) -> int:
    return n


@guarded_step(usage=Usage(emails=1))
def mail(n: int) -> int:
    return n


@guarded_step(key=lambda n: f"k{n}")
def once(n: int) -> int:
    return n


def denied() -> None:
    refund(1)


def denied_later() -> None:
    asyncio.run(refund_later(1))


def repeated() -> None:
    once(1)
    once(1)


@pytest.fixture
def deny_all(guard: Guard) -> Any:
    """An operator who denies what waits."""
    over = threading.Event()

    def deny() -> None:
        while not over.wait(0.002):
            for approval in guard.approvals():
                guard.deny(approval.run_id, approval.key, reason="no")

    operator = threading.Thread(target=deny)
    operator.start()
    yield
    over.set()
    operator.join()


def in_a_stopped_scope(refused: Callable[[], None], mails: int) -> list[str]:
    said = []

    def attempt() -> None:
        try:
            refused()
        except (ApprovalDeniedError, DuplicateKeyError) as error:
            said.append(type(error).__name__)

    try:
        with current_run().scope("around", Budget(emails=1)), current_run().scope("s"):
            for n in range(2 - mails):
                mail(n)
            attempt()
            for n in range(mails):
                mail(n)
            attempt()
    except BudgetExceededError as error:
        said.append(error.resource)
    return said


@pytest.mark.usefixtures("deny_all")
@pytest.mark.parametrize("mails", [1, 2])
@pytest.mark.parametrize("refused", [denied, denied_later, repeated])
def test_a_refusal_before_the_stop_of_its_scope_is_raised_again(
    guard: Guard, refused: Callable[[], None], mails: int
) -> None:
    with guard.run("r") as run:
        live = in_a_stopped_scope(refused, mails)
    assert len(live) == 2
    assert live[1] == "emails"
    with guard.replay(run.id):
        assert in_a_stopped_scope(refused, mails) == live
    run_id = cut_off(guard, lambda: in_a_stopped_scope(refused, mails))
    with guard.recover(run_id, take_over=True):
        assert in_a_stopped_scope(refused, mails) == live


# --- further attempts at a key= ------------------------------------------------------------------


def pays(attempts: list[int]) -> Callable[[], str]:
    """A step whose first attempt crashes, and whose second fails."""

    @guarded_step(key="refund A-1", effect="idempotent")
    def pay() -> str:
        attempts.append(current_step().attempt)
        if attempts[-1] == 1:
            raise KeyboardInterrupt
        if attempts[-1] == 2:
            raise ConnectionError
        return "paid"

    return pay


def pays_later(attempts: list[int]) -> Callable[[], str]:
    step = pays(attempts)

    @guarded_step(key="refund A-2", effect="idempotent")
    async def pay() -> str:
        return await asyncio.to_thread(step.__wrapped__)  # type: ignore[attr-defined]

    return lambda: asyncio.run(pay())  # type: ignore[arg-type]


def tried(step: Callable[[], str]) -> list[str]:
    said = []
    for _ in range(4):
        try:
            said.append(step())
        except (ConnectionError, DuplicateKeyError) as error:
            said.append(type(error).__name__)
    return said


def without_outcome(guard: Guard, step: Callable[[], str]) -> str:
    """Return the id of a run whose process died inside the step."""

    def program() -> None:
        log = current_run().live_run.log  # type: ignore[attr-defined]
        append = log.store.append

        def gone(*args: Any, **options: Any) -> Any:
            if any(b"step_failed" in event.body for event in args[1]):
                raise KeyboardInterrupt
            return append(*args, **options)

        log.store.append, log._append_one = gone, None
        try:
            step()
        finally:
            del log.store.append

    return cut_off(guard, program)


@pytest.mark.parametrize("pays", [pays, pays_later])
def test_a_key_is_tried_again_after_a_recovery_whose_own_attempt_failed(
    guard: Guard, pays: Callable[[list[int]], Callable[[], str]]
) -> None:
    attempts: list[int] = []
    step = pays(attempts)
    run_id = without_outcome(guard, step)
    with guard.recover(run_id, take_over=True):
        said = tried(step)
    assert said == ["ConnectionError", "paid", "DuplicateKeyError", "DuplicateKeyError"]
    assert attempts == [1, 2, 3]
    with guard.replay(run_id):
        assert tried(step) == said
    assert attempts == [1, 2, 3]


def test_a_key_that_a_probe_says_failed_is_tried_again(guard: Guard) -> None:
    attempts: list[int] = []

    @guarded_step(key="k", probe=lambda _: ("failed", "refused"))
    def pay() -> str:
        attempts.append(current_step().attempt)
        if attempts[-1] == 1:
            raise KeyboardInterrupt
        return "paid"

    def program() -> list[str]:
        said = []
        for _ in range(3):
            try:
                said.append(pay())
            except Exception as error:
                said.append(type(error).__name__)
        return said

    run_id = without_outcome(guard, pay)
    with guard.recover(run_id, take_over=True):
        said = program()
    assert said[1:] == ["paid", "DuplicateKeyError"]
    assert attempts == [1, 2]
    with guard.replay(run_id):
        assert program() == said


# --- what a recovery cancels that goes no further ------------------------------------------------


class Pair:
    """A step that waits beside one that pays, whose process dies with both in flight."""

    def __init__(self, *, doubt: bool) -> None:
        self.dies = self.waits = True
        self.doubt = doubt
        self.looked: list[int] = []

        @guarded_step(effect="read")
        async def look() -> str:
            self.looked.append(current_step().attempt)
            if self.waits:
                await asyncio.Event().wait()
            return "looked"

        @guarded_step
        async def pay(amount: int) -> int:
            if self.dies and doubt:
                raise KeyboardInterrupt
            return amount

        self.look, self.pay = look, pay

    async def paid(self, amount: int) -> int:
        paid = await self.pay(amount)
        if self.dies:
            raise KeyboardInterrupt
        return paid

    async def in_a_task_group(self, amount: int) -> tuple[str, int]:
        async with asyncio.TaskGroup() as group:
            looked, paid = group.create_task(self.look()), group.create_task(self.paid(amount))
        return looked.result(), paid.result()

    async def in_a_gather(self, amount: int) -> Any:
        return tuple(await asyncio.gather(self.look(), self.paid(amount)))

    async def in_time(self, amount: int) -> tuple[str, int]:
        looking = asyncio.ensure_future(self.look())
        await asyncio.sleep(0)
        try:
            paid = await self.paid(amount)
        except Exception:
            looking.cancel()
            raise
        return await looking, paid


@pytest.mark.parametrize("doubt", [True, False], ids=["in doubt", "other arguments"])
@pytest.mark.parametrize("place", [Pair.in_a_task_group, Pair.in_a_gather, Pair.in_time])
def test_what_a_recovery_cancels_that_goes_no_further_runs_again_in_the_next(
    guard: Guard, place: Callable[[Pair, int], Any], doubt: bool
) -> None:
    pair = Pair(doubt=doubt)
    run_id = without_outcome(guard, lambda: asyncio.run(place(pair, 1)))
    pair.dies = False
    with (
        pytest.raises((StepOutcomeUnknownError, ReplayDivergenceError, ExceptionGroup)) as caught,
        guard.recover(run_id, take_over=True),
    ):
        asyncio.run(place(pair, 1 if doubt else 2))
    ended = [event.key for event in guard.history(run_id) if event.type == "step_failed"]
    assert ended == [], caught.value
    if doubt:
        guard.resolve(run_id, key_of(guard, run_id, "pay"), "completed", result=1)
    pair.waits = False
    with guard.recover(run_id, take_over=True):
        assert asyncio.run(place(pair, 1)) == ("looked", 1)
    assert pair.looked == [1, 2, 3]
    with guard.replay(run_id):
        assert asyncio.run(place(pair, 1)) == ("looked", 1)


def key_of(guard: Guard, run_id: str, name: str) -> str:
    started = (event for event in guard.history(run_id) if event.type == "step_started")
    return next(event.key for event in started if event.key and f"{name}#" in event.key)
