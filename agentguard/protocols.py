"""Every pluggable interface, in one page: what a backend author implements.

The suites in `agentguard.testing.conformance` check an implementation against these contracts.
"""

# Protocols are handed over to be asked for, and not to be made.
# mypy: disable-error-code="type-abstract"

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import msgspec

from agentguard.budget.account import Account
from agentguard.budget.ledger import Movement
from agentguard.budget.model_usage import ModelUsage
from agentguard.durability import Durability as Durability  # noqa: PLC0414 - stores take it from here
from agentguard.events.codec import Stored
from agentguard.killswitch.model import Acknowledgements, Kill

_Ability = TypeVar("_Ability")


class HeadMovedError(Exception):
    """Internal: another writer appended first; nothing was written.  Read on and decide again."""


class StoreBusyError(Exception):
    """Internal: with `wait=False`, another writer holds the store; nothing was written."""


class PublishingError(Exception):
    """Internal: events could not be published; nothing is lost, and the relay tries again."""


class RunRow(msgspec.Struct, kw_only=True):
    """The one mutable row of a run, written at state changes alone; all of it can be rebuilt.

    `number` is the store's own handle of the run.  `salt` keys the payload digests and goes with an
    erasure.  `summary` is plain data of the `RunSummary` as of the last state change.  `owner`
    names the process that opened or claimed the run; `epoch` counts the claims.
    """

    run_id: str
    name: str
    tenant: str
    state: str
    created_ns: int
    number: int = 0
    parent_id: str | None = None
    ended_ns: int | None = None
    epoch: int = 1
    owner: dict[str, Any] = {}
    heartbeat_ns: int = 0
    salt: bytes | None = None
    summary: dict[str, Any] = {}


class RunLock(Protocol):
    """A re-entrant lock, as `threading.RLock` is one."""

    def acquire(self, blocking: bool = ..., timeout: float = ...) -> bool:  # noqa: FBT001
        """Take the lock; return whether it was taken."""
        ...

    def release(self) -> None:
        """Give it back, once for each time that it was taken; RuntimeError if this thread has not got it."""

    def __enter__(self) -> bool: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...


