"""Functions handed to a thread, an executor or another loop, with their place in the run."""

from __future__ import annotations

import asyncio
import functools
from contextvars import Token
from itertools import count

from agentguard.budget.named import NamedAccount
from agentguard.runs.branch import Branch
from agentguard.steps.current import CURRENT, restore_position
from agentguard.steps.functions import is_coroutine_function
from agentguard.steps.model import InRun, Position, on_branch
from agentguard.steps.spec import Function
from agentguard.tenancy import check_id


def bind(position: InRun, fn: Function) -> Function:
    """`fn`, which will run in a branch of its own that begins here, wherever it is called.

    Called more than once, each further call begins a branch under that one.
    """
    branch = position.branch.child(getattr(fn, "__name__", type(fn).__name__))
    calls = count()

    def place_of_call() -> Position:
        where = branch if next(calls) == 0 else branch.child("call")
        return on_branch(position, where)

    if is_coroutine_function(fn):

        @functools.wraps(fn)
        async def bound_async(*args: object, **kwargs: object) -> object:
            where = place_of_call()
            where.run.install_task_factory(asyncio.get_running_loop(), where.branch, early=False)
            token = CURRENT.set(where)
            try:
                return await fn(*args, **kwargs)
            finally:
                restore_position(token)

        return bound_async

    @functools.wraps(fn)
    def bound(*args: object, **kwargs: object) -> object:
        token = CURRENT.set(place_of_call())
        try:
            return fn(*args, **kwargs)
        finally:
            restore_position(token)

    return bound


class _PositionBlock:
    """A block whose code stands in another position."""

    def __init__(self, position: Position) -> None:
        self._position = position
        self._token: Token[InRun | None] | None = None

    def _enter(self) -> None:
        self._token = CURRENT.set(self._position)

    def __exit__(self, *exc: object) -> None:
        if self._token is not None:
            restore_position(self._token)

    async def __aexit__(self, *exc: object) -> None:
        self.__exit__(*exc)


class BranchBlock(_PositionBlock):
    """`with run.branch(name):` a line of control that the caller names."""

    def __init__(self, position: InRun, name: str) -> None:
        super().__init__(on_branch(position, position.branch.child(check_id(name, "branch"))))

    def __enter__(self) -> Branch:
        self._enter()
        return self._position.branch

    async def __aenter__(self) -> Branch:
        return self.__enter__()


class AccountBlock(_PositionBlock):
    """`with run.account(name, budget):` steps inside are charged to a named account too."""

    def __init__(self, position: InRun, account: NamedAccount) -> None:
        there = Position(
            position.run, position.scope, position.branch, position.step, account, thread=position.thread
        )
        super().__init__(there)

    def __enter__(self) -> None:
        self._enter()

    async def __aenter__(self) -> None:
        self._enter()
