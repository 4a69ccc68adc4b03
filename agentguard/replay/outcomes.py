"""Recorded outcomes, brought back to be handed out again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from agentguard._values.names import type_name
from agentguard.errors import ReplayDivergenceError, StepOutcomeUnknownError
from agentguard.events import model as ev
from agentguard.events.data import Failed, ScopeStopped, data_of
from agentguard.events.model import Record
from agentguard.replay.divergence import NOT_REPLAYABLE
from agentguard.replay.findings import Findings
from agentguard.replay.stops import RecordedStops
from agentguard.replay.tape import Call
from agentguard.steps import exceptions, values
from agentguard.steps.items import RestoredItems, restored
from agentguard.steps.served import RecordedOutcome
from agentguard.steps.spec import StepSpec

_T = TypeVar("_T")


class RecordedOutcomes:
    """The outcomes of one log.  What does not come back is a difference, and raised."""

    def __init__(self, run_id: str, stops: RecordedStops, findings: Findings) -> None:
        self._run_id = run_id
        self._stops = stops
        self._findings = findings

    def of(self, spec: StepSpec, call: Call) -> RecordedOutcome:
        """Return the outcome of a step, or its refusal."""
        if call.start.type == ev.STEP_REFUSED:
            return RecordedOutcome(error=self._refusal(call), refused=True)
        if call.failed:
            return RecordedOutcome(error=self._restored_error(call, call.end))
        self._check(call)
        return RecordedOutcome(self._restored(call, spec, _result))

    def items(self, spec: StepSpec, call: Call) -> tuple[RestoredItems, RecordedOutcome]:
        """Return the items of a generator, and its end."""
        self._check(call)
        made = self._restored(call, spec, _items)
        failed = call.end is not None and call.end.type == ev.STEP_FAILED
        if failed:
            return made, RecordedOutcome(error=self._restored_error(call, call.end))
        return made, RecordedOutcome(made.returned)

    def _restored(self, call: Call, spec: StepSpec, restore: Callable[[StepSpec, Call], _T]) -> _T:
        """Return `restore(spec, call)`; raise a difference if that fails."""
        try:
            return restore(spec, call)
        except Exception as error:  # noqa: BLE001 - a user's types may raise anything
            how = "" if spec.returns is None else f" as {spec.returns!r}"
            self._not_replayable(call, f"it does not decode{how}: {type_name(type(error))}: {error}")

    def _check(self, call: Call) -> None:
        """Raise where the payload of a call cannot be brought back."""
        reason = call.end_data.get("unreplayable")
        if reason is None and call.end_payload is None:
            reason = "its payload was erased, or not captured"
        if reason is not None:
            self._not_replayable(call, reason)

    def _not_replayable(self, call: Call, reason: str) -> NoReturn:
        """Say that a recorded outcome cannot be handed out: what there was, and why it did not come back."""
        what = "an exception" if call.failed else "a result"
        expected = f"{what} that cannot be handed out again: {reason}"
        raise self._findings.differs(ReplayDivergenceError(NOT_REPLAYABLE, call.start.key, expected))

    def _refusal(self, call: Call) -> BaseException:
        if call.withdrawn:
            return self._restored_error(call, call.start)
        scope = data_of(call.start, ScopeStopped).get("stops")
        if scope and (stop := self._stops.of_scope(scope)) is not None:
            return stop
        return self._stops.at_the_end() or StepOutcomeUnknownError(self._run_id, call.start.key or "")

    def _restored_error(self, call: Call, event: Record | None) -> BaseException:
        """Return a recorded exception; a stop is the run's own, so that it is one object everywhere."""
        assert event is not None  # noqa: S101 - it failed
        data = data_of(event, Failed)
        if (reason := data.get("unreplayable")) is not None:
            self._not_replayable(call, reason)
        return exceptions.restore(data["error"], self._stops.own)


def _result(spec: StepSpec, call: Call) -> Any:
    """Return the restored result of a step."""
    payload = call.end_payload or b"null"
    if call.end is not None and call.end.type == ev.STEP_RESOLVED:
        return values.restore(payload, spec.returns, by_name=True)
    if spec.codec is not None:
        return spec.codec.decode(payload)
    return values.restore(payload, None if call.end_data.get("plain") else spec.returns)


def _items(spec: StepSpec, call: Call) -> RestoredItems:
    """Return the restored items of a generator."""
    return restored(spec, call.end_payload or b"[]", call.end_data)
