"""A crashed run, claimed by this process and carried on."""

from __future__ import annotations

from typing import Any

from msgspec import structs

from agentguard._process import counts_as_alive
from agentguard.errors import InvalidStateTransitionError, RunOwnedError
from agentguard.events import model as ev
from agentguard.events.data import RunRecovered
from agentguard.events.model import Record
from agentguard.killswitch.model import GENERATION
from agentguard.protocols import RunRow
from agentguard.replay import STALL_TIMEOUT
from agentguard.replay.origin import origin_log
from agentguard.replay.player import Player
from agentguard.runs.state import RunState
from agentguard.runs.summary import state_of
from agentguard.runtime import Runtime
from agentguard.sessions.loading import load_live_run
from agentguard.sessions.nested_ends import close_ended_nested_runs
from agentguard.sessions.options import RunOptions
from agentguard.sessions.resumed import ResumedSession, carry_on, refuse_altered
from agentguard.steps.live import LiveRun
from agentguard.steps.model import InRun


class RecoverySession(ResumedSession):
    """A crashed run as a block: its prefix is served, the rest goes live.

    `options` are those of the program that carries it on; what the run was created with stays.
    """

    def __init__(
        self,
        runtime: Runtime,
        row: RunRow,
        options: RunOptions | None = None,
        *,
        take_over: bool = False,
        stall_timeout: float = STALL_TIMEOUT,
        around: InRun | None = None,
        key: str = "",
        pos: int = 0,
    ) -> None:
        super().__init__(
            runtime,
            options or RunOptions(name="recovered"),  # its own name, which may be altered, is looked at later
            run_id=row.run_id,
            tenant=row.tenant,
            around=around,
            key=key,
            pos=pos,
        )
        self.name = row.name
        self._row = row
        self._take_over = take_over
        self._stall_timeout = stall_timeout

    def open(self) -> LiveRun:
        """Claim the run and return its live run, with its log to answer for what is on record."""
        components = self.components
        self._check_state(self._row)
        refuse_altered(components.store, self._row)
        self.check_owner()
        live_run = load_live_run(components, self._row)
        generation = components.switch.signal[GENERATION]
        head = self._claim(live_run)
        live_run.owner = True
        live_run.time.restart()
        outer = None if self.around is None else self.around.live_run.player
        carry_on(
            live_run,
            origin_log(components.store, self.run_id, head),
            stall_timeout=self._stall_timeout,
            around=outer if isinstance(outer, Player) else None,
        )
        if components.telemetry is not None:
            live_run.span = components.telemetry.start_run(
                name=self.name,
                run_id=self.run_id,
                tenant=self.tenant,
                metadata=live_run.fold.metadata,
                origin=live_run.fold.began_in,
            )
        live_run.stops.seen = -1 if generation else 0
        self.take_part(live_run)
        for warning in live_run.fold.warnings:  # the program is run from its beginning, and so are they told
            live_run.in_flight.warned(warning)
        return live_run

    def check_owner(self) -> None:
        """Refuse to claim a run whose owner lives, or may.

        Raises:
            RunOwnedError: it names the owner.
        """
        check_owner(self._row, self.components.clock.wall(), take_over=self._take_over)

    def _claim(self, live_run: LiveRun) -> int:
        """Become the run's owner under a new epoch; return the head of the log before that."""
        components = self.components

        def claim() -> int:
            row = components.store.row(self.run_id)
            assert row is not None  # noqa: S101 - it was there, and runs in flight are never pruned
            self._check_state(row)
            if row.epoch != self._row.epoch:
                raise RunOwnedError(self.run_id, describe_owner(row.owner))
            close_ended_nested_runs(live_run)
            head = live_run.fold.seq
            now = components.clock.wall()
            data: RunRecovered = {
                "epoch": row.epoch + 1,
                "running_ns": live_run.fold.running_until_last_event(),
            }
            if row.owner:  # else it was let go
                data["from"] = describe_owner(row.owner)
            live_run.row = structs.replace(row, owner=self.new_owner(), heartbeat_ns=now)
            records = [Record(0, ev.RUN_RECOVERED, now, name=self.name, data=data)]
            if live_run.fold.state is RunState.CREATED:
                records.append(Record(0, ev.RUN_STARTED, now, name=self.name))
            live_run.log.act(records)
            return head

        return live_run.log.decide(claim)

    def _check_state(self, row: RunRow) -> None:
        state = state_of(row)
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
    if counts_as_alive(row.owner, row.heartbeat_ns, wall_ns):
        raise RunOwnedError(row.run_id, describe_owner(row.owner))


def describe_owner(owner: dict[str, Any]) -> str:
    """Return an owner in words."""
    if not owner:
        return "another process, just now"
    return f"process {owner.get('pid')} on {owner.get('host')}"
