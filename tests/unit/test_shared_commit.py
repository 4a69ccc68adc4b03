"""The commit under `power` that the tasks of one loop share."""

import asyncio
from pathlib import Path

from agentguard import StoreUnavailableError
from agentguard.steps.disk import on_disk
from agentguard.stores.sqlite import SQLiteEventStore


def test_tasks_that_wait_for_the_disk_are_told_that_the_store_was_closed(tmp_path: Path) -> None:
    store = SQLiteEventStore(str(tmp_path / "events.db"))
    assert store.rows() == []

    async def main() -> list[object]:
        tasks = [asyncio.create_task(on_disk(store)) for _ in range(3)]
        await asyncio.sleep(0)  # they wait from here on
        store.close()
        async with asyncio.timeout(60):
            return await asyncio.gather(*tasks, return_exceptions=True)

    told = asyncio.run(main())
    assert [type(error) for error in told] == [StoreUnavailableError] * 3


def test_a_task_that_is_cancelled_while_it_waits_keeps_nobody_else(tmp_path: Path) -> None:
    store = SQLiteEventStore(str(tmp_path / "events.db"))

    async def main() -> list[object]:
        tasks = [asyncio.create_task(on_disk(store)) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        async with asyncio.timeout(60):
            return await asyncio.gather(*tasks, return_exceptions=True)

    first, *others = asyncio.run(main())
    store.close()
    assert isinstance(first, asyncio.CancelledError)
    assert others == [None, None]
