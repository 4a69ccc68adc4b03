"""What the console shows, as values, for its pages and its API, cut down to what a token sees."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from agentguard.alerts.rules import Alert, Thresholds, alerts
from agentguard.alerts.watch import Reader
from agentguard.audit.compare import RunDiff
from agentguard.audit.cost_book import CostBook
from agentguard.audit.costs import CostLine
from agentguard.audit.reading import asked_arguments
from agentguard.console import run_list, timeline
from agentguard.console.auth import Auth, ConsoleError, Identity
from agentguard.console.charts import Curve
from agentguard.console.forks import Forks
from agentguard.console.health import Part, examine, summed
from agentguard.console.run_list import PAGE, RunFilter, RunPage
from agentguard.console.spending import curves
from agentguard.console.timeline import TimelineEntry
from agentguard.console.tokens import Role, Tokens
from agentguard.console.traces import TraceLinks
from agentguard.errors import AgentGuardError, RunNotFoundError
from agentguard.events.model import CONTROL_RUN_ID
from agentguard.guard import Guard
from agentguard.killswitch.model import Acknowledgements, Kill
from agentguard.killswitch.page import PageKillSwitch
from agentguard.monitoring import Approval, RunStatus, status_of
from agentguard.protocols import RunRow
from agentguard.queries import TenantAccount
from agentguard.runs.summary import from_row

#: How long, in seconds, what was read of the live runs is shown to others too.
_FRESH_SECONDS = 0.5
#: The same for how the parts stand, which costs more.
_HEALTH_SECONDS = 5.0
#: How long, in seconds, a page of costs may read what is not added up yet.
_ADDING_SECONDS = 1.0
#: How many events two runs may have together to be compared on a page.
_LONGEST_COMPARED = 40_000
#: How many live runs the overview shows.
LIVE_SHOWN = 100
#: How many calls of two runs are shown side by side on one page.
CALLS = 200


class Waiting(NamedTuple):
    """A step that waits for an operator; `arguments` is None where they are not shown or not kept."""

    approval: Approval
    tenant: str
    arguments: Any


class Snapshot(NamedTuple):
    """The present: live runs, steps that wait, kills in force, tenants' budgets, alerts, how the parts stand.

    `trouble` says by component what could not be read; `number` rises with each reading.
    """

    live: list[RunStatus]
    waiting: list[Waiting]
    kills: list[Kill]
    tenants: list[TenantAccount]
    alerts: list[Alert]
    health: Sequence[Part] = ()
    trouble: Mapping[str, str] = {}
    number: int = 0


class Hit(NamedTuple):
    """A kill that was given, whom it was to hit, and how those stand now."""

    kill: Kill
    reached: Acknowledgements
    late_pids: list[int]
    runs: list[RunStatus]

    @property
    def complete(self) -> bool:
        """Whether every process acted and every run ended."""
        ended = all(run.summary.state.final for run in self.runs)
        return ended and self.reached.acknowledged >= self.reached.live


class Console:
    """The guard as the console sees it; safe between threads."""

    def __init__(
        self,
        guard: Guard,
        tokens: Tokens,
        *,
        hide_payloads: bool = False,
        thresholds: Thresholds = Thresholds(),  # noqa: B008 - it cannot be changed
        trace_url: str | None = None,
        adding_seconds: float = _ADDING_SECONDS,
    ) -> None:
        self.traces = TraceLinks(trace_url)
        self.guard = guard
        self.auth = Auth(tokens)
        self._hide_payloads = hide_payloads
        self._thresholds = thresholds.check()
        self._lock = threading.Lock()
        self._reader = Reader(guard)
        self._snapshot: tuple[float, Snapshot] | None = None
        self._number = 0
        self._health: tuple[float, list[Part]] | None = None
        #: The arguments of steps that wait, by run and key, and the number of the run's event as of which.
        self._asked: dict[tuple[str, str], tuple[int, Any]] = {}
        self._book = CostBook(guard.components.store)
        self._adding_seconds = adding_seconds
        self._adding = threading.Lock()
        self._forks = Forks(guard.components.store)
        #: By generation: the runs that each kill of this console covered when it was given.
        self._covered: dict[int, list[str]] = {}

    def shows_payloads(self, who: Identity) -> bool:
        """Return whether arguments and results are shown to a token."""
        return not self._hide_payloads or who.role > Role.VIEWER

    # --- the present -----------------------------------------------------------------------------

    def now(self, who: Identity) -> Snapshot:
        """Return the present as a token sees it."""
        whole = self._read()
        waiting = [asked for asked in whole.waiting if who.sees(asked.tenant)]
        if not self.shows_payloads(who):
            waiting = [asked._replace(arguments=None) for asked in waiting]
        return Snapshot(
            [status for status in whole.live if who.sees(status.summary.tenant)],
            waiting,
            [kill for kill in whole.kills if self._sees_kill(who, kill)],
            [account for account in whole.tenants if who.sees(account.tenant)],
            [alert for alert in whole.alerts if who.sees(alert.tenant) or not alert.tenant],
            whole.health if who.tenant is None else summed(whole.health),
            whole.trouble,
            whole.number,
        )

    def changed(self) -> None:
        """Forget what was read: something was done."""
        with self._lock:
            self._snapshot = None

    def _read(self) -> Snapshot:
        with self._lock:
            if self._snapshot is None or self._snapshot[0] < time.monotonic() - _FRESH_SECONDS:
                self._number += 1
                self._snapshot = (time.monotonic(), self._read_anew())
            return self._snapshot[1]

    def _read_anew(self) -> Snapshot:
        present = self._reader.read()
        live = sorted(present.live, key=lambda run: (-run.usd_per_minute, -run.summary.usage.usd))
        return Snapshot(
            live,
            self._waiting(live),
            [kill for kill in present.kills if not kill.cleared],
            present.tenants,
            alerts(present._replace(waiting=[]), self._thresholds),  # those that wait are shown beside
            self._examined(),
            present.trouble,
            self._number,
        )

    def _waiting(self, live: list[RunStatus]) -> list[Waiting]:
        found = [(status, asked) for status in live for asked in status.waiting]
        # A log that has not grown asks with the same arguments.
        self._asked = {
            (asked.run_id, asked.key): known
            if (known := self._asked.get((asked.run_id, asked.key))) and known[0] == status.summary.head.seq
            else (status.summary.head.seq, self._arguments(asked))
            for status, asked in found
        }
        return [
            Waiting(asked, status.summary.tenant, self._asked[asked.run_id, asked.key][1])
            for status, asked in found
        ]

    def _examined(self) -> list[Part]:
        if self._health is None or self._health[0] < time.monotonic() - _HEALTH_SECONDS:
            self._health = (time.monotonic(), examine(self.guard))
        return self._health[1]

    def _arguments(self, asked: Approval) -> Any:
        if asked.limit is not None:
            return None
        found = asked_arguments(self.guard.components.store, asked.run_id, asked.key)
        return None if found is None else timeline.decoded(found)

    def _sees_kill(self, who: Identity, kill: Kill) -> bool:
        if kill.scope == "global" or who.tenant is None:
            return True
        if kill.scope == "tenant":
            return who.sees(kill.target)
        row = self.guard.components.store.row(kill.target)
        return row is not None and who.sees(row.tenant)

    # --- runs ------------------------------------------------------------------------------------

    def row(self, who: Identity, run_id: str) -> RunRow:
        """Return a run's row.

        Raises:
            RunNotFoundError: there is no such run, or it is another tenant's: a token cannot tell.
        """
        row = None if run_id == CONTROL_RUN_ID else self.guard.components.store.row(run_id)
        if row is None or not who.sees(row.tenant):
            raise RunNotFoundError(run_id)
        return row

    def status(self, row: RunRow) -> RunStatus:
        """Return how a run stands now."""
        return status_of(self.guard.components.store, row, self.guard.components.clock)

    def live_status(self, who: Identity, row: RunRow) -> RunStatus:
        """Return how a run stood a moment ago; a live run that is followed is not read anew."""
        if row.ended_ns is None:
            for status in self.now(who).live:
                if status.summary.run_id == row.run_id:
                    return status
        return self.status(row)

    def runs(self, who: Identity, wanted: RunFilter, after: str) -> RunPage:
        """Return a page of the runs that a token sees.

        Raises:
            ValueError: there is no such state.
            ConsoleError: a filter cannot be meant, or there is no run `after`.
        """
        if wanted.tenant and not who.sees(wanted.tenant):
            return RunPage([], None)
        if after and not self._is_there(who, after):
            raise ConsoleError(400, f"there is no run {after} to go on from; begin again with the newest")
        if who.tenant is not None:
            wanted = wanted._replace(tenant=who.tenant)
        with self._lock:
            live = {status.summary.run_id: status.summary.to_data() for status in self._reader.live()}
        return run_list.page(self.guard.components.store, wanted, after, live)

    def _is_there(self, who: Identity, run_id: str) -> bool:
        row = self.guard.components.store.row(run_id)
        return row is not None and who.sees(row.tenant)

    def timeline(self, who: Identity, row: RunRow, after: int) -> tuple[list[TimelineEntry], int | None]:
        """Return the events of a run above a sequence, and the one after which the next page begins."""
        store = self.guard.components.store
        return timeline.page(store, row.run_id, after, payloads=self.shows_payloads(who))

    def curves(self, status: RunStatus) -> list[Curve]:
        """Return what a run has spent over time."""
        return curves(self.guard.components.store, status, self.guard.components.clock.wall())

    def costs(self, who: Identity, keys: Iterable[str], since: str) -> tuple[dict[str, list[CostLine]], bool]:
        """Return where the money went, by each of some keys, and whether that is all; if not, ask again."""
        with self._adding:
            whole = self._book.read_on(self._adding_seconds)
            return self._book.lines(keys, since=since, tenant=who.tenant), whole

    def forks(self, who: Identity, row: RunRow) -> list[RunRow]:
        """Return the runs that were forked from a run, as far as the newest runs tell."""
        rows = [self.guard.components.store.row(run_id) for run_id in self._forks.of(row.run_id)]
        return [row for row in rows if row is not None and who.sees(row.tenant)]

    def compared(self, who: Identity, row: RunRow, other: str) -> tuple[RunRow, RunDiff]:
        """Return another run, and both beside each other.

        Raises:
            RunNotFoundError: there is no such run for this token.
            ConsoleError: they are too long for a page.
        """
        beside = self.row(who, other)
        lengths = [self.live_status(who, each).summary.head.seq for each in (row, beside)]
        if sum(lengths) > _LONGEST_COMPARED:
            raise ConsoleError(
                400,
                f"these runs have {sum(lengths):,} events, too many for a page: "
                f"agentguard diff {row.run_id} {beside.run_id}",
            )
        return beside, self.guard.diff(row.run_id, beside.run_id)

    # --- kills -----------------------------------------------------------------------------------

    def covered(self, who: Identity, scope: str, target: str) -> list[RunStatus]:
        """Return the live runs that a kill would hit, as a token sees them."""
        found = self.now(who).live
        if scope == "global":
            return found
        of = "tenant" if scope == "tenant" else "run_id"
        return [status for status in found if getattr(status.summary, of) == target]

    def remember(self, generation: int, covered: list[RunStatus]) -> None:
        """Keep whom a kill was to hit, to show later how they stand."""
        self._covered[generation] = [status.summary.run_id for status in covered]
        while len(self._covered) > PAGE:
            self._covered.pop(next(iter(self._covered)))

    def hit(self, who: Identity, generation: int, *, wait: float = 0.0) -> Hit:
        """Return whom a kill has reached.

        Raises:
            AgentGuardError: there is no such kill for this token.
        """
        kills = [kill for kill in self.guard.kills() if kill.generation == generation]
        if not kills or not self._sees_kill(who, kills[0]):
            raise AgentGuardError(f"there is no kill of generation {generation}")
        switch = self.guard.components.switch
        late = switch.unacknowledged(generation) if isinstance(switch, PageKillSwitch) else []
        store = self.guard.components.store
        of_run = (
            [kills[0].target] if kills[0].scope == "run" else []
        )  # ordered elsewhere, or before a restart
        rows = [store.row(run_id) for run_id in self._covered.get(generation, of_run)]
        return Hit(
            kills[0],
            self.guard.acknowledged(generation, wait),
            [process.pid for process in late],
            [self.status(row) for row in rows if row is not None and who.sees(row.tenant)],
        )


def row_data(row: RunRow) -> dict[str, Any]:
    """Return a row as plain data for JSON."""
    return from_row(row).to_data()
