"""A run that is created for a worker to carry out: on record, and nobody's yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agentguard.events.data import RunCreated
from agentguard.killswitch.model import GENERATION
from agentguard.runtime import Runtime
from agentguard.sessions.live import LiveSession
from agentguard.sessions.options import RunOptions
from agentguard.steps.inputs import RecordedInputs, record_inputs


class SubmittedSession(LiveSession):
    """A new run that waits as CREATED, without an owner.

    Raises:
        ValueError: the inputs would not come back as they are, or the guard captures none.
    """

    def __init__(self, runtime: Runtime, options: RunOptions, *, retries: int = 0) -> None:
        super().__init__(runtime, options)
        self._retries = retries
        self._inputs = self._checked_inputs()

    def new_owner(self) -> dict[str, Any]:
        """Return nobody."""
        return {}

    def submit(self, put: Callable[[], None]) -> None:
        """Create the run and, in the same act, do what `put` does.

        Raises:
            RunExistsError: the id is taken.
            KillSwitchTriggeredError: a kill covers the run already; nothing is on record.
        """
        components = self.components
        if components.redact:
            self._metadata = components.redact.plain(self._metadata)
        generation = components.switch.signal[GENERATION]
        kill = components.switch.find(self.tenant, self.run_id, generation)
        if kill is not None:
            raise kill.error(self.run_id)
        queue = components.abilities.queue
        assert queue is not None  # noqa: S101 - who submits has looked
        with queue.transaction():
            self._create(generation, [], None, started=False)
            put()

    def _created_in(self, span: Any) -> tuple[str | None, str | None]:
        """Return the span of who submits, to which the worker's will be linked."""
        telemetry = self.components.telemetry
        return (None if telemetry is None else telemetry.current_span()) or (None, None)

    def _first_facts(self, generation: int) -> RunCreated:
        """Return what `run_created` says: that it is tried again too, which a replay has to know."""
        facts = super()._first_facts(generation)
        return {**facts, "retries": self._retries} if self._retries else facts

    def _checked_inputs(self) -> RecordedInputs:
        components = self.components
        if self.options.inputs is None:
            return RecordedInputs(None)
        if components.capture != "full":
            raise ValueError(
                f"this guard has capture={components.capture!r}, so that a worker would not find the "
                "inputs of a submitted run; leave it 'full', or submit without inputs"
            )
        recorded = record_inputs(self.options.inputs, components.redact or None)
        if recorded.lost:
            lost = recorded.lost[0]
            where = ".".join(["inputs", *map(str, lost.path)])
            raise ValueError(
                f"{where} would not reach the worker as it is: {lost.reason}; pass plain data, and "
                "of a secret or a connection a name by which the worker finds its own"
            )
        return recorded

    def _recorded_inputs(self) -> RecordedInputs:
        return self._inputs
