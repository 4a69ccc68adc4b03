"""Runs as an operator sees them: spend, rate, share of the limit, last step, owner.

A `LiveRuns` reads each log on from where it was read before, so that looking again costs what is new.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from agentguard._clock import Clock
from agentguard._process import counts_as_alive
from agentguard.audit.verify import take
from agentguard.budget import resources as r
from agentguard.budget.account import Account
from agentguard.errors import LogIntegrityError
from agentguard.events import model as ev
from agentguard.events.model import Record
from agentguard.protocols import EventStore, RunRow
from agentguard.runs.fold import RunFold
from agentguard.runs.state import RunState
from agentguard.runs.summary import RunSummary, from_row, moment, summarize
from agentguard.steps.approvals import waiting
from agentguard.steps.limit_questions import question

#: Over how many nanoseconds the rate of spending is taken: the last minute.
RATE_WINDOW_NS = 60_000_000_000
#: What is spent is also told for whole spans of so many seconds, the newest so many: five minutes.
BUCKET_SECONDS, BUCKETS = 5, 60

_BUCKET_NS = BUCKET_SECONDS * 1_000_000_000

_LIVE = tuple(str(state) for state in RunState if not state.final)


class LimitUse(NamedTuple):
    """The limit that a run is nearest to: its resource, and the share used or reserved (1.0 is all)."""

    resource: str
    share: float


class Approval(NamedTuple):
    """A step that waits for an operator: for an approval, or for a higher limit of its run.

    `limit` is None for an approval; else the facts of the `BudgetExceededError` that a refusal raises:
    `resource`, `spent`, `reserved`, `requested`, `limit`, `message`.  `seq` is the number of the event that
    asks, for `asked=` of `Guard.approve`, `deny` and `set_budget`; `asked_ns` its wall-clock time, in
    nanoseconds since the epoch.  `timeout` is how many seconds the step waits until it is denied, counted
    from when it began to wait, anew after a recovery; None where it waits for ever.
    """

    run_id: str
    key: str
    name: str
    limit: dict[str, Any] | None = None
    seq: int = 0
    asked_ns: int = 0
    timeout: float | None = None


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A run and what an operator asks of it.

    `usd_per_minute` is what the last minute cost.  `spending` is what each `BUCKET_SECONDS` of the last
    five minutes cost, in USD, oldest first; empty where nothing did.  `waiting` are its steps that wait for
    an operator.  `alive` says whether the owner's process lives: None where there is no owner, or nobody can
    tell.
    """

    summary: RunSummary
    usd_per_minute: Decimal
    nearest_limit: LimitUse | None
    last_step: str | None
    last_event_at: datetime | None
    steps_in_flight: int
    host: str
    pid: int | None
    alive: bool | None
    spending: tuple[Decimal, ...] = ()
    waiting: tuple[Approval, ...] = ()

    def to_data(self) -> dict[str, Any]:
        """Return plain data for JSON: the summary, and the rest beside it; money as text."""
        limit = self.nearest_limit
        return self.summary.to_data() | {
            "usd_per_minute": str(self.usd_per_minute),
            "nearest_limit": None if limit is None else {"resource": limit.resource, "share": limit.share},
            "last_step": self.last_step,
            "last_event_at": self.last_event_at and self.last_event_at.isoformat(),
            "steps_in_flight": self.steps_in_flight,
            "owner": {"host": self.host, "pid": self.pid, "alive": self.alive},
        }


