"""An account that runs share by name: one limit over all runs of a conversation, whoever runs them and when."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from agentguard import (
    Budget,
    BudgetExceededError,
    Guard,
    RunState,
    RunStopped,
    UnknownCostError,
    Usage,
    guarded_step,
)
from agentguard.cli.__main__ import main

THREAD = "thread:42"
TEN = {"account": THREAD, "account_budget": Budget(steps=10)}
DOLLAR: dict[str, Any] = {"account": THREAD, "account_budget": Budget(usd=1)}


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def guard(request: pytest.FixtureRequest, home: Path) -> Iterator[Guard]:
    """A guard on each store."""
    url = {"memory": "memory://", "sqlite": None}.get(request.param)
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    with Guard.open(url, telemetry=False) as opened:
        yield opened


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store that processes share, and open by `Guard.open()`."""
    if request.param == "postgres":
        address: str = request.getfixturevalue("postgres_url")
    else:
        address = f"sqlite:///{home / 'events.db'}"
    monkeypatch.setenv("AGENTGUARD_STORE", address)
    return address


@guarded_step(usage=Usage(usd="0.30"))
def ask() -> str:
    return "an answer"


def spent(guard: Guard, name: str = THREAD, tenant: str = "default") -> Decimal:
    """What an account has spent, nothing being reserved any more."""
    account = guard.account(name, tenant=tenant)
    assert account is not None
    assert account.reserved == Usage()
    return account.spent.usd


# --- the limit -----------------------------------------------------------------------------------


def test_a_limit_holds_over_all_runs_of_a_conversation(guard: Guard) -> None:
    for _ in range(3):
        with guard.run("turn", **DOLLAR):
            ask()
    with pytest.raises(BudgetExceededError) as caught, guard.run("turn", **DOLLAR) as run:
        ask()

    stop = caught.value
    assert (stop.scope, stop.resource, stop.spent, stop.limit) == (
        "account:thread:42",
        "usd",
        Decimal("0.9"),
        Decimal(1),
    )
    assert "account:thread:42" in str(stop)
    assert run.state is RunState.FAILED
    assert spent(guard) == Decimal("0.9")
    assert guard.verify()


def test_another_conversation_another_tenant_and_runs_without_one_have_room(guard: Guard) -> None:
    for _ in range(3):
        with guard.run("turn", **DOLLAR):
            ask()
    others: list[dict[str, Any]] = [DOLLAR | {"account": "thread:43"}, DOLLAR | {"tenant": "acme"}, {}]
    for other in others:
        with guard.run("turn", **other):
            ask()

    assert spent(guard) == Decimal("0.9")
    assert spent(guard, "thread:43") == spent(guard, tenant="acme") == Decimal("0.3")


def test_names_of_tenants_and_accounts_are_never_taken_for_one_another(guard: Guard) -> None:
    for tenant, name in (("a", "b/c"), ("a/b", "c"), ("a%2Fb", "c")):
        with guard.run("turn", tenant=tenant, account=name, account_budget=Budget(usd=1)):
            ask()
        assert spent(guard, name, tenant) == Decimal("0.3")


def test_the_runs_own_budget_and_the_tenants_hold_beside_it(guard: Guard) -> None:
    guard.set_tenant_budget("default", Budget(usd="0.80"))
    with pytest.raises(BudgetExceededError) as caught, guard.run("turn", budget=Budget(usd="0.5"), **DOLLAR):
        ask()
        ask()
    assert caught.value.scope == "run"
    with pytest.raises(BudgetExceededError) as caught, guard.run("turn", **DOLLAR):
        ask()
        ask()
    assert caught.value.scope == "tenant:default"
    assert spent(guard) == Decimal("0.6")


def test_each_run_is_held_to_the_budget_that_it_names_on_what_all_have_spent(guard: Guard) -> None:
    with guard.run("turn", **DOLLAR):
        ask()
    with (
        pytest.raises(BudgetExceededError),
        guard.run("turn", account=THREAD, account_budget=Budget(usd="0.4")),
    ):
        ask()
    with guard.run("turn", account=THREAD, account_budget=Budget(usd=2)):
        ask()
        ask()
        ask()
    assert spent(guard) == Decimal("1.2")


