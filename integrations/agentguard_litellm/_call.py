"""One call of LiteLLM: what it may use, how it goes on, and what it has used."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

from litellm import exceptions

from agentguard import NoActiveRunError, Run, Step, UnknownCostError, Usage, current_run, current_step
from agentguard.cost import ModelCosts, ModelPrices, ModelRequest, ModelUsage, RawAnswers, model_usage
from agentguard.cost.usage import USUAL_OUTPUT, Unpriced, at_least
from agentguard.fragments import fragmented
from agentguard.protocols import PriceBook
from agentguard.steps.current import outside_allowed
from agentguard_litellm._codec import AnswerCodec, Opened, StreamCodec

#: The provider refused the request, and bills nothing for it.
_FREE: Final = (
    exceptions.AuthenticationError,
    exceptions.BadRequestError,
    exceptions.NotFoundError,
    exceptions.PermissionDeniedError,
    exceptions.RateLimitError,
    exceptions.UnprocessableEntityError,
)
#: They change from call to call, or hold secrets and objects: no part of what is asked.
_NOT_RECORDED: Final = frozenset({"api_key", "client", "headers", "extra_headers", "metadata", "logger_fn"})
#: What a provider's own template adds to a prompt, on the high side.
_TEMPLATE_TOKENS: Final = 16
_RETRIES: Final = ("num_retries", "max_retries")
_FALLBACKS: Final = ("fallbacks", "context_window_fallback_dict", "model_list")
_ANSWER: Final = AnswerCodec()
_STREAM: Final = StreamCodec()


class Guarding:
    """How calls are guarded: see `guard_client`."""

    def __init__(
        self,
        *,
        run: Run | None = None,
        prices: PriceBook | None = None,
        unpriced: Unpriced = "refuse",
        max_output_tokens: int | None = None,
        clamp: bool = True,
        outside: str = "refuse",
        provider: str | None = None,
    ) -> None:
        if outside not in {"refuse", "allow"}:
            raise ValueError(f"outside must be 'refuse' or 'allow', not {outside!r}")
        self._run = run
        self._outside = outside
        self.provider = provider
        self.costs = ModelCosts(
            prices or ModelPrices(), unpriced=unpriced, max_output_tokens=max_output_tokens, clamp=clamp
        )

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a call as a guarded step."""
        call = self._made(fn, args, kwargs)
        if call is None:
            return fn(*args, **kwargs)
        if not call.streams:
            return call.apply(_answer, _ANSWER)
        items = call.apply(_stream, _STREAM)
        next(items)  # the request is sent
        return items

    async def acall(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a call as a guarded step."""
        call = self._made(fn, args, kwargs)
        if call is None:
            return await fn(*args, **kwargs)
        if not call.streams:
            return await call.apply(_answer_async, _ANSWER)
        items = call.apply(_stream_async, _STREAM)
        await anext(items)
        return items

    def _made(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        run = self._run or current_run()
        if run is not None:
            return Call(self, run, fn, inspect.signature(fn).bind_partial(*args, **kwargs))
        if self._outside == "allow" or outside_allowed():
            return None
        raise NoActiveRunError(
            f"litellm is guarded and no run is active here ({fn.__name__}): call it inside `with "
            "guard.run(...)`, or give the run: guard_client(litellm, run=run)"
        )


class Call:
    """One call, which is one attempt."""

    def __init__(
        self, guarding: Guarding, run: Run, fn: Callable[..., Any], bound: inspect.BoundArguments
    ) -> None:
        asked = {name: value for name, value in bound.arguments.items() if name != "kwargs"}
        asked |= bound.arguments.get("kwargs", {})
        if used := next((name for name in _FALLBACKS if asked.get(name)), None):
            raise ValueError(f"{used}= makes calls that no guard sees: try the next model in your own code")
        self.run = run
        self.fn = fn
        self.name = fn.__name__.removeprefix("a")
        self.kwargs = {**asked, **dict.fromkeys(_RETRIES, 0)}
        self.body = {name: value for name, value in asked.items() if name not in _NOT_RECORDED}
        self.streams = asked.get("stream") is True
        self.model = str(asked.get("model"))
        self._guarding = guarding
        self._counted: ModelUsage | None = None
        #: Whether all of the answer came.
        self.whole = False
        #: What the SDK of OpenAI received, where LiteLLM uses it: LiteLLM drops the tier of streams.
        self.raw = RawAnswers()
        self._reserved: Usage | UnknownCostError = self._bounded()
        wanted = asked.get("stream_options") or {}
        #: The usage is asked for by the guard, and not by the caller.
        self._usage_is_ours = self.streams and "include_usage" not in wanted
        if self.streams:
            self.kwargs["stream_options"] = {"include_usage": True, **wanted}

    def _bounded(self) -> Usage | UnknownCostError:
        request = ModelRequest((), self.body)
        most = request.max_tokens
        if most is None and self._guarding.costs.max_output_tokens is None and request.answers > 1:
            most = USUAL_OUTPUT * request.answers
        lost = request.samples_beside
        if lost is not None and self._guarding.costs.unpriced == "refuse" and self.run.limits("usd"):
            detail = f"LiteLLM drops what {lost} uses: make the call with agentguard_anthropic's client"
            return UnknownCostError(self.model, ("usd",), self.run.id, detail)
        try:
            bound = self._guarding.costs.bound(
                self.run,
                self.model,
                input_tokens=request.input_tokens + _TEMPLATE_TOKENS,
                max_tokens=0 if self.name == "embedding" else most,
                provider=self._guarding.provider,
                terms=request.terms,
                cache_writes=request.cache_writes,
                spoken=request.spoken,
                hosted=request.hosted,
                least_output=_least_output(self.body),
            )
        except UnknownCostError as error:
            return error  # `reserve=` raises it, so that the step is refused and the run stops
        if bound.max_tokens is not None:
            field = "max_completion_tokens" if self.body.get("max_completion_tokens") else "max_tokens"
            self.kwargs[field] = bound.max_tokens // request.answers
        return bound.reserve

    def reserve(self) -> Usage:
        """Return what the call may use at most."""
        if isinstance(self._reserved, UnknownCostError):
            raise self._reserved
        return self._reserved

    def apply(self, fn: Any, codec: Any) -> Any:
        """Run a body as the step."""
        return self.run.apply(
            self.name,
            fn,
            (fragmented(self.body), self),
            kind="llm",
            reserve=_reserve,
            ignore=("call",),
            free_on=_FREE,
            codec=codec,
            attributes={
                "gen_ai.operation.name": "embeddings" if self.name == "embedding" else "chat",
                "gen_ai.request.model": self.model,
            },
        )

    def saw(self, told: Any) -> None:
        """Take in what an answer, or a chunk of one, says of its usage."""
        if getattr(told, "usage", None) is None:
            return
        try:
            counted = model_usage(told)
        except (TypeError, ValueError):
            return  # a count that cannot be one: charged as reserved
        if counted is not None:
            self._counted = counted if self._counted is None else self._counted.larger(counted)
            self.whole = not any(map(_says_something, getattr(told, "choices", ())))  # the last chunk

    def is_extra(self, chunk: Any) -> bool:
        """Return whether a chunk is there for the guard alone: it tells the usage, and nothing else."""
        told = self._usage_is_ours and getattr(chunk, "usage", None) is not None
        return told and not any(_says_something(choice) for choice in chunk.choices)

    def settle(self, step: Step | None) -> None:
        """Charge what the provider counted; what it did not count is charged as reserved."""
        if step is not None and self._counted is not None:
            counted = self.raw.completed(self._counted)
            if not self.raw.told:
                counted = ModelRequest((), self.body).completed(counted, place_told=not self.streams)
            used = self._guarding.costs.priced(self.model, counted, provider=self._guarding.provider)
            step.settle(used if self.whole else at_least(used, self.reserve()))


def _says_something(choice: Any) -> bool:
    delta = getattr(choice, "delta", None)  # text completions have none
    said = {} if delta is None else delta.model_dump(exclude_none=True)
    return bool(choice.finish_reason or getattr(choice, "text", None) or any(said.values()))


def _least_output(body: dict[str, Any]) -> int:
    thinking = body.get("thinking")
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    return 16 + budget if isinstance(budget, int) else 16


# --- the bodies of the steps ---------------------------------------------------------------------


def _reserve(body: dict[str, Any], call: Call) -> Usage:
    return call.reserve()


def _answer(body: dict[str, Any], call: Call) -> Any:
    with call.raw.here():
        answer = call.fn(**call.kwargs)
    call.saw(answer)
    call.whole = True
    call.settle(current_step())
    return answer


async def _answer_async(body: dict[str, Any], call: Call) -> Any:
    with call.raw.here():
        answer = await call.fn(**call.kwargs)
    call.saw(answer)
    call.whole = True
    call.settle(current_step())
    return answer


def _stream(body: dict[str, Any], call: Call) -> Iterator[Any]:
    """Send the request, say that it is sent, and yield the chunks of the answer."""
    step = current_step()
    with call.raw.here():
        stream = call.fn(**call.kwargs)
    try:
        yield Opened()
        for chunk in stream:
            call.saw(chunk)
            if not call.is_extra(chunk):
                yield chunk
        call.whole = True
    finally:
        call.settle(step)
        _close(stream)


async def _stream_async(body: dict[str, Any], call: Call) -> AsyncIterator[Any]:
    step = current_step()
    with call.raw.here():
        stream = await call.fn(**call.kwargs)
    try:
        yield Opened()
        async for chunk in stream:
            call.saw(chunk)
            if not call.is_extra(chunk):
                yield chunk
        call.whole = True
    finally:
        call.settle(step)
        await stream.aclose()


def _close(stream: Any) -> None:
    """Close what a stream reads from: LiteLLM's own has no way to be closed where it is sync."""
    inner = getattr(stream, "completion_stream", None)
    for holder in (inner, getattr(inner, "response", None), getattr(inner, "_iterator", None)):
        close = getattr(holder, "close", None)
        if close is not None:
            with contextlib.suppress(Exception):  # it is left, whatever it says
                close()
            return
