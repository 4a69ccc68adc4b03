"""A signal that comes exactly as a block is left: Python looks for signals before the first line of `__exit__`.

No tracer comes in there, so a real signal does: it is marked as arrived by code in C, after which Python
looks for it at the next call, which is that of `__exit__`.
"""

from __future__ import annotations

import _thread
import asyncio
import functools
import inspect
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import agentguard
from agentguard import Budget, Guard, RunState, Usage, guarded_step
from agentguard._reentry import covered

pytestmark = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread alone"
)


class Signalled(BaseException):
    """What the handler raises."""


class Arrives:
    """`_ = -signalled`: the signal has arrived, and nothing was called since."""

    __neg__ = staticmethod(functools.partial(_thread.interrupt_main, signal.SIGUSR1))


signalled: Any = Arrives()


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    def handler(*_: object) -> None:
        raise Signalled

    before = signal.signal(signal.SIGUSR1, handler)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture(params=["memory", "sqlite"])
def guard(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guard]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'events.db'}"
    with Guard.open(url, kill_switch="memory", telemetry=False) as guard:
        yield guard


@guarded_step(usage=Usage(coins=1))
def work() -> int:
    return 1


@guarded_step(usage=Usage(coins=1))
def items() -> Iterator[int]:
    yield from range(3)


def whole(guard: Guard) -> None:
    with guard.run("signalled", budget=Budget(coins=9)):
        work()
        _ = -signalled


def failing(guard: Guard) -> None:
    with guard.run("signalled", budget=Budget(coins=9)):
        work()
        _ = -signalled
        raise ValueError


def killed(guard: Guard) -> None:
    with guard.run("signalled", budget=Budget(coins=9)) as run:
        next(items())  # left, and not settled yet
        run.kill("enough")
        _ = -signalled


async def whole_async(guard: Guard) -> None:
    async with guard.run("signalled", budget=Budget(coins=9)):
        work()
        _ = -signalled


async def failing_async(guard: Guard) -> None:
    async with guard.run("signalled", budget=Budget(coins=9)):
        work()
        _ = -signalled
        raise ValueError


def nested(guard: Guard) -> None:
    with guard.run("outer", budget=Budget(coins=9)) as run:
        with pytest.raises(Signalled), guard.run("signalled"):
            work()
            _ = -signalled
        assert agentguard.current_run() is run
        work()
    raise Signalled


def attached(guard: Guard) -> None:
    with guard.run("outer", budget=Budget(coins=9)) as run:
        with pytest.raises(Signalled), guard.attach(run.id, branch="other"):
            work()
            _ = -signalled
        assert agentguard.current_run() is run
        assert run.state is RunState.RUNNING
        work()
    raise Signalled


def scope(guard: Guard) -> None:
    with guard.run("outer", budget=Budget(coins=9)) as run:
        with pytest.raises(Signalled), run.scope("part", budget=Budget(coins=2)):
            work()
            _ = -signalled
        work()
        work()
    raise Signalled


async def scope_async(guard: Guard) -> None:
    async with guard.run("outer", budget=Budget(coins=9)) as run:
        with pytest.raises(Signalled):
            async with run.scope("part", budget=Budget(coins=2)):
                work()
                _ = -signalled
        work()
        work()
    raise Signalled


def step(guard: Guard) -> None:
    with guard.run("outer", budget=Budget(coins=9)) as run:
        with pytest.raises(Signalled), run.step("block", usage=Usage(coins=1)):
            _ = -signalled
        assert agentguard.current_step() is None
        work()
    raise Signalled


async def step_async(guard: Guard) -> None:
    async with guard.run("outer", budget=Budget(coins=9)) as run:
        with pytest.raises(Signalled):
            async with run.step("block", usage=Usage(coins=1)):
                _ = -signalled
        assert agentguard.current_step() is None
        work()
    raise Signalled


PROGRAMS: list[Callable[[Guard], Any]] = [
    whole,
    failing,
    killed,
    whole_async,
    failing_async,
    nested,
    attached,
    scope,
    scope_async,
    step,
    step_async,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_signal_at_the_call_of_exit_leaves_no_block_open(
    guard: Guard, program: Callable[[Guard], Any]
) -> None:
    with pytest.raises(Signalled):
        asyncio.run(program(guard)) if inspect.iscoroutinefunction(program) else program(guard)
    assert agentguard.current_run() is None
    with guard.run("next") as following:
        work()
    rows = {row.name: row for row in guard.runs()}
    assert all(row.state.final for row in rows.values())
    assert following.spent["coins"] == 1
    for row in rows.values():
        events = [event.type for event in guard.history(row.run_id)]
        ended = sum(events.count(kind) for kind in ("step_completed", "step_failed"))
        assert events.count("step_started") == ended
        assert events.count("scope_opened") == events.count("scope_closed")
        assert guard.reconstruct(row.run_id) == row
    assert guard.verify(), guard.verify()


def test_what_a_covered_function_raises_and_returns_is_what_it_was() -> None:
    def divide(a: int, b: int) -> float:
        try:
            try:
                return a / b
            except TypeError:
                return 0.0
        except ZeroDivisionError:
            return -1.0
        finally:
            seen.append(a)

    seen: list[int] = []
    assert covered(divide) is divide
    assert [divide(4, 2), divide(1, 0), divide(3, "b")] == [2.0, -1.0, 0.0]  # type: ignore[arg-type]
    assert seen == [4, 1, 3]
