"""What a provider answers instead of a result, in a form that the log keeps and a replay brings back."""

from __future__ import annotations

from typing import Any

from agentguard_clients.exchange import Head, as_response, text_of

#: The provider gave up waiting, for its own model perhaps: what that used is not known.
_TIMEOUTS = frozenset({408, 504, 522, 524})
_LONGEST = 1500


class ProviderStatusError(Exception):
    """A provider answered with an error status: the attempt failed; the SDK may make another.

    Attributes:
        status: the HTTP status.
        headers: the answer's headers, as pairs.
        body: the answer's text, shortened.
    """

    def __init__(self, response: Any) -> None:
        self.status: int = response.status_code
        self.headers = [list(pair) for pair in Head.of(response).headers]
        self.body = text_of(response)[:_LONGEST]
        self._response: Any = response
        super().__init__(f"the provider answered {self.status}: {self.body[:300]}")

    def response(self, http: Any) -> Any:
        """Return the answer that the SDK is to judge: the one that came, or the recorded one."""
        response = getattr(self, "_response", None)
        if response is not None:
            return response
        # Of the log: the SDK need not wait again before it tries again.
        headers = [*self.headers, ["retry-after-ms", "1"]]
        return as_response(http, Head(self.status, headers), self.body.encode())


class FreeProviderStatusError(ProviderStatusError):
    """A provider refused the request, and bills nothing for it."""


def status_error(response: Any) -> ProviderStatusError:
    """Return the error of an answer with an error status, which has been read."""
    free = response.status_code not in _TIMEOUTS
    return (FreeProviderStatusError if free else ProviderStatusError)(response)
