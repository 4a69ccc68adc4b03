"""What arguments and results cost a step, by their size: encoded, searched for secrets, digested, kept."""

from __future__ import annotations

import time
from itertools import repeat

from agentguard import Budget, Guard, guarded_step
from benchmarks import _measure as m
from benchmarks._rows import Row

_SIZES = (20, 500, 10_000)
#: What the steps of the sizes may take, over the smallest.
_LIMITS = {500: 1.3, 10_000: 4.7}
_STEPS = 100
_WORDS = "the price of a ticket from here to there is not what it was; see note 4. "


@guarded_step
def answer(question: str) -> str:
    """Return as much text as it is given."""
    return question


def measure(*, quick: bool) -> list[Row]:
    """The rows on sizes: as much text in the argument as in the result, in memory, without telemetry."""
    with Guard.in_memory(telemetry=False) as guard, Guard.in_memory(telemetry=False, redact=False) as bare:
        cases = {f"{size}": _case(guard, size) for size in _SIZES}
        cases |= {f"{size}, redact=False": _case(bare, size) for size in _SIZES}
        taken = m.least(cases, 12 if quick else 60)
    return [_row(size, limit, taken) for size, limit in _LIMITS.items()]


def _case(guard: Guard, size: int) -> m.Case:
    text = (_WORDS * (size // len(_WORDS) + 1))[:size]

    def case() -> float:
        with guard.run("payloads", budget=Budget(steps=10**9)):
            answer(text)
            started = time.thread_time_ns()
            for _ in repeat(None, _STEPS):
                answer(text)
            return (time.thread_time_ns() - started) / _STEPS

    return case


def _row(size: int, limit: float, taken: dict[str, float]) -> Row:
    least, given = taken[str(_SIZES[0])], taken[str(size)]
    return Row(
        name=f"payload-{size}",
        what=f"step with {size:,} characters each of argument and result, over {_SIZES[0]}",
        value=given / least,
        unit="x",
        limit=limit,
        facts={
            "µs a step": given / 1000,
            "with redact=False": taken[f"{size}, redact=False"] / 1000,
            f"µs with {_SIZES[0]}": least / 1000,
        },
    )
