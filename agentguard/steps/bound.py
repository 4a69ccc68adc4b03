"""Functions handed to a thread, an executor or another loop, with their place in the run."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from itertools import count
from typing import Any

from agentguard.runs.branch import Branch, check_branch
from agentguard.runs.current import CURRENT, Position, leave
from agentguard.steps.drivers import is_coroutine_function


def bind(position: Any, fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, which will run in a branch of its own that begins here, wherever it is called.

    Called more than once, each further call begins a branch under that one.
    """
    branch = position.branch.child(getattr(fn, "__name__", type(fn).__name__))
    calls = count()

    def place_of_call() -> Position:
        where = branch if next(calls) == 0 else branch.child("call")
        return Position(position.run, position.scope, where, position.step)

    if is_coroutine_function(fn):

        @functools.wraps(fn)
        async def bound_async(*args: Any, **kwargs: Any) -> Any:
            where = place_of_call()
            where.run.install_task_factory(asyncio.get_running_loop(), where.branch, early=False)
            token = CURRENT.set(where)
            try:
                return await fn(*args, **kwargs)
            finally:
                leave(token)

        return bound_async

    @functools.wraps(fn)
    def bound(*args: Any, **kwargs: Any) -> Any:
        token = CURRENT.set(place_of_call())
        try:
            return fn(*args, **kwargs)
        finally:
            leave(token)

    return bound


class BranchBlock:
    """`with run.branch(name):` a line of control that the caller names."""

    def __init__(self, position: Any, name: str) -> None:
        self._position = position
        self._branch: Branch = position.branch.child(check_branch(name))
        self._token: Any = None

    def __enter__(self) -> Branch:
        position = self._position
        self._token = CURRENT.set(Position(position.run, position.scope, self._branch, position.step))
        return self._branch

    def __exit__(self, *exc: object) -> None:
        leave(self._token)

    async def __aenter__(self) -> Branch:
        return self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        self.__exit__()
