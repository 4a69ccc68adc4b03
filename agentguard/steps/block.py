"""`with run.step(...)`: a step whose body is a block, for code that cannot be a function."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import Token
from types import TracebackType

from agentguard._reentry import at_its_call, covered
from agentguard.errors import AgentGuardError
from agentguard.events.data import StepEnded
from agentguard.steps import aio, interrupt, outcome, phases
from agentguard.steps.current import CURRENT, restore_position
from agentguard.steps.flow import open_step
from agentguard.steps.model import InRun, Step
from agentguard.steps.spec import StepSpec

#: Why a block cannot be replayed: there is no function to leave out.
NOT_REPLAYABLE = "a block, not a function"


class BlockAbandonedError(AgentGuardError):
    """The run ended while the block was open, so how the block ended is not known."""


class StepBlock:
    """A step around a block, sync or async; `as` gives its `Step`."""

    def __init__(
        self, spec: StepSpec, position: InRun, *, attributes: Mapping[str, object] | None = None
    ) -> None:
        self._step = open_step(spec, position, (), {})
        self._step.attributes = attributes
        self._token: Token[InRun | None] | None = None
        self._before: InRun | None = None
        self._body: aio.Body | None = None
        self._entered = False

    def _ask_player(self) -> None:
        if self._entered:
            raise RuntimeError(f"step {self._step.key} was entered before; open a new one")
        self._entered = True
        player = self._step.live_run.player
        if player is not None:
            player.block(self._step)

    @property
    def step(self) -> Step:
        """The step."""
        return self._step

    def start(self, inputs: Mapping[str, object] | None = None) -> Step:
        """Begin without becoming the current step; `finish` must follow, or the run's end settles it.

        `inputs` go on record as the step's arguments.
        """
        self._ask_player()
        self._step.live_run.in_flight.hold(self)
        self._begun(dict(inputs or {}))
        if self._step.span is not None:
            self._step.span.suspend()
        return self._step

    def finish(self, error: BaseException | None = None, result: object = None) -> None:
        """End what `start` began: completed, or failed with `error`.  A second time does nothing."""
        try:
            self._end(error, result)
        except BaseException as raised:
            self._cut_short(raised)
            raise

    def revoke(self, error: BaseException) -> None:
        """End what `start` began where `error` kept the body from running: all is given back."""
        phases.close(self._step, outcome.unentered(error))

    def abandon(self) -> None:
        """Settle the step: the run ends while this is open."""
        error = BlockAbandonedError("open at the end of the run")
        phases.close(self._step, outcome.failed(self._step, error, outcome.ABANDONED))

    def _begun(self, inputs: dict[str, object]) -> None:
        try:
            phases.begin(self._step, (), inputs)
            self._step.entered = True
        except BaseException as error:
            phases.rescue(self._step, error)
            self._step.live_run.in_flight.held.pop(self._step, None)
            raise

    def __enter__(self) -> Step:
        self._ask_player()
        try:
            self._begun({})
            self._become_current()
            return self._step  # noqa: TRY300 - or a signal handler raises here
        except BaseException as error:
            self._cut_short(error)
            raise

    def _become_current(self) -> None:
        self._before = CURRENT.get()
        self._token = CURRENT.set(self._step)
        interrupt.entered(self)

    def _step_out(self) -> None:
        interrupt.leaving(self)
        token, self._token = self._token, None
        if token is not None:
            restore_position(token)

    def _left(self) -> None:
        """Note that an async body is over."""
        body, self._body = self._body, None
        if body is not None:
            body.close()

    def _cut_short(self, error: BaseException) -> None:
        """Settle the step all the same, and make current what was so before."""
        self._left()
        phases.rescue(self._step, error)
        if CURRENT.get() is self._step:
            CURRENT.set(self._before)

    @covered
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._end(error)
        except BaseException as raised:
            self._cut_short(raised)
            raise

    def _end(self, error: BaseException | None, result: object = None) -> None:
        self._step_out()
        self._left()
        phases.close(self._step, self._outcome(error, result))

    async def __aenter__(self) -> Step:
        self._ask_player()
        try:
            await aio.begin(self._step, (), {})
            self._step.entered = True
            self._become_current()
            self._body = aio.Body(self._step)
            return self._step  # noqa: TRY300 - as above
        except BaseException as error:
            self._cut_short(error)
            raise

    @at_its_call(__exit__)
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._step_out()
            stop = None
            if isinstance(error, asyncio.CancelledError) and self._body is not None:
                body, self._body = self._body, None
                stop = await body.close_in_turn()
            self._left()
            await aio.close(self._step, self._outcome(stop or error))
        except BaseException as raised:
            self._cut_short(raised)
            raise
        if stop is not None:
            raise stop.with_traceback(None) from None

    def _outcome(self, error: BaseException | None, result: object = None) -> outcome.Outcome:
        if error is not None:
            return outcome.failed(self._step, error)
        usage = outcome.usage_of(self._step, None, (), {})
        payload: bytes | None = None
        data: StepEnded = {}
        if result is not None:
            payload, data = self._step.recorder.note(result)
        data["unreplayable"] = NOT_REPLAYABLE
        return outcome.completed(usage, payload, data)
