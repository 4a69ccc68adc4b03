"""Carrying on from a log: the block of a recovered run, and of a fork."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from msgspec import structs

from agentguard._encoding import decode
from agentguard._process import is_alive
from agentguard.audit.verify import verify
from agentguard.budget.model import Budget
from agentguard.errors import (
    AgentGuardError,
    InvalidStateTransitionError,
    LogIntegrityError,
    ReplayDivergenceError,
    RunOwnedError,
    RunStopped,
    StepOutcomeUnknownError,
)
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.model import Record
from agentguard.joining import load_journal
from agentguard.killswitch.model import GENERATION
from agentguard.leaving import give_back
from agentguard.lifecycle import Opening, owner_of
from agentguard.protocols import EventStore, RunRow
from agentguard.replay.divergence import NOT_REPLAYABLE
from agentguard.replay.origin import Shared, origin_log
from agentguard.replay.player import Player
from agentguard.replay.resolving import pause_for, settle_unknown
from agentguard.replay.session import Replaying
from agentguard.replay.stalls import STALL_TIMEOUT
from agentguard.runs.state import RunState
from agentguard.runs.termination import stop_from
from agentguard.steps.generators import leave_served
from agentguard.steps.journal import Journal

if TYPE_CHECKING:
    from agentguard.guard import Guard

#: Without a sign of life for so long, in nanoseconds, an owner on another host counts as dead.
STALE_NS = 30_000_000_000


class CarryingOn(Opening):
    """A run whose beginning is on record: that is served, the rest goes live."""

    def close(self, journal: Journal, error: BaseException | None) -> RunStopped | None:
        """End the run, unless it cannot be carried on: then it is given back as it is."""
        player = journal.player
        live = journal.owner and journal.stop is None and journal.draining is None
        if isinstance(player, Player) and live:
            reason = _in_the_way(journal, player, error)
            if reason is not None:
                if isinstance(reason, ReplayDivergenceError) and reason.kind == NOT_REPLAYABLE and reason.key:
                    pause_for(journal, reason.key, f"the result of {reason.key} cannot be handed out")
                self.give_back(journal)
                if reason is not error and (error is None or isinstance(error, Exception)):
                    raise reason.with_traceback(None) from error
                return None
        return super().close(journal, error)

    def give_back(self, journal: Journal) -> None:
        """Leave the run without an owner, for an operator or another program to go on."""
        give_back(self.guard, journal)
        self._end_span(journal, None)


def _in_the_way(journal: Journal, player: Player, error: BaseException | None) -> AgentGuardError | None:
    """Why this program cannot carry its run on, whatever it made of being told so; None if it can."""
    if player.divergence is not None:
        return player.divergence
    if isinstance(error, StepOutcomeUnknownError | LogIntegrityError):
        return error
    try:
        player.check_doubt()
        if error is None:
            leave_served(journal)
            player.finish()
    except (ReplayDivergenceError, StepOutcomeUnknownError) as reason:
        return reason
    return None


class Recovering(CarryingOn):
    """A crashed run as a block: its prefix is served, the rest goes live."""

    def __init__(
        self,
        guard: Guard,
        row: RunRow,
        *,
        take_over: bool = False,
        stall_timeout: float = STALL_TIMEOUT,
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
        refuse_altered(parts.store, self._row)
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
                owner=owner_of(parts),
                heartbeat_ns=parts.clock.wall(),
            )
            data = {"epoch": row.epoch + 1, "running_ns": journal.fold.running_until_last_event()}
            records = [Record(0, ev.RUN_RECOVERED, parts.clock.wall(), name=self.name, data=data)]
            if journal.fold.state is RunState.CREATED:
                records.append(Record(0, ev.RUN_STARTED, parts.clock.wall(), name=self.name))
            journal.act(records)
        journal.owner = True
        journal.time.restart()
        self.guard.live[self.run_id] = journal
        if self.around is not None:
            self.around.run.journal.children.append(journal)
        self.guard.take_part()
        log = origin_log(parts.store, self.run_id, head)
        around = None if self.around is None else self.around.run.journal.player
        journal.player = Player(
            journal, log, unknown=settle_unknown, stall_timeout=self._stall_timeout, around=around
        )
        if parts.telemetry is not None:
            journal.span = parts.telemetry.start_run(
                name=self.name, run_id=self.run_id, tenant=self.tenant, metadata=journal.fold.metadata
            )
        journal.seen = -1 if generation else 0
        self._join_drain(journal)
        return journal

    def _check_state(self, row: RunRow) -> None:
        state = RunState(row.state)
        if state.final:
            error = InvalidStateTransitionError(self.run_id, state, RunState.RUNNING)
            error.add_note("an ended run never recovers: fork it, with a new budget, to carry on")
            raise error


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


class Forking(CarryingOn):
    """A new run that shares the beginning of another one's log."""

    def __init__(self, guard: Guard, row: RunRow, options: ForkOptions) -> None:
        refuse_altered(guard.parts.store, row)
        self._shared = shared = Shared(guard.parts.store, row.run_id, options.at, options.budget)
        self._origin = row
        self._stall_timeout = options.stall_timeout
        super().__init__(
            guard,
            options.name or row.name,
            budget=options.budget or shared.whole.budget,
            tenant=row.tenant,
            run_id=options.run_id,
            inputs=None if shared.inputs is None else decode(shared.inputs),
            metadata=shared.whole.metadata,
            on_warning=None,
            detached=True,
        )

    def _salt(self) -> bytes:
        # The same salt, so that the arguments of the prefix can be compared by their digests.
        return self._origin.salt or super()._salt()

    def _more(self) -> dict[str, Any]:
        return {"seed": self._shared.whole.seed}

    def _prefix(self, now: int) -> list[Record]:
        shared = self._shared
        return [Record(3, ev.RUN_FORKED, now, name=self.name, usage=shared.spent, data=shared.facts())]

    def open(self, run: Any) -> Journal:
        """Put the fork on record; the origin's prefix answers for what is in it."""
        journal = super().open(run)
        for key, scope in journal.fold.scopes.items():
            if scope.stop is not None and (stop := stop_from(scope.stop)) is not None:
                journal.scope_stops[key] = stop
        log = origin_log(self.guard.parts.store, self.run_id, journal.fold.seq)
        journal.player = Player(journal, log, unknown=settle_unknown, stall_timeout=self._stall_timeout)
        return journal


