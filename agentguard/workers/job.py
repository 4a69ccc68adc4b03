"""What the queue knows of a submitted run, and how a worker says that it comes again."""

from __future__ import annotations

import random
from typing import Any, Final

import msgspec

#: The longest name of a queue, in bytes: PostgreSQL tells workers of it on a channel of that name.
_LONGEST_QUEUE: Final = 40
#: The longest back-off, in seconds.
_LONGEST_PAUSE: Final = 300.0


class RunJob(msgspec.Struct, kw_only=True):
    """A submitted run as the queue has it; where the run stands, its log says."""

    run_id: str
    tenant: str
    #: `pkg.mod:fn`.
    function: str
    #: How often the run is tried again after its function has failed.
    retries: int = 0
    #: Seconds before the first of them; each further one waits twice as long.
    backoff: float = 1.0
    #: How often its function has failed.
    failures: int = 0
    #: How often a worker could not carry it out, and another might.
    obstacles: int = 0
    #: How often a worker that lives could not let it go, since the store was away.
    outages: int = 0

    def to_args(self) -> dict[str, Any]:
        """Return it as plain data, but for the two ids, which the queue adds."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        del data["run_id"], data["tenant"]
        return data


class ComesAgain(Exception):
    """Internal: a job is to be put back, and fetched again in `delay` seconds; `note` is kept with it."""

    def __init__(self, reason: str, delay: float = 0.0, **note: int) -> None:
        super().__init__(reason)
        self.delay = delay
        self.note = note


def backoff(first: float, times: int) -> float:
    """Return how many seconds to wait before trying again what has failed `times` times."""
    pause: float = min(first * 2 ** min(times - 1, 30), _LONGEST_PAUSE)
    return pause * random.uniform(0.75, 1.25)  # noqa: S311 - no secret is drawn


def checked_queue(queue: str) -> str:
    """Return the name of a queue.

    Raises:
        ValueError: it is empty, or too long.
    """
    if not isinstance(queue, str):
        raise TypeError(f"queue must be a str, not {type(queue).__name__}")
    if not 0 < len(queue.encode()) <= _LONGEST_QUEUE:
        raise ValueError(
            f"queue must have 1 to {_LONGEST_QUEUE} bytes, not {queue!r}; where a tenant's name, which it is "
            "by default, is longer, pass queue="
        )
    return queue
