"""What recorded calls used, folded as they are replayed, so that `run.spent` reads as it did live."""

from __future__ import annotations

from collections.abc import Iterator

from agentguard.events.data import RunBudgetSet, data_of
from agentguard.events.model import Record
from agentguard.replay.not_yet_replayed import NotYetReplayed
from agentguard.replay.tape import Call, Tape
from agentguard.steps.live import LiveRun


class RecordedSpending:
    """The spending and the budgets of one log.

    In a recovery the live run has folded the whole log: there `not_yet` has what is still ahead.
    """

    def __init__(self, live_run: LiveRun, tape: Tape, not_yet: NotYetReplayed | None) -> None:
        self._live_run = live_run
        self._tape = tape
        self._not_yet = not_yet

    def passed(self, call: Call) -> None:
        """Fold a call that was taken, and the calls inside it."""
        if self._not_yet is not None:
            self._not_yet.passed(call)
        else:
            while self._tape.budgets and self._tape.budgets[0].seq < call.start.seq:
                self._fold(self._tape.budgets.popleft())
            for record in _records(call):
                self._fold(record)
        self.count_late()

    def count_late(self) -> None:
        """Fold the outcomes of calls that outlived the body around them."""
        while self._tape.late:
            call, record = self._tape.late.popleft()
            if self._not_yet is None:
                self._fold(record)
            else:
                self._not_yet.ended(call)

    def take_budget(self) -> bool:
        """Take the next budget that the program itself has on record; return whether there is one."""
        budgets = self._tape.budgets
        self._tape.read_until(lambda: any(map(_is_own, budgets)))
        own = next(filter(_is_own, budgets), None)
        while own is not None:
            record = budgets.popleft()  # or that of an operator, who came before
            if self._not_yet is None:
                self._fold(record)
            if record is own:
                return True
        return False

    def _fold(self, record: Record) -> None:
        self._live_run.log.fold.apply(record, self._live_run.log.fold.hash)


def _records(call: Call) -> Iterator[Record]:
    for earlier in call.before:
        yield from filter(None, (earlier.start, earlier.end))
    yield call.start
    for child in call.children:
        yield from _records(child)
    if call.end is not None:
        yield call.end


def _is_own(record: Record) -> bool:
    return bool(data_of(record, RunBudgetSet).get("own"))
