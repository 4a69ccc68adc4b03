"""One request to a model: what it asks, what it may use, and what it has used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from agentguard import Run, Step, UnknownCostError, Usage, current_step
from agentguard.budget.model_usage import Number
from agentguard.cost import ModelRequest, ModelUsage
from agentguard.cost.usage import at_least
from agentguard_clients.attempt import Attempt
from agentguard_clients.endpoints import Body, Endpoint
from agentguard_clients.guarding import Guarding
from agentguard_clients.sse import Events, answer_tokens, event_data, is_done, output_tokens


class ModelCall(Attempt):
    """One attempt at a request that is a step.

    Attributes:
        body: what the SDK asks, as it goes on record.
        sent: what is really sent: bounded by what the budget leaves, and a stream asked for its usage;
            None for a form with files, which is sent as it is.
    """

    def __init__(self, guarding: Guarding, run: Run, url: Any, content: bytes | None, form: Body) -> None:
        super().__init__(guarding, run)
        self.body: Body = form if content is None else _json(content)
        self._url = url
        self._endpoint = guarding.api.endpoint(url.path)
        self._reserved: Usage | UnknownCostError = Usage()
        self._counted: ModelUsage | None = None
        #: Whether what was counted is all that will be billed.
        self._final = False
        #: Whether nothing bounds the answer, and about how many tokens of it came.
        self._unbounded = False
        self._made = 0
        self._drops_extra = False
        self.sent = self._prepared(content)

    # --- before it is sent ---------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name of its step."""
        return "request" if self._endpoint is None else self._endpoint.name

    @property
    def kind(self) -> str:
        """The kind of its step."""
        return "step" if self._endpoint is None else "llm"

    @property
    def _model(self) -> str:
        return "" if self._endpoint is None else self._endpoint.model(self._url.path, self.body)

    def _prepared(self, content: bytes | None) -> bytes | None:
        """Work out the reservation; return what to send."""
        if self._endpoint is None or content is None:
            self._reserved = self._guarding.unknown(self.run, f"POST {self._url.path}")
            return content
        body = self._bounded(self._endpoint)
        if body.get("stream") is True:
            told = self._endpoint.streaming(body)
            self._drops_extra, body = told is not body, told
        return content if body is self.body else json.dumps(body, ensure_ascii=False).encode()

    def _bounded(self, endpoint: Endpoint) -> Body:
        body, most = self.body, self._guarding.max_output_tokens
        request = ModelRequest((), body)
        if most is not None and endpoint.bounds and request.max_tokens is None:
            body = endpoint.bounded(body, most)
        try:
            bound = self._guarding.bound(self.run, endpoint, self._url, body)
        except UnknownCostError as error:
            self._reserved = error  # `reserve=` raises it, so that the step is refused and the run stops
            return body
        self._reserved = bound.reserve
        if bound.max_tokens is None:
            self._unbounded = ModelRequest((), body).max_tokens is None
            return body
        return endpoint.bounded(body, max(bound.max_tokens // request.answers, 1))

    def reserve(self) -> Usage:
        """Return what the call may use at most.

        Raises:
            UnknownCostError: nobody knows what it costs, and money is limited.
        """
        if isinstance(self._reserved, UnknownCostError):
            raise self._reserved
        return self._reserved

    def attributes(self) -> dict[str, Any]:
        """Return the facts for span and log."""
        facts: dict[str, Any] = {"gen_ai.provider.name": self._guarding.api.name}
        if self._endpoint is not None:
            facts["gen_ai.operation.name"] = self._endpoint.operation
            facts["gen_ai.request.model"] = self._model
        return facts

    # --- its answer ----------------------------------------------------------------------------

    def answered(self, content: bytes) -> None:
        """Charge what a whole answer says that it used."""
        self.read(content)
        self.settle(current_step())

    def read(self, content: bytes) -> None:
        """Take in a whole answer."""
        if self._endpoint is not None:
            answer = _json(content)
            self._counted = self._guarding.counted(answer, self._url.host)
            self._final = True
            if self._counted is None and self._unbounded:
                self._made = answer_tokens(answer)

    def saw(self, event: bytes) -> bool:
        """Take in an event of a stream; return whether it is for the consumer too."""
        if self._endpoint is None:
            return True
        if is_done(event):
            self._final = True
        if not self._unbounded and b'"usage"' not in event:
            return True
        if (data := event_data(event)) is None:
            return True
        if self._unbounded:
            self._made += output_tokens(data)
        counted = self._guarding.counted(data, self._url.host) if b'"usage"' in event else None
        if counted is not None:
            self._counted = counted if self._counted is None else self._counted.larger(counted)
            self._final = self._endpoint.is_final(data, ModelRequest((), self.body).answers)
        return not (self._drops_extra and data.get("usage") and self._endpoint.is_extra(data))

    def settle(self, step: Step | None) -> None:
        """Charge what the provider counted; what it did not count is charged as reserved.

        A count from the middle of a stream that ended early raises that, and does not lower it; so does what
        came of an answer that nothing bounds and nothing counts.
        """
        if step is None or isinstance(self._reserved, UnknownCostError):
            return
        known = [] if self._counted is None else [self._counted]
        if self._final and known:
            step.settle(self._guarding.used(self._model, known[0], self._url.host))
            return
        if self._made > self._reserved.output_tokens:
            given = self._reserved.input_tokens
            came: dict[str, Number] = {"input_tokens": given, "output_tokens": self._made}
            known.append(ModelUsage(counts=came, terms=ModelRequest((), self.body).terms))
        used = self._reserved
        for counted in known:
            used = at_least(self._guarding.used(self._model, counted, self._url.host), used)
        if known:
            step.settle(used)


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
