"""What `guard.costs` says is the sum of what steps were charged, whatever the program does."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agentguard import Budget, Guard, RunStopped, Usage, current_run, current_step
from agentguard.audit.costs import COST_KEYS
from agentguard.testing import FakeClock
from tests.scale import scaled

MODELS = ("gpt-5", "claude-sonnet-4-5", None)
DAY_NS = 86_400 * 10**9
OUTCOMES = {"step_completed", "step_failed", "step_resolved"}

#: The outermost run: runs inside it, but for detached ones, and its forks are charged to the account too.
OUTER: Any = {
    "budget": Budget(usd=3),
    "tenant": "acme",
    "account": "thread:7",
    "account_budget": Budget(usd="2.5"),
}
step = st.tuples(
    st.just("step"),
    st.sampled_from(["ask", "search"]),
    st.sampled_from(MODELS),
    st.integers(min_value=0, max_value=10**9),
    st.sampled_from(["returns", "raises", "free", "settles"]),
)
program = st.recursive(
    st.lists(step, max_size=4),
    lambda inner: st.lists(
        st.one_of(step, st.tuples(st.sampled_from(["run", "scope", "detached"]), inner)), max_size=4
    ),
    max_leaves=12,
)


def carry_out(guard: Guard, clock: FakeClock, actions: list[Any], depth: int = 0) -> None:
    run = current_run()
    assert run is not None
    for action in actions:
        if action[0] == "step":
            with contextlib.suppress(OSError):
                call(run, clock, *action[1:])
        elif action[0] == "scope":
            with contextlib.suppress(RunStopped), run.scope(f"part{depth}", Budget(usd=1)):
                carry_out(guard, clock, action[1], depth + 1)
        else:
            with (
                contextlib.suppress(RunStopped),
                guard.run(f"inner{depth}", detached=action[0] == "detached", budget=Budget(usd=2)),
            ):
                carry_out(guard, clock, action[1], depth + 1)


def call(run: Any, clock: FakeClock, name: str, model: str | None, nano: int, how: str) -> None:
    usage = Usage.from_amounts({"nano_usd": nano, "tokens": nano % 97})

    def body() -> None:
        clock.advance(nano % 40 * 3600)  # a step may begin on one day and end on another
        if how == "settles":
            current_step().settle(Usage.from_amounts({"nano_usd": nano // 2}))  # type: ignore[union-attr]
        if how in ("raises", "free"):
            raise FileNotFoundError if how == "free" else ConnectionError

    attributes = {"gen_ai.request.model": model} if model else None
    kind = "llm" if model else "tool"
    options = {"kind": kind, "reserve": usage, "free_on": FileNotFoundError, "attributes": attributes}
    run.call(name, body, **options)


def summed(guard: Guard) -> dict[str, dict[str, Usage]]:
    """The same figures from the events, by another way: each step by the run and the start that it has."""
    totals: dict[str, dict[str, Usage]] = {by: defaultdict(Usage) for by in COST_KEYS}
    for summary in guard.runs(limit=10_000):
        started: dict[tuple[str, int], Any] = {}
        for event in guard.history(summary.run_id):
            if event.type == "step_started":
                started[event.key, event.attempt] = event
            elif event.type in OUTCOMES and event.data.get("body_ran") is not False:
                start = started[event.key, event.attempt]
                keys = {
                    "model": start.data.get("attributes", {}).get("gen_ai.request.model", ""),
                    "step": start.name,
                    "kind": start.kind,
                    "tenant": summary.tenant,
                    "name": summary.name,
                    "account": summary.account or "",
                    "run": summary.run_id,
                    "day": str(date(1970, 1, 1) + timedelta(days=event.at_ns // DAY_NS)),
                }
                for by, key in keys.items():
                    totals[by][key] += event.usage
    return totals


@settings(max_examples=scaled(15))
@given(actions=st.one_of(program, st.lists(step, max_size=6)), fork_at=st.integers(min_value=2, max_value=12))
def test_costs_are_the_sum_of_the_events(actions: list[Any], fork_at: int) -> None:
    clock = FakeClock()
    with Guard.in_memory(telemetry=False, clock=clock) as guard:
        with contextlib.suppress(RunStopped), guard.run("outer", **OUTER) as run:
            carry_out(guard, clock, actions)
        if all(action[0] == "step" for action in actions) and fork_at <= run.summary().head.seq:
            with contextlib.suppress(RunStopped), guard.fork(run.id, at=fork_at, budget=Budget(usd=3)):
                carry_out(guard, clock, actions)
        expected = summed(guard)
        tops = [one for one in guard.runs(limit=10_000) if one.parent_id is None]
        forked = sum(
            (
                event.usage
                for one in tops
                for event in guard.history(one.run_id)
                if event.type == "run_forked"
            ),
            Usage(),
        )

        for by in COST_KEYS:
            assert {line.key: line.usage for line in guard.costs(by)} == dict(expected[by])  # type: ignore[arg-type]
        account = guard.account("thread:7", tenant="acme")
        charged = Usage() if account is None else account.spent
        assert charged == expected["account"]["thread:7"]
        total = sum((line.usd for line in guard.costs("run")), Decimal(0))
        assert total == sum((one.usage.usd for one in tops), Decimal(0)) - forked.usd
