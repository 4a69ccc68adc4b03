"""Pictures as numbers: where lines and bars lie in an SVG.  Pure; the templates draw them.

Every picture is `WIDTH` by `HEIGHT` and is stretched to its room; what is to be read stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

WIDTH, HEIGHT = 1000, 100
#: A limit that lies so many times above what was spent would make a flat line of it, and is told in words.
_OUT_OF_SIGHT = 5
#: The least width of a bar, so that it is seen.
_LEAST = 4.0

Number = int | float | Decimal


class Curve(NamedTuple):
    """What was spent of something over time.

    Args:
        name: of what: `usd` or `tokens`.
        line: the points of a polyline.
        limit: the limit, if there is one.
        limit_y: where it lies; None where it is out of sight.
        spent: the total.
        start_ns: when the picture begins.
        end_ns: when it ends.
    """

    name: str
    line: str
    limit: Number | None
    limit_y: float | None
    spent: Number
    start_ns: int
    end_ns: int


class Bar(NamedTuple):
    """A bar from left to right."""

    x: float
    width: float


class Column(NamedTuple):
    """A bar that stands."""

    label: str
    value: Decimal
    x: float
    y: float
    width: float
    height: float


def sparkline(values: Sequence[Number]) -> str:
    """Return the points of a line through values at equal distances; empty where there is no line.

    Example:
        >>> sparkline([0, 1, 2])
        '0,100 500,50 1000,0'
        >>> sparkline([1])
        ''
    """
    if len(values) < 2:
        return ""
    step, most = WIDTH / (len(values) - 1), max(values) or 1
    return _line([(index * step, _height(value, most)) for index, value in enumerate(values)])


def curve(name: str, points: Sequence[tuple[int, Number]], limit: Number | None, until_ns: int) -> Curve:
    """Return the curve through a rising total, of which each point is when it changed and to what.

    Example:
        >>> drawn = curve("usd", [(0, 0), (5, 1)], limit=2, until_ns=10)
        >>> drawn.line, drawn.limit_y
        ('0,100 500,100 500,50 1000,50', 0.0)
    """
    start = points[0][0] if points else until_ns
    end = max([until_ns, *(at for at, _ in points)])
    spent = points[-1][1] if points else 0
    seen = limit if limit is not None and limit <= max(spent, 1e-9) * _OUT_OF_SIGHT else None
    most = max(spent, seen or 0) or 1
    corners: list[tuple[float, float]] = []
    for at, amount in points:
        x = (at - start) / (end - start or 1) * WIDTH
        if corners:
            corners.append((x, corners[-1][1]))
        corners.append((x, _height(amount, most)))
    if corners:
        corners.append((WIDTH, corners[-1][1]))
    limit_y = None if seen is None else _height(seen, most)
    return Curve(name, _line(corners), limit, limit_y, spent, start, end)


def spans(times: Sequence[tuple[int, int | None]]) -> list[Bar | None]:
    """Return a bar for each end and duration, in nanoseconds, over the time that all take; None without one.

    Example:
        >>> spans([(0, None), (50, 50), (100, 25)])
        [None, Bar(x=0.0, width=500.0), Bar(x=750.0, width=250.0)]
    """
    if not times:
        return []
    first = min(at - (duration or 0) for at, duration in times)
    whole = max(at for at, _ in times) - first or 1
    found: list[Bar | None] = []
    for at, duration in times:
        if duration is None:
            found.append(None)
            continue
        width = max(duration / whole * WIDTH, _LEAST)
        found.append(Bar(min((at - duration - first) / whole * WIDTH, WIDTH - width), width))
    return found


def share(value: Number, most: Number) -> float:
    """Return how long the bar of a value is, beside the longest."""
    return max(float(value) / float(most) * WIDTH, _LEAST) if most and value > 0 else 0.0


def columns(values: Sequence[tuple[str, Decimal]]) -> list[Column]:
    """Return standing bars side by side.

    Example:
        >>> [(bar.x, bar.y, bar.height) for bar in columns([("a", Decimal(1)), ("b", Decimal(2))])]
        [(50.0, 50.0, 50.0), (550.0, 0.0, 100.0)]
    """
    most = max((value for _, value in values), default=Decimal(0)) or Decimal(1)
    room = WIDTH / max(len(values), 1)
    return [
        Column(
            label,
            value,
            index * room + room * 0.1,
            y := _height(value, most),
            room * 0.8,
            HEIGHT - y,
        )
        for index, (label, value) in enumerate(values)
    ]


def _height(value: Number, most: Number) -> float:
    return HEIGHT - float(value) / float(most) * HEIGHT


def _line(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.6g},{y:.4g}" for x, y in points)
