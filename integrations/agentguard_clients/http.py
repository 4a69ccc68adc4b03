"""An SDK's HTTP client, guarded: each request to a model is one guarded step.

It stands between the SDK and httpx, so that all that the SDK offers on top (parsing, raw responses,
streams, helpers, retries, `with_options`) stays as it is, and every attempt is seen.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import timedelta
from time import monotonic
from typing import Any, cast

import wrapt

from agentguard import Usage, current_step
from agentguard.fragments import fragmented
from agentguard_clients.attempt import FreeRequest
from agentguard_clients.call import ModelCall, Parts
from agentguard_clients.endpoints import Body
from agentguard_clients.errors import FreeProviderStatusError, ProviderStatusError, errors_without_request
from agentguard_clients.exchange import (
    AnswerCodec,
    Head,
    RecordedAnswer,
    StreamCodec,
    as_response,
    content_of,
    form_of,
    library_of,
)
from agentguard_clients.guarding import Guarding

_EXTENSION = "agentguard"


# --- the bodies of the steps ---------------------------------------------------------------------


def _reserve(body: Body, call: ModelCall) -> Usage:
    return call.reserve()


def _exchange(body: Body, call: ModelCall) -> Any:
    """Send a request and read its answer."""
    with errors_without_request():
        response = call.send(stream=False)
    if response.is_error:
        raise call.refused_by(response)
    call.answered(response.content)
    return response


async def _exchange_async(body: Body, call: ModelCall) -> Any:
    with errors_without_request():
        response = await call.send(stream=False)
    if response.is_error:
        raise call.refused_by(response)
    call.answered(response.content)
    return response


def _stream(body: Body, call: ModelCall) -> Iterator[Any]:
    """Send a request and yield the head of its answer, then the answer part by part."""
    step = current_step()
    with errors_without_request():
        response = call.send(stream=True)
    try:
        with errors_without_request():
            if response.is_error:
                response.read()
                raise call.refused_by(response)
            yield Head.of(response)
            parts = Parts(call, response.headers.get("content-type", ""))
            for chunk in response.iter_bytes():
                for part in parts.of(chunk):
                    yield part
            for part in parts.rest():
                yield part
    finally:
        call.settle(step)
        response.close()


async def _stream_async(body: Body, call: ModelCall) -> AsyncIterator[Any]:
    step = current_step()
    with errors_without_request():
        response = await call.send(stream=True)
    try:
        with errors_without_request():
            if response.is_error:
                await response.aread()
                raise call.refused_by(response)
            yield Head.of(response)
            parts = Parts(call, response.headers.get("content-type", ""))
            async for chunk in response.aiter_bytes():
                for part in parts.of(chunk):
                    yield part
            for part in parts.rest():
                yield part
    finally:
        call.settle(step)
        await response.aclose()


def _read(call: FreeRequest) -> Any:
    """Send a request that costs nothing, and read its answer."""
    with errors_without_request():
        response = call.send(stream=False)
    return call.answered(response)


async def _read_async(call: FreeRequest) -> Any:
    with errors_without_request():
        response = await call.send(stream=False)
    return call.answered(response)


_ANSWER = AnswerCodec()
_STREAM = StreamCodec()


# --- the HTTP clients ----------------------------------------------------------------------------


class _Guarded(wrapt.ObjectProxy[Any]):
    """What the two clients share."""

    def __init__(self, client: Any, guarding: Guarding) -> None:
        super().__init__(client)
        self._self_guarding = guarding
        http = _library(client)
        #: What proves that the provider never began.
        self._self_free_on = (
            FreeProviderStatusError,
            http.ConnectError,
            http.ConnectTimeout,
            http.PoolTimeout,
        )

    def __reduce_ex__(self, protocol: object) -> Any:
        """Refuse, as the HTTP library's own clients do.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "cannot pickle a guarded client, which holds open connections: call guard_client in each process"
        )

    def build_request(self, *args: Any, **kwargs: Any) -> Any:
        """Build a request, with its answer bounded by what the budget leaves."""
        request = self.__wrapped__.build_request(*args, **kwargs)
        call = self._self_seen(request, kwargs)
        if call is None:
            return request
        if isinstance(call, ModelCall) and call.sent is not None and call.sent is not request.content:
            for name in ("json", "data"):
                kwargs.pop(name, None)
            request = self.__wrapped__.build_request(*args, **kwargs | {"content": call.sent})
        request.extensions = {**request.extensions, _EXTENSION: call}
        return request

    def _self_seen(self, request: Any, form: Mapping[str, Any]) -> ModelCall | FreeRequest | None:
        guarding = self._self_guarding
        run = guarding.run_of(request)
        if run is None:
            return None
        if guarding.is_free(request):
            return FreeRequest(guarding, run, request)
        content = content_of(request)
        asked = form_of(form) if content is None else {}
        return ModelCall(guarding, run, request.url, content, asked)

    def _self_call(self, request: Any, options: dict[str, Any]) -> ModelCall | FreeRequest | None:
        """Return the call of a request that was built here; one that was not is seen here first."""
        call = request.extensions.get(_EXTENSION) or self._self_seen(request, {})
        if call is not None:
            call.refusal = None
            call.send = functools.partial(self.__wrapped__.send, request, **options)
        return cast("ModelCall | FreeRequest | None", call)

    def _self_apply(self, call: ModelCall, fn: Any, codec: Any) -> Any:
        body = fragmented(call.body) if call.kind == "llm" else call.body
        return call.run.apply(
            call.name,
            fn,
            (body, call),
            kind=call.kind,
            reserve=_reserve,
            ignore=("call",),
            free_on=self._self_free_on,
            codec=codec,
            attributes=call.attributes(),
        )


