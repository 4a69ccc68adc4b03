"""What is asked of a log in one go, and how many of them are carried out together.

An act appends events to one run, moves shared accounts and may change the run's row: all of it or
nothing.  Two ways lead into the tables:

* `append` takes acts that only append.  A statement for each run locks it, compares its head and inserts: all
  of them in one round trip, which commits.  So does `_postgres_charges` with acts that charge accounts with
  room to spare.
* `transact` takes any acts, inside a transaction.  A first round trip locks runs and accounts (each in
  one order for everybody) and reads them; the rules in `budget` decide here, act by act; a second one
  writes what was decided.  An act that is refused has written nothing and holds up no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentguard.budget import ledger
from agentguard.budget.account import Account
from agentguard.budget.ledger import LedgerRefusedError, Movement
from agentguard.budget.tenant import is_charged_at
from agentguard.errors import StoreUnavailableError
from agentguard.events.codec import Stored
from agentguard.protocols import Commit, HeadMovedError, StoreBusyError
from agentguard.stores import _accounts, _sql
from agentguard.stores._postgres_calls import (
    Call,
    bigint,
    bigints,
    binary,
    byteas,
    integer,
    integers,
    text,
    texts,
)
from agentguard.stores._postgres_link import Link
from agentguard.stores._promise import Promise

_TENANT = "tenant:"
#: How long, in milliseconds, another writer of a run is waited for while others' acts wait too.
SHORTLY = 100


class Act:
    """One append; `future` resolves when it is committed or refused."""

    __slots__ = (
        "accounts",
        "after",
        "error",
        "events",
        "future",
        "in_doubt",
        "movements",
        "number",
        "previous",
        "row",
        "since",
    )

    def __init__(
        self,
        number: int,
        events: Sequence[Stored],
        movements: Sequence[Movement] = (),
        row: dict[str, Any] | None = None,
        *,
        previous: bytes | None = None,
        after: Commit | None = None,
    ) -> None:
        self.number = number
        self.events = events
        self.movements = movements
        #: The columns of the run's row, where that changes too.
        self.row = row
        #: The hash of the event that these follow, where the caller has not seen to it that they do.
        self.previous = previous
        #: The act that this one was decided after: where that one fails, so does this.
        self.after = after
        #: When it was accepted, by the monotonic clock.
        self.since = 0.0
        self.accounts: Mapping[str, Account] = {}
        #: Whether it may have been carried out, by a try that was cut short.
        self.in_doubt = False
        self.error: BaseException | None = None
        self.future: Promise[dict[str, Account]] = Promise()

    @property
    def plain(self) -> bool:
        """Whether it does nothing but append."""
        return not self.movements and self.row is None

    @property
    def uses_run(self) -> bool:
        """Whether it touches a run, and not accounts alone."""
        return bool(self.events) or self.row is not None

    def moved(self) -> None:
        """Note that the run's head is another one than this act was decided on."""
        self.error = HeadMovedError(self.number, self.events[0].seq if self.events else 0)

    def resolve(self) -> None:
        """Tell the outcome."""
        self.after = None
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            moved = {movement.account for movement in self.movements} if self.movements else ()
            self.future.set_result({name: self.accounts[name] for name in moved if name in self.accounts})


def append(link: Link, acts: Sequence[Act], patience: int, narrow: str | None) -> list[Act]:
    """Commit acts that only append; gives those whose run another writer holds, undecided."""
    chains = chains_of(acts)
    runs = sorted(chains)
    calls: list[Asked] = []
    placed = 0
    for run in runs:
        calls.append(appending(chains[run], placed, patience, narrow))
        placed += sum(len(act.events) for act in chains[run])
    busy: list[Act] = []
    for run, result in zip(runs, link.together(calls), strict=True):
        told = result.get_value(0, 0)
        if told == b"b":
            busy += chains[run]
        elif told == b"m":
            for act in chains[run]:
                act.moved()
    return busy


def appending(
    chain: Sequence[Act], placed: int, patience: int, narrow: str | None, charges: bytes | None = None
) -> Asked:
    """What appends acts that follow each other, and charges accounts with it."""
    first = chain[0]
    columns = _columns(event for act in chain for event in act.events)
    values = (first.number, first.events[0].seq, first.previous, placed, patience, narrow, *columns, charges)
    return _APPEND, values


