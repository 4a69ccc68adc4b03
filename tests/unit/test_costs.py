"""Where the money went: what counts once, what `since` and `tenant` leave out, and what a bad question gets."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from agentguard import Budget, Guard, Run, RunStopped, Usage, guarded_step
from agentguard.testing.fakes import FakeClock


def spend(run: Run, name: str, model: str | None, usd: str, **more: Any) -> None:
    attributes = {"gen_ai.request.model": model} if model else None
    run.call(name, lambda: 1, kind="llm", usage=Usage(usd=usd, tokens=10), attributes=attributes, **more)


def figures(guard: Guard, by: Any, **more: Any) -> dict[str, str]:
    return {line.key: str(line.usd) for line in guard.costs(by, **more)}


def test_costs_are_summed_by_each_key_the_dearest_first(guard: Guard) -> None:
    with guard.run("triage", tenant="acme") as run:
        spend(run, "ask", "gpt-5", "0.10")
        spend(run, "ask", "gpt-5", "0.20")
        spend(run, "rank", "claude", "0.40")
    with guard.run("nightly") as run:
        spend(run, "ask", None, "0.05")

    assert list(figures(guard, "model").items()) == [("claude", "0.4"), ("gpt-5", "0.3"), ("", "0.05")]
    assert figures(guard, "step") == {"rank": "0.4", "ask": "0.35"}
    assert figures(guard, "tenant") == {"acme": "0.7", "default": "0.05"}
    assert figures(guard, "name") == {"triage": "0.7", "nightly": "0.05"}
    assert figures(guard, "kind") == {"llm": "0.75"}
    assert figures(guard, "model", tenant="acme") == {"claude": "0.4", "gpt-5": "0.3"}
    (line,) = guard.costs("kind")
    assert (line.steps, line.usage.tokens, line.unpriced) == (4, 40, 0)


def test_a_nested_runs_steps_count_once(guard: Guard) -> None:
    with guard.run("outer") as outer:
        spend(outer, "ask", None, "0.10")
        with guard.run("inner") as inner:
            spend(inner, "ask", None, "0.30")

    assert figures(guard, "name") == {"inner": "0.3", "outer": "0.1"}
    assert guard.summary(outer.id).usage.usd == Decimal("0.4")


def test_what_a_fork_shares_with_its_origin_counts_once(guard: Guard) -> None:
    ask = guarded_step(usage=Usage(usd="0.10"), name="ask")(lambda: 1)
    with guard.run("origin") as run:
        ask()
        ask()
    with guard.fork(run.id, at=4) as fork:
        ask()
        ask()

    assert fork.spent.usd == Decimal("0.2")
    assert figures(guard, "run") == {run.id: "0.2", fork.id: "0.1"}


def test_refused_steps_and_bodies_that_never_ran_cost_nothing(guard: Guard) -> None:
    with suppress(RunStopped), guard.run("r", budget=Budget(usd="0.25")) as run:
        for _ in range(5):
            spend(run, "ask", None, "0.10")

    assert figures(guard, "step") == {"ask": "0.2"}


def test_model_calls_that_named_no_money_are_counted(guard: Guard) -> None:
    with guard.run("r") as run:
        run.call("ask", lambda: 1, kind="llm", usage=Usage(tokens=10))
        run.call("ask", lambda: 1, kind="llm", usage=Usage(usd=0, tokens=10))

    (line,) = guard.costs("step")
    assert (line.unpriced, line.to_data()["unpriced"]) == (1, 1)


def test_since_takes_a_time_a_day_and_a_span() -> None:
    clock = FakeClock()
    with Guard.in_memory(telemetry=False, clock=clock) as guard:
        with guard.run("r") as run:
            spend(run, "ask", None, "0.10")
            clock.advance(86_400)
            middle = datetime.fromtimestamp(clock.wall() / 1e9, UTC)
            clock.advance(86_400)
            spend(run, "ask", None, "0.20")

        assert len(guard.costs("day")) == 2
        assert figures(guard, "step", since=middle) == {"ask": "0.2"}
        assert figures(guard, "step", since=middle.replace(tzinfo=None)) == {"ask": "0.2"}
        assert figures(guard, "step", since=timedelta(days=1)) == {"ask": "0.2"}
        assert figures(guard, "step", since=(middle + timedelta(days=1)).date()) == {"ask": "0.2"}
        assert figures(guard, "step", since=middle + timedelta(days=9)) == {}
        assert figures(guard, "step", since=date(1970, 1, 1)) == {"ask": "0.3"}


@pytest.mark.parametrize("by", ["models", "", None, ["model"]])
def test_what_cannot_be_summed_by_is_refused_and_what_can_is_named(guard: Guard, by: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="by must be one of model, step"):
        guard.costs(by)


@pytest.mark.parametrize("since", ["7d", 7, 0.5])
def test_a_since_that_is_no_time_is_refused(guard: Guard, since: Any) -> None:
    with pytest.raises(TypeError, match="since must be a datetime, a date or a timedelta"):
        guard.costs(since=since)
