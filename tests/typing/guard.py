"""Only type-checked, by mypy and pyright, never run: the guard, its runs and what they give."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, assert_type

from agentguard import (
    Budget,
    BudgetExceededError,
    Event,
    Guard,
    KillSwitchTriggeredError,
    Run,
    RunState,
    RunStopped,
    RunSummary,
    Scope,
    Step,
    Usage,
    VerifyReport,
    current_step,
)


def values() -> None:
    usage = Usage(usd="0.01", input_tokens=5, emails=1) + Usage(usd=Decimal("0.1"))
    assert_type(usage, Usage)
    assert_type(usage.usd, Decimal)
    assert_type(usage.tokens, int)
    assert_type(usage.counters, dict[str, int])
    assert_type(usage <= Usage(), bool)
    budget = Budget(usd=1, tokens=5, seconds=timedelta(minutes=1), calls={"f": 1}, repeats=5, emails=2)
    assert_type(budget.enforce, bool)
    assert_type(budget.repeats, int | None)
    Usage(usd=1j)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Usage(input_tokens="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Budget(steps="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def blocks() -> None:
    with Guard.in_memory() as guard:
        assert_type(guard, Guard)
        with guard.run("r", budget=Budget(steps=1), tenant="t") as run:
            assert_type(run, Run)
            assert_type(run.id, str)
            assert_type(run.state, RunState)
            assert_type(run.stop, RunStopped | None)
            assert_type(run.spent, Usage)
            assert_type(run.summary(), RunSummary)
            assert_type(run.now(), datetime)
            assert_type(run.uuid(), uuid.UUID)
            assert_type(run.random(), float)
            with run.scope("s", Budget(usd=1)) as scope:
                assert_type(scope, Scope)
                assert_type(scope.spent, Usage)
            with run.step("block") as step:
                assert_type(step, Step)
                step.settle(Usage())
        with guard.attach(run.id, branch="b") as attached:
            assert_type(attached, Run)
        assert_type(guard.runs(), list[RunSummary])
        assert_type(guard.summary(run.id), RunSummary)
        assert_type(guard.history(run.id), list[Event])
        assert_type(guard.verify(), VerifyReport)
        assert_type(current_step(), Step | None)


async def async_blocks() -> None:
    async with Guard.open("memory://") as guard, guard.run("r") as run:
        assert_type(run, Run)
        async with run.scope("s") as scope:
            assert_type(scope, Scope)
        async with run.step("block") as step:
            assert_type(step, Step)
        await run.aclose()


def errors(error: RunStopped, summary: RunSummary, event: Event) -> None:
    assert_type(error.run_id, str | None)
    if isinstance(error, BudgetExceededError):
        assert_type(error.resource, str)
        assert_type(error.scope, str)
    if isinstance(error, KillSwitchTriggeredError):
        assert_type(error.reason, str)
        assert_type(error.at, datetime | None)
    assert_type(summary.usage, Usage)
    assert_type(summary.termination, dict[str, Any] | None)
    assert_type(event.usage, Usage | None)
    assert_type(event.data, dict[str, Any])