class EventStore(Protocol):
    """Append-only logs of runs, one mutable row for each run, and the shared accounts.

    Appending is a compare-and-swap on the run's sequence: the first of two writers wins, the other
    gets `HeadMovedError` and has written nothing.  Events, row and movements of one call are one
    act.  A store never changes or removes an event, except that `erase` drops payloads and `prune`
    drops whole ended runs.  Whatever its driver raises reaches the caller as
    `StoreUnavailableError`.  Methods may be called from any thread.
    """

    #: Where this store is, as a URL without secrets, to show to people.
    url: str

    def lock_for(self, run_id: str) -> RunLock:
        """Return the lock that this process's threads hold while a run decides and appends.

        `run_id` names an outermost run; the runs nested in it share its lock.  Every call for a run
        returns the same lock while it is used.  A store may give one lock to all its runs.
        """
        ...

    def create(self, row: RunRow, events: Sequence[Stored], movements: Sequence[Movement] = ()) -> int:
        """Add a run with its first events and return its number.

        Raises:
            RunExistsError: the id is taken; nothing was written.
        """
        ...

    def append(
        self,
        number: int,
        events: Sequence[Stored],
        *,
        movements: Sequence[Movement] = (),
        row: RunRow | None = None,
        durability: Durability | None = None,
        wait: bool = True,
        deferred: bool = False,
    ) -> dict[str, Account]:
        """Append events with consecutive sequences, and give the moved accounts as they are now.

        Movements alone need no run; `number` is then 0.

        With `deferred=True` a `power` append is only accepted when this returns, and committed and on
        disk when `settle` returns or `durable` resolves: who lets go of the run's lock before shares commit
        and disk with other threads and tasks.

        Raises:
            HeadMovedError: the first sequence is taken, or is not the next one; or `row` is of an
                epoch that is over.
            LedgerRefusedError: a shared account has no room.
            StoreBusyError: with `wait=False`, another writer is at work.
            StoreUnavailableError: it cannot be written, for up to `store_timeout`.
        """
        ...

    def settle(self) -> None:
        """Return when everything that was appended so far is as durable as was asked for."""

    def durable(self) -> Future[None] | None:
        """What resolves when `settle` would return, or None if it would return at once."""
        ...

    def exclusive(self, run_id: str) -> AbstractContextManager[None]:
        """Keep other writers of a run out, in every process, so that reading and then appending cannot race.

        Leaving the block commits what was done inside as one act, also to other runs and accounts; an
        exception undoes all of it.  Blocks nest: that of a nested run may be entered inside that of the
        run around it, and the other way round.
        """
        ...

    def snapshot(self) -> AbstractContextManager[None]:
        """Let this thread's reads in the block see one moment."""
        ...

    def row(self, run_id: str) -> RunRow | None:
        """The run's row, or None."""
        ...

    def rows(
        self,
        *,
        tenant: str | None = None,
        state: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> list[RunRow]:
        """The newest runs first; with `before`, those older than that run: none if it is not there."""
        ...

    def neighbours(self, run_id: str) -> tuple[str | None, str | None]:
        """The ids of runs just before and after an id, in the order of their characters; None at the end.

        The id itself need not be there.  It is asked for each id that is shown, of stores with many runs.
        """
        ...

    def children(self, run_id: str) -> list[RunRow]:
        """The runs nested directly in a run, oldest first."""
        ...

    def read(self, run_id: str, after: int = 0) -> Iterator[Stored]:
        """The run's events with a sequence above `after`, in order, from one snapshot."""
        ...

    def last(self, run_id: str) -> Stored | None:
        """The run's newest event."""
        ...

    def tail(self, after: int = 0, tenant: str | None = None, limit: int = 1000) -> list[tuple[str, Stored]]:
        """Events of all runs with a position above `after`, in commit order, with their run ids.

        Nothing ever appears at or below a position that was given.  What `read` gives need not have
        its position.
        """
        ...

    def accounts(self, ids: Sequence[str]) -> dict[str, Account]:
        """The shared accounts that exist among `ids`."""
        ...

    def update_row(self, row: RunRow) -> bool:
        """Write owner, heartbeat and epoch; gives whether it was done.

        With the epoch after the stored one this claims the run, and the first claim wins.  With the
        stored epoch it is done only for the stored owner, whose heartbeat it is, or with an empty
        owner, which releases the run.
        """
        ...

    def erase(self, run_id: str) -> int:
        """Drop the payloads and the salt of a run; gives how many payloads there were."""
        ...

    def prune(self, ended_before_ns: int, keep: Collection[str] = ()) -> list[str]:
        """Drop runs that ended before a time, but for those in `keep`, whole, and give their ids."""
        ...

    def close(self) -> None:
        """Give back what was opened.  Closing twice does nothing."""


# --- what an event store may have besides ----------------------------------------------------------


@runtime_checkable
class QuickStore(Protocol):
    """A store with a shorter way for the event that is appended alone."""

    def append_one(  # noqa: PLR0917 - called for each step, and keywords cost
        self,
        number: int,
        seq: int,
        body: bytes,
        digest: bytes,
        payload: bytes | None,
        wait: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        """`append` of one event and nothing else, deferred, at the store's own durability.

        The caller holds the run's lock.
        """


class CommitFuture(Protocol):
    """The outcome of a commit, for threads and event loops; a `concurrent.futures.Future` is one."""

    def done(self) -> bool:
        """Return whether it is there."""
        ...

    def result(self) -> dict[str, Account]:
        """Return the moved accounts, or raise the error, once it is there."""
        ...

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        """Have `fn` called, in any thread and perhaps more than once, when it is there."""


class Commit(Protocol):
    """An append that was accepted, and is committed together with others."""

    @property
    def future(self) -> CommitFuture:
        """Resolves to the moved accounts once it is committed; else to the error."""
        ...

    #: The error, known before `future` resolves.
    error: BaseException | None


@runtime_checkable
class GroupCommitStore(Protocol):
    """A store that accepts appends at once, and commits those of many threads and tasks together.

    The caller takes the event into its fold when it is accepted, lets go of the run's lock, and waits.
    """

    def accept(
        self,
        number: int,
        event: Stored,
        previous: bytes,
        movements: Sequence[Movement],
        after: Commit | None,
    ) -> Commit:
        """Accept an append to a run whose lock the caller holds, after the event whose hash is `previous`.

        `after` is the run's append before this one, as far as it may not be committed yet: where it
        fails, this one does.  Inside `exclusive` it is carried out at once.

        The outcome is what `append` returns or raises; or `StoreBusyError`, after which the caller
        decides again in `exclusive`, as it does after `HeadMovedError`.
        """
        ...

    def commit_soon(self) -> None:
        """Commit what was accepted, without waiting for it."""

    def wait_for(self, commit: Commit) -> dict[str, Account]:
        """Return or raise the outcome of an append that was accepted."""
        ...

    def recall(self, number: int) -> None:
        """Return when nothing of a run is under way; what was not sent yet fails with `StoreBusyError`."""


@runtime_checkable
class ScanningStore(Protocol):
    """A store with a quicker way through a whole log."""

    def scan(self, run_id: str) -> Iterable[tuple[Any, ...]]:
        """Return what `read` does from the first event on, as plain tuples of the fields of `Stored`."""
        ...


@runtime_checkable
class DurableStore(Protocol):
    """A store that promises something for every append: `"process"` or `"power"`."""

    durability: Durability


@runtime_checkable
class PrivateStore(Protocol):
    """A store that no other process can write to: what this process knows of a log is what the log says."""

    private: bool


@runtime_checkable
class FileStore(Protocol):
    """A store in a file, which somebody may delete, move or replace."""

    def check_file(self) -> None:
        """Raise `StoreUnavailableError` from here on if that happened."""


@runtime_checkable
class InterruptibleStore(Protocol):
    """A store whose acts a signal handler's exception may cut short between two lines."""

    def mend(self) -> None:
        """Take back what such an act has left open.  The lock is held, and no act is under way."""


@runtime_checkable
class RowlessLogs(Protocol):
    """A store that can find logs whose run has no row."""

    def orphans(self) -> Iterable[tuple[int, int]]:
        """Return number and first sequence of each such log."""
        ...


@runtime_checkable
class IndexedStore(Protocol):
    """A store that finds runs by indexes, which may be damaged by themselves."""

    def misfiled(self) -> Iterable[tuple[str, str]]:
        """Return the runs that an index does not find, `?` where it cannot be told, each with the problem."""
        ...


@runtime_checkable
class AccountListStore(Protocol):
    """A store that can list its shared accounts."""

    def account_ids(self) -> Iterable[str]:
        """Return the names of all shared accounts that it lets this process see."""
        ...


@runtime_checkable
class OwnTenantStore(Protocol):
    """A store that some logins use for one tenant alone, without a right to the control log."""

    def own_budgets(self) -> Sequence[tuple[str, str | None, dict[str, Any]]]:
        """Return that tenant's budgets, as the control log has them: tenant, period, limits; oldest first."""
        ...


@runtime_checkable
class DamageReport(Protocol):
    """A store that can say what is wrong with it as a whole."""

    def damage(self) -> Iterable[tuple[str, int, str]]:
        """Return run, sequence and problem of each fault."""
        ...


@runtime_checkable
class PositionStore(Protocol):
    """A store that remembers how far a reader of `tail` has come."""

    def position(self, reader: str) -> int:
        """Return the position that was saved under a name, or 0."""
        ...

    def save_position(self, reader: str, position: int) -> None:
        """Save a position durably; one that is lower than what is saved changes nothing."""


@runtime_checkable
class ReaderListStore(Protocol):
    """A store that lists the readers whose positions it keeps."""

    def positions(self) -> dict[str, int]:
        """Return the saved position of every reader, by its name."""
        ...


@runtime_checkable
class SwitchedStore(Protocol):
    """A store that brings its own kill switch, as an export does."""

    switch: KillSwitch


@runtime_checkable
class SharedServerStore(Protocol):
    """A store on a server of many hosts, where their kills lie too if nobody says otherwise."""

    #: The kill switch there, as `kill_switch=` takes it; it may hold a password.
    kill_switch_url: str


@runtime_checkable
class ReplayedStore(Protocol):
    """The store of a replay, which reads from another and writes nothing."""

    #: The store that it reads from.
    sealed: EventStore


@runtime_checkable
class LiveStore(Protocol):
    """A store that can tell when another process has appended something."""

    def wait_for_news(self, timeout: float) -> None:
        """Return when something may have been appended, at most after `timeout` seconds."""


class QueueDepth(NamedTuple):
    """How long a queue of submitted runs is."""

    queue: str
    #: Runs that a worker could take now.
    waiting: int
    #: Runs that come again later: after a failure, or since they are paused.
    delayed: int
    #: Runs that workers have.
    running: int
    #: How many seconds ago the run that waits longest could have been taken; 0 where none waits.
    oldest_seconds: float


class WorkerSign(NamedTuple):
    """A worker of the queue, by the signs of life that it writes."""

    worker_id: int
    #: How many seconds ago it wrote one.
    silent_seconds: float
    #: How many runs it has.
    running: int


class RunQueue(Protocol):
    """The runs that wait for workers, in the store's own database.  An empty queue is not there."""

    #: Where workers connect, as the engine takes it; it may hold a password.
    url: str
    #: The one tenant whose runs are seen, or None.
    tenant: str | None

    def transaction(self) -> AbstractContextManager[None]:
        """Make one act of what this thread creates in the store, and puts into the queue, in the block."""
        ...

    def put(self, run_id: str, tenant: str, *, queue: str, priority: int, args: dict[str, Any]) -> None:
        """Put a run that is CREATED into a queue, with what the worker has to know.

        Raises:
            StoreUnavailableError: there is no queue here, or no such run.
        """
        ...

    def holds(self, job_id: int, worker_id: int) -> bool:
        """Say whether a worker still has a job, and nobody has taken it over."""
        ...

    def depth(self) -> list[QueueDepth]:
        """Return how long each queue is, by name.

        Raises:
            StoreUnavailableError: there is no queue here.
        """
        ...

    def workers(self) -> list[WorkerSign]:
        """Return the workers that have said that they began and not that they ended, oldest first.

        Raises:
            StoreUnavailableError: there is no queue here.
        """
        ...


@runtime_checkable
class QueueingStore(Protocol):
    """A store with a queue for workers."""

    queue: RunQueue


@runtime_checkable
class TimedStore(Protocol):
    """A store of several hosts, whose clock is not that of this one.

    It appends no reservation of a tenant's window that is not open by that clock: such an act raises
    `HeadMovedError`, and is decided again inside `exclusive`, where `now` is exact.
    """

    def now(self, *, wait: bool = True) -> int:
        """Return what time it is by the store's clock, in nanoseconds.

        Raises:
            StoreBusyError: with `wait=False`, a server would have to be asked.
        """
        ...


class Abilities(NamedTuple):
    """What a store can do beyond `EventStore`, None where it cannot; resolved once, by `abilities_of`."""

    quick: QuickStore | None
    group: GroupCommitStore | None
    live: LiveStore | None
    scanning: ScanningStore | None
    durability: Durability | None
    private: bool
    file: FileStore | None
    interruptible: InterruptibleStore | None
    rowless: RowlessLogs | None
    indexed: IndexedStore | None
    accounts: AccountListStore | None
    own_tenant: OwnTenantStore | None
    damage: DamageReport | None
    positions: PositionStore | None
    timed: TimedStore | None
    readers: ReaderListStore | None
    queue: RunQueue | None
    switch: KillSwitch | None
    switch_url: str | None
    sealed: EventStore | None


def abilities_of(store: EventStore) -> Abilities:
    """Return what a store can do beyond `EventStore`."""
    durable, private = _able(store, DurableStore), _able(store, PrivateStore)
    queueing, switched = _able(store, QueueingStore), _able(store, SwitchedStore)
    shared, replayed = _able(store, SharedServerStore), _able(store, ReplayedStore)
    return Abilities(
        quick=_able(store, QuickStore),
        group=_able(store, GroupCommitStore),
        live=_able(store, LiveStore),
        scanning=_able(store, ScanningStore),
        durability=None if durable is None else durable.durability,
        private=private is not None and private.private,
        file=_able(store, FileStore),
        interruptible=_able(store, InterruptibleStore),
        rowless=_able(store, RowlessLogs),
        indexed=_able(store, IndexedStore),
        accounts=_able(store, AccountListStore),
        own_tenant=_able(store, OwnTenantStore),
        damage=_able(store, DamageReport),
        positions=_able(store, PositionStore),
        timed=_able(store, TimedStore),
        readers=_able(store, ReaderListStore),
        queue=None if queueing is None else queueing.queue,
        switch=None if switched is None else switched.switch,
        switch_url=None if shared is None else shared.kill_switch_url,
        sealed=None if replayed is None else replayed.sealed,
    )


# A function, since type checkers keep each outcome of an `isinstance` in mind: of eighteen, 262,144.
def _able(store: EventStore, ability: type[_Ability]) -> _Ability | None:
    return store if isinstance(store, ability) else None


class Participant(Protocol):
    """This process's place at a switch, so that a kill can be acknowledged."""

    def acknowledge(self, generation: int) -> None:
        """Say that this process has acted on everything up to `generation`."""

    def leave(self) -> None:
        """Give the place back."""


class KillSwitch(Protocol):
    """Kills, durable and seen by every process that shares the switch.

    The truth is the control log, a hash-chained log of its own (`CONTROL_RUN_ID`); `signal` is the
    fast hint that it has grown.  `signal[GENERATION]` is at least the sequence of the newest
    record, never goes back, and is read without a system call.
    """

    @property
    def signal(self) -> memoryview:
        """Unsigned 64-bit integers; index `GENERATION` changes with every control record.

        Raises:
            KillSwitchUnavailableError: it cannot be read; nothing may run.
        """
        ...

    def find(self, tenant: str, run_id: str, since: int) -> Kill | None:
        """The kill that stops a run created at generation `since`, by an exact look-up."""
        ...

    def kills(self) -> list[Kill]:
        """All kills, oldest first, the cleared ones too."""
        ...

    def record(self, type: str, data: dict[str, Any], after: int | None = None) -> int:
        """Append to the control log, durably, then signal everybody; gives the generation.

        With `after`, as the record that follows generation `after`, or not at all.

        Raises:
            HeadMovedError: another record follows `after`; nothing was written.
        """
        ...

    def read(self, after: int = 0) -> Iterator[Stored]:
        """The control log."""
        ...

    def join(self, on_change: Callable[[int], None]) -> Participant:
        """Take part: be told of changes, also while this process runs no step.

        `on_change(generation)` is called in a thread of the switch, soon after a change.
        """
        ...

    def acknowledgements(self, generation: int, timeout: float) -> Acknowledgements:
        """Wait until every live participant has acted on `generation`, at most `timeout` seconds."""
        ...

    def close(self) -> None:
        """Give back what was opened."""


@runtime_checkable
class AnnouncedSwitch(Protocol):
    """A kill switch that knows how far its control log went, from beside the log."""

    announced: int


class Publisher(Protocol):
    """Where a relay sends events, at least once, in order for each run.

    One that has raised is used no more; another takes its place.
    """

    def publish(self, run_id: str, stored: Stored) -> None:
        """Hand over one event.

        Raises:
            PublishingError: what was handed over before was not taken.
        """

    def flush(self, timeout: float) -> None:
        """Return when everything handed over has been taken.

        Raises:
            PublishingError: it was not, in `timeout` seconds.
        """


class ModelPrice(NamedTuple):
    """What a model call costs, in 1e-9 USD."""

    nano_usd: int
    source: str


class PriceBook(Protocol):
    """Prices of models."""

    def price(self, model: str, usage: ModelUsage, *, provider: str | None = None) -> ModelPrice | None:
        """Return what a call costs, rounded up, or None where the book does not know its price.

        Args:
            model: the model asked for; `usage.model` is the one that answered.
            usage: all that was counted, and the terms of the call.
            provider: who served it.
        """
        ...
