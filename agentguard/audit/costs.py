"""Where the money went: what the steps of many runs were charged, summed from their events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple, get_args

from msgspec import Struct

from agentguard.budget import resources as r
from agentguard.budget.model import Usage
from agentguard.budget.named import named_account
from agentguard.errors import StoreUnavailableError
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.data import StepEnded, StepStarted, data_of
from agentguard.events.model import Record
from agentguard.protocols import EventStore, RunRow

CostKey = Literal["model", "step", "kind", "tenant", "name", "account", "run", "day"]
COST_KEYS: Final[tuple[str, ...]] = get_args(CostKey)
_OUTCOMES: Final = frozenset((ev.STEP_COMPLETED, ev.STEP_FAILED, ev.STEP_RESOLVED))
_MODELS: Final = ("gen_ai.response.model", "gen_ai.request.model")


class CostLine(Struct, frozen=True):
    """What the steps of one model, step name, tenant, run name, account or day were charged.

    Args:
        key: which one; empty for steps that name no model, or no account.
        usage: all that they were charged.
        unpriced: how many llm steps of them named no money.
    """

    key: str
    usage: Usage
    unpriced: int = 0

    @property
    def usd(self) -> Decimal:
        """The money, in USD."""
        return self.usage.usd

    @property
    def steps(self) -> int:
        """How many steps they are."""
        return self.usage.steps

    def to_data(self) -> dict[str, Any]:
        """Return plain data, money as text."""
        amounts = {name: str(self.usage[name]) if name == "usd" else self.usage[name] for name in self.usage}
        return {
            "key": self.key,
            "usd": str(self.usd),
            "steps": self.steps,
            "unpriced": self.unpriced,
        } | amounts


class Charge(NamedTuple):
    """One step that was charged."""

    row: RunRow
    started: Record
    ended: Record


def costs(store: EventStore, rows: Iterable[RunRow], by: str, since_ns: int | None) -> list[CostLine]:
    """Return what the steps of these runs were charged, by `by`, the dearest first.

    Raises:
        ValueError: `by` is none of `COST_KEYS`.
    """
    if by not in COST_KEYS:
        raise ValueError(f"by must be one of {', '.join(COST_KEYS)}, not {by!r}")
    key_of = _KEYS[by]
    totals: dict[str, Usage] = {}
    unpriced: dict[str, int] = {}
    for charge in _charges(store, rows, since_ns or 0):
        key = key_of(charge)
        usage = charge.ended.usage or {}
        totals[key] = totals.get(key, Usage()) + Usage.from_amounts(usage)
        unnamed = charge.started.kind == "llm" and r.NANO_USD not in usage
        unpriced[key] = unpriced.get(key, 0) + unnamed
    lines = [CostLine(key, total, unpriced[key]) for key, total in totals.items()]
    return sorted(lines, key=lambda line: (-line.usd, -line.usage.tokens, line.key))


def since_ns(since: object, now_ns: int) -> int | None:
    """Return the first moment that counts, in nanoseconds.

    Raises:
        TypeError: `since` is no datetime, date or timedelta.
    """
    if since is None:
        return None
    if isinstance(since, timedelta):
        return now_ns - int(since.total_seconds() * r.NANO)
    if isinstance(since, date) and not isinstance(since, datetime):
        since = datetime(since.year, since.month, since.day, tzinfo=UTC)
    if not isinstance(since, datetime):
        raise TypeError(f"since must be a datetime, a date or a timedelta, not {type(since).__name__}")
    moment = since if since.tzinfo is not None else since.replace(tzinfo=UTC)
    return int(moment.timestamp()) * r.NANO + moment.microsecond * 1000


def _charges(store: EventStore, rows: Iterable[RunRow], since: int) -> Iterator[Charge]:
    for row in rows:
        newest = store.last(row.run_id) if since else None
        if newest is None or codec.decode(newest.body).at_ns >= since:
            yield from _charges_of(store, row, since)


def _charges_of(store: EventStore, row: RunRow, since: int) -> Iterator[Charge]:
    """Yield the steps of a run that were charged; those of runs nested in it lie in their own logs."""
    started: dict[str, Record] = {}
    try:
        for stored in store.read(row.run_id):
            record = codec.decode(stored.body)
            key = record.key or ""
            if record.type == ev.STEP_STARTED:
                started[key] = record
            elif record.type in _OUTCOMES and key in started:
                start = started.pop(key)
                unentered = data_of(record, StepEnded).get("body_ran") is False
                if not unentered and record.at_ns >= since:
                    yield Charge(row, start, record)
    except StoreUnavailableError:
        if row.ended_ns is None:
            raise
        # The memory store has let go of its events: what is not on record is not summed.


def _model(charge: Charge) -> str:
    attributes = data_of(charge.started, StepStarted).get("attributes") or {}
    return next((str(attributes[name]) for name in _MODELS if attributes.get(name)), "")


def _account(charge: Charge) -> str:
    return next(filter(None, map(named_account, data_of(charge.started, StepStarted).get("windows", ()))), "")


def _day(charge: Charge) -> str:
    return datetime.fromtimestamp(charge.ended.at_ns // r.NANO, UTC).date().isoformat()


_KEYS: Final[dict[str, Callable[[Charge], str]]] = {
    "model": _model,
    "step": lambda charge: charge.started.name or "",
    "kind": lambda charge: charge.started.kind or "",
    "tenant": lambda charge: charge.row.tenant,
    "name": lambda charge: charge.row.name,
    "account": _account,
    "run": lambda charge: charge.row.run_id,
    "day": _day,
}