def test_a_shadow_limit_refuses_nothing(guard: Guard) -> None:
    budget = Budget(usd="0.4", enforce=False)
    with guard.run("turn", account=THREAD, account_budget=budget) as run:
        ask()
        ask()
    assert run.state is RunState.COMPLETED
    assert spent(guard) == Decimal("0.6")


def test_calls_of_a_tool_are_counted_over_all_runs(guard: Guard) -> None:
    budget = Budget(calls={"ask": 2})
    for _ in range(2):
        with guard.run("turn", account=THREAD, account_budget=budget):
            ask()
    with pytest.raises(BudgetExceededError, match="calls:ask"):
        with guard.run("turn", account=THREAD, account_budget=budget):
            ask()


def test_an_excess_is_charged_and_stops_the_run(guard: Guard) -> None:
    @guarded_step(reserve=Usage(usd="0.10"), usage=lambda _: Usage(usd="1.50"))
    def overrun() -> str:
        return "done"

    with pytest.raises(BudgetExceededError) as caught, guard.run("turn", **DOLLAR):
        overrun()
    assert caught.value.scope == "account:thread:42"
    assert spent(guard) == Decimal("1.5")


def test_a_warning_comes_once_in_each_run_that_is_near_the_limit(guard: Guard) -> None:
    warned: list[dict[str, Any]] = []
    with guard.run("turn", on_warning=warned.append, **DOLLAR):
        ask()
        ask()
        ask()
    assert [(warning["path"], warning["resource"]) for warning in warned] == [("account:thread:42", "usd")]


def test_a_model_call_that_names_no_money_is_refused_under_its_limit(guard: Guard) -> None:
    @guarded_step(kind="llm", reserve=Usage(tokens=5), usage=lambda _: Usage(tokens=5))
    def call() -> None:
        pytest.fail("the body ran")

    with pytest.raises(UnknownCostError), guard.run("turn", **DOLLAR) as run:
        assert run.limits("usd")
        call()


def test_a_failed_step_is_charged_and_a_refused_one_holds_nothing(guard: Guard) -> None:
    @guarded_step(usage=Usage(usd="0.30"))
    def fail() -> None:
        raise ValueError("no")

    with suppress(BudgetExceededError), guard.run("turn", budget=Budget(usd="0.60"), **DOLLAR):
        for _ in range(3):
            with suppress(ValueError):
                fail()
    assert spent(guard) == Decimal("0.6")


# --- runs in runs, forks, replays ----------------------------------------------------------------


def test_a_nested_run_is_charged_to_it_once_and_a_detached_one_is_not(guard: Guard) -> None:
    with guard.run("turn", **DOLLAR):
        ask()
        with guard.run("helper"):
            ask()
        with guard.run("beside", detached=True):
            ask()
    assert spent(guard) == Decimal("0.6")


def test_a_nested_run_of_another_tenant_is_charged_to_it(guard: Guard) -> None:
    with guard.run("turn", **DOLLAR), guard.run("helper", tenant="acme"):
        ask()
    assert spent(guard) == Decimal("0.3")
    assert guard.account(THREAD, tenant="acme") is None


def test_its_refusal_inside_a_nested_run_stops_both(guard: Guard) -> None:
    with pytest.raises(BudgetExceededError), guard.run("turn", **DOLLAR) as run:
        for _ in range(9):
            with suppress(BudgetExceededError), guard.run("helper"):
                ask()
        ask()
    assert run.state is RunState.FAILED
    assert spent(guard) == Decimal("0.9")


def test_a_nested_run_names_no_other_account(guard: Guard) -> None:
    with guard.run("turn", **DOLLAR), pytest.raises(ValueError, match="thread:43.*thread:42.*detached=True"):
        guard.run("helper", account="thread:43", account_budget=Budget(usd=1))


