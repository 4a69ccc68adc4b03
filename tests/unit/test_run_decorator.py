"""`@guard.run(...)`: a fresh run for each call of a function."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import suppress

import pytest

from agentguard import (
    Budget,
    BudgetExceededError,
    RunState,
    StoreUnavailableError,
    current_run,
    guarded_step,
)


@guarded_step
def tool() -> str:
    return "ran"


def test_each_call_is_a_run_with_its_arguments_as_inputs(guard):
    @guard.run("triage", budget=Budget(steps=1), tenant="acme")
    def triage(ticket: str, *, urgent: bool = False) -> str:
        """Sort a ticket."""
        return f"{current_run().name} {ticket} {tool()}"

    assert triage("t1", urgent=True) == "triage t1 ran"
    assert triage("t2") == "triage t2 ran"
    second, first = guard.runs(tenant="acme")
    assert first.run_id != second.run_id
    assert (first.state, first.usage.steps) == (RunState.COMPLETED, 1)
    with guard.attach(first.run_id) as run:
        assert run.inputs == {"args": ["t1"], "kwargs": {"urgent": True}}
    assert triage.__name__ == "triage"
    assert triage.__doc__ == "Sort a ticket."
    assert current_run() is None


def test_an_async_function(guard):
    @guard.run("triage", budget=Budget(steps=1))
    async def triage(ticket: str) -> str:
        await asyncio.sleep(0)
        return f"{ticket} {tool()}"

    assert inspect.iscoroutinefunction(triage)

    async def main():
        return await asyncio.gather(triage("a"), triage("b"))

    assert asyncio.run(main()) == ["a ran", "b ran"]
    assert len(guard.runs()) == 2


def test_a_stop_leaves_the_call(guard):
    @guard.run("greedy", budget=Budget(steps=2))
    def greedy() -> str:
        for _ in range(9):
            with suppress(Exception):
                tool()
        return "looks fine"

    with pytest.raises(BudgetExceededError):
        greedy()
    assert guard.runs()[0].state is RunState.FAILED


def test_called_inside_a_run_it_is_a_child(guard):
    @guard.run("inner")
    def inner() -> str:
        return tool()

    with pytest.raises(BudgetExceededError), guard.run("outer", budget=Budget(steps=2)) as outer:
        while True:
            inner()
    assert guard.summary(outer.id).usage.steps == 2
    assert {row.parent_id for row in guard.runs() if row.name == "inner"} == {outer.id}


def test_a_generator_function_is_refused(guard):
    """Its body would run after the run has ended."""

    def items():
        yield tool()

    async def async_items():
        yield tool()

    for function in (items, async_items):
        with pytest.raises(TypeError, match="generator"):
            guard.run("r")(function)


def test_what_was_attached_is_no_decorator(guard):
    with guard.run("r") as run, guard.attach(run.id) as attached:
        with pytest.raises(TypeError, match="decorator"):
            attached(tool)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_run_that_cannot_be_opened_says_why(guard, is_async):
    async def on_a_loop() -> None:
        pytest.fail("called")

    decorated = guard.run("agent")(on_a_loop if is_async else lambda: pytest.fail("called"))
    guard.close()
    with pytest.raises(StoreUnavailableError, match="is closed"):
        asyncio.run(decorated()) if is_async else decorated()
    assert current_run() is None
