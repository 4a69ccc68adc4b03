"""What a call of a function gives: the one place that tells sync, async and generator functions apart."""

from __future__ import annotations

import functools
import inspect
from typing import Literal, TypeGuard

from agentguard.steps.spec import AsyncFunction, Function

FunctionKind = Literal["plain", "coroutine", "generator", "async generator"]


def kind_of_function(fn: Function) -> FunctionKind:
    """Return what a call of `fn` gives: a value, or what gives it later."""
    bare = bare_function(fn)
    if inspect.isasyncgenfunction(bare):
        return "async generator"
    if inspect.isgeneratorfunction(bare):
        return "generator"
    marked = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(bare)
    return "coroutine" if marked else "plain"


def is_coroutine_function(fn: Function) -> TypeGuard[AsyncFunction]:
    """Return whether a call of `fn` gives a coroutine."""
    return kind_of_function(fn) == "coroutine"


def bare_function(fn: object) -> object:
    """Return the function at the bottom of partials, methods and callable objects."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    fn = getattr(fn, "__func__", fn)
    if inspect.isfunction(fn) or inspect.isbuiltin(fn):
        return fn
    call = getattr(type(fn), "__call__", None)  # noqa: B004 - its own __call__, not whether it has one
    return call if inspect.isfunction(call) else fn
