"""What a provider's package says of its requests: which call a model, and what they may use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

Body = dict[str, Any]


class Asked(NamedTuple):
    """What a request asks for, as far as its costs go.

    `max_tokens` bounds one answer and is None where the request names no bound.  `least_tokens` is the
    smallest bound that the provider takes: thinking has to fit in.
    """

    model: str
    max_tokens: int | None = None
    least_tokens: int = 1
    answers: int = 1
    has_output: bool = True


class Endpoint(Protocol):
    """One kind of request to a model."""

    #: The name of its steps, and the operation of their spans.
    name: str
    operation: str

    def matches(self, path: str) -> bool:
        """Return whether requests to this path are of this kind."""
        ...

    def asked(self, path: str, body: Body) -> Asked:
        """Return what a request asks for."""
        ...

    def bounded(self, body: Body, max_tokens: int) -> Body:
        """Return the request with another bound of its answer."""
        ...

    def streaming(self, body: Body) -> Body:
        """Return the request of a stream so that it tells its usage; the same where it does anyhow."""
        ...

    def answer(self, seen: Body | None, event: Mapping[str, Any]) -> Body | None:
        """Return the answer (`model`, `usage`) as known after one more event of a stream."""
        ...

    def is_extra(self, event: Mapping[str, Any]) -> bool:
        """Return whether an event is there only because `streaming` asked for it."""
        ...

    def is_final(self, answer: Mapping[str, Any]) -> bool:
        """Return whether the usage of an answer is all that will be billed."""
        ...


class Provider(NamedTuple):
    """A provider's API: its requests to models, and those that cost nothing.

    `hosts` says by the end of an address who serves it, in the words of the price book.  `lets_through`
    is the error class that the SDK hands on unchanged from inside a request, where it wraps all others.
    """

    name: str
    endpoints: tuple[Endpoint, ...]
    free: re.Pattern[str]
    hosts: Mapping[str, str]
    lets_through: type[Exception] | None = None

    def served_by(self, host: str) -> str | None:
        """Return who serves an address, or None: the price book then goes by the model's name."""
        return next((by for end, by in self.hosts.items() if host == end or host.endswith(f".{end}")), None)

    def endpoint(self, path: str) -> Endpoint | None:
        """Return the kind of requests to a path, or None for those that call no known model."""
        return next((each for each in self.endpoints if each.matches(path)), None)
