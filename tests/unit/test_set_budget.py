"""A live run is given another budget: by its owner, by an operator, on record, exact under concurrency."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest

from agentguard import Budget, BudgetExceededError, Guard, Run, RunState, Usage, guarded_step
from agentguard.errors import AgentGuardError, RunNotFoundError
from agentguard.testing import FakeClock


@guarded_step(usage=Usage(usd="0.10"))
def pay() -> None:
    pass


def test_more_room_lets_a_run_go_on(guard: Guard) -> None:
    with guard.run("r", budget=Budget(usd="0.10")) as run:
        pay()
        assert run.remaining.usd == 0
        run.set_budget(Budget(usd="0.20"), actor="ann")
        pay()
    event = next(event for event in guard.history(run.id) if event.type == "run_budget_set")
    assert event.data["actor"] == "ann"
    summary = guard.summary(run.id)
    assert (summary.state, summary.budget) == (RunState.COMPLETED, Budget(usd="0.20"))
    assert guard.reconstruct(run.id) == summary
    assert guard.verify()


def test_less_room_stops_a_run_at_its_next_step(guard: Guard) -> None:
    with pytest.raises(BudgetExceededError) as caught, guard.run("r", budget=Budget(usd="1")) as run:
        pay()
        pay()
        guard.set_budget(run.id, Budget(usd="0.15"))
        pay()
    assert (caught.value.limit, caught.value.spent) == (Decimal("0.15"), Decimal("0.20"))
    assert guard.summary(run.id).state is RunState.FAILED
    assert guard.verify()


def test_a_limit_that_was_not_there_before_counts_what_was_spent(guard: Guard) -> None:
    with suppress(BudgetExceededError), guard.run("r") as run:
        for _ in range(3):
            pay()
        run.set_budget(Budget(steps=4))
        for _ in range(3):
            pay()
    assert run.spent.steps == 4


def test_a_run_that_has_ended_is_given_none(guard: Guard) -> None:
    with guard.run("r") as run:
        pass
    with pytest.raises(AgentGuardError, match="COMPLETED and spends no more"):
        guard.set_budget(run.id, Budget())
    with pytest.raises(RunNotFoundError):
        guard.set_budget("nobody", Budget())
    with pytest.raises(TypeError, match="budget"):
        guard.set_budget(run.id, 3)  # type: ignore[arg-type]


def test_limits_by_name_leave_the_others_as_they_are(guard: Guard) -> None:
    with guard.run("r", budget=Budget(usd=1, steps=5, calls={"a": 1, "b": 2}, on_limit="ask")) as run:
        run.set_budget({"usd": "2.50", "steps": None, "calls": {"b": 3}}, actor="ann", reason="a long one")
        assert guard.summary(run.id).budget == Budget(usd="2.50", calls={"a": 1, "b": 3}, on_limit="ask")
        guard.set_budget(run.id, {"emails": 4, "calls": {"a": None}})
    assert guard.summary(run.id).budget == Budget(usd="2.50", calls={"b": 3}, on_limit="ask", emails=4)
    raised = next(event for event in guard.history(run.id) if event.type == "run_budget_set")
    assert (raised.data["actor"], raised.data["reason"]) == ("ann", "a long one")
    assert raised.data["budget"]["usd"] == "2.5", "the whole budget is on record"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"usd": -1}, "usd"),
        ({"step": 3}, "step"),
        ({"calls": 3}, "calls"),
        ({"on_limit": "beg"}, "on_limit"),
        ({}, "no limit"),
    ],
)
def test_a_change_that_cannot_be_meant_is_named_and_nothing_is_set(
    guard: Guard, change: dict[str, Any], named: str
) -> None:
    with guard.run("r", budget=Budget(usd=1)) as run:
        with pytest.raises((TypeError, ValueError), match=named):
            guard.set_budget(run.id, change)
        assert guard.summary(run.id).budget == Budget(usd=1)
    assert "run_budget_set" not in {event.type for event in guard.history(run.id)}


def test_operators_at_once_who_change_different_limits_lose_none(guard: Guard) -> None:
    changes = [{f"counter_{n}": n + 1} for n in range(8)]
    start = threading.Barrier(len(changes))

    def change(limits: dict[str, int]) -> None:
        start.wait()
        guard.set_budget("r", limits)

    with guard.run("r", run_id="r", budget=Budget(usd=1)):
        threads = [threading.Thread(target=change, args=(limits,)) for limits in changes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = {name: limit for limits in changes for name, limit in limits.items()}
        assert guard.summary("r").budget == Budget(usd=1, **expected)
    assert guard.verify()


def test_runs_inside_are_held_against_the_new_budget(guard: Guard) -> None:
    with suppress(BudgetExceededError), guard.run("outer", budget=Budget(steps=2)) as outer:
        with guard.run("first"):
            pay()
            pay()
            outer.set_budget(Budget(steps=5))
            pay()
        with guard.run("second"):
            for _ in range(5):
                pay()
    assert outer.spent.steps == 5
    assert guard.components.store.accounts([f"run:{outer.id}"])[f"run:{outer.id}"].spent["steps"] == 5


def test_a_nested_run_is_given_a_budget_of_its_own(guard: Guard) -> None:
    with guard.run("outer") as outer:
        with pytest.raises(BudgetExceededError), guard.run("inner", budget=Budget(steps=9)) as inner:
            pay()
            inner.set_budget(Budget(steps=1))
            pay()
        pay()
    assert (inner.spent.steps, outer.spent.steps) == (1, 2)


def test_a_deadline_is_moved_while_a_body_waits_for_it() -> None:
    clock = FakeClock()

    async def body(entered: asyncio.Event, go_on: asyncio.Event) -> str:
        entered.set()
        await go_on.wait()
        return "done"

    async def main() -> str:
        async with guard.run("r", budget=Budget(seconds=0.05)) as run:
            entered, go_on = asyncio.Event(), asyncio.Event()
            step = asyncio.ensure_future(run.call("wait", body, entered, go_on))
            await entered.wait()
            run.set_budget(Budget(seconds=3600))
            clock.advance(0.1)
            await asyncio.sleep(0.1)  # beyond the first deadline
            go_on.set()
            return await step  # type: ignore[no-any-return]

    with Guard.in_memory(telemetry=False, clock=clock) as guard:
        assert asyncio.run(main()) == "done"


@pytest.mark.parametrize("where", ["memory", "sqlite"])
def test_the_last_budget_is_met_exactly_by_threads_and_other_guards(
    where: str, request: pytest.FixtureRequest
) -> None:
    guard: Guard = request.getfixturevalue("guard" if where == "memory" else "sqlite_guard")
    limits = [105, 190, 230]

    def work(attached: Callable[[], Run]) -> None:
        with suppress(BudgetExceededError), attached():
            while True:
                pay()

    with suppress(BudgetExceededError), guard.run("r", budget=Budget(steps=3)) as run:
        guard.set_budget(run.id, Budget(steps=limits[-1]))
        threads = [
            threading.Thread(target=work, args=(lambda n=n: guard.attach(run.id, branch=f"w{n}"),))
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for limit in reversed(limits[:-1]):
            with suppress(AgentGuardError):  # it may have ended at the one before
                guard.set_budget(run.id, Budget(steps=limit))
        for thread in threads:
            thread.join(60)
    spent = guard.summary(run.id).usage.steps
    final = guard.summary(run.id).budget["steps"]
    started = [event.type for event in guard.history(run.id)]
    last_change = max(index for index, kind in enumerate(started) if kind == "run_budget_set")
    before = started[:last_change].count("step_started")
    assert spent == max(final, before)
    assert guard.verify()


def test_a_replay_and_a_recovery_see_the_room_that_the_run_had(sqlite_guard: Guard) -> None:
    def program(run: Run) -> list[Any]:
        seen = []
        for n in range(4):
            pay()
            if n == 1 and change:
                run.set_budget(Budget(steps=10))
            seen.append(run.remaining.steps)
        return seen

    change = True
    with sqlite_guard.run("r", run_id="r-00000001", budget=Budget(steps=5)) as run:
        live = program(run)
    assert live == [4, 8, 7, 6]
    with sqlite_guard.replay("r-00000001") as replayed:
        assert program(replayed) == live
    assert len([e for e in sqlite_guard.history("r-00000001") if e.type == "run_budget_set"]) == 1


def test_a_recovery_takes_the_budget_of_an_operator_for_none_that_the_program_set(
    sqlite_guard: Guard,
) -> None:
    class CrashError(BaseException):
        pass

    def program(run: Run) -> None:
        pay()
        run.set_budget(Budget(steps=30))
        if crashing:
            raise CrashError
        run.set_budget({"steps": 3})
        pay()

    crashing = True
    run = sqlite_guard.start("r", run_id="r-00000001", budget=Budget(steps=2))
    sqlite_guard.set_budget(run.id, Budget(steps=40), actor="ann")
    with suppress(CrashError):
        program(run)
    sqlite_guard.set_budget(run.id, Budget(steps=50, usd=1), actor="ann")
    run.drain(0)
    with suppress(Exception):
        run.close()
    crashing = False
    with sqlite_guard.recover("r-00000001") as recovered:
        program(recovered)
        assert (recovered.remaining.steps, recovered.remaining.usd) == (1, Decimal("0.8"))
    budgets = [e.data["budget"] for e in sqlite_guard.history("r-00000001") if e.type == "run_budget_set"]
    assert [budget["steps"] for budget in budgets] == [40, 30, 50, 3]
    assert sqlite_guard.verify()


def test_a_replay_gives_the_programs_own_budget_where_an_operator_gave_one_just_before(guard: Guard) -> None:
    def program(run: Run) -> list[Any]:
        pay()
        if live:
            guard.set_budget(run.id, Budget(steps=50), actor="ann")
        run.set_budget(Budget(steps=3))
        seen = [run.remaining.steps]
        if live:
            guard.set_budget(run.id, Budget(steps=60), actor="ann")
        pay()
        return [*seen, run.remaining.steps]

    live = True
    with guard.run("r", run_id="r1", budget=Budget(steps=2)) as run:
        assert program(run) == [2, 58]
    live = False
    with guard.replay("r1") as replayed:
        assert program(replayed) == [2, 58]


def test_a_recovery_does_not_give_the_old_budget_again(sqlite_guard: Guard) -> None:
    class CrashError(BaseException):
        pass

    def program(run: Run) -> None:
        pay()
        run.set_budget(Budget(steps=3))
        pay()
        if crashing:
            raise CrashError
        pay()
        pay()

    crashing = True
    run = sqlite_guard.start("r", run_id="r-00000001", budget=Budget(steps=2))
    with suppress(CrashError):
        program(run)
    sqlite_guard.set_budget(run.id, Budget(steps=50), actor="ann")
    run.drain(0)
    with suppress(Exception):
        run.close()
    crashing = False
    with sqlite_guard.recover("r-00000001") as recovered:
        program(recovered)
        assert recovered.remaining.steps == 46
    assert [e.type for e in sqlite_guard.history("r-00000001")].count("run_budget_set") == 2
