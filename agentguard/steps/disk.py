"""Waiting for the disk without blocking an event loop: the tasks of one turn share one commit."""

from __future__ import annotations

import asyncio
import concurrent.futures
import weakref

from agentguard.protocols import EventStore


class SharedCommit:
    """What the tasks of one loop wait for under `power`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, store: EventStore) -> None:
        self._loop = loop
        self._store = store
        self._next: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        """Return when all that was appended so far is on disk.

        Raises:
            StoreUnavailableError: it could not be brought there.
        """
        if self._next is None:
            self._next = self._loop.create_future()
            self._loop.call_soon(self._start)
        await asyncio.shield(self._next)

    def _start(self) -> None:
        waiting, self._next = self._next, None
        assert waiting is not None  # noqa: S101 - set before this was scheduled
        durable = self._store.durable()
        if durable is None:
            waiting.set_result(None)
        else:
            durable.add_done_callback(lambda done: self._loop.call_soon_threadsafe(_copy, done, waiting))


def _copy(done: concurrent.futures.Future[None], waiting: asyncio.Future[None]) -> None:
    error = done.exception()
    if error is None:
        waiting.set_result(None)
    else:
        waiting.set_exception(error)


_commits: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, SharedCommit]]
_commits = weakref.WeakKeyDictionary()


async def on_disk(store: EventStore) -> None:
    """Wait until what this loop's tasks have appended to a store is on disk."""
    loop = asyncio.get_running_loop()
    commits = _commits.setdefault(loop, {})
    commit = commits.get(id(store))
    if commit is None:
        commit = commits[id(store)] = SharedCommit(loop, store)
    await commit.wait()