def test_a_nested_run_may_hold_itself_to_less_of_the_same(guard: Guard) -> None:
    with guard.run("turn", **DOLLAR):
        ask()
        with pytest.raises(BudgetExceededError) as caught:
            with guard.run("helper", account=THREAD, account_budget=Budget(usd="0.5")):
                ask()
        ask()
    assert caught.value.limit == Decimal("0.5")
    assert spent(guard) == Decimal("0.6")


def test_a_fork_goes_on_in_it_and_its_prefix_counts_once(guard: Guard) -> None:
    with guard.run("turn", **DOLLAR) as origin:
        ask()
        ask()
    at = next(event.seq for event in guard.history(origin.id) if event.type == "step_completed")
    with guard.fork(origin.id, at):
        ask()
        ask()
    assert spent(guard) == Decimal("0.9")


def test_a_fork_may_be_given_another_limit(guard: Guard) -> None:
    with suppress(BudgetExceededError), guard.run("turn", **DOLLAR) as origin:
        for _ in range(4):
            ask()
    last = guard.summary(origin.id).head.seq
    with pytest.raises(BudgetExceededError), guard.fork(origin.id, last):
        for _ in range(4):
            ask()
    with guard.fork(origin.id, last, account_budget=Budget(usd=2)):
        for _ in range(4):
            ask()
    assert spent(guard) == Decimal("1.2")


def test_a_replay_spends_nothing_and_stops_where_the_run_did(guard: Guard) -> None:
    def agent() -> None:
        for _ in range(4):
            ask()

    with suppress(BudgetExceededError), guard.run("turn", **DOLLAR) as run:
        agent()
    before = spent(guard)
    with pytest.raises(BudgetExceededError) as caught, guard.replay(run.id):
        agent()
    assert caught.value.scope == "account:thread:42"
    assert spent(guard) == before == Decimal("0.9")


def test_costs_by_account_are_what_its_account_says(guard: Guard) -> None:
    for account in (THREAD, THREAD, "thread:43"):
        with guard.run("turn", account=account, account_budget=Budget(usd=9)):
            ask()
            with guard.run("helper"):
                ask()
    with guard.run("turn"):
        ask()

    lines = {line.key: line.usd for line in guard.costs(by="account")}
    assert lines == {THREAD: Decimal("1.2"), "thread:43": Decimal("0.6"), "": Decimal("0.3")}
    assert lines[THREAD] == spent(guard)


# --- for a part of a run -------------------------------------------------------------------------


def test_a_part_of_a_run_may_be_charged_to_one(guard: Guard) -> None:
    with pytest.raises(BudgetExceededError) as caught, guard.run("server") as run:
        ask()
        with run.account(THREAD, Budget(usd=1)):
            assert run.limits("usd")
            ask()
            with guard.run("helper"):
                ask()
        assert not run.limits("usd")
        with run.account("thread:43", Budget(usd="0.5")):
            ask()
            ask()
    assert caught.value.scope == "account:thread:43"
    assert spent(guard) == Decimal("0.6")
    assert spent(guard, "thread:43") == Decimal("0.3")
    lines = {line.key: line.usd for line in guard.costs(by="account")}
    assert lines == {THREAD: Decimal("0.6"), "thread:43": Decimal("0.3"), "": Decimal("0.3")}


def test_what_begins_inside_is_charged_to_it_wherever_it_runs(guard: Guard) -> None:
    @guarded_step(usage=Usage(usd="0.10"))
    def outer() -> None:
        inner()

    inner = guarded_step(usage=Usage(usd="0.10"))(lambda: None)

    async def program() -> None:
        async with guard.run("server") as run:
            async with run.account(THREAD, Budget(usd=9)):
                await run.gather(asyncio.to_thread(inner), asyncio.to_thread(inner))
                with run.scope("part", Budget(usd=1)), run.branch("line"):
                    outer()
                thread = threading.Thread(target=run.bind(inner))
            thread.start()
            await asyncio.to_thread(thread.join)
            inner()

    asyncio.run(program())
    assert spent(guard) == Decimal("0.5")