class GuardedClient(_Guarded):
    """A sync HTTP client whose requests to models are guarded steps."""

    def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        """Send a request as a guarded step."""
        call = self._self_call(request, options)
        if call is None:
            return self.__wrapped__.send(request, stream=stream, **options)
        http = library_of(request)
        with call.passage():
            try:
                if isinstance(call, FreeRequest):
                    if stream:
                        call.check_stream()
                        return call.send(stream=True)
                    answer = call.run.record(call.name, functools.partial(_read, call))
                    answer = call.response or answer
                elif stream:
                    return self._self_streamed(call, request, http)
                else:
                    answer = self._self_apply(call, _exchange, _ANSWER)
            except ProviderStatusError as error:
                answer = call.refusal or error.recorded_response(http)
            except http.RequestError as error:
                error.request = request
                raise
        return _received(answer, request, http)

    def _self_streamed(self, call: ModelCall, request: Any, http: Any) -> Any:
        parts = self._self_apply(call, _stream, _STREAM)
        return _stream_response(next(parts), _stream_class(_Parts, http.SyncByteStream)(parts), request, http)


class GuardedAsyncClient(_Guarded):
    """An async HTTP client whose requests to models are guarded steps."""

    async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        """Send a request as a guarded step."""
        call = self._self_call(request, options)
        if call is None:
            return await self.__wrapped__.send(request, stream=stream, **options)
        http = library_of(request)
        with call.passage():
            try:
                if isinstance(call, FreeRequest):
                    if stream:
                        call.check_stream()
                        return await call.send(stream=True)
                    answer = await call.run.record(call.name, functools.partial(_read_async, call))
                    answer = call.response or answer
                elif stream:
                    return await self._self_streamed(call, request, http)
                else:
                    answer = await self._self_apply(call, _exchange_async, _ANSWER)
            except ProviderStatusError as error:
                answer = call.refusal or error.recorded_response(http)
            except http.RequestError as error:
                error.request = request
                raise
        return _received(answer, request, http)

    async def _self_streamed(self, call: ModelCall, request: Any, http: Any) -> Any:
        parts = self._self_apply(call, _stream_async, _STREAM)
        head = await anext(parts)
        return _stream_response(head, _stream_class(_AsyncParts, http.AsyncByteStream)(parts), request, http)


def guarded_http(client: Any, guarding: Guarding) -> Any:
    """Return an httpx (or httpx2) client whose requests to models are guarded steps."""
    if isinstance(client, _Guarded):
        client = client.__wrapped__
    asynchronous = isinstance(client, _library(client).AsyncClient)
    return (GuardedAsyncClient if asynchronous else GuardedClient)(client, guarding)


def guarding_of(client: Any) -> Guarding | None:
    """Return how an SDK's HTTP client is guarded, or None."""
    return client._self_guarding if isinstance(client, _Guarded) else None  # noqa: SLF001 - of this module


def _library(client: Any) -> Any:
    for name in ("httpx2", "httpx"):
        library = sys.modules.get(name)
        if library is not None and isinstance(client, library.Client | library.AsyncClient):
            return library
    raise TypeError(f"a client of httpx or httpx2 can be guarded, not {type(client).__name__}")


# --- responses -----------------------------------------------------------------------------------


def _received(answer: Any, request: Any, http: Any) -> Any:
    """Return a whole answer, live or recorded, as the response to a request."""
    if isinstance(answer, RecordedAnswer):
        answer = as_response(http, answer.head, answer.body)
        answer.elapsed = timedelta(0)
    answer.request = request
    return answer


def _stream_response(head: Head, stream: Any, request: Any, http: Any) -> Any:
    return http.Response(
        head.status, headers=[tuple(pair) for pair in head.headers], stream=stream, request=request
    )


class _Parts:
    """The body of a streamed answer: the items of its step."""

    def __init__(self, parts: Any) -> None:
        self._parts = parts
        self._began = monotonic()
        #: How long the answer took; known when it is closed.
        self.elapsed: timedelta | None = None

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._parts)

    def close(self) -> None:
        """End the step, and give the connection back."""
        self.elapsed = timedelta(seconds=monotonic() - self._began)
        self._parts.close()


class _AsyncParts(_Parts):
    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._parts)

    async def aclose(self) -> None:
        """End the step, and give the connection back."""
        self.elapsed = timedelta(seconds=monotonic() - self._began)
        await self._parts.aclose()


@functools.cache
def _stream_class(parts: type[_Parts], base: type[Any]) -> type[Any]:
    """Return the class of a body for one HTTP library, which looks at its base class."""
    return type(parts.__name__, (parts, base), {})
