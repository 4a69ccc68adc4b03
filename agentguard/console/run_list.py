"""Pages of runs: filtered, the newest first or sorted, from a bounded number of rows for each page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, Final, NamedTuple

from msgspec import structs

from agentguard.console.auth import ConsoleError
from agentguard.protocols import EventStore, RunRow
from agentguard.runs.state import RunState

PAGE: Final = 50
#: How many runs are looked through for one page of them, before the reader is asked to go on.
LOOKED_THROUGH: Final = 5000
SORTS: Final = ("newest", "spent", "longest")
_DAY_NS: Final = 86_400_000_000_000
#: The clocks of hosts differ: so far beyond `since`, in nanoseconds, no run is looked for.
_SKEW_NS: Final = _DAY_NS


class RunFilter(NamedTuple):
    """Which runs are wanted; what is empty lets all through.

    Args:
        tenant: whose runs.
        state: their state.
        name: their name; it may have `*` and `?`.
        since: the first day on which they were created, as `2026-01-31` (UTC).
        until: the last such day.
        usd: what they have spent at least, in USD, up to now.
        sort: one of `SORTS`; `newest` where it is empty.
    """

    tenant: str = ""
    state: str = ""
    name: str = ""
    since: str = ""
    until: str = ""
    usd: str = ""
    sort: str = ""


class RunPage(NamedTuple):
    """Runs, and the id after which the next page begins; None at the end.

    What is sorted has one page: the first of all that was looked through, which may not have been `whole`.
    """

    rows: list[RunRow]
    after: str | None
    whole: bool = True


def page(
    store: EventStore,
    wanted: RunFilter,
    after: str,
    live: Mapping[str, dict[str, Any]],
) -> RunPage:
    """Return a page of runs; `after` is where it begins.

    `live` are the summaries of live runs as they stand now: their rows are as of the last change of state.

    Raises:
        ValueError: there is no such state.
        ConsoleError: a filter cannot be meant.
    """
    state = RunState(wanted.state) if wanted.state else None
    if wanted.sort not in ("", *SORTS):
        raise ConsoleError(400, f"sort must be one of {', '.join(SORTS)}, not {wanted.sort!r}")
    fits = _Fits(wanted)
    older = _older(store, wanted.tenant or None, state, after)
    rows = fits.recent(_as_it_stands(row, live) for row in older)
    if wanted.sort in ("", "newest"):
        return _newest(rows, fits)
    looked_through = list(islice(rows, LOOKED_THROUGH + 1))
    found = [row for row in looked_through[:LOOKED_THROUGH] if fits(row)]
    found.sort(key=spent if wanted.sort == "spent" else _length, reverse=True)
    return RunPage(found[:PAGE], None, len(looked_through) <= LOOKED_THROUGH and len(found) <= PAGE)


def _as_it_stands(row: RunRow, live: Mapping[str, dict[str, Any]]) -> RunRow:
    if row.ended_ns is not None or row.run_id not in live:
        return row
    return structs.replace(row, summary=live[row.run_id])


def _newest(rows: Iterator[RunRow], fits: _Fits) -> RunPage:
    found: list[RunRow] = []
    last: str | None = None
    for row in islice(rows, LOOKED_THROUGH):
        if len(found) == PAGE:
            return RunPage(found, last)
        last = row.run_id
        if fits(row):
            found.append(row)
    return RunPage(found, None if next(rows, None) is None else last)


class _Fits:
    """Whether a run is wanted, beside its tenant and its state, which the store knows to filter by."""

    def __init__(self, wanted: RunFilter) -> None:
        self._name = wanted.name
        since, until = _day("since", wanted.since), _day("until", wanted.until)
        self._since_ns = 0 if since is None else _ns(since)
        self._until_ns = None if until is None else _ns(until) + _DAY_NS
        self._usd = _usd(wanted.usd)

    def __call__(self, row: RunRow) -> bool:
        """Return whether it is."""
        created = row.created_ns >= self._since_ns
        created = created and (self._until_ns is None or row.created_ns < self._until_ns)
        named = not self._name or fnmatchcase(row.name, self._name)
        return created and named and (not self._usd or spent(row) >= self._usd)

    def recent(self, rows: Iterator[RunRow]) -> Iterator[RunRow]:
        """Yield rows, the newest first, up to those that are surely too old."""
        for row in rows:
            if row.created_ns < self._since_ns - _SKEW_NS:
                return
            yield row


def spent(row: RunRow) -> Decimal:
    """Return what the summary in a row says that the run has spent, in USD."""
    try:
        return Decimal(row.summary["usage"].get("usd", 0))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):  # altered by hand
        return Decimal(0)


def _length(row: RunRow) -> float:
    duration = row.summary.get("duration")
    return duration if isinstance(duration, float) else 0.0


def _older(store: EventStore, tenant: str | None, state: RunState | None, after: str) -> Iterator[RunRow]:
    """The rows from after a run on; the store is asked for more only as they are needed."""
    before, count = after or None, PAGE * 2
    while True:
        rows = store.rows(tenant=tenant, state=state and str(state), limit=count, before=before)
        yield from rows
        if len(rows) < count:
            return
        before, count = rows[-1].run_id, min(count * 4, LOOKED_THROUGH)


def _day(name: str, text: str) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise ConsoleError(400, f"{name} must be a date as 2026-01-31, not {text!r}") from None


def _ns(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp()) * 1_000_000_000


def _usd(text: str) -> Decimal:
    try:
        amount = Decimal(text.strip() or 0)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or not 0 <= amount < Decimal("1e18"):
        raise ConsoleError(400, f"usd must be an amount from 0 up, not {text!r}")
    return amount
