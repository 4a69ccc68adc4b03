"""This process's side of a ledger that lies apart from the log (SEMANTICS rule 4).

    reserve   hold the room at the ledger, under a name made of run, key and attempt
    start     commit `step_started`, which names the accounts: from here on the room counts as used
    ...       the body; its outcome is committed
    settle    tell the ledger what it was

The log is the truth.  Each act on the ledger may be tried again, and is, until it is done: what this
process could not tell the ledger it tells it later, and what it cannot tell any more, since it died,
others read in the log (`reconcile`).

The ledger's books are of a generation, which the store knows too, so that books that were lost or put
back from a backup are noticed.  Making them anew (`rebuild`) closes an account of the store that every
start under the old generation moves: none can be committed after the log was read for the new books.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING

from agentguard._clock import Clock
from agentguard._process import identity
from agentguard.budget.account import Account, Amounts, Request
from agentguard.budget.ledger import LedgerRefusedError, Movement
from agentguard.budget.reservation import LedgerBehindError, Reservation, ReservationTakenError
from agentguard.budget.tenant import TenantBudgets
from agentguard.errors import AgentGuardError, DuplicateKeyError, LogIntegrityError, StoreUnavailableError
from agentguard.protocols import EventStore, Ledger, RunRow
from agentguard.runs.fold import OpenStep
from agentguard.steps.booked import books, came_to, carrying, outcome_of, reservation_of

if TYPE_CHECKING:
    from agentguard.steps.journal import Journal
    from agentguard.steps.model import Step

_log = logging.getLogger("agentguard")

#: Seconds without a sign of life after which others look in the log what a process's reservations came to.
LEASE = 30.0
#: The store's own account of the ledger: `spent` has the generation.  `path` is the URL of the first books;
#: where those of a generation are says its fence.
_MARK = "ledger"
_GENERATION = "generation"
_NOTHING = Request({}, "", "")


class LedgerRebuiltError(Exception):
    """Internal: the ledger was rebuilt between a reservation and the commit of the start; try again."""


class Apart:
    """The accounts of tenants at a ledger apart, for all runs of a store in this process."""

    def __init__(self, ledger: Ledger, store: EventStore, tenants: TenantBudgets, clock: Clock) -> None:
        self.ledger = ledger
        self._store = store
        self._tenants = tenants
        self._clock = clock
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        #: Held while a reservation is given back, so that the same step's next one is not.
        self._giving_back = threading.Lock()
        self._generation: int | None = None
        self._holder = identity()
        #: The steps that the ledger is being asked for, by the names of their reservations.
        self._asking: set[str] = set()
        #: The reservations of steps in flight here.
        self._held: dict[str, Reservation] = {}
        #: What the ledger is still to be told.
        self._due: dict[str, tuple[Reservation, Amounts | None]] = {}

    def _here(self) -> None:
        if self._pid != os.getpid():  # a forked child holds nothing of its parent's
            self._forget()

    # --- the flow of a step --------------------------------------------------------------------

    def reserve(self, step: Step) -> tuple[Reservation, dict[str, Account]]:
        """Hold at the ledger what a step asks of its tenant; gives the accounts too, as they are now.

        Raises:
            LedgerRefusedError: an account has no room.
            DuplicateKeyError: another process is at this step.
            StoreUnavailableError: the ledger cannot be asked, or must be rebuilt first.
        """
        self._here()
        self.catch_up()
        reservation, openings = self._wanted(step)
        with self._giving_back, self._lock:
            if reservation.id in self._asking or reservation.id in self._held:
                raise DuplicateKeyError(step.key, reservation.run_id)
            if reservation.id in self._due:  # given back by another thread, but not told yet
                raise StoreUnavailableError(f"{self.ledger.url} is still to be told of an earlier try")
            self._asking.add(reservation.id)
        try:
            accounts = self._ask(step, reservation, openings)
            with self._lock:
                self._held[reservation.id] = reservation
        except (LedgerRefusedError, DuplicateKeyError):
            raise
        except LedgerBehindError as error:
            if self._rebuilt_since(reservation):
                raise LedgerRebuiltError from None
            raise self._behind(error.found) from None
        except BaseException:  # it may have been made all the same; who gave no answer is not told now
            with self._lock:
                self._due[reservation.id] = reservation, None
            raise
        finally:
            with self._lock:
                self._asking.discard(reservation.id)
        return reservation, accounts

    def _wanted(self, step: Step) -> tuple[Reservation, dict[str, Account]]:
        journal = step.journal
        request = step.request.shared()
        openings = dict(self._tenants.accounts(journal.fold.tenant, self._clock.wall()))
        reservation = Reservation(
            run_id=journal.run_id,
            key=step.key,
            attempt=step.attempt,
            accounts=tuple(openings),
            reserve=request.reserve,
            name=request.name,
            kind=request.kind,
            epoch=journal.epoch,
            generation=self.generation(),
            holder=self._holder,
            nonce=uuid.uuid4().hex,
        )
        return reservation, openings

    def _ask(
        self, step: Step, reservation: Reservation, openings: Mapping[str, Account]
    ) -> dict[str, Account]:
        request = step.request.shared()
        try:
            return self.ledger.reserve(reservation, request, openings, LEASE)
        except ReservationTakenError as taken:
            # By a process that died before the start was on record, whose lease has not run out yet?
            if taken.held is None or not self._settle_dead(taken.held):
                raise DuplicateKeyError(step.key, reservation.run_id) from None
        try:
            return self.ledger.reserve(reservation, request, openings, LEASE)
        except ReservationTakenError:
            raise DuplicateKeyError(step.key, reservation.run_id) from None

    def _settle_dead(self, reservation: Reservation) -> bool:
        """Settle what a process left behind; gives whether it could not go on with it any more."""
        came = came_to(self._store, reservation)
        if came is None:
            return False
        with contextlib.suppress(LedgerBehindError):
            self.ledger.settle(reservation, came.usage, final=came.final)
        return True

    def fence(self, reservation: Reservation) -> Movement:
        """What the start moves in the store, so that it cannot be committed once the ledger is rebuilt."""
        name = _fence(reservation.generation)
        return Movement(name, _NOTHING, opening=Account(name, None))

    def give_back(self, reservation: Reservation) -> None:
        """The step has not started."""
        self._settle(reservation, None)

    def rebuilt_elsewhere(self, reservation: Reservation) -> None:
        """The store would not commit the start, since it knows newer books than those that granted it.

        They are asked for next.  Whoever was to make them may have died: then they are behind.
        """
        self._generation = None
        self.give_back(reservation)

    def closed(self, journal: Journal, key: str, step: OpenStep, usage: Amounts | None) -> dict[str, Account]:
        """The outcome of a step is on record, and what it used, None for nothing: the ledger is told.

        If it cannot be told now, it is told later.  Gives the accounts as they are now, if it is known.
        """
        self._here()
        made = reservation_of(
            journal.run_id,
            key,
            step,
            epoch=journal.epoch,
            generation=self._generation or 0,
            holder=self._holder,
        )
        return self._settle(self._held.get(made.id, made), usage)

    def _settle(self, reservation: Reservation, usage: Amounts | None) -> dict[str, Account]:
        with self._lock:
            self._held.pop(reservation.id, None)
            self._due[reservation.id] = reservation, usage
        try:
            return self._tell(reservation, usage)
        except StoreUnavailableError as error:
            _log.warning("the ledger is to be told later what step %s used: %s", reservation.key, error)
            return {}

    def _tell(self, reservation: Reservation, usage: Amounts | None) -> dict[str, Account]:
        # What is given back must not be given back again when the step's next try holds it.
        with self._giving_back if usage is None else contextlib.nullcontext():
            if usage is None and reservation.id not in self._due:  # another thread was faster
                return {}
            try:
                accounts = self.ledger.settle(reservation, usage)
            except LedgerBehindError as error:
                raise self._behind(error.found) from None
            with self._lock:
                self._due.pop(reservation.id, None)
        return accounts

    def catch_up(self) -> None:
        """Tell the ledger what it could not be told so far.

        Raises:
            StoreUnavailableError: it still cannot be told.
        """
        for reservation, usage in list(self._due.values()):
            self._tell(reservation, usage)

    # --- signs of life -------------------------------------------------------------------------

    def beat(self) -> None:
        """Tell the ledger that this process lives, and settle what dead ones have left behind.

        Raises:
            StoreUnavailableError: the ledger or the store is gone.
        """
        self._here()
        if self._generation is None and not self._held and not self._due:
            return  # it was never used here
        self.catch_up()
        generation = self.generation()
        try:
            with self._giving_back:  # or what is given back meanwhile would be put back by this
                held = list(self._held.values())
                self.ledger.renew(generation, self._holder, held, LEASE)
        except LedgerBehindError:
            self._generation = None  # rebuilt since, or lost, which the next step is told
            return
        self.reconcile()

    def reconcile(self) -> None:
        """Look in the log what the reservations of silent processes came to, and settle them."""
        for reservation in self.ledger.overdue():
            with contextlib.suppress(LogIntegrityError):  # `verify` tells of that log
                self._settle_dead(reservation)

    # --- generations ---------------------------------------------------------------------------

    def generation(self) -> int:
        """The generation that the ledger's books must be of.  A store's first books are made here.

        Raises:
            StoreUnavailableError: the books are another store's.
        """
        if self._generation is None:
            self._generation = self._known() or self._begin()
        return self._generation

    def _known(self) -> int:
        mark = self._store.accounts([_MARK]).get(_MARK)
        return 0 if mark is None else mark.spent.get(_GENERATION, 0)

    def _behind(self, found: int) -> StoreUnavailableError:
        self._generation = None  # to be asked for again
        what = f"has books of generation {found}" if found else "has lost its books"
        return StoreUnavailableError(
            f"the ledger {self.ledger.url} {what}, and the log knows a newer one; no step of a tenant with a "
            "budget is let through until it is rebuilt from the log: guard.rebuild_ledger(), or "
            "`agentguard doctor --rebuild-ledger`"
        )

    def generations(self) -> tuple[int, int]:
        """The generation of the ledger's books, and the one that the store knows; 0 where there is none.

        Raises:
            StoreUnavailableError: the ledger cannot be asked.
        """
        return self.ledger.generation(), self._known()

    def _rebuilt_since(self, reservation: Reservation) -> bool:
        self._generation = None
        return self.generation() != reservation.generation

    def _begin(self) -> int:
        """The first books.  Whoever else is at the store waits, and finds them made."""
        self.ledger.generation()  # nobody has to wait for a server that does not answer
        with self._store.lock_for(""), self._store.exclusive(""):
            if known := self._known():
                return known
            if found := self.ledger.generation():
                raise StoreUnavailableError(
                    f"{self.ledger.url} has the books of another store (their generation is {found}, and "
                    f"{self._store.url} knows of none); give each store a ledger of its own, or, if these "
                    "books may go, make them anew from the log: guard.rebuild_ledger()"
                )
            generation = self._clock.wall()
            self._make_books(generation)
            self._mark(generation)
            return generation

    def rebuild(self) -> int:
        """Make the ledger's books anew from the log; gives how many reservations are in them."""
        self.ledger.generation()  # one that cannot be reached must not cost those in use their generation
        with self._store.lock_for(""), self._store.exclusive(""):
            known = self._known()
            generation = max(known + 1, self._clock.wall())
            self._mark(generation, known)
            if known:
                fence = _fence(known)
                moves = [Movement(fence, close=True, opening=Account(fence, None))]
                self._store.append(0, (), movements=moves)
        # From here on no start under the old generation can be committed.
        self._generation = None
        try:
            reservations = self._make_books(generation)
        except LedgerBehindError:
            return 0  # another process has made newer ones meanwhile
        for reservation in reservations:
            came = outcome_of(self._store, reservation)
            if came is not None:  # since the log was read, and the old books were told
                self._settle(reservation, came.usage)
        return len(reservations)

    def _mark(self, generation: int, known: int = 0) -> None:
        opening = Account(self.ledger.url, None)
        move = Movement(_MARK, settle=({}, {_GENERATION: generation - known}), opening=opening)
        # Each generation says where its books are: they may have moved to another server.
        self._store.append(0, (), movements=[move, Movement(_fence(generation), opening=opening)])

    def _make_books(self, generation: int) -> list[Reservation]:
        accounts, reservations = books(self._store, self._tenants, self._clock.wall(), generation)
        self.ledger.rebuild(generation, accounts, reservations)
        return reservations

    def close(self) -> None:
        """Tell the ledger what it is still to be told, if it can be, and let go of it."""
        with contextlib.suppress(AgentGuardError):
            self.catch_up()
        self.ledger.close()

    def carry(self, runs: list[RunRow]) -> None:
        """Keep in the store what runs were charged that are to be pruned, for the next books."""
        if moves := carrying(self._store, self._tenants, runs):
            self._store.append(0, (), movements=moves)


def is_fence(account: str) -> bool:
    """Whether an account of the store is one that `Apart.fence` moves."""
    return account.startswith(f"{_MARK}:")


def ledger_of(store: EventStore) -> str | None:
    """Where the accounts of a store's tenants are kept, if that is apart from it."""
    mark = store.accounts([_MARK]).get(_MARK)
    if mark is None:
        return None
    fence = _fence(mark.spent.get(_GENERATION, 0))
    return store.accounts([fence]).get(fence, mark).path


def check_alone(store: EventStore) -> None:
    """Refuse to charge tenants in a store whose ledger lies apart.

    Raises:
        StoreUnavailableError: it says where.
    """
    where = ledger_of(store)
    if where is not None:
        raise StoreUnavailableError(
            f"the budgets of the tenants in {store.url} are kept at the ledger {where}; "
            "open the guard with it: ledger=, or AGENTGUARD_LEDGER"
        )


def _fence(generation: int) -> str:
    return f"{_MARK}:{generation}"