def chains_of(acts: Sequence[Act]) -> dict[int, list[Act]]:
    """The acts of each run that follow each other; the others are told that they do not."""
    chains: dict[int, list[Act]] = {}
    heads: dict[int, _Head] = {}
    for act in acts:
        head = heads.get(act.number) or (act.events[0].seq - 1, act.previous)
        if _is_behind_a_failure(act) or not _follows(act, head):
            act.moved()
            continue
        chains.setdefault(act.number, []).append(act)
        heads[act.number] = _end(act, head)
    return chains


def transact(
    link: Link, acts: Sequence[Act], patience: int, narrow: str | None, *, whole: bool = False
) -> list[Act]:
    """Carry out acts in the open transaction of a link; gives those whose run another writer holds.

    With `whole` that is a transaction of their own, begun and committed on the way.
    """
    begin: list[Asked] = [(_BEGIN, ())] if whole else []
    commit: list[Asked] = [(_COMMIT, ())] if whole else []
    heads, epochs, busy, accounts, unreadable, times = _hold(link, begin, acts, patience, narrow)
    done: list[Act] = []
    waiting: list[Act] = []
    for act in acts:
        if act.uses_run and act.number in busy:
            waiting.append(act)
        elif (failure := _unreadable(act, unreadable)) is not None:
            act.error = failure
        elif _decide(act, heads, epochs, accounts, times):
            done.append(act)
    link.together([*(_write(link, done, accounts) if done else ()), *commit])
    return waiting


def holding(runs: Sequence[int], acts: Iterable[Act], patience: int, narrow: str | None) -> Asked:
    """What locks runs, and the accounts that acts charge, and tells what they are."""
    owners: dict[str, tuple[str | None, int]] = {}
    for act in acts:
        for movement in act.movements:
            known = owners.get(movement.account)
            if known is None or known[0] is None:
                owners[movement.account] = (_tenant_of(movement), act.number)
    names = sorted(owners)
    tenants = [owners[name][0] for name in names]
    numbers = [owners[name][1] for name in names]
    return _HOLD, (runs, names, tenants, numbers, patience, narrow)


def _hold(
    link: Link, begin: list[Asked], acts: Sequence[Act], patience: int, narrow: str | None
) -> tuple[
    dict[int, _Head],
    dict[int, int],
    set[int],
    dict[str, Account],
    dict[str, StoreUnavailableError],
    tuple[int, ...],
]:
    runs = sorted({act.number for act in acts if act.uses_run})
    heads: dict[int, _Head] = {}
    epochs: dict[int, int] = {}
    busy: set[int] = set()
    accounts: dict[str, Account] = {}
    unreadable: dict[str, StoreUnavailableError] = {}
    times: tuple[int, ...] = ()
    held = link.together([*begin, holding(runs, acts, patience, narrow)])[-1]
    for number, head, digest, epoch, name, data, *at in link.rows(held):
        times = tuple(at)
        if name is not None:
            try:
                if data is not None:
                    accounts[name] = _accounts.account(name, data)
            except StoreUnavailableError as error:
                unreadable[name] = error
        elif head is None:
            busy.add(number)
        else:
            heads[number], epochs[number] = (head, digest), epoch
    return heads, epochs, busy, accounts, unreadable, times


def _unreadable(act: Act, unreadable: Mapping[str, StoreUnavailableError]) -> StoreUnavailableError | None:
    """Why an act cannot be carried out, though others that came with it can."""
    found = (unreadable.get(movement.account) for movement in act.movements)
    return next((error for error in found if error is not None), None) if unreadable else None


def _tenant_of(movement: Movement) -> str | None:
    """Whose account it is, where the movement tells; else it is that of the run's tenant."""
    if movement.opening is not None and movement.opening.path.startswith(_TENANT):
        return movement.opening.path.removeprefix(_TENANT)
    return None


