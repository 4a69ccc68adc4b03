"""Which driver a function needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from agentguard.steps import coroutines, generators, sync
from agentguard.steps.functions import kind_of_function
from agentguard.steps.model import InRun
from agentguard.steps.spec import Args, Function, Kwargs, StepSpec


class Driver(Protocol):
    """What drives the calls of a function."""

    def __call__(
        self,
        spec: StepSpec,
        position: InRun,
        fn: Function,
        args: Args,
        kwargs: Kwargs,
        /,
        *,
        attributes: Mapping[str, object] | None = None,
    ) -> object:
        """Run one guarded call, and return what it gives: a result, an awaitable, a generator."""
        ...


def driver_of(fn: Function) -> Driver:
    """Return what drives calls of `fn`."""
    match kind_of_function(fn):
        case "async generator":
            return generators.GuardedAsyncGenerator
        case "generator":
            return generators.GuardedGenerator
        case "coroutine":
            return coroutines.call  # type: ignore[return-value]
        case "plain":
            return sync.call