def test_one_part_is_charged_to_one_account_alone(guard: Guard) -> None:
    with guard.run("server") as run, run.account(THREAD, Budget(usd=1)):
        with pytest.raises(ValueError, match="thread:43.*thread:42"):
            run.account("thread:43", Budget(usd=1))
        with run.account(THREAD, Budget(usd="0.5")):
            ask()
        with pytest.raises(ValueError, match="limits nothing"):
            run.account(THREAD, Budget())
    assert spent(guard) == Decimal("0.3")


# --- many at once --------------------------------------------------------------------------------


def test_a_limit_is_exact_over_threads_tasks_and_runs(guard: Guard) -> None:
    ran: list[int] = []
    step = guarded_step(lambda: ran.append(1))

    @guarded_step
    async def async_step() -> None:
        ran.append(1)

    def by_thread() -> None:
        with suppress(RunStopped), guard.run("turn", **TEN):
            while True:
                step()

    async def by_task() -> None:
        with suppress(RunStopped):
            async with guard.run("turn", **TEN):
                while True:
                    await async_step()

    async def tasks() -> None:
        await asyncio.gather(*(by_task() for _ in range(4)))

    threads = [threading.Thread(target=by_thread) for _ in range(4)]
    threads.append(threading.Thread(target=lambda: asyncio.run(tasks())))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(ran) == 10
    account = guard.account(THREAD)
    assert account is not None
    assert (account.spent.steps, account.remaining.steps) == (10, 0)


#: Steps in a run of its own until it is refused; tells how many ran.
PROGRAM = """
from contextlib import suppress
from agentguard import Budget, Guard, RunStopped
ran = 0
with Guard.open(telemetry=False) as guard, suppress(RunStopped):
    with guard.run("turn", account="thread:42", account_budget=Budget(steps=40)) as run:
        while True:
            run.call("step", lambda: None)
            ran += 1
print(ran)
"""


def test_a_limit_is_exact_over_processes(url: str) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert sum(int(process.communicate()[0]) for process in processes) == 40
    with Guard.open(telemetry=False) as guard:
        account = guard.account(THREAD)
        assert account is not None
        assert account.spent.steps == 40


# --- restarts and crashes ------------------------------------------------------------------------


def test_a_limit_holds_across_restarts(url: str) -> None:
    for _ in range(3):
        with Guard.open(telemetry=False) as guard, guard.run("turn", **DOLLAR):
            ask()
    with Guard.open(telemetry=False) as guard:
        with pytest.raises(BudgetExceededError), guard.run("turn", **DOLLAR):
            ask()
        assert spent(guard) == Decimal("0.9")


#: Dies in the body of its second step.
CRASH = """
import os, signal
from agentguard import Budget, Guard, Usage, guarded_step

@guarded_step(usage=Usage(usd="0.30"), effect="read")
def ask(last=False):
    if last:
        os.kill(os.getpid(), signal.SIGKILL)

guard = Guard.open(telemetry=False)
with guard.run("turn", run_id="job-1", account="thread:42", account_budget=Budget(usd=1)):
    ask()
    ask(last=True)
"""


@guarded_step(usage=Usage(usd="0.30"), effect="read", name="ask")
def ask_again(last: bool = False) -> None:
    pass


def test_a_recovered_run_goes_on_in_its_account(url: str) -> None:
    died = subprocess.run([sys.executable, "-c", CRASH], check=False)
    assert died.returncode == -signal.SIGKILL
    with Guard.open(telemetry=False) as guard:
        held = guard.account(THREAD)
        assert held is not None
        assert (held.spent.usd, held.reserved.usd) == (Decimal("0.3"), Decimal("0.3"))
        with guard.recover("job-1"):
            ask_again()
            ask_again(last=True)
        # The step that may have happened is charged, and its repeat too.
        ended = [event.usage.usd for event in guard.history("job-1") if event.usage is not None]
        assert spent(guard) == sum(ended) == Decimal("0.9")


