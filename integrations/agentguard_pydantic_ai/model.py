"""A Pydantic AI model whose every request is a guarded step."""

from __future__ import annotations

import copy
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel

from agentguard import Run
from agentguard.cost.prices import ModelPrices
from agentguard.cost.usage import ModelCosts, Unpriced
from agentguard_pydantic_ai._request import CODEC, Guarding, Request

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from pydantic_ai import RunContext
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.models import (
        KnownModelName,
        Model,
        ModelRequestParameters,
        StreamedResponse,
    )
    from pydantic_ai.settings import ModelSettings

    from agentguard.protocols import PriceBook


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
        call = Request(self.wrapped, self._guarding, messages, model_settings, model_request_parameters)
        response: ModelResponse = await call.apply(call.send, CODEC)
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
        call = Request(self.wrapped, self._guarding, messages, model_settings, model_request_parameters)
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