class LiveRuns:
    """The runs of a store that have not ended.  Not for several threads at once.

    Example:
        >>> from agentguard import Guard, Usage, guarded_step
        >>> @guarded_step(usage=Usage(usd="0.25"))
        ... def pay() -> None: ...
        >>> guard = Guard.in_memory()
        >>> with guard.run("billing") as run:
        ...     pay()
        ...     [status] = LiveRuns(guard.components.store, guard.components.clock).read()
        >>> status.summary.name, status.last_step, status.usd_per_minute
        ('billing', 'pay', Decimal('0.25'))
    """

    def __init__(self, store: EventStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._followed: dict[str, _Followed] = {}

    def read(self, tenant: str | None = None) -> list[RunStatus]:
        """Return the live runs as of now, in no order; of one tenant alone if it is named."""
        rows = list(self._rows(tenant))
        self._followed = {row.run_id: self._followed.get(row.run_id) or _Followed(row) for row in rows}
        now = self._clock.wall()
        found = [self._followed[row.run_id].status(self._store, row, now) for row in rows]
        return [status for status in found if not status.summary.state.final]

    def _rows(self, tenant: str | None) -> Iterator[RunRow]:
        for state in _LIVE:
            yield from self._store.rows(tenant=tenant, state=state, limit=2**31)


def status_of(store: EventStore, row: RunRow, clock: Clock) -> RunStatus:
    """Return how one run stands now; of an ended run, what its row says.

    Raises:
        LogIntegrityError: the row was altered, so that nothing can be told of the run.
    """
    if row.ended_ns is None:
        return _Followed(row).status(store, row, clock.wall())
    return RunStatus(
        summary=from_row(row),
        usd_per_minute=Decimal(0),
        nearest_limit=None,
        last_step=None,
        last_event_at=moment(row.ended_ns),
        steps_in_flight=0,
        host=str(row.owner.get("host", "")),
        pid=row.owner.get("pid"),
        alive=None,
    )


class _Followed:
    """One live run: its fold, its last step, and what its steps cost of late."""

    def __init__(self, row: RunRow) -> None:
        self._fold = RunFold(row.run_id)
        self._damage: str | None = None
        self._last_step: str | None = None
        self._last_ns: int | None = None
        #: When each outcome of the last minute was, and what it cost, in 1e-9 USD.
        self._costs: deque[tuple[int, int]] = deque()
        #: What each span of time cost, by its number, in 1e-9 USD.
        self._buckets: dict[int, int] = {}

    def status(self, store: EventStore, row: RunRow, now: int) -> RunStatus:
        """Read on, and say how the run stands at `now`."""
        try:
            for stored in store.read(row.run_id, self._fold.seq):
                self._take(take(self._fold, stored))
        except LogIntegrityError as error:
            self._damage = str(error)
        while self._costs and self._costs[0][0] <= now - RATE_WINDOW_NS:
            self._costs.popleft()
        owner = row.owner
        return RunStatus(
            summary=self._summary(row, now),
            usd_per_minute=_usd(sum(cost for _, cost in self._costs)),
            nearest_limit=nearest_limit(self._fold.account),
            last_step=self._last_step,
            last_event_at=moment(self._last_ns),
            steps_in_flight=len(self._fold.open),
            host=str(owner.get("host", "")),
            pid=owner.get("pid"),
            alive=owner_lives(row, now),
            spending=self._spending(now),
            waiting=() if self._damage is not None else tuple(approvals_in(self._fold)),
        )

    def _spending(self, now: int) -> tuple[Decimal, ...]:
        """What each span of time cost up to now; those before the run began are left out."""
        present = now // _BUCKET_NS  # it is not over yet
        first = max(present - BUCKETS, self._fold.created_ns // _BUCKET_NS)
        for old in [number for number in self._buckets if number < first]:
            del self._buckets[old]
        if not self._buckets:
            return ()
        return tuple(_usd(self._buckets.get(number, 0)) for number in range(first, present))

    def _summary(self, row: RunRow, now: int) -> RunSummary:
        if self._damage is not None:
            return msgspec.structs.replace(from_row(row), damaged=self._damage)
        alive = owner_lives(row, now) is True
        return summarize(self._fold, self._fold.running_until(now if alive else row.heartbeat_ns))

    def _take(self, record: Record) -> None:
        self._last_ns = record.at_ns
        if record.type == ev.STEP_STARTED:
            self._last_step = record.name
        cost = (record.usage or {}).get(r.NANO_USD, 0)
        if cost and record.type != ev.RUN_FORKED:  # of a fork, that was its origin's
            self._costs.append((record.at_ns, cost))
            bucket = record.at_ns // _BUCKET_NS
            self._buckets[bucket] = self._buckets.get(bucket, 0) + cost


def approvals_in(fold: RunFold) -> list[Approval]:
    """Return the steps of a run that wait for an operator."""
    found = []
    if (asks := question(fold)) is not None:
        found.append(
            Approval(
                fold.run_id,
                asks.key,
                asks.name,
                asks.termination,
                seq=asks.seq,
                asked_ns=fold.paused_ns,
                timeout=fold.budget.ask_timeout,
            )
        )
    for key, asked in waiting(fold).items():
        found.append(
            Approval(
                fold.run_id,
                key,
                asked["name"] or "",
                seq=asked["seq"],
                asked_ns=asked["at_ns"],
                timeout=asked.get("timeout"),
            )
        )
    return found


def _usd(nano: int) -> Decimal:
    return Decimal(nano).scaleb(-9).normalize() + 0


def nearest_limit(account: Account) -> LimitUse | None:
    """Return the enforced limit of which most is used or reserved; None where nothing is limited."""
    uses = [
        LimitUse(
            r.public_name(resource),
            (account.spent.get(resource, 0) + account.reserved.get(resource, 0)) / limit if limit else 1.0,
        )
        for resource, limit in account.limits.items()
        if resource != r.SECONDS
    ]
    return max(uses, key=lambda use: use.share, default=None)


def owner_lives(row: RunRow, now: int) -> bool | None:
    """Return whether a run's owner lives, by its process or else by its heartbeat; None without an owner."""
    return counts_as_alive(row.owner, row.heartbeat_ns, now) if row.owner else None
