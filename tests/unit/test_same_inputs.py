"""Same inputs, same events: two live runs with the same inputs are compared branch by branch, and by what counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from agentguard import Budget, Guard, Run, RunStopped, guarded_step

Program = Callable[[Run], Any]


@guarded_step(effect="read")
def look(what: str) -> str:
    return what.upper()


@guarded_step(effect="read")
async def look_later(what: str, turns: int = 0) -> str:
    for _ in range(turns):
        await asyncio.sleep(0)
    return what.upper()


@guarded_step
def fail(message: str) -> None:
    raise ValueError(message)


def compared(guard: Guard, one: Program, other: Program, **options: Any) -> Any:
    ids = []
    for program in (one, other):
        with suppress(RunStopped, ValueError), guard.run("program", **options) as run:
            ids.append(run.id)
            program(run)
    return guard.diff(*ids)


def the_difference(guard: Guard, one: Program, other: Program, **options: Any) -> tuple[Any, ...]:
    diff = compared(guard, one, other, **options)
    assert diff, "they are the same"
    (found,) = diff.differences
    return found.kind, found.key, found.a, found.b


def everything(run: Run) -> None:
    look("a")
    with run.scope("part", Budget(steps=5)):
        look("b")
    run.record("dice", lambda: 4)
    run.now()
    with suppress(ValueError):
        fail("no")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run.bind(look), "cd"))

    async def main() -> None:
        await asyncio.gather(look_later("e"), asyncio.create_task(look_later("f", 3)))

    asyncio.run(main())


def test_the_same_program_is_the_same_whatever_the_time_and_the_order(guard: Guard) -> None:
    """Times, ids, hashes, `seq` and the order over branches differ; nothing of that is a difference."""
    diff = compared(guard, everything, everything)
    assert not diff
    assert (diff.differences, diff.timing) == ((), ())
    a, b = (guard.history(run_id) for run_id in (diff.a, diff.b))
    assert len(a) == len(b)
    assert {event.hash for event in a}.isdisjoint(event.hash for event in b)


def test_the_order_of_concurrent_branches_is_no_difference(guard: Guard) -> None:
    def in_order(*turns: int) -> Program:
        async def main() -> None:
            tasks = [asyncio.create_task(_in_turn(n, turn)) for n, turn in enumerate(turns)]
            await asyncio.wait(tasks)

        async def _in_turn(n: int, turns: int) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            await look_later(str(n))

        return lambda run: asyncio.run(main())

    diff = compared(guard, in_order(0, 9), in_order(9, 0))
    orders = [
        [event.key for event in guard.history(run_id) if event.type == "step_started"]
        for run_id in (diff.a, diff.b)
    ]
    assert orders[0] == list(reversed(orders[1])), "the order is another"
    assert not diff


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (
            lambda run: look("a"),
            lambda run: look("b"),
            ("arguments", "main/look#1", [["a"], {}], [["b"], {}]),
        ),
        (lambda run: look("a"), lambda run: None, ("missing", "main/look#1", "main/look#1", None)),
        (lambda run: None, lambda run: look("a"), ("extra", "main/look#1", None, "main/look#1")),
        (
            lambda run: run.call("x", str, 1),
            lambda run: run.call("y", str, 1),
            ("key", "main/x#1", "main/x#1", "main/y#1"),
        ),
        (
            lambda run: run.call("x", str, 1),
            lambda run: run.call("x", repr, 1, effect="read"),
            ("effect", "main/x#1", "once", "read"),
        ),
        (
            lambda run: run.call("x", len, "abc"),
            lambda run: run.call("x", sorted, "abc"),
            ("outcome", "main/x#1", {"completed": 3}, {"completed": ["a", "b", "c"]}),
        ),
        (
            lambda run: run.record("dice", lambda: 4),
            lambda run: run.record("dice", lambda: 5),
            ("outcome", "main/dice#1", 4, 5),
        ),
        (
            lambda run: run.scope("s", Budget(steps=1)).__enter__(),
            lambda run: run.scope("s", Budget(steps=2)).__enter__(),
            ("arguments", "main/s#1", {"steps": 1}, {"steps": 2}),
        ),
    ],
    ids=["arguments", "missing", "extra", "key", "effect", "outcome", "value", "scope"],
)
def test_what_is_compared(guard: Guard, one: Program, other: Program, expected: tuple[Any, ...]) -> None:
    assert the_difference(guard, one, other) == expected


def test_a_failure_is_compared_by_type_and_message(guard: Guard) -> None:
    def fails(message: str) -> Program:
        def program(run: Run) -> None:
            with suppress(ValueError):
                fail(message)

        return program

    assert not compared(guard, fails("no"), fails("no"))
    diff = compared(guard, fails("no"), fails("never"))
    assert [found.kind for found in diff.differences] == ["arguments"]


def test_each_branch_shows_its_first_difference_and_no_other(guard: Guard) -> None:
    def program(first: str, in_branch: str) -> Program:
        def run_it(run: Run) -> None:
            look(first)
            look("the same, but behind a difference")
            with run.branch("side"):
                look(in_branch)

        return run_it

    diff = compared(guard, program("a", "b"), program("x", "y"))
    assert [(found.branch, found.pos) for found in diff.differences] == [("main", 1), ("main/side#1", 1)]


def test_another_end_is_a_difference(guard: Guard) -> None:
    def ends(error: Exception | None) -> Program:
        def program(run: Run) -> None:
            if error is not None:
                raise error

        return program

    diff = compared(guard, ends(None), ends(ValueError("no")))
    (found,) = diff.differences
    assert (found.kind, found.a["type"], found.b["type"]) == ("termination", "completed", "ValueError")


def test_who_was_admitted_when_a_stop_met_concurrent_steps_is_timing(guard: Guard) -> None:
    def in_order(*turns: int) -> Program:
        async def one(n: int, turns: int) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            await look_later(str(n))

        async def main() -> None:
            await asyncio.gather(*(one(n, turn) for n, turn in enumerate(turns)), return_exceptions=True)

        return lambda run: asyncio.run(main())

    diff = compared(guard, in_order(0, 9, 5), in_order(9, 5, 0), budget=Budget(steps=1))
    assert not diff, diff.differences
    assert {found.kind for found in diff.timing} <= {"missing", "extra", "outcome"}
    assert {found.branch for found in diff.timing} >= {"main/task#1", "main/task#3"}


def test_a_stop_by_another_limit_is_a_difference(guard: Guard) -> None:
    ids = []
    for budget in (Budget(steps=1), Budget(calls={"look": 1})):
        with suppress(RunStopped), guard.run("program", budget=budget) as run:
            ids.append(run.id)
            look("a")
            look("b")
    diff = guard.diff(*ids)
    (found,) = diff.differences
    assert (found.kind, found.a["resource"], found.b["resource"]) == ("termination", "steps", "calls:look")


def test_an_error_of_the_program_is_no_stop_and_excuses_no_missing_call(guard: Guard) -> None:
    def fails_after(calls: int) -> Program:
        def program(run: Run) -> None:
            for _ in range(calls):
                look("a")
            raise ValueError("no")

        return program

    assert the_difference(guard, fails_after(2), fails_after(1))[:2] == ("missing", "main/look#2")
