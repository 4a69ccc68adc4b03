"""What holds for every request: a small body that comes in time, an answer that is read, safe headers."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 64 * 1024
#: How long, in seconds, a body may take to arrive.
_BODY_SECONDS = 10.0
#: How long, in seconds, a part of an answer may wait for a client that does not read.
_READ_SECONDS = 30.0

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Limits:
    """Reads the whole body first, so that nothing below waits for a slow client or holds a large body.

    A client that does not read its answer is given up: an open page takes one of the places there are.
    """

    def __init__(
        self, app: ASGIApp, body_seconds: float = _BODY_SECONDS, read_seconds: float = _READ_SECONDS
    ) -> None:
        self._app = app
        self._body_seconds = body_seconds
        self._read_seconds = read_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 413 or 408 where the body is too large or too slow; else pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            try:
                async with asyncio.timeout(self._read_seconds):
                    await send(message)
            except TimeoutError:
                raise _NotReadError from None

        try:
            body = await asyncio.wait_for(_read(receive), self._body_seconds)
        except TimeoutError:
            await PlainTextResponse("the body took too long", 408)(scope, receive, send_safely)
            return
        except ClientDisconnect:  # what came is not the whole request, and nobody waits for an answer
            return
        if body is None:
            text = f"the body is larger than {MOST_BYTES} bytes"
            response = PlainTextResponse(text, 413, headers={"connection": "close"})
            await response(scope, receive, send_safely)
            return
        with contextlib.suppress(_NotReadError):  # the server closes the connection
            await self._app(scope, _replayed(body, receive), send_safely)


class _NotReadError(Exception):
    """The client has read nothing for too long."""


async def _read(receive: Receive) -> bytes | None:
    """Return the body; None where it is too large."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        body += bytes(message.get("body", b""))
        if len(body) > MOST_BYTES:
            return None
        if not message.get("more_body"):
            return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
