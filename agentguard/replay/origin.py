"""A log and its origin: what a fork shares with the run it was made from, and what that adds up to."""

from __future__ import annotations

from collections.abc import Iterator

from agentguard.budget.account import Account, Amounts
from agentguard.budget.model import Budget
from agentguard.errors import LogIntegrityError
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.codec import Stored
from agentguard.events.data import NestedRunOpened, RunForked, ScopeStopped, ScopeTaken, StepResolved, data_of
from agentguard.events.model import Record
from agentguard.protocols import EventStore
from agentguard.runs.fold import RunFold, ScopeFold
from agentguard.steps.inputs import RecordedInputs

_ENDS = (ev.STEP_COMPLETED, ev.STEP_FAILED, ev.STEP_RESOLVED, ev.SCOPE_CLOSED)
_RETRY = "retry"


def checked(log: Iterator[Stored], run_id: str) -> Iterator[Stored]:
    """Yield a log, and refuse the first event that was altered.

    Raises:
        LogIntegrityError: an event does not fit, or the log does not begin at 1.
    """
    head = codec.genesis(run_id)
    for seq, stored in enumerate(log, 1):
        if stored.seq != seq:
            raise LogIntegrityError(run_id, seq, f"expected event {seq}, found {stored.seq}")
        if codec.chain(head, stored.body) != stored.hash:
            raise LogIntegrityError(run_id, seq, "its hash does not fit: it, or its order, was changed")
        head = stored.hash
        yield stored


def origin_log(store: EventStore, run_id: str, until: int | None = None) -> Iterator[Stored]:
    """Yield a run's log, after the part that it shares with the run it was forked from."""
    for stored in checked(store.read(run_id), run_id):
        if until is not None and stored.seq > until:
            return
        if b'"type":"run_forked"' in stored.body[:64]:
            yield from prefix(store, codec.decode(stored.body))
        yield stored


def prefix(store: EventStore, fork: Record) -> Iterator[Stored]:
    """Yield what a fork shares with its origin.

    Raises:
        LogIntegrityError: the origin's log is not there, or is not the one that was forked.
    """
    data = data_of(fork, RunForked)
    origin, at = data["origin"], data["seq"]
    cut, found = _Cut(at), False
    for stored in checked(store.read(origin), origin):
        if stored.seq > data.get("until", stored.seq):
            break
        record = codec.decode(stored.body)
        if stored.seq == at:
            found = True
            if stored.hash.hex() != data["hash"]:
                raise LogIntegrityError(origin, at, "it is not the event that the run was forked at")
        if not cut.takes(record):
            continue
        if record.type == ev.RUN_FORKED:
            yield from prefix(store, record)
        elif not record.type.startswith("run_"):
            yield stored
    if not found:
        raise LogIntegrityError(origin, at, "a run was forked at this event, which is not in the store")


class _Cut:
    """Which events a fork at `at` shares: all up to there, and how what was under way there ended.

    Not the call at which the origin itself was stopped.
    """

    def __init__(self, at: int) -> None:
        self._at = at
        self._under_way: set[str] = set()

    def takes(self, record: Record) -> bool:
        """Return whether the next event of the origin is shared."""
        key = record.key or ""
        if record.seq > self._at and key not in self._under_way:
            return False
        data = data_of(record, StepResolved)
        if (
            record.type == ev.STEP_REFUSED
            and "stops" not in data_of(record, ScopeStopped)
            and not ev.withdrawn(record)
        ):
            return False  # by the origin's own limit: the fork has another, and makes the call live
        if record.type == ev.STEP_STARTED or (
            record.type == ev.SCOPE_OPENED and "run" in data_of(record, NestedRunOpened)
        ):
            self._under_way.add(key)
        elif record.type in _ENDS and data.get("as") != _RETRY:
            self._under_way.discard(key)
        return True


class Shared:
    """What a fork takes over, added up under the fork's own budget.

    Raises:
        ValueError: the origin has no event `at`.
        LogIntegrityError: the origin's log was altered.
    """

    def __init__(self, store: EventStore, run_id: str, at: int, budget: Budget | None) -> None:
        self._origin, self._at = run_id, at
        self._pin = b""
        self.inputs: RecordedInputs | None = None
        #: The origin as it stands now.
        self.whole = RunFold(run_id)
        self._fold = RunFold(run_id)
        cut = _Cut(at)
        for stored in checked(store.read(run_id), run_id):
            record = codec.decode(stored.body)
            self.whole.apply(record, stored.hash)
            if stored.seq == at:
                self._pin = stored.hash
            if record.type == ev.RUN_CREATED:
                self.inputs = None if stored.payload is None else RecordedInputs.of(stored)
                record = _under(budget, record)
            if cut.takes(record):
                self._take(store, record, stored)
        if not self._pin:
            raise ValueError(f"run {run_id} has events 1 to {self.whole.seq}, not {at}")

    def _take(self, store: EventStore, record: Record, stored: Stored) -> None:
        if record.type == ev.RUN_FORKED:  # by its events, since it has counted under another budget
            for inherited in prefix(store, record):
                self._fold.apply(codec.decode(inherited.body), inherited.hash)
        else:
            self._fold.apply(record, stored.hash)

    @property
    def spent(self) -> Amounts:
        """What was spent; steps that may have happened count with their reservations."""
        return _spent(self._fold.account)

    def facts(self) -> RunForked:
        """Return what `run_forked` holds beside the spending."""
        fold = self._fold
        data: RunForked = {
            "origin": self._origin,
            "seq": self._at,
            "hash": self._pin.hex(),
            "until": self.whole.seq,
            "root": self.whole.origin or self._origin,
        }
        if fold.account.calls:
            data["calls"] = fold.account.calls
        if fold.account.repeats:
            data["repeats"] = fold.account.repeats
        if fold.keyed:
            data["keyed"] = fold.keyed
        if scopes := [_scope(scope) for scope in fold.scopes.values() if scope.key]:
            data["scopes"] = scopes
        return data


def _scope(scope: ScopeFold) -> ScopeTaken:
    account = scope.accounts[0]
    held = account.to_data() | {"spent": _spent(account), "reserved": {}}
    facts: ScopeTaken = {"key": scope.key, "around": scope.parent, "stop": scope.stop, "account": held}
    if scope.closed:
        facts["closed"] = True
    return facts


def _under(budget: Budget | None, created: Record) -> Record:
    if budget is None:
        return created
    data = dict(created.data or {}) | {"budget": budget.to_fields()}
    return Record(created.seq, created.type, created.at_ns, name=created.name, data=data)


def _spent(account: Account) -> Amounts:
    """Return spent and reserved amounts as one."""
    spent = dict(account.spent)
    for resource, amount in account.reserved.items():
        if amount:
            spent[resource] = spent.get(resource, 0) + amount
    return spent
