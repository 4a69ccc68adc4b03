"""Replays, recoveries and forks as blocks: what `guard.replay`, `recover` and `fork` open."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from agentguard._encoding import decode
from agentguard.errors import LogIntegrityError, ReplayDivergenceError, RunStopped
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.codec import Stored
from agentguard.protocols import EventStore, RunRow
from agentguard.replay.player import Player
from agentguard.replay.sealed import SealedStore, StillSwitch
from agentguard.runs.branch import MAIN, Branch
from agentguard.runs.fold import RunFold
from agentguard.steps.journal import Journal
from agentguard.steps.parts import Parts


def checked(log: Iterator[Stored], run_id: str) -> Iterator[Stored]:
    """A log as it is read, refused at the first event that was altered.

    Raises:
        LogIntegrityError: an event does not fit, or the log does not begin at 1.
    """
    head, seq = codec.genesis(run_id), 0
    for stored in log:
        seq += 1
        if stored.seq != seq:
            raise LogIntegrityError(run_id, seq, f"expected event {seq}, found {stored.seq}")
        if codec.chain(head, stored.body) != stored.hash:
            raise LogIntegrityError(run_id, seq, "its hash does not fit: it, or its order, was changed")
        head = stored.hash
        yield stored


def origin_log(store: EventStore, run_id: str) -> Iterator[Stored]:
    """A run's own log behind the prefix of the run that it was forked from, if it was."""
    log = checked(store.read(run_id), run_id)
    for stored in log:
        if b'"type":"run_forked"' in stored.body[:64]:
            data = codec.decode(stored.body).data or {}
            yield from prefix(store, data["origin"], data["seq"])
        yield stored


def prefix(store: EventStore, run_id: str, at: int) -> Iterator[Stored]:
    """What a fork shares of its origin: all up to event `at`, and later outcomes of what began there."""
    begun: set[str] = set()
    for stored in origin_log(store, run_id):
        record = codec.decode(stored.body)
        if record.type.startswith("run_"):
            continue
        if stored.seq <= at:
            begun.add(record.key or "")
            yield stored
        elif record.key in begun and record.type in (ev.STEP_COMPLETED, ev.STEP_FAILED, ev.STEP_RESOLVED):
            yield stored


class Replaying:
    """A replay as a run's block: no body runs, nothing is written, nothing is spent."""

    def __init__(self, parts: Parts, row: RunRow, *, stall_timeout: float, telemetry: Any = None) -> None:
        self._parts = parts
        self._row = row
        self._stall_timeout = stall_timeout
        self._telemetry = telemetry
        self.run_id, self.name, self.tenant = row.run_id, row.name, row.tenant
        self._player: Player | None = None

    @property
    def inputs(self) -> Any:
        """What the recorded run was given."""
        first = next(iter(self._parts.store.read(self.run_id)))
        return None if first.payload is None else decode(first.payload)

    def branch(self) -> Branch:
        """The branch that the run's own code is in."""
        return Branch(MAIN)

    def open(self, run: Any) -> Journal:
        """A journal on a sealed copy of the parts, with the log to answer for it.

        Raises:
            LogIntegrityError: the log was altered; checked as far as it is read.
        """
        store = self._parts.store
        fold = RunFold(self.run_id)
        for stored in itertools.islice(checked(store.read(self.run_id), self.run_id), 2):
            fold.apply(codec.decode(stored.body), stored.hash)
        parts = Parts(
            store=SealedStore(store),
            switch=StillSwitch(),
            telemetry=self._telemetry,
            clock=self._parts.clock,
            capture=self._parts.capture,
            redact=self._parts.redact,
        )
        journal = Journal(parts, self._row, fold)
        journal.owner = False
        journal.seen = 0
        journal.keep_time()
        self._player = Player(journal, origin_log(store, self.run_id), stall_timeout=self._stall_timeout)
        journal.player = self._player
        return journal

    def close(self, journal: Journal, error: BaseException | None) -> RunStopped | None:
        """Hold the program's end against the log's; gives the recorded stop to raise.

        Raises:
            ReplayDivergenceError: the program did something else, whatever it swallowed.
        """
        for factory in journal.loops.values():
            factory.leave(id(journal))
        player = self._player
        if player is None:
            return None
        if player.divergence is not None:
            raise player.divergence.with_traceback(None) from (None if error is player.divergence else error)
        if isinstance(error, ReplayDivergenceError) or (
            error is not None and not isinstance(error, Exception)
        ):
            return None  # of a run inside or around; or the process wants out
        try:
            player.finish()
            return player.end(error)
        except ReplayDivergenceError as difference:
            raise difference from error

    def kill(self, run_id: str, reason: str, actor: str | None) -> int:
        """A replay cannot be killed: its recorded kill is delivered where it was."""
        return 0

    def pause(self, run_id: str, reason: str) -> None:
        """A replay copies the recorded pauses and takes no new ones."""

    def resume(self, run_id: str) -> None:
        """See `pause`."""
