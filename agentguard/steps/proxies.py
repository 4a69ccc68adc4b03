"""Proxies of objects that go on: themselves, but for the ways in which they do.

Loaded when the first result goes on, since wrapt takes longer to load than the rest of a step.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any, NoReturn

import wrapt

from agentguard.steps.stand_ins import GoesOn, async_iterator


class _Proxy(wrapt.BaseObjectProxy[Any]):
    """An object that goes on: itself, but for the ways in which it does."""

    def __init__(self, wrapped: object, going: GoesOn) -> None:
        super().__init__(wrapped)
        self._self_going = going
        self._self_items: Any = None  # a guarded generator, sync or async
        self._self_block: Any = None  # a `following.Block`

    def _self_has_step(self) -> bool:
        """Return whether the step is still this object's to end."""
        items = self._self_items
        return self._self_going.state == "open" if items is None else items.state not in ("closed", "over")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"what {self._self_going.step.key} returned goes on here, and cannot be pickled")


class _Awaits(_Proxy):
    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__wrapped__, name)
        if not name.startswith("_") and callable(value):
            self._self_going.used = True
        return value

    def __await__(self) -> Generator[object, None, object]:
        return self._self_going.awaited().__await__()


class _Iterates(_Proxy):
    def __iter__(self) -> Iterator[object]:
        return self

    def __next__(self) -> object:
        if self._self_items is None:
            self._self_items = self._self_going.items(self.__wrapped__)
        return next(self._self_items)


class _IteratesAsync(_Proxy):
    def __aiter__(self) -> AsyncIterator[object]:
        return self

    async def __anext__(self) -> object:
        if self._self_items is None:
            self._self_items = self._self_going.async_items(async_iterator(self.__wrapped__))
        return await anext(self._self_items)


class _Closes(_Iterates):
    def close(self) -> object:
        """Close the object, and with it the step."""
        if self._self_has_step():
            self._self_close()
            return None
        return self.__wrapped__.close()

    def _self_close(self) -> None:
        if self._self_items is None:
            self._self_items = self._self_going.items(self.__wrapped__)
        self._self_items.close()


class _ClosesAsync(_IteratesAsync):
    async def close(self) -> object:
        """Close the object, and with it the step."""
        if self._self_has_step():
            await self._self_close()
            return None
        return await self.__wrapped__.close()

    aclose = close

    async def _self_close(self) -> None:
        if self._self_items is None:
            self._self_items = self._self_going.async_items(async_iterator(self.__wrapped__))
        await self._self_items.aclose()


class _EntersStream(_Closes):
    """A stream is closed where its block is left."""

    def __enter__(self) -> object:
        self.__wrapped__.__enter__()
        return self

    def __exit__(self, *exc: object) -> bool | None:
        if self._self_has_step():
            self._self_close()
        swallowed: bool | None = self.__wrapped__.__exit__(*exc)
        return swallowed


class _EntersStreamAsync(_ClosesAsync):
    async def __aenter__(self) -> object:
        await self.__wrapped__.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> bool | None:
        if self._self_has_step():
            await self._self_close()
        swallowed: bool | None = await self.__wrapped__.__aexit__(*exc)
        return swallowed


class _EntersBlock(_Proxy):
    """A block that opens something: the step goes on until it is left."""

    def __enter__(self) -> object:
        self._self_block = self._self_going.entered()
        return self._self_block.enter(self.__wrapped__)

    def __exit__(self, *exc: object) -> bool | None:
        try:
            swallowed: bool | None = self.__wrapped__.__exit__(*exc)
            return swallowed
        finally:
            self._self_block.left()


class _EntersBlockAsync(_Proxy):
    async def __aenter__(self) -> object:
        self._self_block = self._self_going.entered()
        return await self._self_block.aenter(self.__wrapped__)

    async def __aexit__(self, *exc: object) -> bool | None:
        try:
            swallowed: bool | None = await self.__wrapped__.__aexit__(*exc)
            return swallowed
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
