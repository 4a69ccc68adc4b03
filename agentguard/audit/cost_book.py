"""The costs of all runs, added up once and kept: each run is read once, and those that go on are read on."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from agentguard.audit.costs import COST_KEYS, KEYS, Charge, Charges, CostLine, Sums
from agentguard.budget.model import Usage
from agentguard.errors import LogIntegrityError
from agentguard.protocols import EventStore, RunRow

#: What it sums by: everything but single runs, of which there are too many.
BOOK_KEYS: Final = tuple(key for key in COST_KEYS if key != "run")
_PAGE: Final = 200
#: After so many charges of one run the time is looked at.
_BETWEEN: Final = 500
_DAY, _TENANT = BOOK_KEYS.index("day"), BOOK_KEYS.index("tenant")


class CostBook:
    """What the steps of a store's runs were charged, read from the newest run back, a while at a time.

    What runs were charged that were pruned since stays in it.  Not for several threads at once.

    Example:
        >>> from agentguard import Guard, Usage
        >>> guard = Guard.in_memory(telemetry=False)
        >>> with guard.run("billing") as run:
        ...     _ = run.call("pay", int, usage=Usage(usd="0.25"))
        >>> book = CostBook(guard.components.store)
        >>> book.read_on(seconds=1)
        True
        >>> [(line.key, line.usd) for line in book.lines(["step"])["step"]]
        [('pay', Decimal('0.25'))]
    """

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._sums: dict[tuple[str, ...], tuple[Usage, int]] = {}
        self._known: set[str] = set()
        #: Runs of which more is to be read, and those that are not read yet, the oldest first.
        self._open: dict[str, Charges] = {}
        self._pending: list[RunRow] = []
        #: The oldest run that was listed; whether there are no older ones.
        self._oldest: str | None = None
        self._listed_all = False
        #: How many runs have a log that cannot be read.
        self.damaged = 0

    @property
    def runs(self) -> int:
        """How many runs are in it."""
        return len(self._known) - len(self._pending)

    def read_on(self, seconds: float) -> bool:
        """Read what is new, and then further back, for so long; return whether that was all."""
        deadline = time.monotonic() + seconds
        self._list_new()
        for run_id, charges in list(self._open.items()):
            if not self._read(run_id, charges, deadline):
                return False
        while self._pending or self._list_older():
            row = self._pending.pop()
            charges = self._open[row.run_id] = Charges(row)
            if not self._read(row.run_id, charges, deadline):
                return False
            if time.monotonic() > deadline:  # one run at least was read, so that it comes to an end
                return not self._pending and self._listed_all
        return True

    def lines(
        self, keys: Iterable[str], *, since: str = "", tenant: str | None = None
    ) -> dict[str, list[CostLine]]:
        """Return the sums by each of `keys`, of one tenant alone if it is named.

        Args:
            keys: some of `BOOK_KEYS`.
            since: the first day that counts, as `2026-01-31` (UTC).
            tenant: whose runs count; None for all.
        """
        places = {key: BOOK_KEYS.index(key) for key in keys}
        found = {key: Sums() for key in places}
        for named, (usage, unpriced) in self._sums.items():
            if named[_DAY] >= since and tenant in (None, named[_TENANT]):
                for key, place in places.items():
                    found[key].add(named[place], usage, unpriced)
        return {key: sums.lines() for key, sums in found.items()}

    def _list_new(self) -> None:
        """List the runs that are newer than those known; at first there are none."""
        if not self._known:
            return
        new: list[RunRow] = []
        before: str | None = None
        while True:
            rows = self._store.rows(limit=_PAGE, before=before)
            unknown = [row for row in rows if row.run_id not in self._known]
            new += unknown
            if not unknown or len(rows) < _PAGE:
                break
            before = rows[-1].run_id
        self._list(new, newest=True)

    def _list_older(self) -> bool:
        """List the runs before those known; return whether there were any."""
        while not self._pending and not self._listed_all:
            rows = self._store.rows(limit=_PAGE, before=self._oldest)
            if not rows and self._oldest is not None and self._store.row(self._oldest) is None:
                self._oldest = None  # it was pruned: begin again at the newest, of which most are known
                continue
            self._listed_all = len(rows) < _PAGE
            self._oldest = rows[-1].run_id if rows else self._oldest
            self._list([row for row in rows if row.run_id not in self._known], newest=False)
        return bool(self._pending)

    def _list(self, rows: list[RunRow], *, newest: bool) -> None:
        self._known.update(row.run_id for row in rows)
        older_first = rows[::-1]
        self._pending = self._pending + older_first if newest else older_first + self._pending

    def _read(self, run_id: str, charges: Charges, deadline: float) -> bool:
        """Read a run on; return whether it was read to its present end."""
        try:
            for number, charge in enumerate(charges.read_on(self._store), 1):
                self._add(charge)
                if number % _BETWEEN == 0 and time.monotonic() > deadline:
                    return False
        except LogIntegrityError:
            self.damaged += 1
            del self._open[run_id]
            return True
        if charges.whole:
            del self._open[run_id]
        return True

    def _add(self, charge: Charge) -> None:
        named = tuple(KEYS[key](charge) for key in BOOK_KEYS)
        usage, unpriced = self._sums.get(named, (Usage(), 0))
        self._sums[named] = (usage + charge.usage, unpriced + charge.unpriced)
