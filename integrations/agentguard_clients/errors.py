"""What a provider answers instead of a result, in a form that the log keeps and a replay brings back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from agentguard.cost import is_refusal
from agentguard_clients.exchange import Head, as_response, text_of

_LONGEST = 1500


class ProviderStatusError(Exception):
    """A provider answered with an error status: the attempt failed; the SDK may make another.

    Attributes:
        status: the HTTP status.
        headers: the answer's headers, as pairs.
        body: the answer's text, shortened.
    """

    def __init__(self, response: Any) -> None:
        # Plain data only: the log keeps it whole, and a replay brings it back.
        self.status: int = response.status_code
        self.headers = [list(pair) for pair in Head.of(response).headers]
        self.body = text_of(response)[:_LONGEST]
        super().__init__(f"the provider answered {self.status}: {self.body[:300]}")

    def recorded_response(self, http: Any) -> Any:
        """Return the answer on record, for the SDK to judge again."""
        # The SDK need not wait again before it tries again; a header twice is one that it cannot read.
        kept = [pair for pair in self.headers if pair[0].lower() not in ("retry-after", "retry-after-ms")]
        headers = [*kept, ["retry-after-ms", "1"]]
        return as_response(http, Head(self.status, headers), self.body.encode())


class FreeProviderStatusError(ProviderStatusError):
    """A provider refused the request, and bills nothing for it."""


def status_error(response: Any) -> ProviderStatusError:
    """Return the error of an answer with an error status, which has been read."""
    return (FreeProviderStatusError if is_refusal(response.status_code) else ProviderStatusError)(response)


@contextmanager
def errors_without_request() -> Iterator[None]:
    """Take the request out of the HTTP library's errors: the log cannot bring it back.

    The caller who has the request puts it in again, live and in a replay.
    """
    try:
        yield
    except Exception as error:
        if getattr(error, "_request", None) is not None:
            error.request = None  # type: ignore[attr-defined]
        raise
