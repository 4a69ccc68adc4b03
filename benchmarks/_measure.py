"""How time is taken.  Machines are noisy, so what is compared is measured in turns, within one run.

The price of code is the least thread CPU time of many short repetitions: noise only ever adds.  What
waits for a disk or for another process is measured by the wall clock, and compared by medians.
"""

from __future__ import annotations

import functools
import hashlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import repeat
from types import SimpleNamespace
from typing import Any

#: One repetition; gives nanoseconds per call.
Case = Callable[[], float]


def work(a: int, b: int = 0, c: int = 0) -> int:
    """The body of every step that is measured: it does nothing."""
    return a


def wrapped(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` in an empty `functools.wraps` closure: calling it costs one U."""

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


def calls(fn: Callable[..., Any], number: int) -> float:
    """Thread CPU nanoseconds of one of `number` calls, each with one positional argument and two others."""
    started = time.thread_time_ns()
    for _ in repeat(None, number):
        fn(1, b=2, c=3)
    return (time.thread_time_ns() - started) / number


async def async_calls(fn: Callable[..., Any], number: int) -> float:
    """The same for a coroutine function."""
    started = time.thread_time_ns()
    for _ in repeat(None, number):
        await fn(1, b=2, c=3)
    return (time.thread_time_ns() - started) / number


def unit() -> float:
    """One repetition of U."""
    return calls(_UNIT, 5000)


_UNIT = wrapped(work)


def in_turns(cases: Mapping[str, Case], rounds: int) -> dict[str, list[float]]:
    """Every case once in each round, after one round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, case in cases.items():
            taken = case()
            if number:
                found[name].append(taken)
    return found


def least(cases: Mapping[str, Case], rounds: int) -> dict[str, float]:
    """The least of each case."""
    return {name: min(taken) for name, taken in in_turns(cases, rounds).items()}


def medians(cases: Mapping[str, Case], rounds: int) -> dict[str, float]:
    """The median of each case."""
    return {name: statistics.median(taken) for name, taken in in_turns(cases, rounds).items()}


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def stamps(owner: type, name: str) -> list[int]:
    """The times at which a method is called, from now on and for the rest of the process."""
    times: list[int] = []
    method = getattr(owner, name)

    def timed(self: Any, *args: Any) -> Any:
        times.append(time.monotonic_ns())
        return method(self, *args)

    setattr(owner, name, timed)
    return times


@contextmanager
def without_hashing() -> Iterator[None]:
    """Let everything in agentguard that hashes get a constant for nothing, or as near as can be had.

    A call and a method call stay, both into C; what goes is SHA-256 itself.
    """
    constant = SimpleNamespace(digest=bytes(32).__bytes__, hexdigest=("0" * 64).__str__)
    constant.update = [].__contains__
    constant.copy = stand_in = functools.partial(next, repeat(constant))
    users = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("agentguard.") and getattr(module, "sha256", None) is hashlib.sha256
    ]
    for module in users:
        module.sha256 = stand_in  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in users:
            module.sha256 = hashlib.sha256  # type: ignore[attr-defined]
