"""The options of the step that an activity is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from agentguard import guarded_step

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = "__agentguard_temporal__"
#: Options that the integration sets itself.
_OWN = ("key", "name", "outside")


def step_options(**options: Any) -> Callable[[F], F]:
    """Say of an activity what `@guarded_step` says of a function: `usage`, `reserve`, `effect`, `probe`, ...

    The function stays as it is: it can be called, and tested, without a worker.

    Raises:
        TypeError, ValueError: an option is wrong; the message names it.

    Example:
        >>> from agentguard import Usage
        >>> @step_options(usage=Usage(usd="0.01"), effect="read")
        ... def look_up(customer: str) -> str:
        ...     return customer.upper()
        >>> look_up("ann")
        'ANN'
    """
    for name in _OWN:
        if name in options:
            raise TypeError(f"step_options takes no {name}=: an activity's is given by Temporal")

    def decorate(fn: F) -> F:
        guarded_step(**options)(fn)  # which names an option that is wrong
        setattr(fn, _OPTIONS, dict(options))
        return fn

    return decorate


def options_of(fn: Callable[..., Any]) -> dict[str, Any]:
    """Return the options that were given for an activity."""
    options: dict[str, Any] = getattr(fn, _OPTIONS, {})
    return options
