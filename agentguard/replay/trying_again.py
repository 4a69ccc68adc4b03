"""A run whose program has failed, to be carried on by another try.

A recovery hands out what is on record, failures too.  So the step whose failure ended the program is resolved
to be tried again, with the steps around it that failed with it and those that were cancelled on its account.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.data import ErrorData, StepEnded, StepStarted, data_of
from agentguard.events.model import Record
from agentguard.replay.resolving import retry_failed
from agentguard.steps import exceptions
from agentguard.steps.live import LiveRun

#: What may be done twice.
_REPEATABLE: Final = ("read", "idempotent")


#: Type and message of an error on record.
_Error = tuple[object, object]


class _Failed:
    """A step that failed, and was not tried again since."""

    def __init__(self, start: Record, end: Record) -> None:
        self.start = start
        self.end = end

    @property
    def key(self) -> str:
        return self.start.key or ""

    @property
    def parent(self) -> str:
        """The step in whose body it was called, if it was."""
        return data_of(self.start, StepStarted).get("parent", "")

    @property
    def repeatable(self) -> bool:
        """Whether it may be done again: its effect says so, or nothing was done."""
        unentered = data_of(self.end, StepEnded).get("body_ran") is False
        return unentered or data_of(self.start, StepStarted).get("effect") in _REPEATABLE

    @property
    def cancelled(self) -> bool:
        return data_of(self.end, StepEnded).get("outcome") == "cancelled"

    def failed_with(self, errors: set[_Error]) -> bool:
        said = data_of(self.end, StepEnded).get("error", {})
        return (said.get("type"), said.get("message")) in errors


def prepare(live: LiveRun, error: Exception) -> bool:
    """Let the steps run again that failed with an error; return False where one of them must not.

    An error that no step raised needs nothing: what is on record is served again, and the rest runs.
    """
    failed = _failed_steps(live)
    errors: set[_Error] = {(said["type"], said["message"]) for said in _as_recorded(live, error)}
    last = next((step for step in reversed(failed) if step.failed_with(errors)), None)
    if last is None:
        return not _ended_inside(live, errors)
    again = [last, *_inside(last, failed, errors)]
    first = min(step.start.seq for step in again)
    again += [step for step in failed if step.cancelled and step.end.seq > first and step not in again]
    if not all(step.repeatable for step in again):
        return False
    for step in again:
        retry_failed(live, step.key, by=f"worker, after {type(error).__name__}")
    return True


def _ended_inside(live: LiveRun, errors: set[_Error]) -> bool:
    """Say whether the error is that of a run nested in this one, which has ended for good."""
    ended = [row.summary.get("termination") or {} for row in live.log.store.children(live.run_id)]
    return any((said.get("type"), said.get("message")) in errors for said in ended)


def _failed_steps(live: LiveRun) -> list[_Failed]:
    """Return the steps whose last attempt failed, in the order in which they did."""
    starts: dict[str, Record] = {}
    failed: dict[str, _Failed] = {}
    for stored in live.log.store.read(live.run_id):
        record = codec.decode(stored.body)
        key = record.key or ""
        if record.type == ev.STEP_STARTED:
            starts[key] = record
            failed.pop(key, None)
        elif record.type == ev.STEP_FAILED and key in starts:
            failed[key] = _Failed(starts[key], record)
        elif record.type in (ev.STEP_COMPLETED, ev.STEP_RESOLVED):
            failed.pop(key, None)
    return sorted(failed.values(), key=lambda step: step.end.seq)


def _inside(outer: _Failed, failed: list[_Failed], errors: set[_Error]) -> list[_Failed]:
    """Return the steps in the body of one, and in theirs, that failed with the error that ended it."""
    inner = next((s for s in reversed(failed) if s.parent == outer.key and s.failed_with(errors)), None)
    return [] if inner is None else [inner, *_inside(inner, failed, errors)]


def _as_recorded(live: LiveRun, error: BaseException) -> Iterator[ErrorData]:
    """Return an error, its causes and its members, as the log has them."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        each = pending.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield exceptions.capture(each, live.components.redact or None)
        pending += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            pending += each.exceptions
