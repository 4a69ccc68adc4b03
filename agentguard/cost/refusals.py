"""Errors that prove that a provider carried nothing out, and so bills nothing."""

from __future__ import annotations

import sys
from typing import Any, Final

#: The provider gave up waiting, for its own model perhaps: what that used is not known.
_TIMEOUTS: Final = frozenset({408, 504, 522, 524})
_LIBRARIES: Final = ("httpx", "httpx2")
#: How often the OpenAI and Anthropic SDKs had asked before; how those attempts ended is not known.
_ATTEMPTS_BEFORE: Final = "x-stainless-retry-count"


def is_refusal(status: int) -> bool:
    """Return whether an answer of this status refuses a request.

    Example:
        >>> is_refusal(429), is_refusal(529), is_refusal(504), is_refusal(200)
        (True, True, False, False)
    """
    return 400 <= status < 600 and status not in _TIMEOUTS


def proves_refusal(error: BaseException) -> bool:
    """Return whether an error of an SDK, or its cause, carries an answer that refuses the only attempt.

    LiteLLM makes its errors' answers up, also of connections that broke: they prove nothing.
    """
    return _carries_refusal(error) or (error.__cause__ is not None and _carries_refusal(error.__cause__))


def _carries_refusal(error: BaseException) -> bool:
    if any(cls.__module__.partition(".")[0] == "litellm" for cls in type(error).__mro__):
        return False
    answer: Any = getattr(error, "response", None)
    http = sys.modules.get(type(answer).__module__) if type(answer).__module__ in _LIBRARIES else None
    if http is None or not isinstance(answer, http.Response) or not is_refusal(answer.status_code):
        return False
    asked = getattr(answer, "_request", None)
    return asked is not None and asked.headers.get(_ATTEMPTS_BEFORE, "0") == "0"
