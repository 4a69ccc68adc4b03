"""What guarding costs an agent of LangChain's, for each of its model and tool calls, in guarded steps.

The model is scripted and the tool does nothing, so an agent is all machinery.  What LangChain and LangGraph
take for the mere presence of a handler and a middleware is measured by ones that do nothing, and is a part
of the figure.

A step costs several times as much inside an agent as in a loop of steps: between two of them runs so much of
LangChain's code that none of ours is left in the processor's caches.  So the rows that say so count in steps
that the model and the tool of the bare agent make, one in each call.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from agentguard import Budget, Guard, KillSwitchTriggeredError, guarded_step
from benchmarks import _measure as m
from benchmarks._agents import CALLS, TOKEN, Ask, agents, history, scripted, steps_there, talker
from benchmarks._rows import Row
from benchmarks.kill import guard_in, latencies

# LangChain warns of every stop that is raised at a streamed token, before it raises it.
logging.getLogger("langchain_core.callbacks").setLevel(logging.CRITICAL)

_HISTORY = 200
#: How often the model is called, to see how what is stored grows.
_FEW, _MANY = 50, 200
_ASKED: Any = {"messages": [("user", "Go on.")]}
#: The cases that are measured with a guard on disk, too.
_ON_DISK = ("bare", "both", "steps")
#: The cases that are measured with a history, too.
_LONG = ("bare", "both")


def measure(*, quick: bool) -> list[Row]:
    """The rows on LangChain; none where it is not installed."""
    try:
        asks = agents()
    except ImportError:
        return []
    rounds = 10 if quick else 100
    with tempfile.TemporaryDirectory() as home:
        os.environ["AGENTGUARD_HOME"] = home
        with Guard.in_memory(telemetry=False) as guard:
            memory = m.least(_cases(guard, asks), rounds)
        with Guard.open(telemetry=False) as guard:
            disk = m.least(_cases(guard, {name: asks[name] for name in _ON_DISK}), rounds)
        messages = history(_HISTORY)
        with Guard.in_memory(telemetry=False) as guard:
            long = m.least(_cases(guard, {name: asks[name] for name in _LONG}, messages), rounds)
    rows = [*_rows(memory), *_disk_rows(disk), _history_row(memory, long), _long_row(long), _bytes_row()]
    return [*rows, _kill(10 if quick else 50)]


def _cases(guard: Guard, asks: dict[str, Ask], history: list[Any] | None = None) -> dict[str, m.Case]:
    """Process CPU time of one call of an agent; that of a step, in a loop of them and inside an agent."""

    def in_a_run(ask: Ask) -> m.Case:
        def case() -> float:
            with guard.run("agent", budget=Budget(steps=10**9)):
                ask(history)  # what the case before has left in the caches is none of this one's
                started = time.process_time_ns()
                ask(history)
                return (time.process_time_ns() - started) / CALLS

        return case

    def there(agent: m.Case) -> m.Case:
        def case() -> float:
            steps_there.clear()
            agent()
            return sum(steps_there) / len(steps_there)

        return case

    step = guarded_step(m.work)
    cases = {name: in_a_run(ask) for name, ask in asks.items()}
    if "steps" in cases:
        cases["steps"] = there(cases["steps"])
    return {"step": lambda: _steps(guard, step), **cases}


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
        value=max(max(found) for found in ended.values()) - TOKEN * 1000,
        unit="ms",
        limit=20,
        facts={**facts, "worst ms": max(max(f) for f in ended.values()), "ms a token": TOKEN * 1000},
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

    agent = create_agent(scripted(), [], middleware=[GuardMiddleware()])
    gc.freeze()  # of what LangChain has loaded: a full collection takes 80 ms, and may fall into a kill
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
    def row(name: str, what: str, case: str, *, limit: float | None = None, over: str = "bare") -> Row:
        more = taken[case] - taken[over]
        return _row(name, what, taken, more, limit)

    return [
        row("langchain", "handler and middleware over the bare agent, a call", "both"),
        row("langchain-empty", "of that: a handler and a middleware that do nothing", "empty"),
        _own(taken),
        _step_there(taken),
        _there("langchain-there", "the whole again, in steps as they cost inside an agent", taken),
        row("langchain-handler", "the handler alone", "handler"),
        row("langchain-middleware", "the middleware alone", "middleware"),
        row("langchain-by-hand", "no integration: the messages given to a @guarded_step", "by hand"),
    ]


def _own(taken: dict[str, float]) -> Row:
    more = taken["both"] - taken["empty"]
    return Row(
        name="langchain-own",
        what="handler and middleware over ones that do nothing, a call",
        value=more / 1000,
        unit="µs",
        limit=120,
        facts={"of these, a step there": taken["steps"] / 1000},
    )


def _step_there(taken: dict[str, float]) -> Row:
    return Row(
        name="langchain-step",
        what="a guarded step between the calls of an agent, with cold caches",
        value=taken["steps"] / 1000,
        unit="µs",
        limit=70,
        facts={"µs in a loop of steps": taken["step"] / 1000},
    )


def _disk_rows(taken: dict[str, float]) -> list[Row]:
    more = taken["both"] - taken["bare"]
    return [
        _row("langchain-disk", "both over bare, with Guard.open(): steps on disk", taken, more),
        _there("langchain-disk-there", "the same, in steps as they cost inside an agent", taken),
    ]


def _there(name: str, what: str, taken: dict[str, float]) -> Row:
    """Held against a step that the model and the tool of the bare agent make in each call."""
    more, step = taken["both"] - taken["bare"], taken["steps"]
    facts = {"µs a call more": more / 1000, "µs a step there": step / 1000}
    return Row(name=name, what=what, value=more / step, unit="steps", facts=facts)


def _row(name: str, what: str, taken: dict[str, float], more: float, limit: float | None = None) -> Row:
    step, bare = taken["step"], taken["bare"]
    facts = {"µs a call more": more / 1000, "µs a step": step / 1000, "µs a call bare": bare / 1000}
    return Row(name=name, what=what, value=more / step, unit="steps", limit=limit, facts=facts)


def _history_row(short: dict[str, float], long: dict[str, float]) -> Row:
    bare, both = (long[name] - short[name] for name in _LONG)
    return Row(
        name="langchain-history",
        what=f"what {_HISTORY} messages of history add to that, for what they add bare",
        value=(both - bare) / bare,
        unit="x",
        facts={"µs a call bare": bare / 1000, "µs a call more": (both - bare) / 1000},
    )


def _long_row(long: dict[str, float]) -> Row:
    more = long["both"] - long["bare"]
    return Row(
        name="langchain-long",
        what=f"handler and middleware over the bare agent, a call with {_HISTORY} messages",
        value=more / 1e6,
        unit="ms",
        limit=0.35,
        facts={"ms a call bare": long["bare"] / 1e6},
    )


def _bytes_row() -> Row:
    """What is stored of a run grows with what is new in each call, and not with the whole conversation."""
    stored = {}
    for calls in (_FEW, _MANY):
        ask = talker(calls)
        with Guard.in_memory(telemetry=False) as guard, guard.run("agent") as run:
            ask()
            log = guard.components.store.read(run.id)
            stored[calls] = sum(len(event.body) + len(event.payload or b"") for event in log)
    return Row(
        name="langchain-bytes",
        what=f"bytes on record of {_MANY} model calls over {_FEW}",
        value=stored[_MANY] / stored[_FEW],
        unit="x",
        limit=4.4,
        facts={f"kB of {calls}": size / 1000 for calls, size in stored.items()},
    )


def _steps(guard: Guard, step: Callable[..., Any]) -> float:
    with guard.run("steps", budget=Budget(steps=10**9)):
        m.calls(step, 20)
        return m.calls(step, 400)
