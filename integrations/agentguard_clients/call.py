"""One request to a model: what it asks, what it may use, and what it has used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from agentguard import AgentGuardError, Run, Step, UnknownCostError, Usage, current_step
from agentguard_clients.endpoints import Asked, Body, Endpoint
from agentguard_clients.guarding import Guarding
from agentguard_clients.prompt import prompt_tokens
from agentguard_clients.sse import Events, event_data
from agentguard_clients.stops import let_through


class ModelCall:
    """One attempt at a request, made of the request that the SDK builds."""

    def __init__(self, guarding: Guarding, run: Run, path: str, content: bytes) -> None:
        self.run = run
        self.body: Body = _json(content)
        self._guarding = guarding
        self._endpoint = endpoint = guarding.api.endpoint(path)
        self._asked = None if endpoint is None else endpoint.asked(path, self.body)
        self._reserved: Usage | UnknownCostError | None = None
        #: What an answer told so far: `model` and `usage`.
        self._answer: Body | None = None
        self._drops_extra = False
        #: Sends the request; set when it is sent.
        self.send: Any = None
        self.sent = self._prepared(path, content)

    # --- before it is sent ---------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name of its step."""
        return "request" if self._endpoint is None else self._endpoint.name

    @property
    def kind(self) -> str:
        """The kind of its step."""
        return "step" if self._endpoint is None else "llm"

    def _prepared(self, path: str, content: bytes) -> bytes:
        """Work out the reservation; return what to send, bounded by what the budget leaves."""
        if self._endpoint is None or self._asked is None:
            self._reserved = self._guarding.unknown(self.run, path)
            return content
        body = self._bounded(self._endpoint, self._asked, prompt_tokens(content, self.body))
        if body.get("stream") is True:
            told = self._endpoint.streaming(body)
            self._drops_extra, body = told is not body, told
        return content if body is self.body else json.dumps(body, ensure_ascii=False).encode()

    def _bounded(self, endpoint: Endpoint, asked: Asked, input_tokens: int) -> Body:
        try:
            bound = self._guarding.bound(self.run, asked, input_tokens)
        except UnknownCostError as error:
            self._reserved = error  # `reserve=` raises it, so that the step is refused and the run stops
            return self.body
        self._reserved = bound.reserve
        if bound.max_tokens is None:
            return self.body
        return endpoint.bounded(self.body, max(bound.max_tokens // asked.answers, 1))

    def reserve(self) -> Usage:
        """Return what the call may use at most.

        Raises:
            UnknownCostError: nobody knows what it costs, and money is limited.
        """
        if isinstance(self._reserved, UnknownCostError):
            raise self._reserved
        return self._reserved or Usage()

    def attributes(self) -> dict[str, Any]:
        """Return the facts for span and log."""
        facts: dict[str, Any] = {"gen_ai.provider.name": self._guarding.api.name}
        if self._endpoint is not None and self._asked is not None:
            facts["gen_ai.operation.name"] = self._endpoint.operation
            facts["gen_ai.request.model"] = self._asked.model
        return facts

    # --- its answer ----------------------------------------------------------------------------

    def answered(self, content: bytes) -> None:
        """Charge what a whole answer says that it used."""
        self.read(content)
        self.settle(current_step())

    def read(self, content: bytes) -> None:
        """Take in a whole answer."""
        self._answer = _json(content)

    def saw(self, event: bytes) -> bool:
        """Take in an event of a stream; return whether it is for the consumer too."""
        if self._endpoint is None or b'"usage"' not in event or (data := event_data(event)) is None:
            return True
        self._answer = self._endpoint.answer(self._answer, data)
        return not (self._drops_extra and self._endpoint.is_extra(data))

    def settle(self, step: Step | None) -> None:
        """Charge what the provider counted; what it did not count is charged as reserved."""
        if step is None or self._endpoint is None or self._asked is None or self._answer is None:
            return
        used = self._guarding.used(self._endpoint, self._asked, self._answer)
        if used is not None and self._endpoint.is_final(self._answer):
            step.settle(used)

    @contextmanager
    def passage(self) -> Iterator[None]:
        """Raise the guard's errors in a form that the SDK does not wrap."""
        try:
            yield
        except AgentGuardError as error:
            through = self._guarding.api.lets_through
            if through is None or isinstance(error, through):
                raise
            raise let_through(error, through) from error.__cause__


class Parts:
    """A streamed answer cut into what goes on record and to the consumer, one by one."""

    def __init__(self, call: ModelCall, kind: str) -> None:
        self._call = call
        self._events = Events() if kind.startswith("text/event-stream") else None
        #: An answer that is no stream of events, but is read bit by bit.
        self._whole: list[bytes] | None = [] if kind.startswith("application/json") else None

    def of(self, chunk: bytes) -> Iterator[bytes]:
        """Yield what a chunk of bytes completes."""
        if self._events is None:
            if self._whole is not None:
                self._whole.append(chunk)
            yield chunk
            return
        for event in self._events.feed(chunk):
            if self._call.saw(event):
                yield event

    def rest(self) -> Iterator[bytes]:
        """Yield what is left at the end."""
        if self._events is not None and (rest := self._events.rest()) and self._call.saw(rest):
            yield rest
        if self._whole is not None:
            self._call.read(b"".join(self._whole))


def _json(content: bytes) -> Body:
    try:
        body = json.loads(content)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
