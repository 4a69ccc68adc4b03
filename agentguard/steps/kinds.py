"""Which results are there at once, and which go on after their function has returned: by their class."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import io
import types
from collections.abc import Callable
from enum import Enum
from typing import Any

from agentguard.steps.spec import LLM


class Kind(Enum):
    """How a result goes on after its function has returned."""

    COROUTINE = "coroutine"
    FUTURE = "future"
    #: Of another thread, where nothing here can cancel it or see its end in time.
    FOREIGN = "foreign"
    OBJECT = "object"
    #: A context manager and nothing else: a value, but for those that open a model's stream.
    BLOCK = "block"


#: How results that are awaited go on.
AWAITED = frozenset({"awaited", "coroutine", "future"})
#: Files are iterators too, but are values: what they cost is spent when they are opened.
_VALUES = (io.IOBase, contextlib.ExitStack, contextlib.AsyncExitStack)
_BLOCKS = (contextlib._GeneratorContextManager, contextlib._AsyncGeneratorContextManager)


def _guarded_kind_of(cls: type) -> Kind | None:
    try:
        return _kind_of(cls)
    except Exception:  # noqa: BLE001 - of a user's metaclass, which may refuse to be looked at
        return None


def _kind_of(cls: type) -> Kind | None:
    if issubclass(cls, _VALUES) or any(base.__module__ == "unittest.mock" for base in cls.__mro__):
        return None  # a mock has every method, and does nothing
    if issubclass(cls, types.CoroutineType):
        return Kind.COROUTINE
    if issubclass(cls, asyncio.Future):
        return Kind.FUTURE
    if issubclass(cls, concurrent.futures.Future):
        return Kind.FOREIGN
    if any(hasattr(cls, name) for name in ("__await__", "__next__", "__anext__")):
        return Kind.OBJECT
    if hasattr(cls, "__enter__") or hasattr(cls, "__aenter__"):
        return Kind.BLOCK
    return None


#: How results of a class go on; None for values, which are there at once.
kind_of: Callable[[type], Kind | None] = functools.lru_cache(maxsize=1024)(_guarded_kind_of)


def is_value(result: object, step_kind: str) -> bool:
    """Return whether a result is there at once; `kind_of` its class is known not to be None."""
    if kind_of(type(result)) is Kind.BLOCK:
        return step_kind != LLM and not isinstance(result, _BLOCKS)
    return False


def check_followed(result: Any, run: str) -> Any:
    """Return what the function of a run returned; refuse it where the run could not go on with it.

    Raises:
        TypeError: it is an iterator, or of another thread.
    """
    cls = type(result)
    kind = kind_of(cls)
    iterates = kind is Kind.OBJECT and not hasattr(cls, "__await__")
    if iterates or kind is Kind.FOREIGN:
        raise TypeError(
            f"the function of run {run!r} returned a {cls.__name__}, which goes on after the run has ended: "
            "open the run in the code that reads it, by `with guard.run(...)`"
        )
    return result
