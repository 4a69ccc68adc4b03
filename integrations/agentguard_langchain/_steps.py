"""The bodies of the middleware's steps: functions of what goes on record, and of nothing else.

What they carry out comes by a context variable, so that one function serves all calls and the core has
its options checked once.
"""

from __future__ import annotations

import asyncio
import inspect
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Protocol

from langgraph.errors import GraphBubbleUp

from agentguard import Run, RunStopped, Usage, current_step
from agentguard.cost import RawAnswers, proves_refusal
from agentguard_langchain._calls import COVER, FREE, Cover
from agentguard_langchain._codec import Paused
from agentguard_langchain._hooks import WATCHING
from agentguard_langchain.stops import GraphStop, core_error, graph_stop, is_control_flow


class Carried(Protocol):
    """A call that the middleware carries out as a step."""

    run: Run
    name: str
    cover: Cover
    #: What calls it, and with what.
    handler: Any
    request: Any
    watch: Any

    @property
    def raw(self) -> RawAnswers | None:
        """Where what an SDK receives of a model is taken in."""

    def begun(self) -> None:
        """Its step has started."""

    def used(self, result: Any) -> Usage | None:
        """What it used, if its result says so."""


_CALLING: ContextVar[Carried] = ContextVar("agentguard_langchain_calling")


def current_call() -> Any:
    """The call whose step is being made here."""
    return _CALLING.get()


def ask(messages: Any, tools: Any, settings: Any) -> Any:
    """A model call."""
    return _carry_out(_CALLING.get())


async def ask_async(messages: Any, tools: Any, settings: Any) -> Any:
    """A model call."""
    return await _carry_out_async(_CALLING.get())


def use(**arguments: Any) -> Any:
    """A tool call."""
    return _carry_out(_CALLING.get())


async def use_async(**arguments: Any) -> Any:
    """A tool call."""
    return await _carry_out_async(_CALLING.get())


def readable(function: Any) -> None:
    """Let who looks at a function again and again find everything at once."""
    function.__signature__ = inspect.signature(function)
    function.__annotations__ = {}


for _body in (ask, ask_async, use, use_async):
    readable(_body)


def _carry_out(call: Carried) -> Any:
    inside = _Inside(call)
    with inside:
        return inside.done(call.handler(call.request))
    return Paused(inside.signal)


async def _carry_out_async(call: Carried) -> Any:
    inside = _Inside(call)
    with inside:
        return inside.done(await call.run.shield(asyncio.ensure_future(call.handler(call.request))))
    return Paused(inside.signal)


class _Inside:
    """Around the physical call: callbacks know that it has a step, and what leaves it fits the core."""

    signal: GraphBubbleUp
    _hearing: AbstractContextManager[None]

    def __init__(self, call: Carried) -> None:
        self._call = call

    def __enter__(self) -> None:
        self._call.begun()
        self._cover = COVER.set(self._call.cover)
        self._watch = WATCHING.set(self._call.watch)
        self._hearing = nullcontext() if self._call.raw is None else self._call.raw.here()
        self._hearing.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._hearing.__exit__(None, None, None)
        COVER.reset(self._cover)
        WATCHING.reset(self._watch)
        if isinstance(error, GraphStop):
            raise core_error(error) from None
        if isinstance(error, GraphBubbleUp) and is_control_flow(error):
            self.signal = error
            _settle(FREE)  # paused, to be called again: nothing used yet
            return True
        if error is not None and self._call.cover.kind == "llm" and proves_refusal(error):
            _settle(FREE)
        return False

    def done(self, result: Any) -> Any:
        """Settle by what the result says, and hand it on."""
        usage = self._call.used(result)
        if usage is not None:
            _settle(usage)
        return result


def _settle(usage: Usage) -> None:
    step = current_step()
    if step is not None:
        step.settle(usage)


class Calling:
    """`with Calling(call):` the bodies above are about this call."""

    def __init__(self, call: Carried) -> None:
        self._call = call

    def __enter__(self) -> None:
        self._token = _CALLING.set(self._call)

    def __exit__(self, *exc: object) -> None:
        _CALLING.reset(self._token)


class LeavingTool:
    """A stop of the run leaves a tool so that the graph lets it through.

    A stop of a scope inside the tool is the outer agent's to handle: it stays as it is.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, RunStopped) and not isinstance(error, GraphStop):
            try:
                self._run.check()
            except RunStopped as stop:
                raise graph_stop(stop) from None


def unpaused(result: Any) -> Any:
    """The result; or what the call paused with, raised outside its step, which is no failure."""
    if isinstance(result, Paused):
        raise result.signal
    return result
