"""Waiting for the disk without blocking an event loop: the tasks of one turn share one commit."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import weakref

from agentguard.protocols import Commit, EventStore, GroupCommitStore
from agentguard.steps.gate import TURNS, after_turns

#: How long, in seconds, a commit is held back for tasks that are about to join it.
_PATIENCE = 0.01


class SharedCommit:
    """What the tasks of one loop wait for under `power`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, store: EventStore) -> None:
        self._loop = loop
        self._store = store
        self._next: asyncio.Future[None] | None = None
        #: How many tasks wait for the next commit, did so when it was last looked at, and did so last time.
        self._waiters = self._seen = self._before = 0
        self._latest = 0.0

    async def wait(self) -> None:
        """Return when all that was appended so far is on disk.

        Raises:
            StoreUnavailableError: it could not be brought there.
        """
        self._waiters += 1
        if self._next is None:
            self._next = self._loop.create_future()
            self._latest = self._loop.time() + _PATIENCE
            self._loop.call_soon(self._start)
        await asyncio.shield(self._next)

    def _start(self) -> None:
        alone = self._waiters == 1 and self._before <= 1
        if not alone and self._waiters > self._seen and self._loop.time() < self._latest:
            # The gate delivers outcomes one by one; a task that got one is a few turns from its next step.
            self._seen = self._waiters
            after_turns(self._loop, TURNS + 1, self._start)
            return
        self._before, self._waiters, self._seen = self._waiters, 0, 0
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


class Arrivals:
    """The tasks of one loop that wait for commits made in other threads: one wake-up for each batch."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._arrived: collections.deque[asyncio.Future[None]] = collections.deque()
        self._called = False

    async def wait(self, commit: Commit) -> None:
        """Return when a commit has an outcome."""
        waiting = self._loop.create_future()
        commit.future.add_done_callback(lambda _: self._arrive(waiting))
        await waiting

    def _arrive(self, waiting: asyncio.Future[None]) -> None:
        self._arrived.append(waiting)
        if not self._called:
            self._called = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._called = False
        while self._arrived:
            waiting = self._arrived.popleft()
            if not waiting.done():
                waiting.set_result(None)


_arrivals: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Arrivals]
_arrivals = weakref.WeakKeyDictionary()


async def committed(group: GroupCommitStore, commit: Commit) -> None:
    """Wait until an append that was accepted has an outcome, which is not raised here."""
    if commit.future.done():
        return
    loop = asyncio.get_running_loop()
    arrivals = _arrivals.get(loop)
    if arrivals is None:
        arrivals = _arrivals[loop] = Arrivals(loop)
    group.commit_soon()
    await arrivals.wait(commit)
