"""A model of the Agents SDK whose every call is a guarded step."""

from __future__ import annotations

import dataclasses
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from agents import Model, ModelProvider, ModelResponse, ModelSettings, MultiProvider

from agentguard import Run, Step, Usage, current_step
from agentguard.cost import RawAnswers, proves_refusal
from agentguard.cost.prices import ModelPrices
from agentguard.cost.usage import ModelCosts, Unpriced
from agentguard.fragments import fragmented
from agentguard_openai_agents import _mapping as m
from agentguard_openai_agents._calls import active_run, calls_of
from agentguard_openai_agents._runner import RUNNER_CALL, RunnerCall, install
from agentguard_openai_agents.stops import sdk_stops

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agents.agent_output import AgentOutputSchemaBase
    from agents.handoffs import Handoff
    from agents.items import TResponseInputItem, TResponseStreamEvent
    from agents.models.interface import ModelTracing
    from agents.retry import ModelRetryAdvice, ModelRetryAdviceRequest
    from agents.tool import Tool
    from openai.types.responses.response_prompt_param import ResponsePromptParam

    from agentguard.protocols import PriceBook

_RESPONSES = m.ResponseCodec()
_STREAMS = m.StreamCodec()


class GuardedModel(Model):
    """A model whose every call is a guarded step of the active run, each attempt of the runner too.

    For all else it is the model that it guards: the SDK finds its attributes, and `isinstance` its class.

    Args:
        model: a model, or a name that `provider` resolves when the model is called.
        run: the run that pays; by default the one that is active when the model is called.
        name: what the model is called in log and price book; by default its own name.
        provider: resolves names; by default the one of the run configuration, as without the guard.
        prices: what models cost; by default genai-prices.
        unpriced: `"refuse"` or `"allow"` calls of a model without a price where USD are limited.
        max_output_tokens: sent as `max_tokens` with calls that name none.
        clamp: lower `max_tokens` to what the run's budget leaves.
    """

    def __init__(
        self,
        model: Model | str,
        run: Run | None = None,
        *,
        name: str | None = None,
        provider: ModelProvider | None = None,
        prices: PriceBook | None = None,
        unpriced: Unpriced = "refuse",
        max_output_tokens: int | None = None,
        clamp: bool = True,
    ) -> None:
        guarded = vars(model)["_inner"] if type(model) is GuardedModel else model
        self._inner: Model | str = guarded
        #: Resolves the name without a call of the runner around it, as `provider` does.
        self._alone: RunnerCall | None = (
            None if provider is None else RunnerCall({"model_provider": provider})
        )
        self._given = provider is not None
        self.run = run
        self.name = name or m.model_name(guarded)
        self.costs = ModelCosts(
            prices or ModelPrices(), unpriced=unpriced, max_output_tokens=max_output_tokens, clamp=clamp
        )
        install()

    @property
    def inner(self) -> Model:
        """The model that is guarded."""
        if isinstance(self._inner, Model):
            return self._inner
        return self._call().model(self._inner)

    def _call(self) -> RunnerCall:
        """What resolves the name here."""
        call = None if self._given else RUNNER_CALL.get()
        if call is not None:
            return call
        if self._alone is None:
            self._alone = RunnerCall()
        return self._alone

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The class of the guarded model where that is known: the SDK decides by it what is allowed."""
        inner = self.__dict__.get("_inner")
        if isinstance(inner, str) and not self._given and RUNNER_CALL.get() is not None:
            return type(self.inner)
        return GuardedModel if inner is None or isinstance(inner, str) else type(inner)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_inner" not in self.__dict__:
            raise AttributeError(name)  # asked while it is copied, and has nothing yet
        return getattr(self.inner, name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _unpickled, (), self.__dict__

    async def get_response(  # noqa: PLR0917 - the interface's signature
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff[Any, Any]],
        tracing: ModelTracing,
        *,
        previous_response_id: str | None,
        conversation_id: str | None,
        prompt: ResponsePromptParam | None,
    ) -> ModelResponse:
        """One call as one step."""
        call = _Call(
            self,
            (system_instructions, input, model_settings, tools, output_schema, handoffs, tracing),
            previous_response_id=previous_response_id,
            conversation_id=conversation_id,
            prompt=prompt,
        )
        with sdk_stops():
            response: ModelResponse = await call.apply(call.send, _RESPONSES)
        calls_of(call.run).answered(call.agent_run, response.output)
        return response

    async def stream_response(  # noqa: PLR0917 - the interface's signature
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff[Any, Any]],
        tracing: ModelTracing,
        *,
        previous_response_id: str | None,
        conversation_id: str | None,
        prompt: ResponsePromptParam | None,
    ) -> AsyncIterator[TResponseStreamEvent]:
        """One streamed call as one step, which looks for a stop at every event."""
        call = _Call(
            self,
            (system_instructions, input, model_settings, tools, output_schema, handoffs, tracing),
            previous_response_id=previous_response_id,
            conversation_id=conversation_id,
            prompt=prompt,
        )
        with sdk_stops():
            async with aclosing(call.apply(call.events, _STREAMS)) as events:
                async for event in events:
                    answer = m.answer_in(event)
                    if answer is not None:
                        output = m.field(answer, "output") or call.finished
                        calls_of(call.run).answered(call.agent_run, output)
                    elif (item := m.finished_item(event)) is not None:
                        call.finished.append(item)
                    yield event

    async def close(self) -> None:
        """Close the model that is guarded, and the provider that was made for its name."""
        if isinstance(self._inner, Model):
            await self._inner.close()
        if self._alone is not None:
            await self._alone.close()

    def get_retry_advice(self, request: ModelRetryAdviceRequest) -> ModelRetryAdvice | None:
        """What the model that is guarded advises."""
        return self.inner.get_retry_advice(request)

    async def _cleanup_on_run_end(self, owner: object) -> None:
        await self.inner._cleanup_on_run_end(owner)  # noqa: SLF001 - what it overrides
        if isinstance(self._inner, str):
            await self._call().close()


def _unpickled() -> GuardedModel:
    """One without contents, for `copy` and `pickle`, which would make one of the guarded model's class."""
    return GuardedModel.__new__(GuardedModel)