def _decide(
    act: Act,
    heads: dict[int, _Head],
    epochs: Mapping[int, int],
    accounts: dict[str, Account],
    times: Sequence[int],
) -> bool:
    """Whether an act is carried out; takes it into `heads` and `accounts` where it is."""
    head = heads.get(act.number)
    if act.uses_run:
        fenced = act.row is not None and act.row["epoch"] < epochs.get(act.number, 0)
        if head is None or fenced or _is_behind_a_failure(act) or not _follows(act, head):
            act.moved()
            return False
    if any(_is_out_of_time(movement, times) for movement in act.movements):
        act.moved()
        return False
    # What is refused must leave no trace, and opening an account leaves one.
    trial = {m.account: accounts[m.account] for m in act.movements if m.account in accounts}
    try:
        ledger.apply(act.movements, trial)
    except (LedgerRefusedError, StoreUnavailableError) as error:
        act.error = error
        return False
    accounts.update(trial)
    act.accounts = accounts
    if head is not None:
        heads[act.number] = _end(act, head)
    return True


def _is_out_of_time(movement: Movement, times: Sequence[int]) -> bool:
    """Whether a movement reserves in a tenant's window that is not open while this transaction runs."""
    opening = movement.opening
    if opening is None or movement.request is None:
        return False
    return not is_charged_at(movement.account, opening.path, times)


def _write(link: Link, acts: Sequence[Act], accounts: Mapping[str, Account]) -> list[Asked]:
    """What writes acts that are decided."""
    calls: list[Asked] = []
    changed = sorted({movement.account for act in acts for movement in act.movements})
    new = [_accounts.account_text(accounts[name]) for name in changed]
    numbers = [act.number for act in acts for _ in act.events]
    seqs = [event.seq for act in acts for event in act.events]
    if numbers or changed:
        columns = _columns(event for act in acts for event in act.events)
        calls.append((_PUT, (link.placed, numbers, seqs, *columns, changed, new)))
        link.placed += len(numbers)
    changes = [(act.number, act.row) for act in acts if act.row is not None]
    calls += [(_CHANGE_RUN, (number, *(row[name] for name in _CHANGING))) for number, row in changes]
    # What was given before stays as it is, though later acts move the accounts.
    given = {name: _accounts.account(name, text) for name, text in zip(changed, new, strict=True)}
    for act in acts:
        act.accounts = given
    return calls


def already_done(link: Link, acts: Sequence[Act]) -> list[Act]:
    """The acts that are in the logs: a commit was carried out, and its answer was lost."""
    ends = {(act.number, act.events[-1].seq): act for act in acts if act.events}
    if not ends:
        return []
    numbers, seqs = zip(*ends, strict=True)
    found = link.ask(_SQL["hashes"], (list(numbers), list(seqs)))
    return [ends[number, seq] for number, seq, digest in found if ends[number, seq].events[-1].hash == digest]


def _is_behind_a_failure(act: Act) -> bool:
    return act.after is not None and act.after.error is not None


def _follows(act: Act, head: _Head) -> bool:
    seq, digest = head
    for event in act.events:
        seq += 1
        if event.seq != seq:
            return False
    return digest is None or act.previous is None or act.previous == digest


def _end(act: Act, head: _Head) -> _Head:
    return (act.events[-1].seq, act.events[-1].hash) if act.events else head


def _columns(events: Iterable[Stored]) -> tuple[list[bytes], list[bytes], list[bytes | None]]:
    bodies: list[bytes] = []
    hashes: list[bytes] = []
    payloads: list[bytes | None] = []
    for event in events:
        bodies.append(event.body)
        hashes.append(event.hash)
        payloads.append(event.payload)
    return bodies, hashes, payloads


def busy_error(act: Act) -> StoreBusyError:
    """What an act is told whose run another writer holds."""
    return StoreBusyError(act.number)


#: Sequence and hash of the newest event; without a hash where nobody has looked.
_Head = tuple[int, bytes | None]
#: A call and its values.
Asked = tuple[Call, Sequence[object]]

_SQL = _sql.queries("postgres")
_BEGIN = Call("begin", _SQL["begin"])
_COMMIT = Call("commit", _SQL["commit"])
_HOLD = Call("hold", _SQL["hold"], bigints, texts, texts, bigints, integer, text)
_PUT = Call("put", _SQL["put"], integer, bigints, integers, byteas, byteas, byteas, texts, texts)
_APPEND = Call(
    "append", _SQL["append"], bigint, integer, binary, integer, integer, text, byteas, byteas, byteas, binary
)
#: What changes of a run's row.
_CHANGING = ("state", "ended_ns", "epoch", "owner", "heartbeat_ns", "summary")
_CHANGE_RUN = Call("change_run", _SQL["change_run"], bigint, text, bigint, integer, text, bigint, text)
