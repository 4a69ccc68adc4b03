"""One request to a model: what it is, what it may use, and how it goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_ai.models import CompletedStreamedResponse, Model, ModelRequestParameters, StreamedResponse

from agentguard import NoActiveRunError, Run, Step, Usage, current_run, current_step
from agentguard.cost import RawAnswers, proves_refusal
from agentguard.cost.hosted import offered
from agentguard.cost.usage import LEAST_OUTPUT, ModelCosts, at_least
from agentguard.fragments import fragmented
from agentguard_pydantic_ai import _mapping as m

if TYPE_CHECKING:
    from pydantic_ai import RunContext
    from pydantic_ai.messages import ModelMessage, ModelResponse, ModelResponseStreamEvent
    from pydantic_ai.settings import ModelSettings

CODEC = m.ResponseCodec()
_NO_ANSWER = b"null"
_FREE = Usage(usd=0, tokens=0)


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


class Request:
    """One request: what it is, what it may use, and how it goes on. It is the codec of its stream, too."""

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
        self._asked = m.asked_of(self._data, settings, model.settings)
        self._hosted = offered({"tools": m.hosted_tools(model.system, parameters)}, model.model_name)
        #: What the provider's SDK received, of which the framework drops a part.
        self._raw = RawAnswers()
        self._reserved = Usage()
        self.run_context: RunContext[Any] | None = None
        self._stream: StreamedResponse | None = None
        self._exhausted = False

    def apply(self, fn: Any, codec: Any) -> Any:
        """Run `fn` as the step."""
        return self._run.apply(
            self._model.model_name,
            fn,
            (fragmented(self._data),),
            kind="llm",
            branch=self._guarding.branch,
            reserve=self._reserve,
            codec=codec,
            attributes={
                "gen_ai.request.model": self._model.model_name,
                "gen_ai.provider.name": self._model.system,
            },
        )

    async def send(self, request: Any) -> ModelResponse:
        """The body of a request that is answered at once."""
        step = current_step()
        try:
            with self._raw.here():
                response = await self._model.request(self._messages, self._settings, self._parameters)
        except Exception as error:
            if proves_refusal(error):
                _settle(step, _FREE)
            raise
        # Not by `usage=`: a step whose usage is known only afterwards might use anything at all, and is
        # refused as soon as some counter is used up.
        _settle(step, self._usage(response))
        return response

    # --- what it uses --------------------------------------------------------------------------

    def _reserve(self, request: Any) -> Usage:
        bound = self._guarding.costs.bound(
            self._run,
            self._model.model_name,
            provider=self._model.system,
            input_tokens=m.input_tokens(self._data, self._parameters),
            max_tokens=m.max_tokens(self._settings, self._model.settings),
            terms=self._asked.terms,
            cache_writes=self._asked.cache_writes,
            hosted=self._hosted,
            least_output=m.thinking_tokens(self._settings, self._model.settings) + LEAST_OUTPUT,
        )
        if bound.max_tokens is not None:
            self._settings = m.with_max_tokens(self._settings, bound.max_tokens)
        self._reserved = bound.reserve
        return bound.reserve

    def _usage(self, response: ModelResponse | None) -> Usage:
        tokens = None if response is None else m.tokens_of(response.usage, response)
        if response is None or tokens is None:
            return self._reserved
        if self._raw.told:
            tokens = self._raw.completed(tokens)
        else:
            tokens = self._asked.completed(tokens, place_told=self._model.system != "anthropic")
        used = self._guarding.costs.priced(self._model.model_name, tokens, provider=self._model.system)
        # What a stream had counted when it was broken off is not all that will be billed.
        return used if response.state in {"complete", "suspended"} else at_least(used, self._reserved)

    # --- streams -------------------------------------------------------------------------------

    async def events(self, request: Any) -> AsyncIterator[ModelResponseStreamEvent | None]:
        """The body of a streamed request: None when it is open, then its events."""
        step, refused = current_step(), False
        try:
            async with AsyncExitStack() as opened:
                with self._raw.here():
                    stream = await opened.enter_async_context(
                        self._model.request_stream(
                            self._messages, self._settings, self._parameters, self.run_context
                        )
                    )
                self._stream = stream
                source = stream._event_iterator or stream._get_event_iterator()  # noqa: SLF001 - see opened
                yield None
                async for event in source:
                    yield event
                self._exhausted = True
        except Exception as error:
            refused = self._stream is None and proves_refusal(error)
            raise
        finally:
            _settle(step, _FREE if refused else self._usage(self._streamed()))

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
        """A stream is kept as the answer that it came to; one that was never open has none."""
        response = self._streamed()
        return _NO_ANSWER if response is None else CODEC.encode(response)

    def decode(self, data: bytes) -> list[Any]:
        """The answer, in the place of its events."""
        return [] if data == _NO_ANSWER else [CODEC.decode(data)]


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


def _settle(step: Step | None, usage: Usage) -> None:
    if step is not None:  # a body always runs in its step
        step.settle(usage)
