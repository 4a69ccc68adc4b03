"""The outcomes of steps with a `key=`, for runs that many processes join: a call made again is served.

Who calls again does not run the whole program again, as a recovery does, but one call: an orchestrator that
delivers a task a second time.  So each step that is called again has a player of its own, over what the log
has of that step and of the calls in its body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn, TypeVar

from agentguard.budget.account import Amounts
from agentguard.errors import DuplicateKeyError, ReplayDivergenceError
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.codec import Stored
from agentguard.events.model import Record
from agentguard.replay.divergence import NOT_REPLAYABLE
from agentguard.replay.origin import origin_log
from agentguard.replay.player import Player
from agentguard.replay.resolving import RETRY, settle_cut_off
from agentguard.runs.branch import branch_of
from agentguard.steps.live import LiveRun
from agentguard.steps.outcome import CANCELLED
from agentguard.steps.served import RecordedOutcome, ServedItems
from agentguard.steps.step_call import StepCall, body_branch

T = TypeVar("T")


class KeyedOutcomes:
    """Serves the steps of a joined run that were called before, wherever that was.

    A step that completed gives its recorded result.  One that started and has no outcome may have happened:
    it is treated as in a recovery, and where it runs again, what its body had called is served to it.  One
    that failed runs again, as another attempt.
    """

    #: Calls that are not on record go live.
    live = True
    #: A step in doubt is one of many calls, which go on.
    halted = False

    def __init__(self, live_run: LiveRun) -> None:
        self._live_run = live_run
        #: What answers the calls in bodies that run again, by the branch of the body.
        self._bodies: dict[str, Player] = {}

    def player_at(self, branch: str) -> Player | None:
        """Return what answers the calls of a branch, if its body runs again."""
        if not self._bodies:
            return None
        return next(
            (
                player
                for body, player in tuple(self._bodies.items())
                if branch == body or branch.startswith(f"{body}/")
            ),
            None,
        )

    # --- steps ---------------------------------------------------------------------------------

    def continuations(self, step: StepCall) -> tuple[str, ...]:
        """See `agentguard.steps.served.ReplaySource`."""
        player = self._around(step)
        return () if player is None else player.continuations(step)

    def serve(self, step: StepCall) -> RecordedOutcome | None:
        """See `agentguard.steps.served.ReplaySource`."""
        player = self._asked(step)
        if player is None:
            return None
        return self._noted(step, player, player.serve(step))

    async def serve_async(self, step: StepCall) -> RecordedOutcome | None:
        """See `agentguard.steps.served.ReplaySource`."""
        if step.spec.key is None:
            player = self._around(step)
        else:
            player = await asyncio.to_thread(self._asked, step)  # it reads the store
        if player is None:
            return None
        return self._noted(step, player, await player.serve_async(step))

    def serve_items(self, step: StepCall) -> ServedItems | None:
        """See `agentguard.steps.served.ReplaySource`."""
        player = self._asked(step)
        if player is None:
            return None
        return self._noted(step, player, player.serve_items(step))

    def _around(self, step: StepCall) -> Player | None:
        """Return what answers a step without a key."""
        return None if step.spec.key is not None else self.player_at(branch_of(step.key))

    def _asked(self, step: StepCall) -> Player | None:
        """Return what answers a step, or None to run it.

        Raises:
            DuplicateKeyError: a step of this key is in flight in this process.
            ReplayDivergenceError: its result cannot be handed out.
        """
        if step.spec.key is None:
            return self._around(step)
        live_run = self._live_run
        live_run.refresh()
        log = live_run.log
        if step.key not in log.fold.keyed:
            return None
        last = _last_call(log.store.read(live_run.run_id), step.key)
        if last is None or last.failed:
            return None
        if last.end is None and step.key not in log.elsewhere:
            raise DuplicateKeyError(step.key.removeprefix("key:"), live_run.run_id)
        if last.continued:
            reason = "what its function returned went on, and is no value"
            raise ReplayDivergenceError(NOT_REPLAYABLE, step.key, reason)
        # The place of a call with a key differs from process to process; what is compared is the call itself.
        step.pos, step.path = last.start.pos, branch_of(step.key, last.start.data)
        return Player(live_run, _inside(live_run, last), unknown=settle_cut_off)

    def _noted(self, step: StepCall, player: Player, answer: T | None) -> T | None:
        """Return the answer; where the step runs again, its player answers what its body calls."""
        if answer is None and step.spec.key is not None:
            self._bodies[step.branch.path] = player
        return answer

    # --- what else a body does -----------------------------------------------------------------

    def sent_otherwise(self, step: StepCall, recorded: str, found: str) -> NoReturn:
        """See `agentguard.steps.served.ReplaySource`."""
        self._differing(step).sent_otherwise(step, recorded, found)

    def left_items(self, step: StepCall, count: int, served: ServedItems) -> NoReturn:
        """See `agentguard.steps.served.ReplaySource`."""
        self._differing(step).left_items(step, count, served)

    def _differing(self, step: StepCall) -> Player:
        return self._around(step) or Player(self._live_run, iter(()), unknown=settle_cut_off)

    def block(self, step: StepCall) -> None:
        """See `agentguard.steps.served.ReplaySource`."""
        player = self._asked(step)
        if player is not None:
            player.block(step)
            self._noted(step, player, None)

    def place(self, key: str, pos: int) -> tuple[str, int]:
        """See `agentguard.steps.served.ReplaySource`."""
        player = self.player_at(branch_of(key))
        return (key, pos) if player is None else player.place(key, pos)

    def value(self, key: str, pos: int, name: str, scope: str) -> RecordedOutcome | None:
        """See `agentguard.steps.served.ReplaySource`."""
        player = self.player_at(branch_of(key))
        return None if player is None else player.value(key, pos, name, scope)

    def open_scope(self, scope: Any) -> bool:
        """See `agentguard.steps.served.ReplaySource`."""
        player = self.player_at(branch_of(scope.key))
        return player is not None and player.open_scope(scope)

    def close_scope(self, scope: Any) -> bool:
        """See `agentguard.steps.served.ReplaySource`."""
        player = self.player_at(branch_of(scope.key))
        return player is not None and player.close_scope(scope)

    # --- what only a whole program has ---------------------------------------------------------

    def watch_loop(self, loop: asyncio.AbstractEventLoop, *, early: bool) -> None:
        """See `agentguard.steps.served.ReplaySource`; the loop runs other calls too."""

    def skip(self, done: Callable[[str], bool]) -> int:
        """See `agentguard.steps.served.ReplaySource`; each call is asked for by itself."""
        return 0

    def ahead(self, scope: str) -> tuple[Amounts, Amounts] | None:
        """See `agentguard.steps.served.ReplaySource`; what others have spent is spent."""
        return None

    def check_doubt(self) -> None:
        """See `agentguard.steps.served.ReplaySource`; the run is paused, and calls wait for that."""


class _LastCall(NamedTuple):
    """The newest call of a key: its start, its end, and the attempt that its body began with."""

    start: Record
    end: Record | None
    first: int

    @property
    def failed(self) -> bool:
        """Whether its body raised."""
        return self.end is not None and self.end.type == ev.STEP_FAILED

    @property
    def continued(self) -> bool:
        """Whether what its function returned went on after that."""
        return self.end is not None and bool((self.end.data or {}).get("came"))


def _last_call(log: Iterator[Stored], key: str) -> _LastCall | None:
    last: _LastCall | None = None
    for stored in log:
        record = codec.decode(stored.body)
        if record.key != key:
            continue
        if record.type == ev.STEP_STARTED:
            # A step that was resolved to be tried again goes on with the body that it had.
            again = last is not None and last.end is not None and (last.end.data or {}).get("as") == RETRY
            last = _LastCall(record, None, last.first if last is not None and again else record.attempt)
        elif last is not None and record.type in (ev.STEP_COMPLETED, ev.STEP_FAILED, ev.STEP_RESOLVED):
            last = last._replace(end=record)
    return last


def _inside(live_run: LiveRun, call: _LastCall) -> Iterator[Stored]:
    """Yield what is on record of a call now, and of the calls in its body."""
    key = call.start.key or ""
    body = body_branch(key, call.first)
    for stored in origin_log(live_run.log.store, live_run.run_id, live_run.log.fold.seq):
        record = codec.decode(stored.body)
        if record.key is None:
            continue
        if record.key == key:
            if not 0 < record.attempt < call.first:
                yield stored
            continue
        data = record.data or {}
        branch = branch_of(record.key, data)
        # What was cancelled may have happened, and a call with a key of its own is asked for by itself.
        if data.get("outcome") == CANCELLED or "keyed" in data:
            continue
        if branch == body or branch.startswith(f"{body}/"):
            yield stored
