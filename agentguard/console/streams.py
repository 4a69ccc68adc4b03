"""What open pages are told by server-sent events, for as long as their token works.

The overview is told the whole present whenever it changed, so that a page that was away misses nothing.  A
run's page is told each event with its number as the id: a browser that comes back names the last one that it
has, and gets those after it.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from agentguard.console.actions import logger
from agentguard.console.auth import ConsoleError, Identity
from agentguard.console.calls import parse_number
from agentguard.console.data import LIVE_SHOWN, Console, Snapshot
from agentguard.console.rendering import fragment
from agentguard.console.timeline import Timeline
from agentguard.errors import AgentGuardError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

#: How often, in seconds, open pages are told what is new, and how many may be open.
_TICK_SECONDS = 1.0
_MOST_STREAMS = 200
#: Every so many ticks the curves of a run are drawn anew.
_CURVE_TICKS = 3
#: How long, in milliseconds, a browser waits until it comes back.
_RETRY = b"retry: 1000\n\n"
_NOTHING = b": nothing new\n\n"

#: The parts of the overview that move, by the ids of their elements.
_PARTS = {"waiting": "_waiting.html", "live": "_live.html", "rest": "_rest.html"}


class Streams:
    """The open pages of a console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = 0
        self._lock = threading.Lock()
        #: The parts of the overview as of the newest reading, by who sees the same: most open pages do.
        self._rendered: dict[tuple[object, ...], str] = {}
        self._number = 0

    async def overview(self, request: Request) -> StreamingResponse:
        """Tell the overview of the present."""
        await self._admit(request)
        said = b""

        def news(who: Identity) -> bytes:
            nonlocal said
            message = self._overview(who)
            news, said = (_NOTHING if message == said else message), message
            return news

        return self._response(request, news)

    async def run(self, request: Request) -> StreamingResponse:
        """Tell a run's page of its events, after `Last-Event-ID` or `after`, and how it stands."""
        who = await self._admit(request)
        run_id = request.path_params["run_id"]
        await run_in_threadpool(self._console.row, who, run_id)
        after = parse_number(request.headers.get("last-event-id") or request.query_params.get("after") or "0")
        followed = _Followed(self._console, run_id, after)
        return self._response(request, followed.news)

    async def _admit(self, request: Request) -> Identity:
        who = await run_in_threadpool(self._console.auth.identify, request)
        if who is None:
            raise ConsoleError(401, "log in first")
        return who

    def _response(self, request: Request, news: Callable[[Identity], bytes]) -> StreamingResponse:
        if self._open >= _MOST_STREAMS:
            raise ConsoleError(
                503, f"{_MOST_STREAMS} pages are open already; this one does not move by itself"
            )
        return _Stream(self, self._ticks(request, news))

    @contextmanager
    def count(self) -> Iterator[None]:
        """Count a page as open; in the same turn of the loop as it was let in."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    async def _ticks(self, request: Request, news: Callable[[Identity], bytes]) -> AsyncIterator[bytes]:
        try:
            yield _RETRY
            while not await request.is_disconnected():
                message = await run_in_threadpool(self._told, request, news)
                if message is None:
                    return
                yield message
                await asyncio.sleep(_TICK_SECONDS)
        except (AgentGuardError, ConsoleError) as error:
            logger.warning("an open page is told no more: %s", error)  # it asks again by itself

    def _told(self, request: Request, news: Callable[[Identity], bytes]) -> bytes | None:
        """What is new for who asks; None once the token works no more."""
        who = self._console.auth.identify(request)
        return None if who is None else news(who)

    def _overview(self, who: Identity) -> bytes:
        now = self._console.now(who)
        seen_by: tuple[object, ...] = (who.tenant, who.role)
        # The forms in `waiting` hold the token of their session.
        keys = {"waiting": (*seen_by, who.csrf if now.waiting else None)}
        parts = {name: self._part(name, now, who, keys.get(name, seen_by)) for name in _PARTS}
        inside = ", ".join(f'"{name}": {html}' for name, html in parts.items())
        return f"data: {{{inside}}}\n\n".encode()

    def _part(self, name: str, now: Snapshot, who: Identity, seen_by: tuple[object, ...]) -> str:
        key = (name, now.number, *seen_by)
        with self._lock:
            if now.number > self._number:
                self._rendered.clear()
                self._number = now.number
            found = self._rendered.get(key)
            if found is None:
                found = json.dumps(fragment(_PARTS[name], who, now=now, shown=LIVE_SHOWN))
                self._rendered[key] = found
        return found


class _Stream(StreamingResponse):
    """What an open page is told; its place is free as soon as it is gone, however it went."""

    def __init__(self, streams: Streams, messages: AsyncIterator[bytes]) -> None:
        super().__init__(messages, media_type="text/event-stream")
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the messages."""
        with self._streams.count():
            await super().__call__(scope, receive, send)


class _Followed:
    """A run's page that is open."""

    def __init__(self, console: Console, run_id: str, after: int) -> None:
        self._console = console
        self._run_id = run_id
        self._timeline = Timeline(console.guard.components.store, run_id, after)
        self._said = ""
        self._ticks = 0

    def news(self, who: Identity) -> bytes:
        """Return the messages that the page has not got yet."""
        row = self._console.row(who, self._run_id)  # which its tenant must see
        found = []
        for entry in self._timeline.read_on():
            html = fragment(
                "_event.html",
                who,
                entry=entry,
                run_id=self._run_id,
                traces=self._console.traces,
                bar=None,
                told=True,
            )
            found.append(f"id: {entry.event.seq}\nevent: step\ndata: {json.dumps(html)}\n\n")
        if self._ticks % _CURVE_TICKS == 0 or row.ended_ns is not None:
            status = self._console.live_status(who, row)
            parts = {"now": fragment("_now.html", who, run=status, curves=self._console.curves(status))}
            told, self._said = self._said, f"data: {json.dumps(parts)}\n\n"
            found += [self._said] if self._said != told else []
        self._ticks += 1
        return "".join(found).encode() or _NOTHING
