"""How a run's spending has grown: the points of its curves, from its log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

from agentguard.budget.model import Usage
from agentguard.console.charts import Curve, curve
from agentguard.errors import LogIntegrityError
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.model import Record
from agentguard.monitoring import RunStatus
from agentguard.protocols import EventStore

#: A log of at most so many events is read whole; of a longer one, so many places are looked at.
_WHOLE, _PLACES = 20_000, 100
#: How many events are looked through at one place for one that says what was spent.
_NEAR = 20
#: A curve has at most so many points.
_POINTS = 500
_DRAWN = ("usd", "tokens")


class _Point(NamedTuple):
    at_ns: int
    spent: Usage


def curves(store: EventStore, status: RunStatus, now_ns: int) -> list[Curve]:
    """Return what a run has spent over time, of money and of tokens, beside its limits.

    Only what was spent or is limited has a curve.  The cost of this is bounded, however long the run is.
    """
    summary = status.summary
    points: list[_Point] = []
    with suppress(LogIntegrityError):  # up to what was altered, which the page says
        points.extend(_points(store, summary.run_id, summary.head.seq))
    until = now_ns if summary.ended_at is None else int(summary.ended_at.timestamp() * 1e9)
    until = max([until, *(point.at_ns for point in points)])  # a step may settle after its run has ended
    points = _thinned(points)
    found = []
    for name in _DRAWN:
        limit = getattr(summary.budget, name)
        if limit is not None or getattr(summary.usage, name):
            amounts = [(point.at_ns, getattr(point.spent, name)) for point in points]
            last = amounts[-1][1] if amounts else 0  # the log may have grown since `status` was read
            amounts.append((until, max(last, getattr(summary.usage, name))))
            found.append(curve(name, amounts, limit, until))
    return found


def _points(store: EventStore, run_id: str, length: int) -> Iterator[_Point]:
    if length <= _WHOLE:
        yield from _said(codec.decode(stored.body) for stored in store.read(run_id))
        return
    for place in range(_PLACES + 1):
        after = max(length * place // _PLACES - _NEAR, 0)
        near = islice(store.read(run_id, after), _NEAR)
        yield from islice(_said(codec.decode(stored.body) for stored in near), 1)


def _said(records: Iterator[Record]) -> Iterator[_Point]:
    """What the records say was spent, with what a fork begins with."""
    for record in records:
        if record.type == ev.RUN_CREATED:
            yield _Point(record.at_ns, Usage())
        elif record.spent is not None:
            yield _Point(record.at_ns, Usage.from_amounts(record.spent))
        elif record.type == ev.RUN_FORKED:
            yield _Point(record.at_ns, Usage.from_amounts(record.usage or {}))


def _thinned(points: list[_Point]) -> list[_Point]:
    step = -(-len(points) // _POINTS) or 1
    return points[::step] + (points[-1:] if (len(points) - 1) % step else [])
