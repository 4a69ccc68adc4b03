"""Reservations on a ledger that lies apart from the log, and what such a ledger says no with.

In a ledger of its own (Redis), a tenant's account cannot move in the same transaction as the event.
So the ledger remembers each reservation by itself, named after the step that holds it, and every act
on it may be tried again: the log is the truth, and tells what a reservation came to (SEMANTICS rule 4).
"""

from __future__ import annotations

from typing import Any

import msgspec

from agentguard.budget.account import Amounts, Request


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """What one attempt at a step holds on the accounts of its tenant.

    `accounts` are the windows that it was made in.  `holder` is the process that runs the step, and
    `epoch` the claim on the run that it acts under.  `generation` is the ledger's when it was made.
    A `charged` one is spent in the ledger's books, since its holder died in the middle of the step: what
    the step really used, should somebody find out, takes the place of that.
    """

    run_id: str
    key: str
    attempt: int
    accounts: tuple[str, ...]
    reserve: Amounts
    name: str
    kind: str
    epoch: int
    generation: int
    holder: dict[str, Any]
    charged: bool = False
    #: Another one for each time that it is asked for, so that a request which was given up, and arrives
    #: late, is known; "" where the log alone tells of it.
    nonce: str = ""

    @property
    def id(self) -> str:
        """What names it: the run, the step's key, and the attempt."""
        return f"{self.run_id}\n{self.key}\n{self.attempt}"

    def is_of(self, other: Reservation) -> bool:
        """Whether `other` was made by who holds this one, and may give it back."""
        return self.holder == other.holder and self.nonce in ("", other.nonce)

    @property
    def request(self) -> Request:
        """What it asked of each account."""
        return Request(self.reserve, self.name, self.kind)


class LedgerBehindError(Exception):
    """Internal: the ledger has lost what the log knows of it, or was never told: it must be rebuilt.

    `found` is the ledger's generation, 0 where it has none.
    """

    def __init__(self, found: int) -> None:
        super().__init__(found)
        self.found = found


class ReservationTakenError(Exception):
    """Internal: a reservation of that name is on the books already: `held` by another process, or settled."""

    def __init__(self, held: Reservation | None) -> None:
        super().__init__(held)
        self.held = held
