"""Levels: which levels a step is charged to, and which one a stop belongs to."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from decimal import Decimal

import pytest

from agentguard import (
    Budget,
    BudgetExceededError,
    Guard,
    KillSwitchTriggeredError,
    RunExistsError,
    RunState,
    RunStopped,
    Usage,
    guarded_step,
)
from agentguard._clock import Clock
from agentguard.budget.tenant import account_id


@guarded_step(usage=Usage(usd="0.25"))
def pay() -> None:
    pass


@guarded_step(reserve=Usage(usd="0.25"), usage=lambda _: Usage(usd=2))
def overrun() -> str:
    return "done"


def spent(guard: Guard, account: str) -> Decimal:
    """What a shared account has spent, nothing being reserved any more."""
    found = guard.components.store.accounts([account])[account]
    assert not any(found.reserved.values())
    return Usage.from_amounts(found.spent).usd


# --- scopes ----------------------------------------------------------------------------------------


def test_a_step_is_charged_to_its_whole_scope_chain(guard):
    with guard.run("r", budget=Budget(usd=9)) as run:
        with run.scope("a", Budget(usd=5)) as a:
            pay()
            with run.scope("b", Budget(usd=3)) as b:
                pay()
                assert (b.spent.usd, a.spent.usd, run.spent.usd) == (
                    Decimal("0.25"),
                    Decimal("0.5"),
                    Decimal("0.5"),
                )
                assert (b.remaining.usd, a.remaining.usd) == (Decimal("2.75"), Decimal("4.5"))
        pay()
    assert run.spent.usd == Decimal("0.75")
    assert (b.path, a.path) == ("a/b", "a")


@pytest.mark.parametrize("form", ["with", "async with"])
def test_a_scopes_stop_is_raised_at_its_exit(guard, form):
    def inside() -> None:
        for _ in range(9):
            with suppress(Exception):
                pay()

    with guard.run("r", budget=Budget(usd=9)) as run:
        scope = run.scope("s", Budget(usd=1))
        with pytest.raises(BudgetExceededError) as raised:
            if form == "with":
                with scope:
                    inside()
            else:

                async def main() -> None:
                    async with scope:
                        inside()

                asyncio.run(main())
        assert raised.value is scope.stop
        assert raised.value.scope == "s"
        pay()
    assert run.state is RunState.COMPLETED
    assert run.spent.usd == Decimal("1.25")


def test_the_refusing_level_is_the_one_that_stops(guard):
    """The inner scope has room; the outer one has not: the stop is the outer scope's."""
    with guard.run("r") as run:
        with pytest.raises(BudgetExceededError) as raised, run.scope("outer", Budget(usd="0.5")) as outer:
            with suppress(BudgetExceededError), run.scope("inner", Budget(usd=5)) as inner:
                pay()
                pay()
                pay()
            assert inner.stop is None
            with pytest.raises(BudgetExceededError):
                pay()
        assert raised.value.scope == "outer"
        assert raised.value is outer.stop
        pay()
    assert run.state is RunState.COMPLETED


def test_the_inner_scope_stops_and_the_outer_goes_on(guard):
    with guard.run("r") as run, run.scope("outer", Budget(usd=5)):
        with pytest.raises(BudgetExceededError) as raised, run.scope("inner", Budget(usd="0.25")):
            pay()
            pay()
        assert raised.value.scope == "outer/inner"
        pay()
    assert run.spent.usd == Decimal("0.5")


def test_a_stop_sticks_in_the_scopes_children_too(guard):
    with guard.run("r") as run:
        with suppress(BudgetExceededError), run.scope("s", Budget(usd="0.25")) as scope:
            pay()
            with suppress(BudgetExceededError):
                pay()
            with pytest.raises(BudgetExceededError) as raised, run.scope("child", Budget(usd=9)):
                pytest.fail("entered")
            assert raised.value is scope.stop


def test_the_runs_refusal_inside_a_scope_stops_the_run(guard):
    with pytest.raises(BudgetExceededError) as raised, guard.run("r", budget=Budget(usd="0.5")) as run:
        with suppress(BudgetExceededError), run.scope("s", Budget(usd=5)):
            for _ in range(5):
                pay()
        with pytest.raises(BudgetExceededError):
            pay()
    assert raised.value.scope == "run"
    assert run.state is RunState.FAILED


def test_a_refusal_reserves_at_no_level(guard):
    with guard.run("r", budget=Budget(usd=9)) as run:
        with suppress(BudgetExceededError), run.scope("a", Budget(usd=9)) as a:
            with run.scope("b", Budget(usd="0.2")):
                pay()
        assert run.remaining.usd == a.remaining.usd == 9