class GuardedModelProvider(ModelProvider):
    """A provider whose models are all guarded: for `RunConfig(model_provider=...)`.

    Args:
        provider: the provider; by default the SDK's own.
        options: those of `GuardedModel`.
    """

    def __init__(self, provider: ModelProvider | None = None, **options: Any) -> None:
        self._provider = provider or MultiProvider()
        self._options = options

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_provider" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._provider, name)

    def get_model(self, model_name: str | None) -> Model:
        """The model of a name, guarded."""
        return GuardedModel(self._provider.get_model(model_name), **self._options)

    async def aclose(self) -> None:
        """Close the provider that is guarded."""
        await self._provider.aclose()


class _Call:
    """One call: what is asked, what it may use, and what it has used."""

    def __init__(self, guarded: GuardedModel, asked: tuple[Any, ...], **conversation: Any) -> None:
        self._instructions, self._input, self._settings, self._tools, *self._rest = asked
        self._conversation = conversation
        self._guarded = guarded
        self.run = active_run(guarded.run)
        self.agent_run = calls_of(self.run).agent_run(self.run, self._input)
        self._data = m.request_data(
            self._instructions,
            self._input,
            self._settings,
            tools=self._tools,
            handoffs=self._handoffs,
            **conversation,
        )
        #: What the API said: the SDK's own answers have no tier.
        self._raw = RawAnswers()
        #: The items that a stream has finished, where its last event leaves them out.
        self.finished: list[Any] = []

    @property
    def _handoffs(self) -> list[Handoff[Any, Any]]:
        return list(self._rest[1])

    def apply(self, fn: Any, codec: Any) -> Any:
        """Run `fn` as the step."""
        return self.run.apply(
            self._guarded.name,
            fn,
            (fragmented(self._data),),
            kind="llm",
            branch=self.agent_run.branch,
            reserve=self._reserve,
            codec=codec,
            attributes={"gen_ai.request.model": self._guarded.name},
        )

    def _arguments(self) -> tuple[Any, ...]:
        return (self._instructions, self._input, self._settings, self._tools, *self._rest)

    async def send(self, request: Any) -> ModelResponse:
        """The body of a call that is answered at once."""
        step = current_step()
        try:
            with self._raw.here():
                answer = await self._guarded.inner.get_response(*self._arguments(), **self._conversation)
        except Exception as error:
            _settle_refused(step, error)
            raise
        # Not by `usage=`: a step whose usage is known only afterwards might use anything at all, and is
        # refused as soon as some counter is used up.
        self._settle(step, answer)
        return answer

    async def events(self, request: Any) -> AsyncIterator[TResponseStreamEvent]:
        """The body of a streamed call."""
        step = current_step()
        if self._settings.include_usage is None:
            self._settings = dataclasses.replace(self._settings, include_usage=True)
        stream: Any = self._guarded.inner.stream_response(*self._arguments(), **self._conversation)
        answer = None
        try:
            async for event in self._heard(stream):
                answer = m.answer_in(event) or answer
                yield event
        except Exception as error:
            _settle_refused(step, error)
            raise
        finally:
            self._settle(step, answer)
            if hasattr(stream, "aclose"):
                await stream.aclose()

    async def _heard(self, stream: Any) -> AsyncIterator[TResponseStreamEvent]:
        events = aiter(stream)
        while True:
            with self._raw.here():  # the request is sent when the first event is asked for
                event = await anext(events, None)
            if event is None:
                return
            yield event

    def _reserve(self, request: Any) -> Usage:
        asked = m.asked_of(self._guarded.name, self._settings, self._tools)
        bound = self._guarded.costs.bound(
            self.run,
            self._guarded.name,
            input_tokens=m.input_tokens(self._data, self._tools, self._handoffs),
            max_tokens=self._settings.max_tokens,
            terms=asked.terms,
            cache_writes=asked.cache_writes,
            hosted=asked.hosted,
        )
        if bound.max_tokens is not None:
            self._settings = dataclasses.replace(self._settings, max_tokens=bound.max_tokens)
        return bound.reserve

    def _settle(self, step: Step | None, answer: Any) -> None:
        """Charge what the provider counted; what it did not count is charged as reserved."""
        tokens = None if answer is None else m.tokens_of(m.field(answer, "usage"), answer)
        if step is not None and tokens is not None:
            counted = self._raw.completed(tokens)
            if not self._raw.told:
                counted = m.asked_of(self._guarded.name, self._settings).completed(counted)
            step.settle(self._guarded.costs.priced(self._guarded.name, counted))


def _settle_refused(step: Step | None, error: Exception) -> None:
    """Charge nothing where the provider refused the call."""
    if step is not None and proves_refusal(error):
        step.settle(Usage(usd=0, tokens=0))
