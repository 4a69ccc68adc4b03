"""Guarded steps outside a run, for unit tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from agentguard.steps import current


@contextlib.contextmanager
def allow_outside() -> Iterator[None]:
    """Let guarded steps be called where no run is active: they are the bare functions there.

    It holds for the code in the block and for the tasks made there; a bare thread refuses, as it would
    inside a run.  No environment variable can do this.

    Example:
        >>> from agentguard import guarded_step
        >>> @guarded_step
        ... def double(number: int) -> int:
        ...     return 2 * number
        >>> with allow_outside():
        ...     double(21)
        42
    """
    token = current.allow_outside()
    try:
        yield
    finally:
        current.refuse_outside(token)
