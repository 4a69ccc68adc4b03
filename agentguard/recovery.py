"""Carrying on from a log: the block of a recovered run, and of a fork."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import structs

from agentguard._encoding import decode
from agentguard._process import identity, is_alive
from agentguard.budget.model import Budget
from agentguard.errors import (
    InvalidStateTransitionError,
    ReplayDivergenceError,
    RunOwnedError,
    RunStopped,
    StepOutcomeUnknownError,
)
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.codec import Stored
from agentguard.events.model import Record
from agentguard.killswitch.model import GENERATION
from agentguard.lifecycle import Opening, load_journal
from agentguard.protocols import RunRow
from agentguard.replay.player import Player
from agentguard.replay.resolving import settle_unknown
from agentguard.replay.session import Replaying, origin_log, prefix
from agentguard.runs.fold import RunFold
from agentguard.runs.state import RunState
from agentguard.steps.journal import Journal

if TYPE_CHECKING:
    from agentguard.guard import Guard

#: Without a sign of life for so long, in nanoseconds, an owner on another host counts as dead.
STALE_NS = 30_000_000_000


class Recovering(Opening):
    """A crashed run as a block: its prefix is served, the rest goes live."""

    def __init__(
        self,
        guard: Guard,
        row: RunRow,
        *,
        take_over: bool = False,
        stall_timeout: float = 30.0,
        around: Any = None,
        key: str = "",
        pos: int = 0,
    ) -> None:
        self.guard = guard
        self.run_id, self.name, self.tenant = row.run_id, row.name, row.tenant
        self.around, self.key, self.pos = around, key, pos
        self._row = row
        self._take_over = take_over
        self._stall_timeout = stall_timeout
        self._nested = None
        self.on_warning = None

    @property
    def inputs(self) -> Any:
        """What the run was given."""
        first = next(iter(self.guard.parts.store.read(self.run_id)))
        return None if first.payload is None else decode(first.payload)

    def open(self, run: Any) -> Journal:
        """Claim the run and give its journal, with its log to answer for what is on record."""
        parts = self.guard.parts
        self._check_state(self._row)
        check_owner(self._row, parts.clock.wall(), take_over=self._take_over)
        journal = load_journal(parts, self._row)
        generation = parts.switch.signal[GENERATION]
        with journal.deciding():
            row = parts.store.row(self.run_id)
            assert row is not None  # noqa: S101 - it was there, and runs in flight are never pruned
            self._check_state(row)
            if row.epoch != self._row.epoch:
                raise RunOwnedError(self.run_id, describe_owner(row.owner))
            head = journal.fold.seq
            journal.row = structs.replace(
                row,
                owner=identity() | {"monotonic_ns": parts.clock.monotonic()},
                heartbeat_ns=parts.clock.wall(),
            )
            data = {"epoch": row.epoch + 1, "running_ns": journal.fold.running_until_last_event()}
            records = [Record(0, ev.RUN_RECOVERED, parts.clock.wall(), name=self.name, data=data)]
            if journal.fold.state is RunState.CREATED:
                records.append(Record(0, ev.RUN_STARTED, parts.clock.wall(), name=self.name))
            journal.act(records)
        journal.owner = True
        journal.restart_clock()
        self.guard.live[self.run_id] = journal
        self.guard.take_part()
        log = itertools.takewhile(lambda stored: stored.seq <= head, origin_log(parts.store, self.run_id))
        journal.player = Player(journal, log, unknown=settle_unknown, stall_timeout=self._stall_timeout)
        if parts.telemetry is not None:
            journal.span = parts.telemetry.start_run(
                name=self.name, run_id=self.run_id, tenant=self.tenant, metadata=journal.fold.metadata
            )
        journal.seen = -1 if generation else 0
        return journal

    def _check_state(self, row: RunRow) -> None:
        state = RunState(row.state)
        if state.final:
            error = InvalidStateTransitionError(self.run_id, state, RunState.RUNNING)
            error.add_note("an ended run never recovers: fork it, with a new budget, to carry on")
            raise error

    def close(self, journal: Journal, error: BaseException | None) -> RunStopped | None:
        """End the run, unless it cannot be carried on: then it is given back as it is."""
        player = journal.player
        if isinstance(player, Player) and journal.stop is None:
            difference: BaseException | None = player.divergence
            if difference is None and error is None:
                try:
                    player.finish()
                except ReplayDivergenceError as left_over:
                    difference = left_over
            if difference is not None or isinstance(error, StepOutcomeUnknownError):
                self._give_back(journal)
                if difference is not None and difference is not error:
                    raise difference.with_traceback(None) from error
                return None
        return super().close(journal, error)

    def _give_back(self, journal: Journal) -> None:
        """Leave the run without an owner, for an operator or another program to go on."""
        parts = self.guard.parts
        with journal.deciding():
            row = structs.replace(journal.row, owner={}, heartbeat_ns=parts.clock.wall())
            parts.store.update_row(row)
        self._forget(journal)
        self._end_span(journal, None)


def check_owner(row: RunRow, wall_ns: int, *, take_over: bool) -> None:
    """Refuse to claim a run whose owner lives, or may.

    Raises:
        RunOwnedError: it names the owner.
    """
    if take_over or not row.owner:
        return
    alive = is_alive(row.owner)
    if alive is None:
        alive = wall_ns - row.heartbeat_ns < STALE_NS
    if alive:
        raise RunOwnedError(row.run_id, describe_owner(row.owner))


def describe_owner(owner: dict[str, Any]) -> str:
    """An owner in words."""
    if not owner:
        return "another process, just now"
    return f"process {owner.get('pid')} on {owner.get('host')}"


class ForkOptions(NamedTuple):
    """What a fork is made with."""

    at: int
    budget: Budget | None
    name: str | None
    run_id: str | None
    stall_timeout: float


class Forking(Opening):
    """A new run that shares the beginning of another one's log."""

    def __init__(self, guard: Guard, row: RunRow, options: ForkOptions) -> None:
        store = guard.parts.store
        self._origin = row
        self._options = options
        self._fold = RunFold(row.run_id)
        seed, self._pin = "", b""
        spent = RunFold(row.run_id)
        for stored in store.read(row.run_id):
            record = codec.decode(stored.body)
            if record.type == ev.RUN_CREATED:
                seed = (record.data or {}).get("seed", "")
                self._inputs_payload = stored.payload
            if stored.seq <= options.at:
                spent.apply(record, stored.hash)
                self._pin = stored.hash
            self._fold.apply(record, stored.hash)
        if not 1 <= options.at <= self._fold.seq:
            raise ValueError(f"run {row.run_id} has events 1 to {self._fold.seq}, not {options.at}")
        self._seed = seed
        self._spent = _with_later_outcomes(spent, prefix(store, row.run_id, options.at), options.at)
        inputs = None if self._inputs_payload is None else decode(self._inputs_payload)
        super().__init__(
            guard,
            options.name or row.name,
            budget=options.budget or self._fold.budget,
            tenant=row.tenant,
            run_id=options.run_id,
            inputs=inputs,
            metadata=self._fold.metadata,
            on_warning=None,
            detached=True,
        )

    def _salt(self) -> bytes:
        # The same salt, so that the arguments of the prefix can be compared by their digests.
        return self._origin.salt or super()._salt()

    def _more(self) -> dict[str, Any]:
        return {"seed": self._seed}

    def _prefix(self, now: int) -> list[Record]:
        root = self._fold.origin or self._fold.run_id
        data = {
            "origin": self._origin.run_id,
            "seq": self._options.at,
            "hash": self._pin.hex(),
            "root": root,
        }
        return [Record(3, ev.RUN_FORKED, now, name=self.name, usage=self._spent, data=data)]

    def open(self, run: Any) -> Journal:
        """Put the fork on record; the origin's prefix answers for what is in it."""
        journal = super().open(run)
        log = prefix(self.guard.parts.store, self._origin.run_id, self._options.at)
        journal.player = Player(journal, log, unknown=_in_origin, stall_timeout=self._options.stall_timeout)
        return journal