def test_another_process_that_attaches_is_charged_to_it(url: str) -> None:
    program = (
        "import sys; from agentguard import Guard, Usage\n"
        "with Guard.open(telemetry=False) as guard, guard.attach(sys.argv[1], branch='w') as run:\n"
        "    run.call('ask', lambda: None, usage=Usage(usd='0.30'))\n"
    )
    with Guard.open(telemetry=False) as guard:
        with guard.run("turn", **DOLLAR) as run:
            ask()
            subprocess.run([sys.executable, "-c", program, run.id], check=True)
        assert spent(guard) == Decimal("0.6")


def test_a_step_that_ends_after_its_run_is_settled_in_it(guard: Guard) -> None:
    inside, over = threading.Event(), threading.Event()

    @guarded_step(reserve=Usage(usd="0.50"), usage=lambda _: Usage(usd="0.20"))
    def slow() -> str:
        inside.set()
        over.wait(60)
        return "done"

    with guard.run("turn", **DOLLAR) as run:
        thread = threading.Thread(target=run.bind(slow))
        thread.start()
        inside.wait(60)
    over.set()
    thread.join()
    assert spent(guard) == Decimal("0.2")


def test_a_kill_in_a_nested_run_leaves_nothing_held(guard: Guard) -> None:
    with suppress(RunStopped), guard.run("turn", **DOLLAR):
        ask()
        with guard.run("helper") as helper:
            helper.kill("enough")
            ask()
    assert spent(guard) == Decimal("0.3")


def test_the_summary_and_the_command_line_name_the_account(
    sqlite_guard: Guard, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite_guard.run("turn", **DOLLAR) as run:
        ask()
    assert run.summary().account == THREAD
    assert sqlite_guard.summary(run.id) == sqlite_guard.reconstruct(run.id) == run.summary()
    assert sqlite_guard.runs()[0].account == THREAD
    for command in (["summary", run.id], ["show", run.id], ["costs", "--by", "account"]):
        assert main(command) == 0
        assert THREAD in capsys.readouterr().out


def test_erasing_and_pruning_runs_give_no_money_back(sqlite_guard: Guard) -> None:
    with sqlite_guard.run("turn", **DOLLAR) as run:
        ask()
    sqlite_guard.erase(run.id)
    assert spent(sqlite_guard) == Decimal("0.3")
    assert sqlite_guard.prune(timedelta()) == [run.id]
    assert spent(sqlite_guard) == Decimal("0.3")


# --- what is refused at once ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"account": THREAD}, ValueError, "account_budget"),
        ({"account_budget": Budget(usd=1)}, ValueError, "account='thread:42'"),
        ({"account": "", "account_budget": Budget(usd=1)}, ValueError, "account must have 1 to"),
        ({"account": 42, "account_budget": Budget(usd=1)}, TypeError, "account must be a str"),
        ({"account": "a\nb", "account_budget": Budget(usd=1)}, ValueError, "account must have no control"),
        ({"account": THREAD, "account_budget": {"usd": 1}}, TypeError, "account_budget must be a Budget"),
        ({"account": THREAD, "account_budget": Budget()}, ValueError, "account_budget limits nothing"),
        ({"account": THREAD, "account_budget": Budget(seconds=9)}, ValueError, "cannot limit seconds"),
        ({"account": THREAD, "account_budget": Budget(repeats=9)}, ValueError, "cannot limit repeats"),
        ({"account": THREAD, "account_budget": Budget(usd=1, on_limit="ask")}, ValueError, "on_limit='ask'"),
    ],
)
def test_what_no_account_can_be_is_refused_and_named(
    sqlite_guard: Guard, wrong: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        sqlite_guard.run("turn", **wrong)


def test_an_account_that_no_run_was_charged_to_is_none(guard: Guard) -> None:
    assert guard.account("thread:7") is None


def test_a_decorated_function_is_charged_to_it_at_each_call(guard: Guard) -> None:
    @guard.run("turn", **DOLLAR)
    def turn() -> str:
        return ask()

    for _ in range(3):
        turn()
    with pytest.raises(BudgetExceededError):
        turn()
