"""A Pydantic AI model whose every request is a guarded step."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from pydantic_ai import RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse, ModelResponseStreamEvent
from pydantic_ai.models import (
    CompletedStreamedResponse,
    KnownModelName,
    Model,
    ModelRequestParameters,
    StreamedResponse,
)
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from agentguard import NoActiveRunError, Run, Usage, current_run
from agentguard.cost.prices import ModelPrices
from agentguard.cost.usage import ModelCosts, Unpriced
from agentguard.protocols import PriceBook
from agentguard_pydantic_ai import _mapping as m

_CODEC = m.ResponseCodec()


class Guarding(NamedTuple):
    """How requests are guarded: in which run and branch, at which prices."""

    costs: ModelCosts
    run: Run | None = None
    branch: Any = None


def active_run(run: Run | None) -> Run:
    """The run given, or the one that is active here."""
    run = run or current_run()
    if run is None:
        raise NoActiveRunError(
            "the agent is guarded and no run is active here: run it inside `with guard.run(...)`, or "
            "give the run: GuardCapability(run)"
        )
    return run


class GuardedModel(WrapperModel):
    """A model whose every request is a guarded step of the active run.

    For models that are called outside an agent, or by an agent without `GuardCapability`.  The models
    of a `FallbackModel` are guarded one by one, so that every request to a provider counts.

    Args:
        wrapped: the model.
        run: the run that pays; by default the one that is active when the model is asked.
        prices: what models cost; by default genai-prices.
        unpriced: `"refuse"` or `"allow"` calls of a model without a price where USD are limited.
        max_output_tokens: sent as `max_tokens` with requests that name none.
        clamp: lower `max_tokens` to what the run's budget leaves.
    """

    def __init__(
        self,
        wrapped: Model | KnownModelName | str,
        run: Run | None = None,
        *,
        prices: PriceBook | None = None,
        unpriced: Unpriced = "refuse",
        max_output_tokens: int | None = None,
        clamp: bool = True,
    ) -> None:
        super().__init__(wrapped)
        costs = ModelCosts(
            prices or ModelPrices(), unpriced=unpriced, max_output_tokens=max_output_tokens, clamp=clamp
        )
        self._guard_with(Guarding(costs, run))

    def _guard_with(self, guarding: Guarding) -> None:
        self._guarding = guarding
        #: Where a request goes to several models: the same router over guarded ones.
        self._router = _router(self.wrapped, guarding)

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """One request as one step."""
        if self._router is not None:
            return await self._router.request(messages, model_settings, model_request_parameters)
        call = _Request(self.wrapped, self._guarding, messages, model_settings, model_request_parameters)
        response: ModelResponse = await call.apply(call.send, _CODEC)
        return response

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """One streamed request as one step, which looks for a stop at every event."""
        if self._router is not None:
            async with self._router.request_stream(
                messages, model_settings, model_request_parameters, run_context
            ) as routed:
                yield routed
            return
        call = _Request(self.wrapped, self._guarding, messages, model_settings, model_request_parameters)
        call.run_context = run_context
        events = call.apply(call.events, call)
        try:
            yield await call.opened(events)
        finally:
            await events.aclose()

    async def batch_create(self, requests: Any) -> Any:
        """Refused: a batch would be sent past the guard."""
        raise NotImplementedError(
            "a guarded model takes no batches: their requests would be sent past the guard"
        )


def guarded(model: Model, guarding: Guarding) -> GuardedModel | None:
    """A guarded model around `model`, or None if it is guarded already."""
    if isinstance(model, GuardedModel):
        return None
    around = GuardedModel.__new__(GuardedModel)
    WrapperModel.__init__(around, model)
    around._guard_with(guarding)  # noqa: SLF001 - the class's own other constructor
    return around


def _router(model: Model, guarding: Guarding) -> Model | None:
    """A copy of a model that hands requests on to several, over guarded ones; None for other models."""
    if isinstance(model, FallbackModel):
        router = copy.copy(model)
        router.models = [guarded(inner, guarding) or inner for inner in model.models]
        return router
    if isinstance(model, WrapperModel) and not isinstance(model, GuardedModel):
        inner = _router(model.wrapped, guarding)
        if inner is not None:
            outer = copy.copy(model)
            outer.wrapped = inner
            return outer
    return None


class _Request:
    """One request: what it is, what it may use, and how it goes on.  Also the codec of its stream."""

    def __init__(
        self,
        model: Model,
        guarding: Guarding,
        messages: list[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
    ) -> None:
        self._model = model
        self._guarding = guarding
        self._run = active_run(guarding.run)
        self._messages = messages
        self._settings = settings
        self._parameters = parameters
        self._data = m.request_data(messages, settings, parameters)
        self._reserved = Usage()
        self.run_context: RunContext[Any] | None = None
        self._stream: StreamedResponse | None = None
        self._source: AsyncIterator[ModelResponseStreamEvent] | None = None
        self._exhausted = False

    def apply(self, fn: Any, codec: Any) -> Any:
        """Run `fn` as the step."""
        return self._run.apply(
            self._model.model_name,
            fn,
            (self._data,),
            kind="llm",
            branch=self._guarding.branch,
            reserve=self._reserve,
            usage=self._usage,
            codec=codec,
            attributes={
                "gen_ai.request.model": self._model.model_name,
                "gen_ai.provider.name": self._model.system,
            },
        )

    async def send(self, request: Any) -> ModelResponse:
        """The body of a request that is answered at once."""
        return await self._model.request(self._messages, self._settings, self._parameters)

    # --- what it uses --------------------------------------------------------------------------

    def _reserve(self, request: Any) -> Usage:
        bound = self._guarding.costs.bound(
            self._run,
            self._model.model_name,
            provider=self._model.system,
            input_tokens=m.input_tokens(self._data, self._parameters),
            max_tokens=m.max_tokens(self._settings, self._model.settings),
        )
        if bound.max_tokens is not None:
            self._settings = m.with_max_tokens(self._settings, bound.max_tokens)
        self._reserved = bound.reserve
        return bound.reserve

    def _usage(self, response: ModelResponse | None) -> Usage:
        response = response or self._streamed()
        tokens = None if response is None else m.tokens_of(response.usage)
        if response is None or tokens is None:
            return self._reserved
        used = self._guarding.costs.priced(
            self._model.model_name,
            tokens,
            provider=self._model.system,
            answered=response.model_name,
            cost=getattr(response.usage, "cost", None),
        )
        # What a stream had counted when it was broken off is not all that will be billed.
        return used if response.state in {"complete", "suspended"} else _larger(used, self._reserved)

    # --- streams -------------------------------------------------------------------------------

    async def events(self, request: Any) -> AsyncIterator[ModelResponseStreamEvent | None]:
        """The body of a streamed request: None when it is open, then its events."""
        async with self._model.request_stream(
            self._messages, self._settings, self._parameters, self.run_context
        ) as stream:
            self._stream = stream
            self._source = stream._event_iterator or stream._get_event_iterator()  # noqa: SLF001 - see opened
            yield None
            async for event in self._source:
                yield event
            self._exhausted = True

    async def opened(self, events: Any) -> StreamedResponse:
        """The stream, its events led through the guarded step."""
        recorded = await anext(events)
        if recorded is not None:
            return _replayed(recorded, self._parameters, events)
        assert self._stream is not None  # noqa: S101 - the step has just yielded for it
        # The framework itself puts an iterator in this place where it has looked at the first event;
        # before that, `_get_event_iterator` is what a model implements.
        if self._stream._event_iterator is not None:  # noqa: SLF001
            self._stream._event_iterator = events  # noqa: SLF001
        else:
            self._stream._get_event_iterator = lambda: events  # type: ignore[method-assign]  # noqa: SLF001
        return self._stream

    def _streamed(self) -> ModelResponse | None:
        """What has arrived of a streamed answer."""
        if self._stream is None:
            return None
        response = self._stream.get()
        if self._exhausted and response.state == "incomplete" and self._stream.state != "incomplete":
            # The stream will say so itself, once it has been told that there are no more events.
            return dataclasses.replace(response, state="complete")
        return response

    def encode(self, items: list[Any]) -> bytes:
        """A stream is kept as the answer that it came to."""
        response = self._streamed()
        if response is None:
            raise ValueError("the stream was never open")
        return _CODEC.encode(response)

    def decode(self, data: bytes) -> list[Any]:
        """The answer, in the place of its events."""
        return [_CODEC.decode(data)]


def _replayed(
    response: ModelResponse, parameters: ModelRequestParameters, events: AsyncIterator[Any]
) -> StreamedResponse:
    """A recorded answer as a stream: each part in one piece, then the end that is on record."""
    stream = CompletedStreamedResponse(response, model_request_parameters=parameters, replay_events=True)
    parts = stream._get_event_iterator()  # noqa: SLF001 - see `opened`

    async def replay() -> AsyncIterator[ModelResponseStreamEvent]:
        async for event in parts:
            yield event
        async for _ in events:
            pass  # nothing follows the answer but how it ended

    stream._get_event_iterator = replay  # type: ignore[method-assign]  # noqa: SLF001
    return stream


def _larger(one: Usage, other: Usage) -> Usage:
    first, second = one.amounts(), other.amounts()
    return Usage.from_amounts({name: max(first.get(name, 0), second.get(name, 0)) for name in first | second})
