"""The player: answers for a live run from its log.  No step body runs for what is on record.

A replay answers everything, and a call that is not on record is a divergence.  A recovery answers its
prefix and lets the rest go live; there, a step that started and has no outcome is handed to `unknown`.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from agentguard._values.names import type_name
from agentguard.budget.account import Amounts
from agentguard.errors import (
    ApprovalDeniedError,
    DuplicateKeyError,
    ReplayDivergenceError,
    RunStopped,
    StepOutcomeUnknownError,
)
from agentguard.events import model as ev
from agentguard.events.codec import Stored
from agentguard.events.conversations import ConversationCall
from agentguard.events.data import (
    Approval,
    NestedRunOpened,
    RunEnded,
    ScopeOpened,
    Value,
    data_of,
)
from agentguard.replay import STALL_TIMEOUT
from agentguard.replay import divergence as d
from agentguard.replay.elsewhere import Elsewhere
from agentguard.replay.findings import Findings
from agentguard.replay.not_yet_replayed import NotYetReplayed
from agentguard.replay.order import DeliveryOrder
from agentguard.replay.outcomes import RecordedOutcomes
from agentguard.replay.spending import RecordedSpending
from agentguard.replay.stalls import Stalls
from agentguard.replay.stops import RecordedStops
from agentguard.replay.tape import Call, Tape
from agentguard.runs.branch import UNNAMED, branch_of
from agentguard.runs.state import RunState
from agentguard.steps import exceptions, values
from agentguard.steps.live import LiveRun
from agentguard.steps.served import RecordedOutcome, ServedItems
from agentguard.steps.step_call import StepCall

Unknown = Callable[[LiveRun, StepCall, Call], RecordedOutcome | None]


class Player:
    """Answers the calls of one live run from its log.  Safe to use from every thread."""

    def __init__(
        self,
        live_run: LiveRun,
        log: Iterator[Stored],
        *,
        unknown: Unknown | None = None,
        stall_timeout: float = STALL_TIMEOUT,
        around: Player | None = None,
    ) -> None:
        self._live_run = live_run
        self._around = around
        self._lock = threading.RLock()
        self.tape = Tape(log)
        self._elsewhere = Elsewhere(self.tape)
        self._unknown = unknown
        self._not_yet = None if unknown is None else NotYetReplayed(live_run.log.fold)
        self._spending = RecordedSpending(live_run, self.tape, self._not_yet)
        self._stops = RecordedStops(live_run, self.tape)
        self._scopes: dict[str, Call] = {}
        #: The last call served of each `key=`.
        self._keyed: dict[str, Call] = {}
        self._findings: Findings = Findings(None if around is None else around._findings)
        self._outcomes = RecordedOutcomes(live_run.run_id, self._stops, self._findings)
        self._order = DeliveryOrder(self.tape, self._findings, stall_timeout)
        self._stalls = Stalls(
            self._findings,
            busy=lambda: self._order.waited_for,
            next_call=self._first_left,
            stall_timeout=stall_timeout,
        )

    @property
    def live(self) -> bool:
        """Whether calls that are not on record go live."""
        return self._unknown is not None

    @property
    def divergence(self) -> ReplayDivergenceError | None:
        """The first difference; once found, every further call raises it."""
        return self._findings.divergence

    @property
    def halted(self) -> bool:
        """See `agentguard.steps.served.ReplaySource`."""
        return self._findings.halted

    def watch_loop(self, loop: asyncio.AbstractEventLoop, *, early: bool) -> None:
        """See `agentguard.steps.served.ReplaySource`."""
        if self._around is None and not self.live:
            self._stalls.attend(loop, early=early)

    def close(self) -> None:
        """Stop watching the program."""
        self._stalls.close()

    def stop_reading(self) -> None:
        """Read the log no further; the program has left the run's block."""
        with self._lock:
            self.tape.close()

    def _first_left(self) -> Call | None:
        """Return the first recorded call that was not made."""
        with self._lock:
            call = self.tape.left_over()
            return None if call is None else self.tape.outermost(call)

    # --- steps ---------------------------------------------------------------------------------

    def continuations(self, step: StepCall) -> tuple[str, ...]:
        """See `agentguard.steps.served.ReplaySource`."""
        with self._lock:
            call = self._find(step)
            return () if call is None else tuple(call.end_data.get("came", ()))

    def serve(self, step: StepCall) -> RecordedOutcome | None:
        """See `agentguard.steps.served.ReplaySource`."""
        with self._lock:
            call = self._find(step)
            if call is None:
                return None
            if not call.settled:
                return self._without_outcome(step, call)
            self._consume(call)
            return self._outcomes.of(step.spec, call)

    async def serve_async(self, step: StepCall) -> RecordedOutcome | None:
        """See `agentguard.steps.served.ReplaySource`."""
        with self._lock:
            call = self._find(step)
            if call is None:
                return None
            if not call.settled:
                return self._without_outcome(step, call)
            self.tape.take(call)
        if call.start.type != ev.STEP_REFUSED or call.cancelled:  # other refusals are raised at once, as live
            await self._order.turn(call)
        with self._lock:
            self._spending.passed(call)
            return self._outcomes.of(step.spec, call)

    def serve_items(self, step: StepCall) -> ServedItems | None:
        """See `agentguard.steps.served.ReplaySource`."""
        with self._lock:
            call = self._find(step)
            if call is None:
                return None
            if not call.settled:
                answer = self._without_outcome(step, call)
                return None if answer is None else ServedItems([], answer)
            self._consume(call)
            call.delivered = True
            cancelled = functools.partial(self._order.turn, call) if call.cancelled else None
            if call.start.type == ev.STEP_REFUSED:
                return ServedItems([], self._outcomes.of(step.spec, call), until_cancelled=cancelled)
            made, end = self._outcomes.items(step.spec, call)
            left = "closed_early" in call.end_data or call.end_data.get("outcome") == "abandoned"
            over = "over" in call.end_data
            return ServedItems(made.items, end, made.sent, left, cancelled, over)

    def sent_otherwise(self, step: StepCall, recorded: str, found: str) -> NoReturn:
        """See `agentguard.steps.served.ReplaySource`."""
        with self._lock:
            self.diverge(d.ARGUMENTS, step.key, recorded, found)

    def left_items(self, step: StepCall, count: int, served: ServedItems) -> NoReturn:
        """See `agentguard.steps.served.ReplaySource`."""
        total = len(served.items)
        with self._lock:
            if count > total:
                self.diverge(d.MISSING, step.key, f"left after {total} items", "another item was asked for")
            if count < total:
                self.diverge(d.LEFT_OVER, step.key, f"{total} items", f"left after {count}")
            self.diverge(d.OUTCOME, step.key, f"its end, after {total} items", "it was left before that")

    def block(self, step: StepCall) -> None:
        """See `agentguard.steps.served.ReplaySource`."""
        with self._lock:
            call = self._find(step)
            if call is None:
                return
            if self.live and not call.settled and self._without_outcome(step, call) is None:
                return  # it runs again
            self.diverge(d.NOT_REPLAYABLE, step.key, d.describe(call.start), "a block, not a function")

    def _find(self, step: StepCall) -> Call | None:
        """Return the recorded call of a step, after checking its position and arguments."""
        if step.spec.key is None and step.elsewhere:
            self._elsewhere.step(step, live=self.live)
        path = branch_of(step.key) if step.spec.key is None else step.path
        call = self._call(step.key, step.pos, step.scope_key, path)
        if call is None:
            self._begin_again(step)
            return None
        recorded = call.data.get("args")
        known = recorded is not None and step.digest is not None and self._live_run.log.salt
        if known and recorded != step.digest:
            self._raise(
                d.arguments(step.key, self.tape.arguments(call, self._live_run.log.digest), _arguments(step))
            )
        if (call.start.kind, call.start.name) != (step.kind, step.name):
            self.diverge(d.NAME, step.key, d.describe(call.start), f"{step.kind} {step.name}")
        if call.data.get("scope", "") != step.scope_key:
            where = f"in {call.data.get('scope') or 'no scope'}"
            self.diverge(
                d.NAME, step.key, f"{d.describe(call.start)} {where}", f"in {step.scope_key or 'no scope'}"
            )
        if step.spec.key is not None:
            self._keyed[step.key] = call
        return call

    def _begin_again(self, step: StepCall) -> None:
        """Start the next attempt of a step that an operator resolved to be retried."""
        before = self.tape.retried(step.key)
        if not before or self._not_yet is None:
            return
        last = before[-1]
        step.attempt = last.start.attempt + 1
        # The body that runs again is the one that crashed: what it had called is served to it.
        step.begin_branch(last.start.attempt - len(last.before))
        for attempt in before:
            self._not_yet.ended(attempt)

    def _call(self, key: str, pos: int, scope: str, path: str | None = None) -> Call | None:
        if self._findings.divergence is not None:
            raise self._findings.divergence.with_traceback(None)
        self._findings.progress()
        path = branch_of(key) if path is None else path
        found = f"{key} as call {pos} of branch {path}"
        call = self.tape.find(key, path, pos)
        if call is None:
            self._absent(key, scope, self.tape.at(path, pos), pos, found)
            return None
        if (call.start.pos, call.branch) != (pos, path):
            at_place = self.tape.at(path, min(pos, call.start.pos)) if call.branch == path else None
            self.diverge(d.ORDER, key, d.describe((at_place or call).start), found)
        return call

    def _absent(self, key: str, scope: str, there: Call | None, pos: int, found: str) -> None:
        """Raise what a call without a record raised live, or a difference; return to let it go live."""
        free = there is None or there.start.pos != pos
        if free:
            refused = self._left_no_event(key, scope, there)
            if refused is not None:
                raise refused.with_traceback(None)
        # Of a call that waited to be admitted when the process died, no event tells, though others that were
        # made beside it, later in the same branch, may be on record.
        if there is not None and not (free and self.live):
            self.diverge(d.NAME, key, d.describe(there.start), found)
        if self.live:
            self.check_doubt()
            return
        stop = self._stops.of_run()
        if stop is None:
            self.check_doubt()
            self.diverge(d.MISSING, key, "no further call of this branch; the log ends", found)
        raise stop.with_traceback(None)

    def _left_no_event(self, key: str, scope: str, there: Call | None) -> BaseException | None:
        """Return what a call raised live without leaving an event, or None."""
        decision = self.tape.decisions.get(key)
        denied = decision is not None and decision.type == ev.APPROVAL_DENIED
        known = [there.start.seq] if there is not None else []
        if decision is not None and denied:
            known.append(decision.seq)
        stop = self._stops.around(scope, min(known, default=None))
        if stop is not None:
            return stop
        if decision is not None and denied:
            data = data_of(decision, Approval)
            return ApprovalDeniedError(key, data.get("reason"), data.get("actor"), self._live_run.run_id)
        earlier = self._keyed.get(key)
        if earlier is not None and not earlier.failed:
            return DuplicateKeyError(key.removeprefix("key:"), self._live_run.run_id)
        return None

    def check_doubt(self) -> None:
        """See `agentguard.steps.served.ReplaySource`: nothing goes live beside a step in doubt.

        That may be one of an earlier recovery, for which the run is still paused and which this one may
        never come to: it must not wait for what only an operator can say.
        """
        if self._findings.in_doubt is None and self.live and self._live_run.log.fold.state is RunState.PAUSED:
            unknown = self._live_run.log.fold.pause.get("unknown")
            if unknown is not None:
                self._findings.in_doubt = StepOutcomeUnknownError(self._live_run.run_id, unknown)
        if self._findings.in_doubt is not None:
            raise self._findings.in_doubt.with_traceback(None)

    def _without_outcome(self, step: StepCall, call: Call) -> RecordedOutcome | None:
        if self._unknown is not None and self._not_yet is not None:
            self._keyed.pop(step.key, None)  # what becomes of it now is for the run's own account to say
            own = step.key in self._live_run.log.fold.open
            try:
                answer = self._unknown(self._live_run, step, call)
            except StepOutcomeUnknownError as doubt:
                self._findings.in_doubt = doubt
                raise
            self._not_yet.doubted(call, own=own)
            self.tape.take(call, with_children=answer is not None)
            return answer
        self.tape.read_until(lambda: False)
        self.tape.take(call)
        unknown = StepOutcomeUnknownError(self._live_run.run_id, step.key)
        if self.tape.terminal is None:  # the run's process died here: no replay goes further
            self._findings.in_doubt = unknown
        raise unknown

    def _consume(self, call: Call) -> None:
        """Take a call, and fold what it and the calls inside it used."""
        self.tape.take(call)
        self._spending.passed(call)

    def skip(self, done: Callable[[str], bool]) -> int:
        """See `agentguard.steps.served.ReplaySource`.  What has no outcome on record is not done."""
        if not self.live:
            return 0
        with self._lock:
            calls = [call for call in self.tape.left() if call.settled and done(call.branch)]
            for call in calls:
                if self.tape.holds(call):  # not taken with one around it
                    self._consume(call)
            while calls and self.tape.budgets and self.tape.budgets[0].seq < calls[-1].start.seq:
                self.tape.budgets.popleft()  # the program will not set them again either
            return len(calls)

    def take_budget(self) -> bool:
        """Take the next budget that the program itself has on record; return whether there is one."""
        with self._lock:
            return self._spending.take_budget()

    # --- values and scopes ---------------------------------------------------------------------

    def ahead(self, scope: str) -> tuple[Amounts, Amounts] | None:
        """See `agentguard.steps.served.ReplaySource`."""
        if self._not_yet is None:
            return None
        with self._lock:
            return self._not_yet.of(scope)

    def place(self, key: str, pos: int) -> tuple[str, int]:
        """See `agentguard.steps.served.ReplaySource`."""
        with self._lock:
            return self._elsewhere.value(key, pos, live=self.live)

    def place_of_run(self, key: str, pos: int) -> int:
        """Return the place of a nested run that is opened in a thread which shares its branch."""
        with self._lock:
            return self._elsewhere.run(key, pos)

    def value(self, key: str, pos: int, name: str, scope: str) -> RecordedOutcome | None:
        """See `agentguard.steps.served.ReplaySource`."""
        with self._lock:
            try:
                call = self._call(key, pos, scope)
            except RunStopped:  # it came inside the value's function, whose steps go with it
                for inner in self.tape.inside(key):
                    self._consume(inner)
                raise
            if call is None:
                return None
            data = data_of(call.start, Value)
            if "error" in data and "unreplayable" not in data:
                self._consume(call)
                return RecordedOutcome(error=exceptions.restore(data["error"], self._stops.own))
            reason = data.get("unreplayable")
            if reason is None and call.payload is None:
                reason = "its payload was erased, or not captured"
            if reason is not None:
                self.diverge(d.NOT_REPLAYABLE, key, f"the recorded value of {name}: {reason}")
            self._consume(call)
            try:
                return RecordedOutcome(values.restore(call.payload or b"null", by_name=True))
            except Exception as error:  # noqa: BLE001 - a user's types may raise anything
                self.diverge(d.NOT_REPLAYABLE, key, f"the recorded value of {name}: {error}")

    def open_scope(self, scope: Any) -> bool:
        """See `agentguard.steps.served.ReplaySource`."""
        with self._lock:
            if scope.elsewhere:
                self._elsewhere.scope(scope, live=self.live)
            call = self._call(scope.key, scope.pos, scope.around)
            if call is None:
                return False
            recorded = data_of(call.start, ScopeOpened).get("budget", {})
            if recorded != scope.budget.to_fields():
                self.diverge(d.ARGUMENTS, scope.key, recorded, scope.budget.to_fields())
            self.tape.take(call)
            self._scopes[scope.key] = call
            if not self.live:
                self._live_run.log.apply(call.start, self._live_run.log.fold.hash)
            return True

    def open_run(self, key: str, pos: int, scope: str) -> str | None:
        """Return the id of the recorded nested run, or None."""
        with self._lock:
            call = self._call(key, pos, scope)
            if call is None:
                return None
            self.tape.read_until(lambda: call.end is not None)
            self._consume(call)
            return data_of(call.start, NestedRunOpened)["run"]

    def close_scope(self, scope: Any) -> bool:
        """See `agentguard.steps.served.ReplaySource`."""
        with self._lock:
            call = self._scopes.pop(scope.key, None)
            if call is None:
                return False
            if not self.live:
                self.tape.read_until(lambda: call.end is not None)
            if scope.key in self.tape.scope_stops:
                self._stops.of_scope(scope.key)
            return call.end is not None or not self.live

    # --- differences ---------------------------------------------------------------------------

    def diverge(self, kind: str, key: str | None, expected: Any, found: Any = None) -> NoReturn:
        """Raise the first difference, now and for every later call."""
        self._raise(ReplayDivergenceError(kind, key, expected, found))

    def _raise(self, error: ReplayDivergenceError) -> NoReturn:
        raise self._findings.differs(error)

    def check_nothing_left(self) -> None:
        """The program is done: nothing may be left over, and its spending must be the recorded one."""
        with self._lock:
            left = self.tape.left_over()
            self._spending.count_late()
            if left is not None and (left.start.key or "").startswith(UNNAMED):
                self.diverge(d.NOT_REPLAYABLE, left.start.key, d.describe(left.start), d.UNNAMED_BRANCH)
            if left is not None:
                self.diverge(d.LEFT_OVER, left.start.key, d.describe(left.start), "the program ended")

    def end(self, error: BaseException | None) -> RunStopped | None:
        """Return the recorded stop to raise; raise a difference if the program ended otherwise."""
        terminal = self.tape.terminal
        if terminal is None:
            return self._live_run.stops.stop
        recorded = data_of(terminal, RunEnded)["termination"]
        self._live_run.log.apply(terminal, self._live_run.log.fold.hash)
        stop = self._stops.of_run()
        if stop is not None:
            return stop
        found = "completed" if error is None else type_name(type(error))  # no stop of this run
        if recorded["type"] != found:
            self.diverge(d.OUTCOME, None, f"the run ended: {recorded['type']}", f"it ended: {found}")
        return None


def _arguments(step: StepCall) -> bytes | None:
    """Return the arguments that a step is called with, with its conversations in them."""
    return step.payload.whole() if isinstance(step.payload, ConversationCall) else step.payload
