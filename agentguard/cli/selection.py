"""Which runs a listing shows, and in which order."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase

from agentguard.cli import exit_codes, tables
from agentguard.monitoring import RunStatus

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGE = re.compile(r"(\d{1,9})([smhdw])")


class Sort(StrEnum):
    """What a listing is ordered by, the largest first."""

    SPEND = "spend"
    RATE = "rate"
    AGE = "age"
    LIMIT = "limit"


_KEYS: dict[Sort, Callable[[RunStatus], object]] = {
    Sort.SPEND: lambda run: (run.summary.usage.usd, run.summary.usage.tokens, run.summary.steps),
    Sort.RATE: lambda run: run.usd_per_minute,
    Sort.AGE: lambda run: run.summary.duration or 0.0,
    Sort.LIMIT: lambda run: run.nearest_limit.share if run.nearest_limit else 0.0,
}


def in_order(runs: Sequence[RunStatus], sort: Sort) -> list[RunStatus]:
    """Return the runs, those with the most of `sort` first."""
    return sorted(runs, key=_KEYS[sort], reverse=True)  # type: ignore[arg-type]


def named(name: str, pattern: str | None) -> bool:
    """Return whether a run's name fits `--name`."""
    return pattern is None or fnmatchcase(name, pattern)


def started_since(run: RunStatus, begin_ns: int) -> bool:
    """Return whether a run started at or after a wall-clock time; one that has not started yet will."""
    at = run.summary.started_at
    return at is None or at >= datetime.fromtimestamp(begin_ns / 1e9, UTC)


def columns(typed: str | None, known: Collection[str] = tables.COLUMNS) -> list[str] | None:
    """Return the columns of `--columns`, all of them among those that are known.

    Raises:
        UsageError: there is no such column.
    """
    if typed is None:
        return None
    wanted = [name.strip() for name in typed.split(",") if name.strip()]
    if unknown := [name for name in wanted or [typed] if name not in known]:
        raise exit_codes.UsageError(
            f"--columns: there is no column {unknown[0]!r}; known are {', '.join(known)}"
        )
    return wanted


def past(text: str, option: str) -> timedelta | datetime:
    """Return an age like 90d, or a time with its zone, as it was typed.

    Raises:
        UsageError: it is neither.
    """
    match = _AGE.fullmatch(text.strip())
    try:
        if match is not None:
            return timedelta(**{_UNITS[match[2]]: int(match[1])})
        at = datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError) as error:
        raise exit_codes.UsageError(
            f"{option} {text!r} is neither an age like 90d, 12h or 30m, nor a date like 2026-01-31"
        ) from error
    return at if at.tzinfo is not None else at.astimezone()


def since_ns(typed: str | None, now_ns: int) -> int:
    """Return the wall clock of `--since` in nanoseconds; 0 where it was not given.

    Raises:
        UsageError: it is neither an age nor a time.
    """
    if typed is None:
        return 0
    found = past(typed, "--since")
    if isinstance(found, timedelta):
        return now_ns - found // timedelta(microseconds=1) * 1000
    return (found - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1) * 1000