def _in_origin(step: Any, call: Any) -> Any:
    """A step that the origin had started, without an outcome: here it is a first attempt."""
    spec = step.spec
    if spec.effect == "once" and spec.probe is None:
        raise StepOutcomeUnknownError(step.journal.origin, step.key)
    return None


def _with_later_outcomes(fold: RunFold, log: Iterator[Stored], at: int) -> dict[str, int]:
    """What the prefix has spent: its own events, and later outcomes of the steps begun in it."""
    for stored in log:
        if stored.seq > at:
            fold.apply(codec.decode(stored.body), stored.hash)
    spent = dict(fold.account.spent)
    for step in fold.open.values():  # they may have happened: their reservations count
        for resource, amount in step.request.reserve.items():
            spent[resource] = spent.get(resource, 0) + amount
    return spent


def nested(guard: Guard, opening: Opening) -> Any:
    """How a run inside a replayed or recovered one is opened; None: live, like any other."""
    around: Journal = opening.around.run.journal  # type: ignore[union-attr]
    player = around.player
    if not isinstance(player, Player) or not player.open_run(opening.key, opening.pos, opening.around.scope_key):
        return None
    row = guard.parts.store.row(opening.run_id)
    if row is None:
        return None  # the crash came between the two logs
    if not player.live or RunState(row.state).final:
        return Replaying(guard.parts, row, stall_timeout=30.0)
    return Recovering(guard, row, take_over=True, around=opening.around, key=opening.key, pos=opening.pos)
