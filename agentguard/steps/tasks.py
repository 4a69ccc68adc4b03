"""Branches for asyncio tasks: a task that is made inside a run begins a branch, named at creation.

A loop that a run meets gets a task factory, which wraps any other, acts only where the context has a
run, and goes with the last run.  Where a run is opened outside the loop (`with guard.run(): ...
asyncio.run(main())`), the loop is met at the first guarded step; tasks made before that get their
branches then, in the order of their creation.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from collections import Counter
from collections.abc import Coroutine, Iterable
from contextvars import Context, copy_context
from types import FrameType
from typing import TYPE_CHECKING, Any, Never, TypeVar

from agentguard.runs.branch import Branch
from agentguard.steps.current import CURRENT
from agentguard.steps.model import InRun, on_branch

if TYPE_CHECKING:
    from agentguard.steps.in_flight import InFlight

T = TypeVar("T")
_LABEL = "task"

running_loop = asyncio._get_running_loop


class LoopBranches:
    """The task factory of one loop, and the runs that use it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._users: set[int] = set()
        #: Tasks made inside runs that are not done yet.
        self.alive = 0
        self._wrapped = loop.get_task_factory()
        loop.set_task_factory(self)  # type: ignore[arg-type]

    def __call__(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[object, Never, T],
        *,
        context: Context | None = None,
        **options: Any,
    ) -> asyncio.Future[T]:
        """Make a task, in a branch of its own where the context has a run."""
        if context is None:
            context = copy_context()
            position = CURRENT.get()
        else:
            position = context.get(CURRENT)
        if position is not None and not _inside_wait_for() and not _of_finaliser():
            child = on_branch(position, position.branch.here().child(_LABEL))
            context.run(CURRENT.set, child)
        if self._wrapped is None:
            task: asyncio.Future[T] = asyncio.Task(coro, loop=loop, context=context, **options)
        else:
            task = self._wrapped(loop, coro, context=context, **options)  # type: ignore[call-arg]
        if position is not None:
            self.count((task,), position.run.live_run.in_flight)
        return task

    def count(self, made: Iterable[asyncio.Future[T]], in_flight: InFlight) -> None:
        """Count tasks made inside a run, whose outcomes may have to be delivered in turn."""
        for task in made:
            in_flight.concurrent = True
            self.alive += 1
            task.add_done_callback(self._done)

    def _done(self, task: object) -> None:
        self.alive -= 1

    def use(self, live_run_id: int) -> None:
        """Note that a run uses this loop."""
        self._users.add(live_run_id)

    def release(self, live_run_id: int) -> None:
        """Note that a run is over; remove the factory with the last one."""
        self._users.discard(live_run_id)
        loop = self._loop()
        if self._users or loop is None:
            return
        installed: object = loop.get_task_factory()
        if installed is self and not loop.is_closed():
            loop.set_task_factory(self._wrapped)


def _inside_wait_for() -> bool:
    """Return whether `asyncio.wait_for` makes this task (Python 3.11).

    Keys must not differ between versions, so its task stays in the branch of the caller.
    """
    if sys.version_info >= (3, 12):
        return False
    frame: FrameType | None = sys._getframe(2)
    for _ in range(4):
        if frame is None:
            return False
        if frame.f_code is asyncio.wait_for.__code__:
            return True
        frame = frame.f_back
    return False


def _of_finaliser() -> bool:
    """Return whether a `__del__` makes this task, as those of HTTP clients do to close themselves.

    When an object is collected differs from run to run, and must not change the names of other branches.
    """
    frame: FrameType | None = sys._getframe(2)
    for _ in range(4):
        if frame is None:
            return False
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def _closes(task: asyncio.Task[object]) -> bool:
    """Return whether a task looks like one that a finaliser has made, of which nobody knows any more."""
    return getattr(task.get_coro(), "__name__", "") == "aclose"


class EarlyTasks:
    """Branches of the tasks that a loop had before the run met it."""

    def __init__(self) -> None:
        #: By task; a loop's first task continues the branch that the run was opened in.
        self._branches: weakref.WeakKeyDictionary[asyncio.Task[object], Branch]
        self._branches = weakref.WeakKeyDictionary()
        #: Tasks that share a name, as anyio's do: the order of their creation is not known.
        self._namesakes: weakref.WeakSet[asyncio.Task[object]] = weakref.WeakSet()

    def add(self, branch: Branch, loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[object]]:
        """Give the tasks of a loop their branches; return those with one of their own.

        Tasks that share a name get theirs in the order in which they first need one: until a run's first
        step a program depends on nothing but itself, so that order is the same in a replay.
        """
        first = first_task(loop)
        made = [
            task
            for task in sorted(asyncio.all_tasks(loop), key=_creation)
            if task is not first and not _closes(task)
        ]
        named = Counter(task.get_name() for task in made)
        for task in made:
            if named[task.get_name()] == 1:
                self._branches[task] = branch.child(_LABEL)
            else:
                self._namesakes.add(task)
        return made

    def branch_here(self, branch: Branch) -> Branch:
        """Return the branch of the code that runs now."""
        try:
            task = asyncio.current_task()
        except RuntimeError:
            return branch
        if task is None:
            return branch
        found = self._branches.get(task)
        if found is None and self._namesakes and task in self._namesakes:
            self._namesakes.discard(task)
            found = self._branches[task] = branch.child(_LABEL)
        return branch if found is None else found


def first_task(loop: asyncio.AbstractEventLoop) -> asyncio.Task[object] | None:
    """Return the first-made task of a loop: as a rule the one that the loop runs until complete."""
    return min(asyncio.all_tasks(loop), key=_creation, default=None)


def _creation(task: asyncio.Task[object]) -> tuple[int, str]:
    """Return a sort key for the order of creation."""
    name = task.get_name()
    number = name.removeprefix("Task-")
    return (int(number), name) if number.isdigit() else (sys.maxsize, name)


def ensure_task_factory(position: InRun) -> None:
    """See to it that tasks of the loop that runs now, if one does, get branches."""
    loop = running_loop()
    if loop is not None and loop is not position.live_run.in_flight.latest_loop():
        position.run.install_task_factory(loop, position.branch)


def install_task_factory(loop: asyncio.AbstractEventLoop, live_run_id: int) -> LoopBranches:
    """Return the task factory of a loop, installed at first use."""
    installed: object = loop.get_task_factory()
    factory = installed if isinstance(installed, LoopBranches) else LoopBranches(loop)
    factory.use(live_run_id)
    return factory
