"""What stands for an object that goes on after its function has returned."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol

from agentguard.steps.generators import GuardedAsyncGenerator, GuardedGenerator
from agentguard.steps.model import Step


class GoesOnAsBlock(Protocol):
    """A step that goes on while a block is open."""

    def enter(self, manager: AbstractContextManager[object]) -> object:
        """Enter a block as the step's body."""

    async def aenter(self, manager: AbstractAsyncContextManager[object]) -> object:
        """Enter an async block as the step's body."""

    def left(self) -> None:
        """The block is over, and so is the step."""


class GoesOn(Protocol):
    """A result under way, and the ways in which it goes on; each may be taken once."""

    state: str
    #: Whether a method of it was asked for: an object that can be awaited, and need not be.
    used: bool

    @property
    def step(self) -> Step:
        """The step that is open until it is done."""
        ...

    def awaited(self) -> Coroutine[object, object, object]:
        """Go on until it is awaited to its end."""
        ...

    def items(self, iterator: object) -> GuardedGenerator:
        """Go on item by item."""
        ...

    def async_items(self, iterator: object) -> GuardedAsyncGenerator:
        """Go on item by item, each awaited."""
        ...

    def entered(self) -> GoesOnAsBlock:
        """Go on as a block."""
        ...


# --- iterators as generators ---------------------------------------------------------------------


class IteratorItems:
    """An iterator with the methods of a generator."""

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator

    @property
    def gi_running(self) -> bool:
        """Whether it runs, where it is a generator."""
        running: bool = self._iterator.gi_running
        return running

    def send(self, value: object) -> object:
        """The next item."""
        return next(self._iterator) if value is None else self._iterator.send(value)

    def throw(self, error: BaseException) -> object:
        """Raise inside, where it can be done."""
        if hasattr(self._iterator, "throw"):
            return self._iterator.throw(error)
        raise error

    def close(self) -> None:
        """Close it, where it can be closed."""
        if hasattr(self._iterator, "close"):
            self._iterator.close()


class AsyncIteratorItems:
    """An async iterator with the methods of an async generator."""

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator

    @property
    def ag_running(self) -> bool:
        """Whether it runs, where it is an async generator."""
        running: bool = self._iterator.ag_running
        return running

    async def asend(self, value: object) -> object:
        """The next item."""
        return await (anext(self._iterator) if value is None else self._iterator.asend(value))

    async def athrow(self, error: BaseException) -> object:
        """Raise inside, where it can be done."""
        if hasattr(self._iterator, "athrow"):
            return await self._iterator.athrow(error)
        raise error

    async def aclose(self) -> None:
        """Close it, where it can be closed."""
        close = getattr(self._iterator, "aclose", None) or getattr(self._iterator, "close", None)
        if close is not None and inspect.isawaitable(closed := close()):
            await closed


def async_iterator(value: Any) -> AsyncIterator[object]:
    """Return what gives the items: the object itself, or what it gives (a page that fetches the next)."""
    return value if hasattr(type(value), "__anext__") else aiter(value)
