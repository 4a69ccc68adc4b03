"""Acts that charge shared accounts with room to spare: one round trip decides and commits them.

Whether a step may charge a tenant's account is decided by `budget`, on what the account holds.  To hold the
account while the client decides keeps everybody else waiting for a client's turn.  So the client decides on
what it saw last, and says how far its decision holds (`ledger.shifts`): the server compares, and adds.  Near
a limit, and where more than amounts has changed, acts are left to `transact`, which decides on what the
accounts hold now.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence

import msgspec
import psycopg

from agentguard.budget import ledger
from agentguard.budget.account import AMOUNTS, Account
from agentguard.budget.ledger import Movement, Shift
from agentguard.budget.tenant import charged_during
from agentguard.errors import StoreUnavailableError
from agentguard.stores import _accounts
from agentguard.stores import _postgres_acts as acts_
from agentguard.stores._postgres_acts import Act
from agentguard.stores._postgres_link import Link

#: Events of several runs are sent with charges only up to so many bytes, which go to the server at once: a
#: client that is paused in the middle would hold the accounts.
_AT_ONCE = 32_768
#: How many accounts are remembered.
_MOST = 1000

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[msgspec.Raw]).decode


def charge(
    link: Link, acts: Sequence[Act], narrow: str | None, known: MutableMapping[str, Account]
) -> list[Act]:
    """Commit the acts of runs whose accounts have room to spare; gives the others, undecided.

    `known` is what accounts held when they were last seen, and is brought up to date.
    """
    others = {act.number for act in acts if not act.events or act.row is not None}
    chains = acts_.chains_of([act for act in acts if act.number not in others])
    shifts = {run: ledger.shifts([act.movements for act in chain], known) for run, chain in chains.items()}
    chosen = {run: found for run, found in shifts.items() if found}
    if chosen and _is_sent_at_once([chains[run] for run in chosen]):
        told = _ask(link, chains, chosen, narrow)
    else:
        told = {}
    for run, chain in chains.items():
        letter, data = told.get(run, b"c")[:1], told.get(run, b"c")[1:]
        if letter == b"a":
            _give(chain, sorted(chosen[run]), data, known)
        elif letter == b"m":
            for act in chain:
                act.moved()
        else:
            others.add(run)
    return [act for act in acts if act.number in others and act.error is None]


def note(accounts: Mapping[str, Account], known: MutableMapping[str, Account]) -> None:
    """Remember what accounts hold."""
    if len(known) > _MOST:
        known.clear()
    known.update(accounts)


def _is_sent_at_once(chains: Sequence[Sequence[Act]]) -> bool:
    events = [event for chain in chains for act in chain for event in act.events]
    return len(chains) == 1 or sum(len(e.body) + len(e.payload or b"") for e in events) <= _AT_ONCE


def _ask(
    link: Link,
    chains: Mapping[int, Sequence[Act]],
    chosen: Mapping[int, Mapping[str, Shift]],
    narrow: str | None,
) -> dict[int, bytes]:
    """What became of each run's chain, as `append` tells it."""
    runs = sorted(chosen)
    calls: list[acts_.Asked] = []
    if len(runs) > 1:  # their accounts are locked in one order; runs are not waited for
        calls.append(acts_.holding((), [act for run in runs for act in chains[run]], 0, narrow))
    placed = 0
    for run in runs:
        movements = [movement for act in chains[run] for movement in act.movements]
        charges = _encode(_charges(chosen[run], movements))
        calls.append(acts_.appending(chains[run], placed, 0, narrow, charges))
        placed += sum(len(act.events) for act in chains[run])
    try:
        results = link.together(calls)
    except psycopg.DataError:  # an account that somebody edited, or a value of an event: `transact` tells
        return {}
    told = [result.get_value(0, 0) or b"" for result in results[-len(runs) :]]
    return dict(zip(runs, told, strict=True))


def _charges(shifts: Mapping[str, Shift], movements: Sequence[Movement]) -> list[tuple[object, ...]]:
    """What `agentguard.charge` is asked to do."""
    windows = {
        movement.account: charged_during(movement.account, movement.opening.path)
        for movement in movements
        if movement.opening is not None and movement.request is not None
    }
    charges: list[tuple[object, ...]] = []
    for name in sorted(shifts):
        shift, window = shifts[name], windows.get(name)
        resources = {*shift.held, *shift.most}.union(*shift.added.values())
        amounts = [
            (
                resource,
                *(shift.added[part].get(resource) for part in AMOUNTS),
                shift.held.get(resource, 0),
                shift.most.get(resource),
            )
            for resource in sorted(resources)
        ]
        between = (None, None) if window is None else (window.start, window.stop)
        charges.append((name, shift.rest, *between, amounts))
    return charges


def _give(
    chain: Sequence[Act], names: Sequence[str], data: bytes, known: MutableMapping[str, Account]
) -> None:
    given: dict[str, Account] = {}
    for name, text in zip(names, _decode(data), strict=True):
        try:
            given[name] = _accounts.account(name, bytes(text))
        except StoreUnavailableError:  # edited where nothing of these acts is charged: the next one is told
            known.pop(name, None)
    note(given, known)
    for act in chain:
        act.accounts = given