def refuse_altered(store: EventStore, row: RunRow) -> None:
    """Refuse to run an agent on a log that is not what was written, nor on one forked from such.

    Raises:
        LogIntegrityError: it names the first fault.
    """
    faults = verify(store, [row], {}).faults
    if faults:
        raise LogIntegrityError(*faults[0])
    origin = codec.origin(itertools.islice(store.read(row.run_id), 3))
    if origin is not None and (row_of_origin := store.row(origin)) is not None:
        refuse_altered(store, row_of_origin)


def nested(guard: Guard, opening: Opening) -> Any:
    """How a run inside a replayed or recovered one is opened; None: live, like any other."""
    place: Any = opening.around
    around: Journal = place.run.journal
    player = cast("Player", around.player)
    recorded = player.open_run(opening.key, opening.pos, place.scope_key)
    if recorded is None:
        return None
    row = around.parts.store.row(recorded)
    if row is None:
        if not player.live:
            expected = f"the log of run {recorded}, which was opened here"
            player.diverge(NOT_REPLAYABLE, opening.key, expected, "it is not in this store")
        return None  # the crash came between the two logs
    if not player.live or RunState(row.state).final:
        opening.run_id = recorded  # of a fork's origin, where that is what it is served from
        return Replaying(around.parts, row, stall_timeout=STALL_TIMEOUT, check=refuse_altered, around=player)
    if recorded != opening.run_id or row.parent_id != around.run_id:  # it goes on in a fork's origin
        error = StepOutcomeUnknownError(around.origin, opening.key)
        error.add_note(f"it is run {recorded}, which has not ended: recover it, and then fork again")
        raise error
    return Recovering(guard, row, take_over=True, around=place, key=opening.key, pos=opening.pos)
