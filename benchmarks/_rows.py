"""What a benchmark says: rows, each with the limit that the contract sets it, if any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure.  `sense` says how it is held against its limit; without a limit it is information."""

    name: str
    what: str
    value: float
    unit: str
    limit: float | None = None
    sense: Literal["at most", "at least", "exactly"] = "at most"
    #: The numbers behind the figure, for the JSON and for the line below the row.
    facts: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """`ok`, `OVER`, or nothing where there is no limit."""
        if self.limit is None:
            return ""
        kept = {
            "at most": self.value <= self.limit,
            "at least": self.value >= self.limit,
            "exactly": self.value == self.limit,
        }[self.sense]
        return "ok" if kept else "OVER"

    def to_data(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict}


_SIGNS = {"at most": "≤", "at least": "≥", "exactly": "="}


def table(rows: Iterable[Row], *, head: bool) -> str:
    """The rows as text, with their facts below them."""
    lines = []
    if head:
        lines = [f"{'row':20} {'what':62} {'value':>12}  {'limit':>12}", "-" * 116]
    for row in rows:
        limit = "" if row.limit is None else f"{_SIGNS[row.sense]} {_figure(row.limit)} {row.unit}"
        value = f"{_figure(row.value)} {row.unit}"
        lines.append(f"{row.name:20} {row.what:62} {value:>12}  {limit:>12}  {row.verdict}".rstrip())
        if row.facts:
            said = "; ".join(f"{name} {_figure(fact)}" for name, fact in row.facts.items())
            lines.append(f"{'':20}   {said}")
    return "\n".join(lines)


def _figure(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"
