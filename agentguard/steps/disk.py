"""Waiting for the disk without blocking an event loop: the tasks of one turn share one commit."""

from __future__ import annotations

import asyncio
import collections
import weakref

from agentguard.errors import AgentGuardError
from agentguard.protocols import Commit, EventStore, GroupCommitStore
from agentguard.steps.gate import TURNS, after_turns

#: How long, in seconds, a commit is held back for tasks that are about to join it, and after how many it is
#: looked whether any have, where they are fewer than last time.
_PATIENCE, _LOOK = 0.01, 0.0005


class SharedCommit:
    """What the tasks of one loop wait for under `power`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, store: EventStore) -> None:
        self._loop = loop
        self._store = store
        #: Who waits for the next commit.
        self._waiting: list[asyncio.Future[None]] = []
        #: How many they were when it was last looked at, and how many waited for the one before.
        self._seen = self._before = 0
        self._latest = 0.0
        self._look: asyncio.TimerHandle | None = None

    async def wait(self) -> None:
        """Return when all that was appended so far is on disk.

        Raises:
            StoreUnavailableError: it could not be brought there.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(future)
        if len(self._waiting) == 1:
            self._latest = self._loop.time() + _PATIENCE
            self._loop.call_soon(self._start)
        elif len(self._waiting) == self._before and self._look is not None:  # all are here
            self._look.cancel()
            self._start()
        await future

    def _start(self) -> None:
        self._look = None
        many = len(self._waiting)
        alone = many == 1 and self._before <= 1
        if not alone and many > self._seen and self._loop.time() < self._latest:
            self._seen = many
            if many < self._before:
                self._look = self._loop.call_later(_LOOK, self._start)
            else:
                # The gate delivers outcomes one by one; who got one is a few turns from its next step.
                after_turns(self._loop, TURNS + 1, self._start)
            return
        self._before, self._seen = many, 0
        waiting, self._waiting = self._waiting, []
        try:
            durable = self._store.durable()
        except AgentGuardError as error:  # the store was closed meanwhile
            _wake(waiting, error)
            return
        if durable is None:
            _wake(waiting, None)
        else:
            durable.add_done_callback(
                lambda done: self._loop.call_soon_threadsafe(_wake, waiting, done.exception())
            )


def _wake(waiting: list[asyncio.Future[None]], error: BaseException | None) -> None:
    for future in waiting:
        if future.done():  # cancelled while it waited
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


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

    def of(self, commit: Commit) -> asyncio.Future[None]:
        """Return a future of the loop that is done when a commit has an outcome."""
        waiting: asyncio.Future[None] = self._loop.create_future()
        commit.future.add_done_callback(lambda _: self._arrive(waiting))
        return waiting

    def _arrive(self, waiting: asyncio.Future[None]) -> None:
        self._arrived.append(waiting)
        if not self._called:
            try:
                self._called = True
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # the loop is closed
                pass
            except BaseException:  # of a signal handler: this is called again
                self._called = False
                raise

    def _wake(self) -> None:
        self._called = False
        while self._arrived:
            waiting = self._arrived.popleft()
            if not waiting.done():
                waiting.set_result(None)


_arrivals: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Arrivals]
_arrivals = weakref.WeakKeyDictionary()


def arrival(group: GroupCommitStore, commit: Commit) -> asyncio.Future[None]:
    """Return a future that is done when an append that was accepted has an outcome, which is not raised."""
    loop = asyncio.get_running_loop()
    arrivals = _arrivals.get(loop)
    if arrivals is None:
        arrivals = _arrivals[loop] = Arrivals(loop)
    group.commit_soon()
    return arrivals.of(commit)
