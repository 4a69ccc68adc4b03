"""A ledger in memory: the contract of `agentguard.protocols.Ledger` at its shortest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from agentguard.budget import ledger
from agentguard.budget.account import Account, Amounts, Request
from agentguard.budget.ledger import Movement
from agentguard.budget.reservation import LedgerBehindError, Reservation, ReservationTakenError


class MemoryLedger:
    """A ledger that lives as long as this process: for tests, and to read before you write one.

    Args:
        monotonic: seconds that only go forward, by which leases run out.

    Example:
        >>> from agentguard import Budget, Guard, Usage, guarded_step
        >>> @guarded_step(usage=Usage(emails=1))
        ... def send() -> None: ...
        >>> with Guard.in_memory(ledger=MemoryLedger()) as guard:
        ...     guard.set_tenant_budget("acme", Budget(emails=5))
        ...     with guard.run("triage", tenant="acme"):
        ...         send()
        ...     guard.tenants()[0].spent["emails"]
        1
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.url = "memory://ledger"
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._generation = 0
        self._accounts: dict[str, Account] = {}
        self._reservations: dict[str, Reservation] = {}
        #: By id, and by nonce what was given back.
        self._settled: set[str] = set()
        #: Until when each holder is taken to live.
        self._leases: dict[str, float] = {}

    def generation(self) -> int:
        """The generation that the books are of, or 0 where there are none."""
        return self._generation

    def _check(self, generation: int) -> None:
        if generation != self._generation:
            raise LedgerBehindError(self._generation)

    def reserve(
        self,
        reservation: Reservation,
        request: Request,
        openings: Mapping[str, Account],
        lease: float,
    ) -> dict[str, Account]:
        """Hold what a step asks for on every account of `reservation`."""
        with self._lock:
            self._check(reservation.generation)
            known = self._reservations.get(reservation.id)
            if known is not None and not known.charged and _same_try(known, reservation):
                return self._copies(reservation.accounts)
            if known is not None or not self._settled.isdisjoint((reservation.id, reservation.nonce)):
                raise ReservationTakenError(known)
            moves = [Movement(name, request, opening=openings[name]) for name in reservation.accounts]
            accounts = self._copies(reservation.accounts)
            ledger.apply(moves, accounts)
            self._accounts |= accounts
            self._reservations[reservation.id] = reservation
            self._live(reservation.holder, lease)
            return self._copies(reservation.accounts)

    def settle(
        self, reservation: Reservation, usage: Amounts | None, *, final: bool = True
    ) -> dict[str, Account]:
        """Charge what was used in place of a reservation; None gives it back."""
        with self._lock:
            if self._generation < max(reservation.generation, 1):
                raise LedgerBehindError(self._generation)
            known = self._reservations.get(reservation.id)
            if usage is None and reservation.nonce:
                self._settled.add(reservation.nonce)
            if known is not None:
                if usage is not None or known.is_of(reservation):
                    self._close(known, usage, final=final)
            elif (
                usage is not None
                and reservation.id not in self._settled
                and reservation.generation == self._generation
            ):
                self._put(reservation)
                self._close(reservation, usage, final=final)
            return self._copies(reservation.accounts)

    def _put(self, reservation: Reservation) -> None:
        """Enter a reservation that was granted, whatever room there is."""
        for name in reservation.accounts:
            account = self._accounts.setdefault(name, Account(name, None))
            account.reserve(reservation.request)
        self._reservations[reservation.id] = reservation

    def _close(self, known: Reservation, usage: Amounts | None, *, final: bool) -> None:
        if known.charged and not final:
            return
        for name in known.accounts:
            account = self._accounts[name]
            if known.charged:
                account.uncharge(known.reserve)
            if usage is None:
                account.release(known.request)
            else:
                account.settle(known.reserve, usage)
        if final:
            del self._reservations[known.id]
            if usage is not None:
                self._settled.add(known.id)
        else:
            self._reservations[known.id] = replace(known, charged=True)

    def renew(
        self, generation: int, holder: Mapping[str, Any], reservations: Sequence[Reservation], lease: float
    ) -> None:
        """Say that a holder lives; what it holds and is missing is put back."""
        with self._lock:
            self._check(generation)
            self._live(holder, lease)
            for reservation in reservations:
                known = reservation.id in self._reservations or reservation.id in self._settled
                if not known and reservation.generation == generation:
                    self._put(reservation)

    def _live(self, holder: Mapping[str, Any], lease: float) -> None:
        self._leases[repr(holder)] = self._monotonic() + lease

    def overdue(self) -> list[Reservation]:
        """The reservations, not charged yet, of holders whose lease has run out."""
        with self._lock:
            now = self._monotonic()
            return [
                reservation
                for reservation in self._reservations.values()
                if not reservation.charged and self._leases.get(repr(reservation.holder), 0.0) < now
            ]

    def rebuild(
        self, generation: int, accounts: Mapping[str, Account], reservations: Sequence[Reservation]
    ) -> None:
        """Put these books in the place of what is there."""
        with self._lock:
            if generation < self._generation:
                raise LedgerBehindError(self._generation)
            if generation == self._generation:
                return
            self._generation = generation
            self._accounts = {name: _copy(account) for name, account in accounts.items()}
            self._reservations = {reservation.id: reservation for reservation in reservations}
            self._settled.clear()

    def accounts(self, ids: Sequence[str]) -> dict[str, Account]:
        """The accounts that exist among `ids`."""
        with self._lock:
            return self._copies(ids)

    def _copies(self, names: Sequence[str]) -> dict[str, Account]:
        return {name: _copy(self._accounts[name]) for name in names if name in self._accounts}

    def lose(self) -> None:
        """Forget everything, as a server does that is restarted without a disk."""
        with self._lock:
            self._generation = 0
            self._accounts.clear()
            self._reservations.clear()
            self._settled.clear()
            self._leases.clear()

    def close(self) -> None:
        """Keep everything: another guard may use it on."""


def _copy(account: Account) -> Account:
    return Account.from_data(account.to_data())


def _same_try(one: Reservation, other: Reservation) -> bool:
    return (one.holder, one.nonce) == (other.holder, other.nonce)