def test_a_scopes_excess_stops_the_scope(guard):
    with guard.run("r", budget=Budget(usd=9)) as run:
        with pytest.raises(BudgetExceededError) as raised, run.scope("s", Budget(usd=1)):
            assert overrun() == "done"
        assert raised.value.scope == "s"
        pay()
    assert run.state is RunState.COMPLETED


def test_scopes_of_one_name_have_budgets_of_their_own(guard):
    with guard.run("r") as run:
        for _ in range(3):
            with run.scope("s", Budget(usd="0.25")):
                pay()
    keys = [e.key for e in guard.history(run.id) if e.type == "scope_opened"]
    assert keys == ["main/s#1", "main/s#2", "main/s#3"]


def test_a_scope_is_entered_once(guard):
    """Entering it again would give it a fresh budget."""
    with guard.run("r") as run:
        scope = run.scope("s", Budget(steps=1))
        with scope:
            pay()
        with pytest.raises(RuntimeError, match="entered before"), scope:
            pay()


def test_a_scope_has_seconds_of_its_own(guard):
    with guard.run("r") as run:
        with pytest.raises(BudgetExceededError) as raised, run.scope("s", Budget(seconds=0)):
            pay()
        assert (raised.value.resource, raised.value.scope) == ("seconds", "s")
        pay()


def test_calls_and_repeats_of_a_scope(guard):
    with guard.run("r") as run:
        for _ in range(3):
            with run.scope("s", Budget(calls={"pay": 1})):
                pay()
        with pytest.raises(BudgetExceededError) as raised, run.scope("s", Budget(repeats=3)):
            for _ in range(5):
                pay()
        assert raised.value.resource == "repeats"
        with pytest.raises(BudgetExceededError) as raised, run.scope("s", Budget(calls={"pay": 1})):
            pay()
            pay()
        assert raised.value.scope == "s"


# --- nested runs -----------------------------------------------------------------------------------


def test_a_nested_run_is_a_child(guard):
    with guard.run("outer", tenant="acme") as outer, guard.run("inner") as inner:
        pay()
    assert guard.summary(inner.id).parent_id == outer.id
    assert inner.tenant == "acme"
    opened = [e for e in guard.history(outer.id) if e.type == "scope_opened"]
    assert (opened[0].key, opened[0].data["run"]) == ("main/inner#1", inner.id)


def test_a_nested_runs_id_derives_from_the_parents_key(guard):
    ids = []
    for _ in range(2):
        with Guard.in_memory(telemetry=False) as fresh, fresh.run("outer", run_id="fixed"):
            for _ in range(2):
                with fresh.run("inner") as inner:
                    ids.append(inner.id)
    assert ids[:2] == ids[2:]
    assert ids[0] != ids[1]


def test_a_nested_run_counts_at_every_level_above(guard):
    with guard.run("outer", budget=Budget(usd=9)) as outer:
        with outer.scope("s", Budget(usd=5)) as scope:
            pay()
            with guard.run("middle") as middle:
                pay()
                with guard.run("inner") as inner:
                    pay()
                    assert outer.spent.usd == Decimal("0.75")
                    assert outer.remaining.usd == Decimal("8.25")
        assert scope.spent.usd == Decimal("0.75")
        pay()
    assert [run.spent.usd for run in (inner, middle, outer)] == [
        Decimal(text) for text in ("0.25", "0.5", "1")
    ]
    for run in (inner, middle, outer):
        assert guard.reconstruct(run.id) == guard.summary(run.id)
    assert spent(guard, f"run:{outer.id}") == 1
    assert spent(guard, f"run:{outer.id}/main/s#1") == Decimal("0.75")
    assert spent(guard, f"run:{middle.id}") == Decimal("0.5")


def test_an_outer_limit_stops_both_runs(guard):
    with pytest.raises(BudgetExceededError) as raised, guard.run("outer", budget=Budget(usd=1)) as outer:
        pay()
        with suppress(BudgetExceededError), guard.run("inner", budget=Budget(usd=9)) as inner:
            for _ in range(9):
                pay()
        pytest.fail("went on") if outer.stop is None else None
    assert raised.value is outer.stop
    assert (raised.value.scope, raised.value.run_id) == ("run", outer.id)
    assert isinstance(inner.stop, BudgetExceededError)
    assert (inner.stop.scope, inner.stop.run_id) == (f"run:{outer.id}", inner.id)
    assert guard.summary(outer.id).termination["scope"] == "run"
    assert inner.state is RunState.FAILED
    assert outer.state is RunState.FAILED
    assert outer.spent.usd == 1


