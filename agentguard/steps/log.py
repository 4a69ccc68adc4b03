"""A run's log as this process writes it: the row, the fold, the chain, and the lock that guards them.

A decision is made under the lock, on a fold that has taken in all that was appended, and is appended by
compare-and-swap.  `hold` is the way in.  Whatever interrupts it between two lines, nothing is lost: a log
is marked `dirty` before a write and clean after what was written is applied, and the next call on a
dirty one reads it again before deciding.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from types import FrameType
from typing import TypeVar

import msgspec

from agentguard._reentry import standing
from agentguard.budget.account import Account
from agentguard.budget.ledger import LedgerRefusedError, Movement
from agentguard.errors import AgentGuardError, RunOwnedError, RunStopped, StoreUnavailableError
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.codec import Stored, encode
from agentguard.events.conversations import ConversationCall, StoredMessages
from agentguard.events.data import ErrorData, RunRecovered, data_of
from agentguard.events.model import Head, Record
from agentguard.protocols import (
    Abilities,
    Commit,
    Durability,
    EventStore,
    GroupCommitStore,
    HeadMovedError,
    RunLock,
    RunRow,
    StoreBusyError,
)
from agentguard.runs.fold import RunFold
from agentguard.runs.summary import summarize
from agentguard.steps.step_call import StepCall

#: How long, in seconds, an event loop waits for a thread of its own process to let go of the lock.
#: Handing the wait to a thread costs more, and tears apart the tasks that could share a commit.
MOMENT = 0.002

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")


class _Exclusive(threading.local):
    """How many runs a thread keeps other writers out of."""

    depth = 0


_EXCLUSIVE = _Exclusive()


class WaitingError(Exception):
    """Internal: it is decided that a step waits, for a resume or an answer; wait, and try again."""


class RunLog:
    """The log of one run in this process, shared by all its threads and tasks."""

    def __init__(
        self, store: EventStore, abilities: Abilities, row: RunRow, fold: RunFold, outermost: str
    ) -> None:
        self.store = store
        self.row = row
        self.number = row.number
        self.fold = fold
        self.run_id = fold.run_id
        #: The claim that this process acts under; a later one fences it.
        self.epoch = fold.epoch
        self.salt = row.salt or b""
        #: What an event says of a payload.
        self.digest = codec.digester(self.salt)
        #: The messages of conversations that the log holds.
        self.messages = StoredMessages(self.digest)
        #: Runs that are nested in each other share the lock of the outermost one.
        self.outermost = outermost
        self.use_lock(store.lock_for(outermost))
        #: Whether something may have been appended that the fold does not know, or the other way round.
        self.dirty = False
        #: How often a signal handler has come in, in the middle of a decision.
        self.reentered = 0
        #: Steps in flight that another process began, or an earlier owner.
        self.elsewhere = set(fold.open)
        #: The shared accounts as the last `write` left them.
        self.moved: dict[str, Account] = {}
        #: What to raise once this process has given the run up: nothing more is written to it.
        self.released: RunStopped | None = None
        #: Whether every append is to survive a loss of power.
        self.power = abilities.durability == "power"
        #: Whether the fold is always what the log says, since nobody else writes.
        self._private = abilities.private
        self._append_one = None if abilities.quick is None else abilities.quick.append_one
        #: For stores that commit the appends of many threads and tasks together.
        self.group = abilities.group
        #: The newest append that was accepted and may not be committed yet.
        self.commit: Commit | None = None
        #: Sequence and hash of the newest event that was accepted, and of one that is known to be committed.
        self._accepted = self._committed = (fold.seq, fold.hash)
        #: Steps whose start may be on record though they were told that it is not, and the error told.
        self.doubtful: dict[str, tuple[StepCall, ErrorData]] = {}
        self._deciding = 0
        self._interruptible = abilities.interruptible
        #: Told of each record that an act appended, or that another process did.
        self.on_record: Callable[[Record], None] = _ignore
        #: Told of a fold that was read anew.
        self.on_reload: Callable[[], None] = _nothing
        #: Called in a decision, to give back what doubtful steps hold.
        self.close_doubtful: Callable[[], None] = _nothing

    def use_lock(self, lock: RunLock) -> None:
        """Take another lock from here on, as in a forked child."""
        self.lock = lock
        #: Whether this thread has it already.
        self._owned: Callable[[], bool] = getattr(lock, "_is_owned", _never)

    def is_owned(self) -> bool:
        """Whether this thread has the lock."""
        return self._owned()

    # --- the way in ----------------------------------------------------------------------------

    def hold(self, decide: Callable[..., T], *given: object) -> T:
        """Return `decide(*given)`, called under the lock, on a fold that knows what this process wrote.

        A signal handler may call this inside a decision that is under way: then that one finds the head
        moved, and is made again.
        """
        return self.enter(_called, decide, given, True)  # noqa: FBT003

    def enter(self, decide: Callable[[A, B, bool], T], a: A, b: B, wait: bool) -> T:  # noqa: FBT001
        """Return `decide(a, b, wait)` likewise: called twice for each step, so that it is kept short.

        Raises:
            StoreBusyError: with `wait` False, another thread has the lock for more than a moment.
        """
        lock = self.lock
        again = self._owned() and self._is_nested()
        try:
            if not wait and not lock.acquire(False) and not lock.acquire(timeout=MOMENT):  # noqa: FBT003
                raise StoreBusyError  # noqa: TRY301
            with lock:  # which no exception can leave held, whereas one may come before a `try`
                if not wait:
                    lock.release()
                if self.dirty and not again:
                    self.reload()
                return decide(a, b, wait)
        except BaseException:
            if standing(self._is_hold, 1) == "left":
                self.heal()
            raise

    def _is_hold(self, frame: FrameType) -> bool:
        return frame.f_code is _HOLD and frame.f_locals.get("lock") is self.lock

    def _is_nested(self) -> bool:
        """Whether the block that has the lock is around this one, and its append is its own to apply."""
        how = standing(self._is_hold, 2)
        if how == "left":
            self.heal()
        elif how == "handler":
            self.reentered += 1
        return how == "own"

    def read_again(self) -> RunFold:
        """Return the fold, read from the log where it may not be what is on record."""
        return self.hold(lambda: self.fold)

    def heal(self) -> None:
        """Undo what an interrupted block has left: a lock that is held, a transaction that is open."""
        with contextlib.suppress(RuntimeError):
            while True:
                self.lock.release()
        if self._interruptible is not None:
            with self.lock:
                self._interruptible.mend()

    def decide(self, act: Callable[[], T]) -> T:
        """Return `act()`, called with writers of other processes kept out, and the fold at the log's end.

        What is appended inside stays appended, also where the decision is to raise: a refusal is on
        record before the caller hears of it.  Only the store's own failure, and what a signal handler
        raises, take everything back.
        """
        return self.hold(lambda: self._decide(act))

    def require_certainty(self) -> None:
        """Have a refusal decided again with other writers kept out, unless the fold is what the log says.

        It may lack what others have given back, or have what is accepted and will not be committed.

        Raises:
            HeadMovedError: the log has to be read on first.
        """
        if self._deciding or self._private:
            return
        # Asking a server takes a round trip, for which an event loop is not kept waiting.
        last = None if self.group is not None else self.store.last(self.run_id)
        if last is None or last.seq != self.fold.seq:
            raise HeadMovedError(self.number, self.fold.seq)

    def _decide(self, act: Callable[[], T]) -> T:
        if self.released is not None:
            raise self.released.with_traceback(None)
        self.await_commit()
        seq = caught_up = self.fold.seq
        decision: Exception | None = None
        result: T
        try:
            with self.store.exclusive(self.run_id):
                self.catch_up()
                caught_up = self.fold.seq
                try:
                    result = self._acted(act)
                except (HeadMovedError, StoreUnavailableError):
                    raise
                except (AgentGuardError, WaitingError) as error:
                    if self.dirty:  # in the middle of an append
                        raise
                    decision = error  # raised below, after the commit
        except BaseException as error:
            self._take_back(seq, error)
            raise
        if self.fold.seq > caught_up and not (_EXCLUSIVE.depth or self.dirty):  # it fitted what came before
            self._committed = (self.fold.seq, self.fold.hash)
        if decision is not None:
            raise decision
        return result  # pyright: ignore[reportPossiblyUnboundVariable, reportReturnType] - or `decision` is set

    def _acted(self, act: Callable[[], T]) -> T:
        """`act()`, again where a signal handler has appended in the middle of it."""
        self._deciding += 1
        _EXCLUSIVE.depth += 1
        try:
            self.close_doubtful()
            while True:
                reentered = self.reentered
                try:
                    return act()
                except HeadMovedError:
                    if self.reentered == reentered:
                        raise
                    self.reload()
        finally:
            self._deciding -= 1
            _EXCLUSIVE.depth -= 1

    def _take_back(self, seq: int, error: BaseException) -> None:
        """The act was undone: what the fold has taken in of it goes too."""
        moved = isinstance(error, HeadMovedError)
        if moved or self.fold.seq != seq:
            self.dirty = True
        if self.dirty:
            with contextlib.suppress(AgentGuardError):
                self.catch_up()
        if moved:  # though writers were kept out: the end of what this process wrote is gone
            raise self._lost() from error

    def _lost(self) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"the log of run {self.run_id} ends before what this process has written to it; those events are "
            "lost, as after an error of the disk, or in a copy that was not up to date: this run "
            "takes no further step; find out what it did, and open a new one"
        )

    # --- appending, under the lock -------------------------------------------------------------

    def write(
        self,
        record: Record,
        payload: bytes | None,
        movements: Sequence[Movement],
        durability: Durability | None,
        wait: bool,  # noqa: FBT001 - called for each step, and keywords cost
    ) -> bytes:
        """Append one record the fast way and return its hash.

        The caller takes it into the fold and marks the log clean.  If this raises, nothing was written,
        or the log stays dirty.
        """
        body = encode(record)
        digest = sha256(self.fold.hash + body).digest()
        call = payload if type(payload) is ConversationCall else None
        if call is not None:
            payload = self.messages.payload(call)
        self.dirty = True
        try:
            if self.group is not None:
                self._accept(self.group, Stored(record.seq, body, digest, payload), movements)
            elif self._append_one is not None and durability is None and not movements:
                self._append_one(self.number, record.seq, body, digest, payload, wait)
            else:
                self.moved = self.store.append(
                    self.number,
                    (Stored(record.seq, body, digest, payload),),
                    movements=movements,
                    durability=durability,
                    wait=wait,
                    deferred=True,
                )
        except _NOTHING_WRITTEN:
            self.dirty = False
            raise
        if call is not None:
            self.messages.add(call)
        return digest

    def _accept(self, group: GroupCommitStore, stored: Stored, movements: Sequence[Movement]) -> None:
        before = self.commit
        failed = before is not None and before.error is not None
        if before is not None and not failed and before.future.done():
            self._committed = self._accepted
        if not self._deciding and (failed or self.doubtful):
            raise HeadMovedError(self.number, stored.seq)  # the fold is not what the log says
        commit = group.accept(self.number, stored, self.fold.hash, movements, before)
        done = commit.future.done()
        self.moved = commit.future.result() if done else {}
        # In one line, so that no signal handler comes in between.
        self.commit, self._accepted = None if done else commit, (stored.seq, stored.hash)

    def await_commit(self) -> None:
        """Return when nothing of this run is under way; where it failed, the fold is to be read anew."""
        group, commit = self.group, self.commit
        if group is None or commit is None:
            return
        if _EXCLUSIVE.depth:  # what is under way may wait for what this thread holds
            group.recall(self.number)
        with contextlib.suppress(Exception):  # its step is told
            group.wait_for(commit)
        self.commit = None
        if commit.error is not None:
            self.dirty = True
        else:
            self._committed = self._accepted

    def doubt(self, step: StepCall, error: ErrorData) -> None:
        """Note that the start of a step may be on record, and that its body will not run."""
        self.doubtful[step.key] = step, error

    def forget_commit(self) -> None:
        """Begin anew in a forked child: the parent alone learns what becomes of what was accepted."""
        self.dirty = self.dirty or self.commit is not None
        self.commit = None
        self.doubtful.clear()

    def shares_disk(self, durability: Durability | None) -> bool:
        """Whether what was just written is still on its way to the disk, together with others' writes."""
        return self.power or durability == "power"

    def act(
        self,
        records: Sequence[Record],
        payloads: Sequence[bytes | None] = (),
        movements: Sequence[Movement] = (),
    ) -> None:
        """Append records and the run's row in one act.  Inside `decide`; sequences are set here."""
        fold = self.fold
        stored: list[Stored] = []
        self.dirty = True  # until it is written
        for index, draft in enumerate(records):
            record = msgspec.structs.replace(draft, seq=fold.seq + 1)
            body = encode(record)
            payload = payloads[index] if index < len(payloads) and not fold.erased else None
            if type(payload) is ConversationCall:
                payload = self.messages.payload(payload)
            stored.append(Stored(record.seq, body, codec.chain(fold.hash, body), payload))
            self._take_in(fold, record, stored[-1].hash)
        row = row_of(self.row, fold)
        self.store.append(self.number, stored, movements=movements, row=row)
        for event in stored:
            self.messages.take_in(event)
        self.row = row
        self.written(fold)

    @property
    def head(self) -> Head:
        """The newest event that the fold has taken in."""
        return Head(self.fold.seq, self.fold.hash.hex())

    def written(self, fold: RunFold) -> None:
        """Mark the log clean: `fold` has taken in what was appended.

        Unless a signal handler has had the log read again meanwhile.
        """
        self.dirty = self.fold is not fold

    # --- taking in, under the lock -------------------------------------------------------------

    def apply(self, record: Record, digest: bytes) -> None:
        """Take one record into the fold, and tell who acts on what it means in this process."""
        self._take_in(self.fold, record, digest)

    def _take_in(self, fold: RunFold, record: Record, digest: bytes) -> None:
        fold.apply(record, digest)
        if record.type == ev.RUN_RECOVERED:
            self.epoch = fold.epoch
        elif record.type == ev.STEP_RESOLVED and self.elsewhere:
            self.elsewhere.discard(record.key or "")
        self.on_record(record)

    def catch_up(self) -> None:
        """Take in what other processes appended."""
        if self.dirty:
            self.reload()
        for stored in self._news():
            record = codec.decode(stored.body)
            if self._claims(record):
                # Not taken in, so that whatever is tried later meets it again.
                owner = (self.store.row(self.run_id) or self.row).owner
                raise RunOwnedError(self.run_id, f"process {owner.get('pid')} on {owner.get('host')}")
            self.apply(record, stored.hash)
            self.messages.take_in(stored)
            if record.type == ev.STEP_STARTED:
                self.elsewhere.add(record.key or "")

    def _news(self) -> Iterator[Stored]:
        """Yield what was appended after the fold, which is read anew where its own end is not on record."""
        known = self.fold
        if self._private or known.seq < 1:
            yield from self.store.read(self.run_id, known.seq)
            return
        stored = iter(self.store.read(self.run_id, known.seq - 1))
        last = next(stored, None)
        if last is None or (last.seq, last.hash) != (known.seq, known.hash):
            self.reload()
            stored = iter(self.store.read(self.run_id, self.fold.seq))
        yield from stored

    def _claims(self, record: Record) -> bool:
        """Return whether this is a claim by another process, which fences this one."""
        return record.type == ev.RUN_RECOVERED and data_of(record, RunRecovered)["epoch"] > self.epoch

    def reload(self) -> None:
        """Fold the log anew, after something of which it is not known whether it was written.

        Raises:
            StoreUnavailableError: what is known to have been written is not there.
        """
        own = self.fold.open.keys() - self.elsewhere
        fold, messages = RunFold(self.run_id), StoredMessages(self.digest)
        kept = self._committed[0] == 0
        for stored in self.store.read(self.run_id):
            record = codec.decode(stored.body)
            if self._claims(record):
                break
            fold.apply(record, stored.hash)
            messages.take_in(stored)
            kept = kept or (stored.seq, stored.hash) == self._committed
        if not kept:
            raise self._lost()
        self.fold, self.messages = fold, messages
        self.elsewhere = fold.open.keys() - own
        self.dirty = False
        self.on_reload()


_HOLD = RunLog.enter.__code__
#: What says for sure that nothing was written.
_NOTHING_WRITTEN = (HeadMovedError, StoreBusyError, AgentGuardError, LedgerRefusedError)


def row_of(row: RunRow, fold: RunFold) -> RunRow:
    """Return the row that goes with a fold."""
    return msgspec.structs.replace(
        row,
        state=str(fold.state),
        ended_ns=fold.ended_ns,
        epoch=fold.epoch,
        summary=summarize(fold).to_data(),
    )


def _called(decide: Callable[..., T], given: tuple[object, ...], _wait: bool) -> T:  # noqa: FBT001
    return decide(*given)


def _ignore(record: Record) -> None:
    """Act on nothing."""


def _nothing() -> None:
    """Act on nothing."""


def _never() -> bool:
    """A lock that cannot tell."""
    return False
