"""A run's log as this process writes it: the fold, the chain, the stop, and who is to be cancelled.

One journal for each run in a process, shared by all its threads and tasks.  Its state is guarded by
the store's lock, except what is marked as read without it.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Any, Protocol

import msgspec

from agentguard.budget.account import Account, Amounts
from agentguard.budget.ledger import Movement
from agentguard.budget.resources import SECONDS
from agentguard.errors import (
    AgentGuardError,
    KillSwitchTriggeredError,
    RunOwnedError,
    RunStopped,
    StoreUnavailableError,
)
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.codec import Stored, encode
from agentguard.events.model import Record
from agentguard.killswitch.model import GENERATION
from agentguard.protocols import Commit, Durability, GroupCommitStore, HeadMovedError, RunRow
from agentguard.runs.branch import UNNAMED, Branch
from agentguard.runs.fold import RunFold
from agentguard.runs.summary import RunSummary, summarize
from agentguard.runs.termination import stop_from, termination
from agentguard.steps import forked
from agentguard.steps.capture import Capturing, PayloadRecorder
from agentguard.steps.draining import Draining
from agentguard.steps.gate import Gate
from agentguard.steps.interrupt import spared
from agentguard.steps.levels import Levels, Outer
from agentguard.steps.model import Step, StepSpec
from agentguard.steps.parts import Parts
from agentguard.steps.redaction import Redactor
from agentguard.steps.running import RunningTime
from agentguard.steps.served import Player
from agentguard.steps.uncharged import uncharged

_log = logging.getLogger("agentguard")


#: How often, in seconds, a paused step looks whether another process has resumed the run.
_POLL = 0.02
#: How long, in seconds, an event loop waits for a thread of its own process to let go of the lock.
#: Handing the wait to a thread costs more, and tears apart the tasks that could share a commit.
MOMENT = 0.002
_MOST_KEEPERS = 1000
_ATTACHED = "attached"


class _Exclusive(threading.local):
    """How many runs a thread keeps other writers out of."""

    depth = 0


_EXCLUSIVE = _Exclusive()


class Body(Protocol):
    """An async body in flight, which a stop cancels."""

    scope: str

    def stop(self, stop: RunStopped) -> None:
        """Cancel it; called from any thread."""


class Journal:
    """See the module."""

    def __init__(self, parts: Parts, row: RunRow, fold: RunFold, outer: Sequence[Outer] = ()) -> None:
        self.parts = parts
        self.store = parts.store
        quick = parts.abilities.quick
        #: For stores that append a single event faster than by `append`.
        self._append_one = None if quick is None else quick.append_one
        #: For stores that commit the appends of many threads and tasks together.
        self.group = parts.abilities.group
        #: The newest append, where it was accepted and may not be committed yet.
        self.commit: Commit | None = None
        #: Steps whose start may be on record though their body will not run.
        self.doubtful: dict[str, tuple[Step, dict[str, Any]]] = {}
        #: How deep this run is in `deciding`.
        self._deciding = 0
        #: Runs that are nested in each other share a lock.
        self.outermost = outer[-1].journal.run_id if outer else row.run_id
        self.lock = self.store.lock_for(self.outermost)
        self.clock = parts.clock
        self.row = row
        self.number = row.number
        self.fold = fold
        #: Steps in flight that another process began, or an earlier owner.
        self.elsewhere = set(fold.open)
        #: The claim that this process acts under; a later one fences it.
        self.epoch = fold.epoch
        #: How many attachments of this process there are.
        self.attached = 0
        self.salt = row.salt or b""
        #: What an event says of a payload.
        self.digest = codec.digester(self.salt)
        self.keepers: dict[StepSpec, PayloadRecorder] = {}
        self.levels = Levels(self, outer, parts.tenants)
        #: Whether this process opened or claimed the run, and so writes its end.
        self.owner = True
        self.span: Any = None
        #: The stop on record; once set it stays.  Read without the lock.
        self.stop: RunStopped | None = None
        #: How this process is letting go of the run, or has, without ending it.
        self.draining: Draining | None = None
        #: Whether a kill covers the run, be it what stopped it or not.
        self.killed = False
        self.scope_stops: dict[str, RunStopped] = {}
        self.bodies: set[Body] = set()
        #: Generators that are open, and those that their consumers dropped while they were.
        self.generators: weakref.WeakSet[Any] = weakref.WeakSet()
        self.orphans: collections.deque[Any] = collections.deque()
        #: Runs opened inside this one, which stop with it.
        self.children: list[Journal] = []
        #: Branches that callers name by path, for steps whose place is not that of the context.
        self.branches: dict[str, Branch] = {}
        #: The event loops that this run has met, and the task factories it uses there.
        self.loops: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self.signal = parts.switch.signal
        #: The generation that `look` has seen; -1 makes every check look.  Read without the lock.
        self.seen = -1
        self._condition = threading.Condition()
        self.on_warning: Any = None
        #: Warnings on record that `on_warning` has not been told of: it is called without the lock.
        self.pending_warnings: list[dict[str, Any]] = []
        #: The shared accounts as the last `write` left them.
        self.moved: dict[str, Account] = {}
        #: The fold took in something that was not appended, and must be read again.
        self.stale = False
        self.time = RunningTime(self)
        #: Steps that wait for an approval, by a name of their own as every step looks.
        self.waiters = self.time.waiters
        #: Whether tasks were made inside the run, so that outcomes may have to be delivered in turn.
        self.concurrent = False
        self._gates: weakref.WeakKeyDictionary[Any, Gate] = weakref.WeakKeyDictionary()
        #: Whether a stop interrupts sync bodies in flight.
        self.interrupt = False
        #: Whether every append is to survive a loss of power.
        self.power = parts.abilities.durability == "power"
        #: What serves steps from a log, in a replay or a recovery.
        self.player: Player | None = None
        #: In a forked child, what its keys begin with instead of the main branch; else empty.
        self.fork = ""
        #: How often the process was forked inside the run.
        self.forks = 0
        forked.watch(self)

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.fold.run_id

    @property
    def origin(self) -> str:
        """The run whose idempotency keys this one continues: its own id, or a fork's origin."""
        return self.fold.origin or self.fold.run_id

    @property
    def lock(self) -> Any:
        """The run's lock, which guards this journal."""
        return self._lock

    @lock.setter
    def lock(self, lock: Any) -> None:
        self._lock = lock
        #: Its methods, as every step needs them twice.
        self.acquire: Callable[..., bool] = lock.acquire
        self.release: Callable[[], None] = lock.release

    # --- waiting -------------------------------------------------------------------------------

    def wait_for_change(self) -> None:
        """Block until the log has grown, or look again after a moment: another process may write."""
        with self._condition:
            self._condition.wait(_POLL)
        self.refresh()

    async def changed(self) -> None:
        """The same, without blocking the event loop."""
        await asyncio.sleep(_POLL)
        self.refresh()

    def refresh(self) -> None:
        """Take in what other processes wrote."""
        if self.player is not None:
            self.player.check_doubt()
        with self.lock:
            self._await_commit()
            self.catch_up()
            self.time.count_idle()

    # --- appending -----------------------------------------------------------------------------

    def write(
        self,
        record: Record,
        payload: bytes | None,
        movements: Sequence[Movement],
        durability: Durability | None,
        wait: bool,  # noqa: FBT001 - called for each step, and keywords cost
    ) -> bytes:
        """Append one record the fast way and return its hash; the caller takes it into the fold.

        The lock is held.  Nothing was written if this raises.
        """
        seq = record.seq
        body = encode(record)
        digest = sha256(self.fold.hash + body).digest()
        if self.group is not None:
            self._accept(self.group, Stored(seq, body, digest, payload), movements)
            return digest
        append_one = self._append_one
        if append_one is not None and durability is None and not movements:
            append_one(self.number, seq, body, digest, payload, wait)
        else:
            self.moved = self.store.append(
                self.number,
                (Stored(seq, body, digest, payload),),
                movements=movements,
                durability=durability,
                wait=wait,
                deferred=True,
            )
        return digest

    def _accept(self, group: GroupCommitStore, stored: Stored, movements: Sequence[Movement]) -> None:
        before = self.commit
        failed = before is not None and before.error is not None
        if not self._deciding and (failed or self.stale or self.doubtful):
            raise HeadMovedError(self.number, stored.seq)  # the fold is not what the log says
        commit = group.accept(self.number, stored, movements, before)
        done = commit.future.done()
        self.moved = commit.future.result() if done else {}
        self.commit = None if done else commit

    def _await_commit(self) -> None:
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
            self.stale = True

    def doubt(self, step: Step, error: dict[str, Any]) -> None:
        """Note that the start of a step may be on record, and that its body will not run."""
        self.doubtful[step.key] = step, error

    def _close_doubtful(self) -> None:
        """Give back what the doubtful steps hold, as far as they are on record.  Inside `deciding`."""
        while self.doubtful:
            key, (step, error) = self.doubtful.popitem()
            if key in self.fold.open:
                data = {"error": error, "body_ran": False}
                record = Record(
                    0,
                    ev.STEP_FAILED,
                    self.clock.wall(),
                    key,
                    step.pos,
                    step.name,
                    step.kind,
                    step.attempt,
                    data=data,
                )
                self.act([record], movements=self.levels.settling(key, None))

    def shares_disk(self, durability: Durability | None) -> bool:
        """Whether what was just written is still on its way to the disk, together with others' writes."""
        return self.power or durability == "power"

    @contextlib.contextmanager
    def deciding(self) -> Iterator[None]:
        """The lock, writers of other processes kept out, and the fold at the log's end.

        What is appended inside stays appended, also where the decision is to raise: a refusal is on
        record before the caller hears of it.  Only the store's own failure takes everything back.
        """
        decision: BaseException | None = None
        with spared(), self.lock:
            if self.draining is not None and self.draining.released:
                raise self.draining.stop.with_traceback(None)
            self._await_commit()
            seq = self.fold.seq
            try:
                with self.store.exclusive(self.run_id), self._in_exclusive():
                    self.catch_up()
                    self._close_doubtful()
                    try:
                        yield
                    except (HeadMovedError, StoreUnavailableError):
                        raise
                    except BaseException as error:  # noqa: BLE001 - raised below, after the commit
                        decision = error
            except BaseException as error:
                moved = isinstance(error, HeadMovedError)
                if moved or self.fold.seq != seq:  # it has taken in what is not in the log
                    self.stale = True
                    with contextlib.suppress(AgentGuardError):
                        self.catch_up()
                if moved:  # though writers were kept out: the end of what this process wrote is gone
                    raise StoreUnavailableError(
                        f"the log of run {self.run_id} ends before what this process has written to it; "
                        "those events are lost, as after an error of the disk"
                    ) from error
                raise
        if decision is not None:
            raise decision

    @contextlib.contextmanager
    def _in_exclusive(self) -> Iterator[None]:
        self._deciding += 1
        _EXCLUSIVE.depth += 1
        try:
            yield
        finally:
            self._deciding -= 1
            _EXCLUSIVE.depth -= 1

    def act(
        self,
        records: Sequence[Record],
        payloads: Sequence[bytes | None] = (),
        movements: Sequence[Movement] = (),
        durability: Durability | None = None,
    ) -> None:
        """Append records and the run's row in one act.  Inside `deciding`; sequences are set here."""
        fold = self.fold
        stored: list[Stored] = []
        self.stale = True  # until it is written
        for index, draft in enumerate(records):
            record = msgspec.structs.replace(draft, seq=fold.seq + 1)
            body = encode(record)
            payload = payloads[index] if index < len(payloads) and not fold.erased else None
            stored.append(Stored(record.seq, body, codec.chain(fold.hash, body), payload))
            self.apply(record, stored[-1].hash)
        row = row_of(self.row, fold)
        self.store.append(self.number, stored, movements=movements, row=row, durability=durability)
        self.row = row
        self.stale = False

    def apply(self, record: Record, digest: bytes) -> None:
        """Take one record into the fold, and act on what it means in this process."""
        fold = self.fold
        state = fold.state
        fold.apply(record, digest)
        if fold.state is not state:
            self.time.count()
            with self._condition:
                self._condition.notify_all()
        if record.type == ev.RUN_RECOVERED:
            self.epoch = fold.epoch
        elif record.type in (ev.SCOPE_OPENED, ev.RUN_BUDGET_SET):
            self.levels.changed()
        elif record.type == ev.STEP_REFUSED:
            self._take_scope_stop(record.data or {})
        elif record.type == ev.STEP_RESOLVED and self.elsewhere:
            self.elsewhere.discard(record.key or "")
        if fold.termination is not None and self.stop is None:
            stop = stop_from(fold.termination)
            if stop is not None:
                self.set_stop(stop)

    def _take_scope_stop(self, data: dict[str, Any]) -> None:
        key = data.get("stops")
        if key and key not in self.scope_stops:
            stop = stop_from(data["termination"])
            if stop is not None:
                self.scope_stops[key] = stop

    def catch_up(self) -> None:
        """Take in what other processes appended.  The lock is held."""
        if self.stale:
            self._reload()
        for stored in self.store.read(self.run_id, self.fold.seq):
            record = codec.decode(stored.body)
            if self._claims(record):
                # Not taken in, so that whatever is tried later meets it again.
                owner = (self.store.row(self.run_id) or self.row).owner
                raise RunOwnedError(self.run_id, f"process {owner.get('pid')} on {owner.get('host')}")
            self.apply(record, stored.hash)
            if record.type == ev.STEP_STARTED:
                self.elsewhere.add(record.key or "")

    def _claims(self, record: Record) -> bool:
        """Whether this is a claim by somebody else, after which this process is fenced (rule 13)."""
        return record.type == ev.RUN_RECOVERED and (record.data or {})["epoch"] > self.epoch

    def _reload(self) -> None:
        """Fold the log anew, after an act that was not written."""
        own = self.fold.open.keys() - self.elsewhere
        self.fold = RunFold(self.run_id)
        for stored in self.store.read(self.run_id):
            record = codec.decode(stored.body)
            if self._claims(record):
                break
            self.fold.apply(record, stored.hash)
        self.elsewhere = self.fold.open.keys() - own
        self.stale = False
        self.levels.changed()
        self.time.count()
        self._take_stops()

    def _take_stops(self) -> None:
        """Act on what a log that was folded anew says of stops and of the run's state."""
        for key, scope in self.fold.scopes.items():
            if scope.stop is not None:
                self._take_scope_stop({"stops": key, "termination": scope.stop})
        if self.fold.termination is not None and self.stop is None:
            stop = stop_from(self.fold.termination)
            if stop is not None:
                self.set_stop(stop)
        with self._condition:
            self._condition.notify_all()

    def warned(self, data: dict[str, Any]) -> None:
        """Tell the run's owner of a warning; what it raises must not harm the step."""
        if self.on_warning is not None:
            self.pending_warnings.append(data)

    def gate(self, loop: asyncio.AbstractEventLoop) -> Gate | None:
        """The delivery gate of a loop, where more than one task of a run is under way in it."""
        factory = self.loops.get(loop)
        if factory is None or not factory.alive:
            return None
        gate = self._gates.get(loop)
        if gate is None:
            gate = self._gates[loop] = Gate(loop)
        return gate

    def tell_warnings(self) -> None:
        """Call `on_warning` for what is pending; the lock is not held."""
        while self.pending_warnings:
            try:
                data = self.pending_warnings.pop(0)
            except IndexError:  # another thread was faster
                return
            try:
                self.on_warning(data)
            except Exception:  # noqa: BLE001 - a stranger's callback must not harm the step
                _log.exception("on_warning= of run %s failed", self.run_id)

    def drain(self) -> None:
        """Settle the generators that were dropped; the lock is not held."""
        while self.orphans:
            self.orphans.popleft().forgotten()

    def redactor(self, spec: StepSpec) -> Redactor | None:
        """What takes secrets out of the payloads of a step, or None."""
        chosen = spec.redact if spec.redact is not None else self.parts.redact
        return chosen or None

    def keeper(self, spec: StepSpec) -> PayloadRecorder:
        """Return what captures the calls of a step in this run, made at its first call."""
        if len(self.keepers) >= _MOST_KEEPERS:  # options that are made anew for each call
            self.keepers.clear()
        level = spec.capture or self.parts.capture
        capturing = Capturing(level, self.redactor(spec), self.digest, self.fold.value_scheme)
        keeper = PayloadRecorder(spec, capturing)
        self.keepers[spec] = keeper
        return keeper

    def unnamed_branch(self) -> Branch:
        """A branch for an attachment without a name, by a number that no process gives out twice."""
        name = f"attach:{self.run_id}"
        count = Movement(name, settle=({}, {_ATTACHED: 1}), opening=Account(name, None))
        with self.lock:
            moved = self.store.append(self.number, (), movements=(count,))
        return Branch(f"{UNNAMED}{moved[name].spent[_ATTACHED]}")

    # --- stops ---------------------------------------------------------------------------------

    def set_stop(self, stop: RunStopped) -> None:
        """Make a stop stick in this process and in the runs inside, and cancel what is in flight."""
        if self.stop is not None:
            return
        self.stop = stop
        self.cancel(stop, "")

    def cancel(self, stop: RunStopped, scope: str) -> None:
        """Stop what is in flight inside a scope, nested runs too; the empty one is the whole run."""
        inside = self.fold.inside(scope)
        for body in tuple(self.bodies) if stop.cancels else ():
            if body.scope in inside:
                body.stop(stop)
        for child in tuple(self.children):
            if child.levels.outer[0].scope in inside:
                child.end(stop)

    def look(self) -> None:
        """See exactly whether a kill covers this run, after the switch has signalled a change.

        Raises:
            KillSwitchUnavailableError: nobody can tell.
            RunStopped: this process is letting go of the run.
        """
        parts = self.parts
        generation = self.signal[GENERATION]
        try:
            # A kill that is known stops the run also where the page is damaged: it is asked for first.
            kill = parts.switch.find(self.fold.tenant, self.run_id, self.fold.generation)
            self.killed = kill is not None
            if kill is not None and self.stop is None and not self.fold.state.final:
                self.end(kill.error(self.run_id))
            self.signal = parts.switch.signal
            parts.refresh()
        except AgentGuardError:
            self.seen = -1
            raise
        draining = self.draining
        with self.lock:
            self.levels.changed()
            self.seen = generation if draining is None else -1
        if draining is not None and self.stop is None and not draining.lets_on():
            raise draining.stop.with_traceback(None)

    def drain_with(self, draining: Draining | None) -> None:
        """Take part in a drain: every check asks it from now on."""
        self.draining = draining
        self.seen = -1

    def let_go(self) -> None:
        """The run is given up: outcomes that come yet belong to nothing that is in flight here."""
        self.owner = False
        self.fold.open.clear()

    def end(self, stop: RunStopped, refused: Record | None = None) -> None:
        """Stop the run.  In memory first: a store that is gone must not save a run from its stop.

        The first stop to be committed wins: where another process was first, its stop is the run's.
        """
        self.set_stop(stop)
        before = [refused] if refused is not None else []
        with contextlib.suppress(AgentGuardError):
            if not self.finish(termination(stop), before) and self.fold.termination != termination(stop):
                self.stop = stop_from(self.fold.termination or {})

    def finish(self, ended: dict[str, Any], before: Sequence[Record] = ()) -> bool:
        """Append the terminal event, unless the log has one; gives whether it was this one."""
        with self.deciding():
            if self.fold.state.final:
                return False
            if self.stop is not None:
                ended = termination(self.stop)
            kind = ev.RUN_FAILED
            if ended["type"] == "completed":
                kind = ev.RUN_COMPLETED
            elif ended["type"] == KillSwitchTriggeredError.__name__:
                kind = ev.RUN_KILLED
            last = Record(
                0,
                kind,
                self.clock.wall(),
                name=self.fold.name,
                spent=dict(self.fold.account.spent),
                data={"termination": ended, "running_ns": self.time.elapsed()},
            )
            unused = uncharged(self.fold) if kind == ev.RUN_COMPLETED else ()
            warnings = [Record(0, ev.BUDGET_WARNING, last.at_ns, data=data) for data in unused]
            self.act([*before, *warnings, last], movements=self.levels.closing())
            for warning in warnings:
                self.warned(warning.data or {})
        if warnings:
            self.tell_warnings()
        return True

    def account(self, scope: str = "") -> Account:
        """A level's account as the program knows it: without what a recovery has not come to yet."""
        account = self.fold.scopes[scope].accounts[0]
        ahead = None if self.player is None else self.player.ahead(scope)
        return account if ahead is None else account.less(*ahead)

    def spent(self) -> Amounts:
        """What the run has used, nested runs that are still live included."""
        with self.lock:
            spent = dict(self.account().spent)
            for child in self.children:
                for resource, amount in child.spent().items():
                    spent[resource] = spent.get(resource, 0) + amount
            return spent

    def remaining(self) -> Amounts:
        """What the run's own budget leaves, reservations and live nested runs taken off."""
        with self.lock:
            left = self.account().remaining()
            for child in self.children:
                for amounts in (child.spent(), child.fold.account.reserved):
                    for resource in left.keys() & amounts.keys():
                        left[resource] -= amounts[resource]
            limit = self.fold.budget.limits.get(SECONDS)
            if limit is not None:
                left[SECONDS] = limit - self.time.elapsed()
            return left

    def summary(self) -> RunSummary:
        """The summary as this process knows it; no I/O."""
        with self.lock:
            running = None if self.fold.state.final else self.time.elapsed()
            return summarize(self.fold, running)


def row_of(row: RunRow, fold: RunFold) -> RunRow:
    """The row that goes with a fold."""
    return msgspec.structs.replace(
        row,
        state=str(fold.state),
        ended_ns=fold.ended_ns,
        epoch=fold.epoch,
        summary=summarize(fold).to_data(),
    )
