"""What guarding costs an agent of LangChain's, for each of its model and tool calls, in guarded steps.

The model is scripted and the tool does nothing, so an agent is all machinery.  What LangChain and LangGraph
take for the mere presence of a handler and a middleware is measured by ones that do nothing, and is a part
of the figure.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import copy_context
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from agentguard import Budget, Guard, KillSwitchTriggeredError, guarded_step
from benchmarks import _measure as m
from benchmarks._rows import Row
from benchmarks.kill import guard_in, latencies

# LangChain warns of every stop that is raised at a streamed token, before it raises it.
logging.getLogger("langchain_core.callbacks").setLevel(logging.CRITICAL)

#: Tool calls of one agent; it calls its model once more.
_TOOL_CALLS = 5
_CALLS = 2 * _TOOL_CALLS + 1
_LIMIT = 3
_ASKED: Any = {"messages": [("user", "Go on.")]}
#: The seconds between two tokens of a stream.
_TOKEN = 0.005


def measure(*, quick: bool) -> list[Row]:
    """The rows on LangChain; none where it is not installed."""
    try:
        agents = _agents()
    except ImportError:
        return []
    rounds = 8 if quick else 30
    step = guarded_step(m.work)
    with Guard.in_memory(telemetry=False) as guard:

        def in_a_run(ask: Callable[[], Any]) -> m.Case:
            def case() -> float:
                with guard.run("agent", budget=Budget(steps=10**9)):
                    started = time.process_time_ns()
                    ask()
                    return (time.process_time_ns() - started) / _CALLS

            return case

        cases: dict[str, m.Case] = {name: in_a_run(ask) for name, ask in agents.items()}
        taken = m.least({"step": lambda: _steps(guard, step), **cases}, rounds)
    return [*_rows(taken), _kill(10 if quick else 50)]


def _kill(kills: int) -> Row:
    """A kill from another process ends a streaming agent within one token and 20 ms."""
    with tempfile.TemporaryDirectory() as folder:
        ended = {
            name: [last / 1000 for *_, last in latencies(Path(folder), victim, kills)]
            for name, victim in {"sync": _stream, "async": _stream_async}.items()
        }
    facts = {f"{name}, p50 ms": m.percentile(found, 0.5) for name, found in ended.items()}
    return Row(
        name="langchain-kill",
        what="kill by another process to a streaming agent's end, beyond a token",
        value=max(max(found) for found in ended.values()) - _TOKEN * 1000,
        unit="ms",
        limit=20,
        facts={**facts, "worst ms": max(max(f) for f in ended.values()), "ms a token": _TOKEN * 1000},
    )


def _stream(pipe: Connection, home: str, kills: int) -> None:
    """Agents that stream for ever."""

    async def listen(agent: Any) -> None:
        for _ in agent.stream(_ASKED, stream_mode="messages"):
            pass

    _streams(pipe, home, kills, listen)


def _stream_async(pipe: Connection, home: str, kills: int) -> None:
    """The same, async."""

    async def listen(agent: Any) -> None:
        async for _ in agent.astream(_ASKED, stream_mode="messages"):
            pass

    _streams(pipe, home, kills, listen)


def _streams(pipe: Connection, home: str, kills: int, listen: Callable[[Any], Any]) -> None:
    from langchain.agents import create_agent  # noqa: PLC0415

    from agentguard_langchain import GuardMiddleware  # noqa: PLC0415

    agent = create_agent(_scripted(), [], middleware=[GuardMiddleware()])
    with guard_in(home) as guard:
        for _ in range(kills):
            try:
                with guard.run("stream") as run:
                    pipe.send(run.id)
                    try:
                        asyncio.run(listen(agent))
                    finally:
                        ended = time.monotonic_ns()
            except KillSwitchTriggeredError:
                pipe.send((ended, ended, ended))


def _rows(taken: dict[str, float]) -> list[Row]:
    step, bare = taken["step"], taken["bare"]

    def row(name: str, what: str, case: str, limit: float | None = None, *, over: str = "bare") -> Row:
        more = taken[case] - taken[over]
        facts = {"µs a call more": more / 1000, "µs a step": step / 1000, "µs a call bare": bare / 1000}
        return Row(name=name, what=what, value=more / step, unit="steps", limit=limit, facts=facts)

    return [
        row("langchain", "handler and middleware over the bare agent, a call", "both", _LIMIT),
        row("langchain-empty", "the same of a handler and a middleware that do nothing", "empty both"),
        row("langchain-own", "handler and middleware over those that do nothing", "both", over="empty both"),
        row("langchain-handler", "the handler alone", "handler"),
        row("langchain-middleware", "the middleware alone", "middleware"),
    ]


def _steps(guard: Guard, step: Callable[..., Any]) -> float:
    with guard.run("steps", budget=Budget(steps=10**9)):
        m.calls(step, 20)
        return m.calls(step, 400)


def _agents() -> dict[str, Callable[[], Any]]:
    """The same agent without a guard, with ours, and with what does nothing."""
    from langchain.agents import create_agent  # noqa: PLC0415
    from langchain_core.tools import tool  # noqa: PLC0415

    from agentguard_langchain import GuardCallbackHandler, GuardMiddleware, _hooks  # noqa: PLC0415

    @tool
    def search(query: str) -> str:
        """Search."""
        return query

    model = _scripted()

    def asks(middleware: list[Any], handlers: list[Any]) -> Callable[[], Any]:
        agent = create_agent(model, [search], middleware=middleware)
        config: Any = {"recursion_limit": 1000, "callbacks": handlers}
        return lambda: agent.invoke(_ASKED, config)

    def unheard(ask: Callable[[], Any]) -> Callable[[], Any]:
        """As in a process without agentguard: the first middleware has LangChain tell it of every call."""
        context = copy_context()
        context.run(_hooks._LISTENER.set, None)  # noqa: SLF001
        return lambda: context.copy().run(ask)

    return {
        "bare": unheard(asks([], [])),
        "both": asks([GuardMiddleware()], [GuardCallbackHandler()]),
        "handler": asks([], [GuardCallbackHandler()]),
        "middleware": asks([GuardMiddleware()], []),
        "empty both": unheard(asks(*_idle())),
    }


def _idle() -> tuple[list[Any], list[Any]]:
    """A middleware and a handler that hear of what ours hear of, and do nothing."""
    from langchain.agents.middleware import AgentMiddleware  # noqa: PLC0415
    from langchain_core.callbacks import BaseCallbackHandler  # noqa: PLC0415

    class Handler(BaseCallbackHandler):
        run_inline = True

        def on_chain_start(self, *args: Any, **kwargs: Any) -> None: ...
        def on_chain_end(self, *args: Any, **kwargs: Any) -> None: ...
        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None: ...
        def on_llm_end(self, *args: Any, **kwargs: Any) -> None: ...
        def on_tool_start(self, *args: Any, **kwargs: Any) -> None: ...
        def on_tool_end(self, *args: Any, **kwargs: Any) -> None: ...

    class Middleware(AgentMiddleware[Any, Any, Any]):
        def wrap_model_call(self, request: Any, handler: Callable[..., Any]) -> Any:
            return handler(request)

        def wrap_tool_call(self, request: Any, handler: Callable[..., Any]) -> Any:
            return handler(request)

    return [Middleware()], [Handler()]


def _scripted() -> Any:
    """A model that asks for the tool again and again, and then answers; a stream of it has no end."""
    from langchain_core.language_models import BaseChatModel  # noqa: PLC0415
    from langchain_core.messages import AIMessage, AIMessageChunk  # noqa: PLC0415
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult  # noqa: PLC0415

    numbers = count()
    usage: Any = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}

    class Scripted(BaseChatModel):
        model_name: str = "scripted"

        @property
        def _llm_type(self) -> str:
            return "scripted"

        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
            return self

        def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
            asked = sum(message.type == "ai" for message in messages)
            calls: list[Any] = []
            if asked < _TOOL_CALLS:
                calls = [{"name": "search", "args": {"query": "more"}, "id": f"call_{next(numbers)}"}]
            answer = AIMessage("Let me see.", tool_calls=calls, usage_metadata=usage)
            return ChatResult(generations=[ChatGeneration(message=answer)])

        def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
            while True:
                time.sleep(_TOKEN)
                yield ChatGenerationChunk(message=AIMessageChunk("on "))

        async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
            while True:
                await asyncio.sleep(_TOKEN)
                yield ChatGenerationChunk(message=AIMessageChunk("on "))

    return Scripted()
