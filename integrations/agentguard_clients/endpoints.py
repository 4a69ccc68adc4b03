"""What a provider's package says of its requests: which call a model, and what they may use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from agentguard.cost.usage import LEAST_OUTPUT

Body = dict[str, Any]


class Endpoint:
    """One kind of request to a model.

    A provider's package derives a class for each; what most kinds share is here.
    """

    #: The name of its steps, and the operation of their spans.
    name: str
    operation: str = "chat"
    path: re.Pattern[str]
    #: The fields that bound an answer, the one to be set first.
    bounds: tuple[str, ...] = ()

    def model(self, path: str, body: Body) -> str:
        """Return the model that is asked for; some platforms have it in the path."""
        found = self.path.search(path)
        in_path = next(filter(None, found.groups()), None) if found else None
        return str(body.get("model") or in_path or "unknown")

    def least_output(self, body: Body) -> int:
        """Return the smallest bound that is worth asking for: thinking has to fit in."""
        return LEAST_OUTPUT

    def bounded(self, body: Body, max_tokens: int) -> Body:
        """Return the request with another bound of its answer."""
        field = next((field for field in self.bounds if body.get(field) is not None), self.bounds[0])
        return {**body, field: max_tokens}

    def streaming(self, body: Body) -> Body:
        """Return the request of a stream so that it tells its usage; the same where it does anyhow."""
        return body

    def is_extra(self, event: Mapping[str, Any]) -> bool:
        """Return whether an event is there only because `streaming` asked for it."""
        return False

    def tells_later(self, body: Body) -> bool:
        """Return whether the answer is made after the request has ended, so that nothing here counts it."""
        return False

    def is_final(self, event: Mapping[str, Any], answers: int) -> bool:
        """Return whether an event that tells usage tells all that will be billed.

        Some servers tell in every event what was used so far.

        Args:
            event: the event.
            answers: how many answers were asked for.
        """
        return False


class Provider(NamedTuple):
    """A provider's API: its requests to models, and those that cost nothing.

    `hosts` says by the end of an address who serves it, in the words of the price book; `*` stands for any
    part.  `regional` are addresses in one region, which have a price of their own.  `lets_through` is the
    error class that the SDK hands on unchanged from inside a request, where it wraps all others.
    """

    name: str
    endpoints: tuple[Endpoint, ...]
    free: re.Pattern[str]
    hosts: Mapping[str, str]
    lets_through: type[Exception] | None = None
    regional: re.Pattern[str] | None = None

    def served_by(self, host: str) -> str | None:
        """Return who serves an address, or None: the price book then goes by the model's name."""
        return next((by for end, by in self.hosts.items() if fnmatchcase(f".{host}", f"*.{end}")), None)

    def terms(self, host: str) -> dict[str, str]:
        """Return what an address says of the price."""
        return {"endpoint": "regional"} if self.regional and self.regional.search(host) else {}

    def endpoint(self, path: str) -> Endpoint | None:
        """Return the kind of requests to a path, or None for those that call no known model."""
        return next((each for each in self.endpoints if each.path.search(path)), None)
