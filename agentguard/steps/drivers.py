"""Which driver a function needs: the one place that tells sync, async and generator functions apart."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from agentguard.steps import coroutines, generators, sync


def driver_of(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return what drives calls of `fn`."""
    bare = bare_function(fn)
    if inspect.isasyncgenfunction(bare):
        return generators.GuardedAsyncGenerator
    if inspect.isgeneratorfunction(bare):
        return generators.GuardedGenerator
    marked = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(bare)
    return coroutines.call if marked else sync.call


def is_coroutine_function(fn: Callable[..., Any]) -> bool:
    """Return whether calling `fn` gives a coroutine."""
    return driver_of(fn) is coroutines.call


def bare_function(fn: Any) -> Any:
    """Return the function at the bottom of partials, methods and callable objects."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    fn = getattr(fn, "__func__", fn)
    if inspect.isfunction(fn) or inspect.isbuiltin(fn):
        return fn
    call = getattr(type(fn), "__call__", None)  # noqa: B004 - its own __call__, not whether it has one
    return call if inspect.isfunction(call) else fn
