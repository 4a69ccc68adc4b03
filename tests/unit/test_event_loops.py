"""Async steps run under asyncio; under another library's loop they are refused before they begin."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import AsyncIterator

import pytest
import trio

from agentguard import Guard, ReplayDivergenceError, guarded_step
from agentguard.errors import EventLoopUnsupportedError

ran: list[str] = []


@guarded_step
async def ask() -> str:
    ran.append("ask")
    return "x"


@guarded_step
async def items() -> AsyncIterator[int]:
    ran.append("items")
    yield 1


async def by_step() -> None:
    await ask()


async def by_generator() -> None:
    async for _ in items():
        pass


async def by_block(run) -> None:
    async with run.step("block"):
        ran.append("block")


async def by_call(run) -> None:
    await run.call("call", ask.__wrapped__)


@pytest.mark.parametrize("way", [by_step, by_generator, by_block, by_call])
def test_an_async_step_under_trio_is_refused_before_it_is_on_record(way) -> None:
    ran.clear()
    with Guard.in_memory() as guard, guard.run("r") as run:
        with pytest.raises(EventLoopUnsupportedError, match="asyncio"):
            trio.run(way, *([run] if way in {by_block, by_call} else []))
        assert ran == []
        assert not any(event.type.startswith("step_") for event in guard.history(run.id))
        assert run.spent.steps == 0


def test_sync_steps_run_under_trio() -> None:
    @guarded_step
    def add(a: int, b: int) -> int:
        return a + b

    async def main() -> int:
        async with guard.run("r") as run:
            total = add(1, 2)
        assert run.spent.steps == 1
        return total

    with Guard.in_memory() as guard:
        assert trio.run(main) == 3


def test_a_replay_under_trio_is_refused_too() -> None:
    with Guard.in_memory() as guard:
        with guard.run("r") as run:
            asyncio.run(by_step())
        with pytest.raises(ReplayDivergenceError, match="left_over"), guard.replay(run.id):
            with pytest.raises(EventLoopUnsupportedError):
                trio.run(by_step)


def test_the_error_survives_pickling() -> None:
    error = EventLoopUnsupportedError("ask")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_copy_of_what_holds_a_run_holds_the_same_run() -> None:
    with Guard.in_memory() as guard, guard.run("r") as run:
        assert copy.copy(run) is run
        assert copy.deepcopy({"run": run})["run"] is run
        with pytest.raises(TypeError, match=r"guard\.attach"):
            pickle.dumps(run)


def test_tasks_of_every_loop_have_branches_whichever_loop_was_met_last() -> None:
    """One run, two loops by turns, and one that takes the place of another that is gone."""

    async def once() -> None:
        await ask()

    async def pair() -> None:
        await ask()  # here the run meets the loop
        await asyncio.gather(once(), once())

    with Guard.in_memory() as guard, guard.run("r") as run:
        with asyncio.Runner() as one, asyncio.Runner() as other:
            for runner in (one, other, one, other):
                runner.run(pair())
        asyncio.run(pair())
        keys = [event.key for event in guard.history(run.id) if event.type == "step_started"]
    branches = [str(key).rpartition("/")[0] for key in keys]
    # The first task of each loop goes on in the run's branch; all that come later have their own.
    assert branches.count("main") == 3
    assert len(set(branches)) == 1 + 12
