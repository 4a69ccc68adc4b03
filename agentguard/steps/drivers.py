"""Which driver a function needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agentguard.steps import coroutines, generators, sync
from agentguard.steps.functions import kind_of_function


def driver_of(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return what drives calls of `fn`."""
    match kind_of_function(fn):
        case "async generator":
            return generators.GuardedAsyncGenerator
        case "generator":
            return generators.GuardedGenerator
        case "coroutine":
            return coroutines.call
        case "plain":
            return sync.call
