"""An llm step names what is limited, before the call and after it; what it does not name never counts as 0."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest

from agentguard import (
    Budget,
    Guard,
    RunState,
    RunStopped,
    UnknownCostError,
    Usage,
    current_step,
    guarded_step,
)

TOKENS = Usage(input_tokens=900, output_tokens=100)


def asked(guard: Guard, budget: Budget, options: Any, *, asynchronous: bool = False) -> list[int]:
    """Ask until the run stops, at most five times; the answers that came."""
    answers: list[int] = []

    def ask() -> int:
        answers.append(1)
        return 1

    async def aask() -> int:
        return ask()

    with suppress(RunStopped), guard.run("ask", run_id="ask", budget=budget) as run:
        for _ in range(5):
            if asynchronous:
                asyncio.run(_awaited(run.call("ask", aask, kind="llm", **options)))
            else:
                run.call("ask", ask, kind="llm", **options)
    return answers


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(
    ("budget", "usage", "unnamed"),
    [
        pytest.param(Budget(usd="0.01"), TOKENS, ("usd",), id="tokens-where-money-is-limited"),
        pytest.param(Budget(usd="0.01"), Usage(calls_made=1), ("usd",), id="a-counter"),
        pytest.param(Budget(usd="0.01"), Usage(), ("usd",), id="nothing"),
        pytest.param(Budget(tokens=9), Usage(usd="0.1"), ("tokens",), id="money-where-tokens-are-limited"),
        pytest.param(Budget(tokens=9), Usage(usd=0), ("tokens",), id="free-where-tokens-are-limited"),
        pytest.param(Budget(output_tokens=9), Usage(tokens=5), ("output_tokens",), id="a-part"),
        pytest.param(Budget(usd=1, tokens=9), Usage(emails=1), ("usd", "tokens"), id="both"),
    ],
)
@pytest.mark.parametrize("way", ["usage", "reserve", "callable", "settled"])
def test_what_is_limited_and_not_named_is_refused_before_the_call(
    guard: Guard, budget: Budget, usage: Usage, unnamed: Any, way: str, asynchronous: bool
) -> None:
    options = {
        "usage": {"usage": usage},
        "reserve": {"reserve": usage},
        "callable": {"reserve": lambda: usage},
        "settled": {"reserve": lambda: usage, "usage": lambda _: usage},
    }[way]

    answers = asked(guard, budget, options, asynchronous=asynchronous)

    stop = guard.summary("ask").termination
    assert answers == []
    assert stop is not None
    assert (stop["type"], tuple(stop["resources"])) == ("UnknownCostError", unnamed)
    assert guard.verify("ask")


@pytest.mark.parametrize(
    ("budget", "usage"),
    [
        pytest.param(Budget(usd=1), Usage(usd=0), id="free"),
        pytest.param(Budget(usd=1, tokens=9), Usage(usd=0, tokens=0), id="free-and-without-tokens"),
        pytest.param(Budget(tokens=9_000), TOKENS, id="tokens"),
        pytest.param(Budget(cached_tokens=9), TOKENS, id="a-part-that-is-0"),
        pytest.param(Budget(emails=9), Usage(), id="counters-need-not-be-named"),
        pytest.param(Budget(usd="0.01", enforce=False), TOKENS, id="only-observed"),
    ],
)
def test_what_is_named_or_not_limited_is_asked(guard: Guard, budget: Budget, usage: Usage) -> None:
    assert len(asked(guard, budget, {"usage": usage})) == 5


@pytest.mark.parametrize("level", ["scope", "run around", "tenant"])
def test_a_limit_at_any_level_counts(guard: Guard, level: str) -> None:
    limit = Budget(usd=1)
    if level == "tenant":
        guard.set_tenant_budget("acme", limit)
    ask = guarded_step(kind="llm", usage=TOKENS)(lambda: pytest.fail("asked"))
    with (
        pytest.raises(UnknownCostError),
        guard.run("outer", budget=limit if level == "run around" else None, tenant="acme"),
        guard.run("inner") as run,
        run.scope("part", limit if level == "scope" else None),
    ):
        ask()


# --- after the call ------------------------------------------------------------------------------


def test_what_an_answer_does_not_name_is_charged_as_it_was_reserved(guard: Guard) -> None:
    reserved = Usage(usd="0.25", input_tokens=50, output_tokens=50)
    options = {"reserve": lambda: reserved, "usage": lambda _: TOKENS}

    assert len(asked(guard, Budget(usd=1), options)) == 4

    summary = guard.summary("ask")
    assert (summary.usage.usd, summary.usage.tokens) == (1, 4_000)
    assert (summary.termination or {})["type"] == "BudgetExceededError"


def test_tokens_that_an_answer_does_not_name_are_charged_as_they_were_reserved(guard: Guard) -> None:
    options = {"reserve": lambda: Usage(usd=1, tokens=40), "usage": lambda _: Usage(usd="0.5")}

    assert len(asked(guard, Budget(tokens=100), options)) == 2
    assert guard.summary("ask").usage.tokens == 80


def test_what_was_settled_goes_by_the_same_rule(guard: Guard) -> None:
    @guarded_step(kind="llm", reserve=Usage(usd="0.25"))
    def ask() -> None:
        step = current_step()
        assert step is not None
        step.settle(TOKENS)
        raise OSError

    with guard.run("r", budget=Budget(usd=1)) as run, suppress(OSError):
        ask()

    assert (run.spent.usd, run.spent.tokens) == (Decimal("0.25"), 1_000)


def test_where_nothing_was_reserved_the_first_unnamed_answer_is_the_last(guard: Guard) -> None:
    answers = asked(guard, Budget(usd=1), {"reserve": None, "usage": lambda _: TOKENS})

    summary = guard.summary("ask")
    assert len(answers) == 1
    assert summary.state is RunState.FAILED
    assert (summary.termination or {})["type"] == "UnknownCostError"
    assert guard.reconstruct("ask") == summary


def test_an_exception_that_proves_that_nothing_was_used_is_free(guard: Guard) -> None:
    def ask() -> None:
        raise OSError

    options: Any = {"reserve": Usage(usd="0.25", tokens=5), "free_on": OSError}
    with guard.run("r", budget=Budget(usd=1, tokens=9)) as run, suppress(OSError):
        run.call("ask", ask, kind="llm", **options)

    assert (run.spent.usd, run.spent.tokens) == (0, 0)


def test_a_tool_need_not_name_money(guard: Guard) -> None:
    with guard.run("r", budget=Budget(usd=1, tokens=9)) as run:
        assert run.call("tool", lambda: 1) == 1


# --- limits that nothing was charged to -----------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "uncharged"),
    [
        pytest.param({"emials": 2}, ("emials",), id="misspelt-counter"),
        pytest.param({"calls": {"serach": 3, "search": 3}}, ("calls:serach",), id="misspelt-step"),
        pytest.param({"calls": {"kind:toll": 3}}, ("calls:kind:toll",), id="misspelt-kind"),
        pytest.param({"usd": 1, "tokens": 9, "emails": 3}, ("usd", "tokens"), id="money-and-tokens"),
        pytest.param({"steps": 9, "seconds": 60, "repeats": 9, "emails": 2}, (), id="all-charged"),
        pytest.param({"usd": 0}, (), id="a-limit-of-0-forbids"),
        pytest.param({"emials": 2, "enforce": False}, ("emials",), id="only-observed"),
    ],
)
def test_a_limit_that_nothing_charged_is_named_in_the_summary_and_as_a_warning(
    guard: Guard, budget: Any, uncharged: tuple[str, ...]
) -> None:
    told: list[dict[str, Any]] = []
    with guard.run("r", budget=Budget(**budget), on_warning=told.append) as run:
        run.call("search", lambda: 1, usage=Usage(emails=1))

    summary = run.summary()
    assert summary.uncharged == uncharged
    assert tuple(warning["resource"] for warning in run.warnings) == uncharged
    assert told == list(run.warnings)
    assert (f"nothing charged {', '.join(uncharged)}" in str(summary)) is bool(uncharged)
    assert guard.summary(run.id) == guard.reconstruct(run.id) == summary
    assert guard.verify(run.id)


def test_a_scopes_limit_that_nothing_charged_is_named_with_its_scope(guard: Guard) -> None:
    with guard.run("r") as run, run.scope("research", Budget(emials=1)):
        run.call("search", lambda: 1, usage=Usage(emails=1))

    assert run.summary().uncharged == ("research/emials",)


def test_what_a_nested_run_charged_is_charged(guard: Guard) -> None:
    with guard.run("outer", budget=Budget(emails=2)) as outer, guard.run("inner") as inner:
        inner.call("send", lambda: 1, usage=Usage(emails=1))

    assert outer.summary().uncharged == ()


def test_a_free_step_has_named_the_money_that_it_does_not_use(guard: Guard) -> None:
    with guard.run("r", budget=Budget(usd=1)) as run:
        run.call("ask", lambda: 1, kind="llm", usage=Usage(usd=0))

    assert run.summary().uncharged == ()


@pytest.mark.parametrize("ended", ["nothing ran", "stopped", "failed"])
def test_a_run_that_did_nothing_or_did_not_complete_is_not_warned_of(guard: Guard, ended: str) -> None:
    with suppress(RunStopped, OSError), guard.run("r", budget=Budget(steps=1, emials=2)) as run:
        if ended != "nothing ran":
            run.call("search", lambda: 1)
        if ended == "stopped":
            run.call("search", lambda: 1)
        if ended == "failed":
            raise OSError

    assert run.summary().uncharged == ()
