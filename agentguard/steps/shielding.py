"""A body that outlives a cancellation which only a refusal beside it has caused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import TypeVar

from agentguard.errors import AgentGuardError, RunStopped
from agentguard.steps.current import CURRENT

T = TypeVar("T")


async def shielded(check: Callable[[], None], body: Awaitable[T]) -> T:
    """Await `body`, to its end where what cancels it is the refusal of another step.

    A framework that runs tool calls side by side cancels the others when one is refused.  Those have
    their reservations, and sync calls would finish too.  A kill, a deadline and a caller's own
    cancellation cancel the body.
    """
    task = body if isinstance(body, asyncio.Future) else _same_branch(body)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done() and _only_refused(check):
            return await task
        task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            raise
        return task.result()  # it ended by itself before the cancellation reached it


def _same_branch(body: Awaitable[T]) -> asyncio.Task[T]:
    """A task that continues the branch of the code here, where another would begin one of its own."""
    position = CURRENT.get()
    context = copy_context()
    context.run(CURRENT.set, None)

    async def continued() -> T:
        CURRENT.set(position)
        return await body

    return asyncio.get_running_loop().create_task(continued(), context=context)


def _only_refused(check: Callable[[], object]) -> bool:
    """Whether what is stopped here, run or scope, lets bodies in flight finish."""
    try:
        check()
    except RunStopped as stop:
        return not stop.cancels
    except AgentGuardError:
        return False
    return False