def test_an_outer_scopes_limit_stops_the_inner_run_and_the_scope(guard):
    with guard.run("outer") as outer:
        with pytest.raises(BudgetExceededError) as raised, outer.scope("s", Budget(usd="0.5")):
            with guard.run("inner") as inner:
                for _ in range(9):
                    pay()
        assert (raised.value.scope, raised.value.run_id) == ("s", outer.id)
        pay()
    assert isinstance(inner.stop, BudgetExceededError)
    assert (inner.stop.scope, inner.stop.run_id) == (f"run:{outer.id}/s", inner.id)
    assert inner.state is RunState.FAILED
    assert outer.state is RunState.COMPLETED
    assert outer.spent.usd == Decimal("0.75")


def test_an_inner_limit_stops_the_inner_run_alone(guard):
    with guard.run("outer", budget=Budget(usd=9)) as outer:
        with (
            pytest.raises(BudgetExceededError) as raised,
            guard.run("inner", budget=Budget(usd="0.25")) as inner,
        ):
            pay()
            pay()
        assert (raised.value.scope, raised.value.run_id) == ("run", inner.id)
        pay()
    assert inner.state is RunState.FAILED
    assert outer.state is RunState.COMPLETED


def test_an_inner_excess_passes_the_outer_limit(guard):
    with pytest.raises(BudgetExceededError) as raised, guard.run("outer", budget=Budget(usd=1)) as outer:
        with suppress(BudgetExceededError), guard.run("inner") as inner:
            assert overrun() == "done"
            pay()
        pay()
    assert (raised.value.scope, raised.value.run_id) == ("run", outer.id)
    assert inner.state is RunState.FAILED
    assert outer.spent.usd == 2


def test_runs_inside_stop_with_the_run_around(guard):
    with pytest.raises(KillSwitchTriggeredError), guard.run("outer") as outer:
        with suppress(RunStopped), guard.run("inner") as inner:
            outer.kill("both")
            pay()
    assert inner.state is RunState.KILLED
    assert outer.state is RunState.KILLED
    assert inner.spent == Usage()


def test_the_inner_run_finds_the_kill_of_the_outer_one_by_itself(guard):
    """Also where nobody told this process: its own check looks at the runs around it."""
    with pytest.raises(KillSwitchTriggeredError), guard.run("outer") as outer:
        with pytest.raises(KillSwitchTriggeredError), guard.run("inner") as inner:
            guard.runtime._participant.leave()
            order = {"scope": "run", "target": outer.id, "reason": "unheard of", "actor": "ann"}
            guard.components.switch.record("kill_set", order)
            assert outer.stop is None
            pay()
        assert inner.state is RunState.KILLED
    assert outer.state is RunState.KILLED


def test_a_body_of_a_nested_run_is_cancelled_with_the_outer_one(guard):
    @guarded_step
    async def stuck(entered):
        entered.set()
        await asyncio.Event().wait()

    async def child(entered):
        async with guard.run("inner"):
            await stuck(entered)

    async def main(outer):
        entered = asyncio.Event()
        task = asyncio.create_task(child(entered))
        await entered.wait()
        outer.kill("both")
        await task

    with pytest.raises(KillSwitchTriggeredError), guard.run("outer") as outer:
        asyncio.run(main(outer))
    assert {row.name: row.state for row in guard.runs()} == {
        "outer": RunState.KILLED,
        "inner": RunState.KILLED,
    }


def test_detached_opts_out(guard):
    with guard.run("outer", budget=Budget(usd="0.25"), tenant="acme") as outer:
        with guard.run("inner", detached=True) as inner:
            pay()
            pay()
        pay()
    assert outer.spent.usd == Decimal("0.25")
    assert guard.summary(inner.id).parent_id is None
    assert inner.tenant == "default"


def test_a_detached_run_is_not_stopped_with_the_other(guard):
    with suppress(RunStopped), guard.run("outer") as outer, guard.run("inner", detached=True) as inner:
        outer.kill("outer alone")
        pay()
    assert inner.state is RunState.COMPLETED
    assert outer.state is RunState.KILLED


def test_another_guards_run_cannot_be_nested(guard):
    with Guard.in_memory(telemetry=False) as other, guard.run("outer"):
        with pytest.raises(ValueError, match="detached=True"):
            other.run("inner")
        with other.run("inner", detached=True):
            pay()


