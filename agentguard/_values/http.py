"""Requests and answers of httpx and httpx2, which the exceptions of SDKs carry.

They come back by what a program asks of an answer: status, headers, body, and where it came from.  What a
request sent stays out: its headers hold keys, and its body is in the log as an argument.  So do headers of an
answer that belong to its connection, or set a cookie.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, Final

from agentguard._values.kinds import Kind, NotExactError
from agentguard._values.plain import PREFIX

_LIBRARIES: Final = ("httpx", "httpx2")
_DROPPED: Final = frozenset(
    ("connection", "content-encoding", "content-length", "keep-alive", "set-cookie", "transfer-encoding")
)


def kind_of(cls: type) -> Kind | None:
    """Return how values of one of the HTTP libraries' own classes are taken apart; None for all others."""
    module = cls.__module__
    return _kinds(module).get(cls) if module in _LIBRARIES and module in sys.modules else None


def kind_of_tag(tag: str) -> Kind | None:
    """Return the kind of a tag, where it is one of these and its library is loaded."""
    module = tag.removeprefix(PREFIX).partition(".")[0]
    if module not in _LIBRARIES or module not in sys.modules:
        return None
    return next((kind for kind in _kinds(module).values() if kind.tag == tag), None)


@cache
def _kinds(module: str) -> dict[type, Kind]:
    http = sys.modules[module]

    def kind(name: str, parts: Callable[[Any], Any], make: Callable[[Any], Any]) -> tuple[type, Kind]:
        return getattr(http, name), Kind(f"{PREFIX}{module}.{name}", parts, make)

    def response(parts: list[Any]) -> Any:
        status, headers, content, request, history = parts
        made = http.Response(status, headers=headers, content=content, request=request, history=history)
        made.elapsed = timedelta(0)
        return made

    return dict(
        (
            kind("URL", str, http.URL),
            kind("Headers", _headers, http.Headers),
            kind("Request", lambda value: [value.method, str(value.url)], lambda parts: http.Request(*parts)),
            kind("Response", _response, response),
        )
    )


def _headers(value: Any) -> list[list[str]]:
    return [[name, text] for name, text in value.multi_items() if name.lower() not in _DROPPED]


def _response(value: Any) -> list[Any]:
    try:
        content = value.content
    except Exception as error:
        raise NotExactError("an HTTP answer that was not read; read it first") from error
    request = getattr(value, "_request", None)
    return [value.status_code, _headers(value.headers), content, request, value.history]
