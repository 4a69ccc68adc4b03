"""What stands for an object that goes on after its function has returned."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from typing import Any, Protocol

import wrapt

from agentguard.steps.generators import GuardedAsyncGenerator, GuardedGenerator
from agentguard.steps.model import Step


class GoesOn(Protocol):
    """A result under way, and the ways in which it goes on; each may be taken once."""

    state: str

    @property
    def step(self) -> Step:
        """The step that is open until it is done."""
        ...

    def awaited(self) -> Coroutine[Any, Any, Any]:
        """Go on until it is awaited to its end."""
        ...

    def items(self, iterator: Any) -> GuardedGenerator:
        """Go on item by item."""
        ...

    def async_items(self, iterator: Any) -> GuardedAsyncGenerator:
        """Go on item by item, each awaited."""
        ...

    def entered(self) -> Any:
        """Go on as a block."""
        ...


# --- iterators as generators ---------------------------------------------------------------------


class IteratorItems:
    """An iterator with the methods of a generator."""

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator

    def send(self, value: Any) -> Any:
        """The next item."""
        return next(self._iterator) if value is None else self._iterator.send(value)

    def throw(self, error: BaseException) -> Any:
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

    async def asend(self, value: Any) -> Any:
        """The next item."""
        return await (anext(self._iterator) if value is None else self._iterator.asend(value))

    async def athrow(self, error: BaseException) -> Any:
        """Raise inside, where it can be done."""
        if hasattr(self._iterator, "athrow"):
            return await self._iterator.athrow(error)
        raise error

    async def aclose(self) -> None:
        """Close it, where it can be closed."""
        close = getattr(self._iterator, "aclose", None) or getattr(self._iterator, "close", None)
        if close is not None and inspect.isawaitable(closed := close()):
            await closed


def _async_iterator(value: Any) -> Any:
    """Return what gives the items: the object itself, or what it gives (a page that fetches the next)."""
    return value if hasattr(type(value), "__anext__") else aiter(value)


# --- what stands for an object that goes on ------------------------------------------------------


class _Proxy(wrapt.BaseObjectProxy[Any]):
    """An object that goes on: itself, but for the ways in which it does."""

    def __init__(self, wrapped: Any, going: GoesOn) -> None:
        super().__init__(wrapped)
        self._self_going = going
        self._self_items: Any = None
        self._self_block: Any = None

    def _self_has_step(self) -> bool:
        """Return whether the step is still this object's to end."""
        return self._self_items is not None or self._self_going.state == "open"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(f"what {self._self_going.step.key} returned goes on here, and cannot be pickled")


class _Awaits(_Proxy):
    def __await__(self) -> Generator[Any, None, Any]:
        return self._self_going.awaited().__await__()


class _Iterates(_Proxy):
    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._self_items is None:
            self._self_items = self._self_going.items(self.__wrapped__)
        return next(self._self_items)


class _IteratesAsync(_Proxy):
    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._self_items is None:
            self._self_items = self._self_going.async_items(_async_iterator(self.__wrapped__))
        return await anext(self._self_items)


class _Closes(_Iterates):
    def close(self) -> Any:
        """Close the object, and with it the step."""
        return self._self_close() if self._self_has_step() else self.__wrapped__.close()

    def _self_close(self) -> None:
        if self._self_items is None:
            self._self_items = self._self_going.items(self.__wrapped__)
        self._self_items.close()


class _ClosesAsync(_IteratesAsync):
    async def close(self) -> Any:
        """Close the object, and with it the step."""
        if not self._self_has_step():
            return await self.__wrapped__.close()
        return await self._self_close()

    aclose = close

    async def _self_close(self) -> None:
        if self._self_items is None:
            self._self_items = self._self_going.async_items(_async_iterator(self.__wrapped__))
        await self._self_items.aclose()


class _EntersStream(_Closes):
    """A stream is closed where its block is left."""

    def __enter__(self) -> Any:
        self.__wrapped__.__enter__()
        return self

    def __exit__(self, *exc: object) -> Any:
        if self._self_has_step():
            self._self_close()
        return self.__wrapped__.__exit__(*exc)


class _EntersStreamAsync(_ClosesAsync):
    async def __aenter__(self) -> Any:
        await self.__wrapped__.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> Any:
        if self._self_has_step():
            await self._self_close()
        return await self.__wrapped__.__aexit__(*exc)


class _EntersBlock(_Proxy):
    """A block that opens something: the step goes on until it is left."""

    def __enter__(self) -> Any:
        self._self_block = self._self_going.entered()
        return self._self_block.enter(self.__wrapped__)

    def __exit__(self, *exc: object) -> Any:
        try:
            return self.__wrapped__.__exit__(*exc)
        finally:
            self._self_block.left()


class _EntersBlockAsync(_Proxy):
    async def __aenter__(self) -> Any:
        self._self_block = self._self_going.entered()
        return await self._self_block.aenter(self.__wrapped__)

    async def __aexit__(self, *exc: object) -> Any:
        try:
            return await self.__wrapped__.__aexit__(*exc)
        finally:
            self._self_block.left()


def _make_proxy_class(cls: type) -> type[_Proxy]:
    streams = hasattr(cls, "__next__") or hasattr(cls, "__anext__")
    closes_async = inspect.iscoroutinefunction(getattr(cls, "close", None))
    chosen = {  # what is built on others first, as Python wants base classes
        _EntersBlock: not streams and hasattr(cls, "__enter__"),
        _EntersBlockAsync: not streams and hasattr(cls, "__aenter__"),
        _EntersStream: hasattr(cls, "__next__") and hasattr(cls, "__enter__"),
        _EntersStreamAsync: hasattr(cls, "__anext__") and hasattr(cls, "__aenter__"),
        _Closes: hasattr(cls, "__next__") and hasattr(cls, "close") and not closes_async,
        _ClosesAsync: hasattr(cls, "__anext__") and closes_async,
        _Iterates: hasattr(cls, "__next__"),
        _IteratesAsync: hasattr(cls, "__aiter__"),
        _Awaits: hasattr(cls, "__await__"),
    }
    return type(cls.__name__, tuple(mixin for mixin, is_so in chosen.items() if is_so), {})


#: The class of what stands for objects of a class: it goes on in the ways that they do.
proxy_class: Callable[[type], type[_Proxy]] = functools.lru_cache(maxsize=256)(_make_proxy_class)