def test_many_nested_runs_at_once_share_the_outer_limit(guard):
    """64 children in threads: the outer run never passes its limit."""
    ran = []
    step = guarded_step(usage=Usage(usd="0.1"))(lambda: ran.append(1))

    def child() -> None:
        with suppress(RunStopped), guard.run("child"):
            for _ in range(5):
                step()

    with suppress(RunStopped), guard.run("outer", budget=Budget(usd=5)) as outer:
        threads = [threading.Thread(target=outer.bind(child)) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert len(ran) == 50
    assert outer.spent.usd == 5
    assert spent(guard, f"run:{outer.id}") == 5
    assert guard.verify()


def test_the_outer_deadline_stops_the_inner_run(guard):
    with pytest.raises(BudgetExceededError) as raised, guard.run("outer", budget=Budget(seconds=0)) as outer:
        with guard.run("inner"):
            pay()
    assert raised.value.resource == "seconds"
    assert outer.state is RunState.FAILED


def test_a_nested_run_of_a_killed_tenant_is_refused_and_the_outer_goes_on(guard):
    guard.kill(tenant="bad", reason="no more")
    with guard.run("outer", tenant="good") as outer:
        with pytest.raises(KillSwitchTriggeredError), guard.run("inner", tenant="bad"):
            pytest.fail("entered")
        pay()
    assert outer.state is RunState.COMPLETED
    assert [e.type for e in guard.history(outer.id)].count("scope_closed") == 1


# --- tenants ---------------------------------------------------------------------------------------


def test_a_tenants_limit_is_shared_by_its_runs(guard):
    guard.set_tenant_budget("acme", Budget(usd=1))
    with guard.run("first", tenant="acme"):
        for _ in range(3):
            pay()
    with pytest.raises(BudgetExceededError) as raised, guard.run("second", tenant="acme") as second:
        for _ in range(3):
            pay()
    assert (raised.value.scope, raised.value.spent) == ("tenant:acme", 1)
    assert second.state is RunState.FAILED
    with guard.run("other", tenant="globex"):
        for _ in range(6):
            pay()
    assert spent(guard, "tenant:acme") == 1


def test_a_tenants_refusal_stops_the_run_also_inside_a_scope(guard):
    guard.set_tenant_budget("acme", Budget(usd="0.25"))
    with pytest.raises(BudgetExceededError) as raised, guard.run("r", tenant="acme") as run:
        with suppress(BudgetExceededError), run.scope("s", Budget(usd=9)):
            pay()
            pay()
    assert raised.value.scope == "tenant:acme"
    assert raised.value is run.stop


def test_a_tenants_limit_set_while_a_run_is_live(guard):
    with pytest.raises(BudgetExceededError), guard.run("r", tenant="acme") as run:
        pay()
        guard.set_tenant_budget("acme", Budget(usd="0.5"))
        for _ in range(9):
            pay()
    assert run.spent.usd == Decimal("0.75")  # what was spent before the limit is not held against it


def test_tenant_windows_are_utc_by_the_guards_clock():
    day = 86_400 * 10**9
    now = [20_000 * day + day - 1]  # a moment before midnight
    with Guard.in_memory(telemetry=False, clock=Clock(wall=lambda: now[0])) as guard:
        guard.set_tenant_budget("acme", Budget(usd="0.25"), per="day")
        with guard.run("late", tenant="acme"):
            pay()
        first = account_id("acme", "day", now[0])
        now[0] += 1
        with guard.run("early", tenant="acme"):
            pay()
        second = account_id("acme", "day", now[0])
        assert first != second
        assert spent(guard, first) == spent(guard, second) == Decimal("0.25")
        with suppress(BudgetExceededError), guard.run("again", tenant="acme") as again:
            pay()
        assert again.stop.scope == "tenant:acme"


def test_settlement_goes_to_the_window_of_the_reservation():
    day = 86_400 * 10**9
    now = [20_000 * day + day - 1]

    @guarded_step(reserve=Usage(usd="0.25"), usage=lambda _: Usage(usd="0.5"))
    def over_midnight() -> None:
        now[0] += 1

    with Guard.in_memory(telemetry=False, clock=Clock(wall=lambda: now[0])) as guard:
        guard.set_tenant_budget("acme", Budget(usd=5), per="day")
        before = account_id("acme", "day", now[0])
        with guard.run("r", tenant="acme"):
            over_midnight()
        assert spent(guard, before) == Decimal("0.5")


def test_levels_in_shadow_mode_stop_nothing(guard):
    """Neither a tenant's budget nor that of a run around this one."""
    guard.set_tenant_budget("acme", Budget(usd="0.25", enforce=False))
    with guard.run("outer", tenant="acme", budget=Budget(usd="0.25", enforce=False)) as outer:
        with guard.run("inner") as inner:
            for _ in range(3):
                pay()
            assert overrun() == "done"
    assert inner.state is outer.state is RunState.COMPLETED
    assert spent(guard, "tenant:acme") == spent(guard, f"run:{outer.id}") == Decimal("2.75")


def test_a_tenants_warning(guard):
    guard.set_tenant_budget("acme", Budget(usd=1))
    with guard.run("r", tenant="acme") as run:
        for _ in range(4):
            pay()
    assert [(w["path"], w["resource"]) for w in run.warnings] == [("tenant:acme", "usd")]


def test_a_nested_run_whose_id_is_taken_leaves_nothing_in_the_run_around(guard):
    with guard.run("other", run_id="taken"):
        pass
    with guard.run("outer") as outer, pytest.raises(RunExistsError), guard.run("inner", run_id="taken"):
        pass
    assert outer.state is RunState.COMPLETED
    assert [event.type for event in guard.history(outer.id)] == [
        "run_created",
        "run_started",
        "run_completed",
    ]


def test_repeats_of_a_run_are_counted_over_its_nested_runs(guard):
    ran = []

    @guarded_step
    def ask(question):
        ran.append(question)

    with pytest.raises(BudgetExceededError) as raised, guard.run("outer", budget=Budget(repeats=3)):
        ask("a")
        for name in ("first", "second"):
            with guard.run(name):
                ask("b")
                with guard.run("deep"):
                    ask("a")
    assert ran == ["a", "b", "a", "b"]
    assert raised.value.resource == "repeats"


def test_a_nested_run_stops_when_another_process_stops_the_run_around_it(sqlite_guard):
    ran = []

    @guarded_step
    def work(name):
        ran.append(name)

    with (
        pytest.raises(BudgetExceededError) as raised,
        sqlite_guard.run("outer", budget=Budget(steps=3)) as outer,
        sqlite_guard.run("inner") as inner,
    ):
        work("inner")
        with Guard.open(telemetry=False) as other:  # as another process has it
            with suppress(RunStopped), other.attach(outer.id, branch="b"):
                while True:
                    work("other")
        with suppress(RunStopped):
            work("late")
    assert ran == ["inner", "other", "other"]
    assert raised.value.run_id == outer.id
    assert (outer.state, inner.state) == (RunState.FAILED, RunState.FAILED)
    assert sqlite_guard.summary(inner.id).termination == sqlite_guard.summary(outer.id).termination
    assert sqlite_guard.verify()


@pytest.mark.parametrize(
    ("name", "path"),
    [("a/b", "a%2Fb"), ("run", "%72un"), ("tenant:acme", "%74enant:acme"), ("a: b #1", "a: b #1")],
)
def test_a_scopes_path_is_no_other_levels(guard, name, path):
    with (
        guard.run("r") as run,
        pytest.raises(BudgetExceededError) as raised,
        run.scope(name, Budget(steps=0)),
    ):
        run.call("step", lambda: None)
    assert raised.value.scope == path
    assert guard.reconstruct(run.id) == guard.summary(run.id)


def test_two_steps_that_both_pass_a_scope_s_limit_stop_it_once(guard):
    @guarded_step(reserve=None, usage=lambda tokens: Usage(tokens=tokens))
    async def ask(tokens):
        await asyncio.sleep(0)
        return tokens

    async def main():
        return await asyncio.gather(ask(20), ask(30))

    with guard.run("r") as run:
        with pytest.raises(BudgetExceededError), run.scope("part", Budget(tokens=10)) as scope:
            assert asyncio.run(main()) == [20, 30]
            assert scope.spent.tokens == 50
        run.call("after", int)
    stops = [event.data["stops"] for event in guard.history(run.id) if "stops" in event.data]
    assert stops == [scope.key]
    assert guard.verify(run.id)


def test_what_a_scope_has_spent_is_asked_inside_it(guard):
    with guard.run("r") as run:
        scope = run.scope("part", Budget(steps=3))
        for ask in (lambda: scope.spent, lambda: scope.remaining):
            with pytest.raises(RuntimeError, match=r"scope part is not open yet: use it as `with"):
                ask()
        with scope:
            run.call("f", int)
            assert (scope.spent.steps, scope.remaining.steps) == (1, 2)
