"""`durability="power"`: the tasks of a loop share commits, though their outcomes are delivered one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentguard import Guard, guarded_step
from agentguard.steps import disk
from agentguard.stores import _wal_sync

TASKS, STEPS = 32, 5


@guarded_step
async def work(number: int) -> int:
    return number


@pytest.fixture
def guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    # Long enough that a busy machine changes nothing.
    monkeypatch.setattr(disk, "_PATIENCE", 60.0)
    url = f"sqlite:///{tmp_path / 'events.db'}"
    with Guard.open(url, kill_switch="memory", telemetry=False, durability="power") as guard:
        yield guard


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each sync of the disk."""
    made: list[int] = []
    really = _wal_sync._sync_file

    def sync(fd: int) -> None:
        made.append(fd)
        really(fd)

    monkeypatch.setattr(_wal_sync, "_sync_file", sync)
    return made


async def several(guard: Guard, tasks: int) -> None:
    async with guard.run("tasks"), asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(one_by_one())


async def one_by_one() -> None:
    for number in range(STEPS):
        await work(number)


#: Syncs that are not for steps: the run's start and end.
OTHERS = 2


def test_tasks_share_their_commits(guard: Guard, syncs: list[int]) -> None:
    asyncio.run(several(guard, TASKS))
    # Two waits a step; alone each would take a sync.
    assert len(syncs) - OTHERS <= 2 * STEPS + STEPS, len(syncs)
    assert guard.verify()


def test_a_task_alone_is_not_held_back(guard: Guard, syncs: list[int]) -> None:
    """Each of its waits takes a sync, and none waits for others to come."""
    asyncio.run(asyncio.wait_for(several(guard, 1), 30))
    assert len(syncs) - OTHERS == 2 * STEPS


def test_a_commit_is_held_back_only_so_long(
    guard: Guard, syncs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_PATIENCE", 0.0)
    asyncio.run(several(guard, TASKS))
    assert len(syncs) >= 2 * STEPS
    assert guard.verify()


def test_tasks_that_are_gone_are_not_waited_for(guard: Guard) -> None:
    """Each commit has fewer tasks than the one before, and is not held back until there are as many."""

    async def fewer() -> None:
        async with guard.run("tasks"), asyncio.TaskGroup() as group:
            for tasks in range(TASKS):
                group.create_task(some(tasks))

    async def some(steps: int) -> None:
        for number in range(steps):
            await work(number)

    asyncio.run(asyncio.wait_for(fewer(), 30))
    assert guard.verify()


def test_a_task_cancelled_while_it_waits_leaves_the_others_their_commit(guard: Guard) -> None:
    async def cancelled() -> list[object]:
        async with guard.run("tasks"):
            tasks = [asyncio.create_task(one_by_one()) for _ in range(TASKS)]
            await work(0)
            tasks[0].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

    first, *others = asyncio.run(asyncio.wait_for(cancelled(), 30))
    assert isinstance(first, asyncio.CancelledError)
    assert others == [None] * (TASKS - 1)
    assert guard.verify()
