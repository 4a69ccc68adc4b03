"""What a guarded step costs in memory, without telemetry: in U, and async over sync."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from agentguard import Budget, Guard, guarded_step
from benchmarks import _measure as m
from benchmarks._rows import Row

_STEPS = 400


def measure(*, quick: bool) -> list[Row]:
    """The rows on overhead.  The run has one limit, on steps; its steps are captured in full."""
    rounds = 12 if quick else 60
    step = guarded_step(m.work)
    async_step = guarded_step(_async_work)
    with Guard.in_memory(telemetry=False) as guard:
        taken = m.least(
            {
                "U": m.unit,
                "with": lambda: in_a_run(guard, step),
                "without": lambda: _without_chain(guard, step),
                "without limits": lambda: in_a_run(guard, step, Budget()),
                "async": lambda: asyncio.run(_in_a_run_async(guard, async_step)),
            },
            rounds,
        )
    u = taken["U"]
    return [
        Row(
            name="step-no-chain",
            what="guarded step in memory, two events, without hashing [1]",
            value=taken["without"] / u,
            unit="U",
            facts={"ns a step": taken["without"], "ns a U": u},
        ),
        Row(
            name="step",
            what="guarded step in memory, two events, with the hash chain",
            value=taken["with"] / u,
            unit="U",
            facts={"ns a step": taken["with"], "in a run without limits, U": taken["without limits"] / u},
        ),
        Row(
            name="async",
            what="async step over sync step, one task",
            value=taken["async"] / taken["with"],
            unit="x",
            limit=1.4,
            facts={"ns a step": taken["async"]},
        ),
    ]


async def _async_work(a: int, b: int = 0, c: int = 0) -> int:
    return a


def in_a_run(guard: Guard, step: Callable[..., Any], budget: Budget | None = None) -> float:
    """One repetition: a fresh run with some steps, the first few not counted."""
    with guard.run("overhead", budget=budget or Budget(steps=10**9)):
        m.calls(step, 20)
        return m.calls(step, _STEPS)


def _without_chain(guard: Guard, step: Callable[..., Any]) -> float:
    with m.without_hashing(), guard.run("overhead", budget=Budget(steps=10**9)):
        m.calls(step, 20)
        return m.calls(step, _STEPS)


async def _in_a_run_async(guard: Guard, step: Callable[..., Any]) -> float:
    async with guard.run("overhead", budget=Budget(steps=10**9)):
        await m.async_calls(step, 20)
        return await m.async_calls(step, _STEPS)
