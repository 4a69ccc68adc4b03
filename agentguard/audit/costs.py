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
_ENDS: Final = frozenset((ev.RUN_COMPLETED, ev.RUN_FAILED, ev.RUN_KILLED))
#: How a formula begins, also in full width, as Japanese spreadsheets take it.
_FORMULA: Final = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_MODELS: Final = ("gen_ai.response.model", "gen_ai.request.model")


def csv_cell(text: str) -> str:
    r"""Return a text as a cell that no spreadsheet takes for a formula, and no terminal for a command.

    Example:
        >>> csv_cell("=cmd()"), csv_cell("model\x1b[2J")
        ("'=cmd()", 'model\\x1b[2J')
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown


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

    @property
    def usage(self) -> Usage:
        """What it was charged."""
        return Usage.from_amounts(self.ended.usage or {})

    @property
    def unpriced(self) -> int:
        """1 for an llm step that named no money, else 0."""
        return int(self.started.kind == "llm" and r.NANO_USD not in (self.ended.usage or {}))


class Charges:
    """The charged steps of one run, read on from where they were read before.

    Those of runs nested in it lie in their own logs.
    """

    def __init__(self, row: RunRow) -> None:
        self._row = row
        self._after = 0
        self._ended = False
        self._started: dict[str, Record] = {}

    @property
    def whole(self) -> bool:
        """Whether no more can come."""
        return self._ended and not self._started

    def read_on(self, store: EventStore, since: int = 0) -> Iterator[Charge]:
        """Yield what was charged since the last time, from a moment on."""
        try:
            for stored in store.read(self._row.run_id, self._after):
                self._after = stored.seq
                charge = self._take(codec.decode(stored.body))
                if charge is not None and charge.ended.at_ns >= since:
                    yield charge
        except StoreUnavailableError:
            if self._row.ended_ns is None:
                raise
            # The memory store has let go of its events: what is not on record is not summed.
            self._ended = True
            self._started.clear()

    def _take(self, record: Record) -> Charge | None:
        key = record.key or ""
        if record.type == ev.STEP_STARTED:
            self._started[key] = record
        elif record.type in _ENDS:
            self._ended = True
        elif record.type in _OUTCOMES and key in self._started:
            start = self._started.pop(key)
            if data_of(record, StepEnded).get("body_ran") is not False:
                return Charge(self._row, start, record)
        return None


class Sums:
    """Charges, added up by something."""

    def __init__(self) -> None:
        self._totals: dict[str, tuple[Usage, int]] = {}

    def add(self, key: str, usage: Usage, unpriced: int) -> None:
        """Add what was charged."""
        before, unnamed = self._totals.get(key, (Usage(), 0))
        self._totals[key] = (before + usage, unnamed + unpriced)

    def lines(self) -> list[CostLine]:
        """Return the sums, the dearest first."""
        lines = [CostLine(key, usage, unpriced) for key, (usage, unpriced) in self._totals.items()]
        return sorted(lines, key=lambda line: (-line.usd, -line.usage.tokens, line.key))


def costs(store: EventStore, rows: Iterable[RunRow], by: str, since_ns: int | None) -> list[CostLine]:
    """Return what the steps of these runs were charged, by `by`, the dearest first.

    Raises:
        ValueError: `by` is none of `COST_KEYS`.
    """
    if by not in COST_KEYS:
        raise ValueError(f"by must be one of {', '.join(COST_KEYS)}, not {by!r}")
    key_of = KEYS[by]
    sums = Sums()
    for charge in _charges(store, rows, since_ns or 0):
        sums.add(key_of(charge), charge.usage, charge.unpriced)
    return sums.lines()


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
            yield from Charges(row).read_on(store, since)


def _model(charge: Charge) -> str:
    attributes = data_of(charge.started, StepStarted).get("attributes") or {}
    return next((str(attributes[name]) for name in _MODELS if attributes.get(name)), "")


def _account(charge: Charge) -> str:
    return next(filter(None, map(named_account, data_of(charge.started, StepStarted).get("windows", ()))), "")


def _day(charge: Charge) -> str:
    return datetime.fromtimestamp(charge.ended.at_ns // r.NANO, UTC).date().isoformat()


#: How each of `COST_KEYS` is told of a charge.
KEYS: Final[dict[str, Callable[[Charge], str]]] = {
    "model": _model,
    "step": lambda charge: charge.started.name or "",
    "kind": lambda charge: charge.started.kind or "",
    "tenant": lambda charge: charge.row.tenant,
    "name": lambda charge: charge.row.name,
    "account": _account,
    "run": lambda charge: charge.row.run_id,
    "day": _day,
}
