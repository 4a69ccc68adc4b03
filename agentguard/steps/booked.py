"""What the log says of reservations at a ledger apart: it is the truth, the ledger's books follow it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from agentguard._process import is_alive
from agentguard.budget.account import Account, Amounts, Request
from agentguard.budget.ledger import Movement
from agentguard.budget.reservation import Reservation
from agentguard.budget.tenant import TenantBudgets
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.model import Record
from agentguard.protocols import EventStore, RunRow
from agentguard.runs.fold import ONE_STEP, OpenStep
from agentguard.runs.state import RunState

_OUTCOMES = (ev.STEP_COMPLETED, ev.STEP_FAILED, ev.STEP_RESOLVED)
_EVERYTHING = 2**31
#: The store's own accounts of what pruned runs were charged.
_PRUNED = "pruned:"


def reservation_of(
    run_id: str, key: str, step: OpenStep, *, epoch: int, generation: int, holder: dict[str, Any]
) -> Reservation:
    """What a step in flight holds."""
    return Reservation(
        run_id=run_id,
        key=key,
        attempt=step.attempt,
        accounts=step.windows,
        reserve=step.request.reserve,
        name=step.request.name,
        kind=step.request.kind,
        epoch=epoch,
        generation=generation,
        holder=holder,
    )


# --- one reservation -----------------------------------------------------------------------------


class Came(NamedTuple):
    """What a reservation came to: `usage` is None where it is given back.

    It is not final where nobody knows whether the step's body was run.
    """

    usage: Amounts | None
    final: bool


def came_to(store: EventStore, reservation: Reservation) -> Came | None:
    """What a reservation came to, by the log; None while its holder may still go on with it.

    Without a start on record it is given back, since none can be committed any more; a start without an
    outcome is charged.
    """
    row = store.row(reservation.run_id)
    if (
        row is not None
        and not RunState(row.state).final
        and row.epoch <= reservation.epoch
        and is_alive(reservation.holder) is not False
    ):
        return None
    # The log is read after that, so that whatever could be appended until then is seen.
    started, came = _outcome(store, reservation)
    if came is not None:
        return came
    return Came(reservation.reserve, final=False) if started else Came(None, final=True)


def outcome_of(store: EventStore, reservation: Reservation) -> Came | None:
    """What a reservation came to, if the outcome of its step is on record."""
    return _outcome(store, reservation)[1]


def _outcome(store: EventStore, reservation: Reservation) -> tuple[bool, Came | None]:
    """Whether the step's start is on record, and its outcome if it is."""
    started = False
    for record in _records(store, reservation.run_id):
        if (record.key, record.attempt) == (reservation.key, reservation.attempt):
            if record.type == ev.STEP_STARTED:
                started = True
            elif started and record.type in _OUTCOMES:
                return True, Came(_used(record), final=True)
    return started, None


def _records(store: EventStore, run_id: str) -> Iterator[Record]:
    for stored in store.read(run_id):
        yield codec.decode(stored.body)


def _used(record: Record) -> Amounts | None:
    return None if (record.data or {}).get("body_ran") is False else record.usage or {}


def owner_of(row: RunRow) -> dict[str, Any]:
    """The process that owns a run, as reservations name their holders."""
    return {name: value for name, value in row.owner.items() if name in ("host", "boot", "pid", "start")}


# --- all of them ---------------------------------------------------------------------------------


def books(
    store: EventStore, tenants: TenantBudgets, wall_ns: int, generation: int
) -> tuple[dict[str, Account], list[Reservation]]:
    """The accounts of all tenants as the log has them, and what steps in flight hold of them."""
    accounts = {
        name: account for tenant in tenants.tenants() for name, account in tenants.accounts(tenant, wall_ns)
    }
    reservations: list[Reservation] = []
    with store.snapshot():
        for row in store.rows(limit=_EVERYTHING):
            open_steps = _charge(accounts, tenants, row, _records(store, row.run_id))
            reservations += [
                reservation_of(
                    row.run_id, key, step, epoch=row.epoch, generation=generation, holder=owner_of(row)
                )
                for key, step in open_steps.items()
            ]
        pruned = store.accounts([_PRUNED + name for name in accounts])
    for name, account in accounts.items():
        if _PRUNED + name in pruned:
            account.charge(pruned[_PRUNED + name].spent)
    return accounts, reservations


def _charge(
    accounts: dict[str, Account], tenants: TenantBudgets, row: RunRow, records: Iterable[Record]
) -> dict[str, OpenStep]:
    """Charge the accounts with a run's steps; gives those in flight."""
    open_steps: dict[str, OpenStep] = {}
    for record in records:
        data: Mapping[str, Any] = record.data or {}
        key = record.key or ""
        if record.type == ev.STEP_STARTED and "windows" in data:
            request = Request(data.get("reserve", ONE_STEP), record.name or "", record.kind or "")
            step = OpenStep(request, "", record.attempt, tuple(data["windows"]))
            open_steps[key] = step
            for name in step.windows:
                if name not in accounts:
                    accounts[name] = tenants.opening(row.tenant, name)
                accounts[name].reserve(request)
        elif record.type in _OUTCOMES and key in open_steps:
            step = open_steps.pop(key)
            usage = _used(record)
            for name in step.windows:
                if usage is None:
                    accounts[name].release(step.request)
                else:
                    accounts[name].settle(step.request.reserve, usage)
    return open_steps


def carrying(store: EventStore, tenants: TenantBudgets, runs: Iterable[RunRow]) -> list[Movement]:
    """What keeps in the store what runs were charged that are to be pruned.

    Only amounts: how often a tool was called is forgotten with the runs.
    """
    accounts: dict[str, Account] = {}
    for row in runs:
        _charge(accounts, tenants, row, _records(store, row.run_id))
    return [
        Movement(_PRUNED + name, settle=({}, account.spent), opening=Account(_PRUNED + name, None))
        for name, account in accounts.items()
    ]
