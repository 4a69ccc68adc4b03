"""`Budget(on_limit="ask")`: at its limit a run pauses until an operator raises it, denies, or nobody answers."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from agentguard import (
    AgentGuardError,
    Budget,
    BudgetExceededError,
    Guard,
    InvalidStateTransitionError,
    KillSwitchTriggeredError,
    Run,
    RunState,
    Usage,
    guarded_step,
)
from agentguard.cli import main
from agentguard.monitoring import Approval
from agentguard.testing import FakeClock
from tests.kit import wait_until

ASKS = Budget(usd=1, on_limit="ask")
RAISED = Budget(usd=2, on_limit="ask")


@guarded_step(usage=Usage(usd="0.40"))
def pay(n: int) -> int:
    return n


@guarded_step(usage=Usage(usd="0.40"))
async def apay(n: int) -> int:
    return n


def agent(payments: int = 3) -> list[int]:
    return [pay(n) for n in range(payments)]


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    known = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path / 'a.db'}"}
    return known.get(request.param) or str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def guard(url: str) -> Iterator[Guard]:
    with Guard.open(url, telemetry=False) as guard:
        yield guard


@contextmanager
def running(guard: Guard, budget: Budget = ASKS, payments: int = 3) -> Iterator[Future[list[int]]]:
    """A run `r` of three payments, of which the third asks; killed if it is not answered."""

    def run() -> list[int]:
        with guard.run("billing", run_id="r", budget=budget):
            return agent(payments)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run)
        try:
            asked(guard)
            yield future
        finally:
            if not future.done():
                guard.kill(run="r", reason="the test is over")


def asked(guard: Guard) -> Approval:
    """The one step that waits."""
    wait_until(guard.approvals)
    [found] = guard.approvals()
    return found


def types(guard: Guard, run_id: str = "r") -> list[str]:
    return [event.type for event in guard.history(run_id)]


# --- one question, one answer --------------------------------------------------------------------


def test_the_run_pauses_and_says_which_step_wants_what(guard: Guard) -> None:
    with running(guard):
        found = asked(guard)
        assert (found.run_id, found.key, found.name) == ("r", "main/pay#3", "pay")
        assert found.limit is not None
        facts = {name: found.limit[name] for name in ("resource", "spent", "requested", "limit")}
        assert facts == {"resource": "usd", "spent": "0.8", "requested": "0.4", "limit": "1"}
        assert guard.summary("r").state is RunState.PAUSED


def test_a_raise_lets_the_step_go_on_and_is_on_record_with_actor_and_reason(guard: Guard) -> None:
    with running(guard) as future:
        guard.set_budget("r", RAISED, actor="ann", reason="the customer agreed")
        assert future.result(60) == [0, 1, 2]
    assert types(guard)[-6:] == [
        "run_paused", "run_budget_set", "run_resumed", "step_started", "step_completed", "run_completed",
    ]  # fmt: skip
    raised = next(event for event in guard.history("r") if event.type == "run_budget_set")
    assert (raised.data["actor"], raised.data["reason"]) == ("ann", "the customer agreed")
    assert guard.summary("r").usage.usd == Decimal("1.2")
    assert guard.verify()


def test_a_denial_stops_the_run_as_its_limit_would_have(guard: Guard) -> None:
    with running(guard) as future:
        guard.deny("r", asked(guard).key, actor="bob", reason="enough")
        with pytest.raises(BudgetExceededError) as caught:
            future.result(60)
    assert (caught.value.resource, caught.value.limit, caught.value.spent) == ("usd", 1, Decimal("0.8"))
    assert guard.summary("r").state is RunState.FAILED
    refused = next(event for event in guard.history("r") if event.type == "step_refused")
    assert (refused.data["actor"], refused.data["reason"]) == ("bob", "enough")
    assert guard.verify()


def test_an_answer_that_is_none_is_refused_and_the_question_stays(guard: Guard) -> None:
    with running(guard):
        key = asked(guard).key
        with pytest.raises(AgentGuardError, match="waits for a higher limit: raise it"):
            guard.resume("r")
        with pytest.raises(AgentGuardError, match="waits for a higher limit: raise it"):
            guard.approve("r", key)
        with pytest.raises(AgentGuardError, match="would ask again"):
            guard.set_budget("r", Budget(usd="1.19", on_limit="ask"))
        with pytest.raises(InvalidStateTransitionError):
            guard.pause("r")
        assert asked(guard).key == key
        assert "run_budget_set" not in types(guard)


def test_the_next_step_without_room_asks_anew(guard: Guard) -> None:
    with running(guard, payments=6) as future:
        guard.set_budget("r", RAISED)
        wait_until(lambda: any(found.key == "main/pay#6" for found in guard.approvals()))
        guard.set_budget("r", Budget(usd=3))
        assert future.result(60) == [*range(6)]
    assert types(guard).count("run_paused") == 2


def test_a_run_without_a_limit_that_asks_stops_at_once(guard: Guard) -> None:
    with pytest.raises(BudgetExceededError), guard.run("r", budget=Budget(usd=1)):
        agent()


# --- answered twice ------------------------------------------------------------------------------


def test_of_two_operators_at_once_one_is_told_that_it_is_answered(guard: Guard) -> None:
    with running(guard) as future:
        key = asked(guard).key
        answers: list[Callable[[], None]] = [
            lambda: guard.set_budget("r", RAISED, asked=key, actor="ann"),
            lambda: guard.set_budget("r", RAISED, asked=key, actor="eve"),
            lambda: guard.deny("r", key, actor="bob"),
        ]
        start = threading.Barrier(len(answers))

        def give(answer: Callable[[], None]) -> str | None:
            start.wait()
            try:
                answer()
            except AgentGuardError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(len(answers)) as pool:
            told = list(pool.map(give, answers))
        assert told.count(None) == 1, told
        with suppress(BudgetExceededError):
            assert future.result(60) == [0, 1, 2]
    happened = types(guard)
    assert happened.count("run_budget_set") + happened.count("step_refused") == 1
    assert len([event for event in guard.history("control") if event.type == "operator_action"]) == 1


def test_who_answers_a_limit_second_is_told_who_was_first(guard: Guard) -> None:
    with running(guard, payments=6) as future:
        first = asked(guard)
        guard.set_budget("r", RAISED, asked=first.seq, actor="ann", reason="fine")
        wait_until(lambda: any(found.key == "main/pay#6" for found in guard.approvals()))
        with pytest.raises(AgentGuardError, match=f"event {first.seq} of run r asks for no higher limit"):
            guard.set_budget("r", {"usd": 9}, asked=first.seq)
        with pytest.raises(
            AgentGuardError, match=f"the question of event {first.seq} of run r has been answered"
        ):
            guard.deny("r", "main/pay#6", asked=first.seq)
        guard.set_budget("r", {"usd": 3}, actor="eve")
        assert future.result(60) == [*range(6)]


def test_a_limit_that_was_raised_is_denied_no_more(guard: Guard) -> None:
    with guard.run("billing", run_id="r", budget=ASKS) as run, ThreadPoolExecutor(1) as pool:
        paid = pool.submit(run.bind(agent))
        key = asked(guard).key
        guard.set_budget("r", RAISED, actor="ann", reason="fine")
        assert paid.result(60) == [0, 1, 2]
        with pytest.raises(
            AgentGuardError, match=r"waits for .* a higher limit: that was answered by ann .fine."
        ):
            guard.deny("r", key)
        with pytest.raises(
            AgentGuardError, match=r"asks for no higher limit: that was answered by ann .fine."
        ):
            guard.set_budget("r", {"usd": 9}, asked=key)


def test_nobody_answers_in_time_and_who_comes_later_is_told(tmp_path: Path) -> None:
    clock = FakeClock()
    with (
        Guard.open(f"sqlite:///{tmp_path / 'a.db'}", telemetry=False, clock=clock) as guard,
        running(guard, Budget(usd=1, on_limit="ask", ask_timeout=30)) as future,
    ):
        clock.advance(29)
        assert not future.done()
        wait_until(lambda: clock.advance(1) or future.done())
        with pytest.raises(BudgetExceededError):
            future.result()
        refused = next(event for event in guard.history("r") if event.type == "step_refused")
        assert refused.data["reason"] == "nobody answered within 30 seconds"
        with pytest.raises(AgentGuardError, match="FAILED"):
            guard.set_budget("r", RAISED)
        with pytest.raises(AgentGuardError, match="waits for an approval"):
            guard.deny("r", "main/pay#3")


def test_a_kill_wins_over_the_question_and_who_answers_later_is_told(guard: Guard) -> None:
    with running(guard) as future:
        guard.kill(run="r", reason="wild")
        with pytest.raises(KillSwitchTriggeredError):
            future.result(60)
        with pytest.raises(AgentGuardError, match="KILLED"):
            guard.set_budget("r", RAISED)
        with pytest.raises(AgentGuardError):
            guard.deny("r", "main/pay#3")
    assert guard.summary("r").state is RunState.KILLED
    assert guard.approvals() == []


# --- many at once --------------------------------------------------------------------------------


def test_threads_and_other_guards_spend_no_cent_above_the_last_limit(guard: Guard) -> None:
    raises = [Budget(usd=usd, on_limit="ask") for usd in (2, 4)]

    def work(run: Run, n: int) -> int:
        paid = 0
        with suppress(BudgetExceededError), guard.attach(run.id, branch=f"w{n}"):
            for payment in range(10):
                paid += pay(payment) == payment
        return paid

    with suppress(BudgetExceededError), guard.run("billing", run_id="r", budget=ASKS) as run:
        with ThreadPoolExecutor(6) as pool:
            workers = [pool.submit(work, run, n) for n in range(6)]
            for budget in raises:
                wait_until(guard.approvals)
                guard.set_budget("r", budget)
                wait_until(lambda limit=budget.usd: guard.summary("r").usage.usd > limit - Decimal("0.4"))
            wait_until(guard.approvals)
            guard.deny("r", guard.approvals()[0].key)
            assert sum(worker.result(60) for worker in workers) == 10  # 4 dollars
    assert guard.summary("r").usage.usd == Decimal(4)
    spent = Decimal(0)
    limit = Decimal(1)
    for event in guard.history("r"):
        if event.type == "run_budget_set":
            limit = Decimal(event.data["budget"]["usd"])
        if event.spent is not None:
            spent = event.spent.usd
        assert spent <= limit
    assert guard.verify()


def test_tasks_wait_without_blocking_their_loop(guard: Guard) -> None:
    async def main() -> list[int]:
        async with guard.run("billing", run_id="r", budget=ASKS):
            paying = [asyncio.ensure_future(apay(n)) for n in range(4)]
            while not guard.approvals():
                await asyncio.sleep(0.01)
            guard.set_budget("r", RAISED)
            return await asyncio.gather(*paying)

    assert asyncio.run(main()) == [0, 1, 2, 3]


def test_a_task_that_is_cancelled_while_it_asks_takes_its_question_back(guard: Guard) -> None:
    async def main() -> list[int]:
        async with guard.run("billing", run_id="r", budget=ASKS):
            await apay(0), await apay(1)
            first = asyncio.ensure_future(apay(2))
            while not guard.approvals():
                await asyncio.sleep(0.01)
            key = guard.approvals()[0].key
            second = asyncio.ensure_future(apay(3))
            await asyncio.sleep(0)
            first.cancel()
            with suppress(asyncio.CancelledError):
                await first
            while not any(found.key != key for found in guard.approvals()):
                await asyncio.sleep(0.01)  # the next in turn asks for itself
            guard.set_budget("r", RAISED)
            return [await second]

    assert asyncio.run(main()) == [3]
    assert guard.verify()


def test_a_run_inside_asks_at_the_limit_of_the_run_around_it(guard: Guard) -> None:
    def run() -> list[int]:
        with guard.run("outer", run_id="r", budget=ASKS):
            pay(0)
            with guard.run("inner", budget=Budget(usd=50)):
                return [pay(n) for n in range(3)]

    with ThreadPoolExecutor(1) as pool:
        for answer in ("raise", "deny"):
            future = pool.submit(run)
            found = asked(guard)
            assert (found.run_id, found.name) == ("r", "pay")
            if answer == "raise":
                guard.set_budget("r", RAISED)
                assert future.result(60) == [0, 1, 2]
                assert guard.verify()
                return
            guard.deny("r", found.key)


def test_a_denial_at_the_run_around_stops_the_run_inside_too(guard: Guard) -> None:
    def run() -> None:
        with guard.run("outer", run_id="r", budget=ASKS), guard.run("inner", run_id="i"):
            agent()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run)
        guard.deny("r", asked(guard).key)
        with pytest.raises(BudgetExceededError):
            future.result(60)
    assert {guard.summary(run_id).state for run_id in ("r", "i")} == {RunState.FAILED}
    assert guard.verify()


# --- other limits --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "higher"),
    [
        ({"steps": 2}, {"steps": 3}),
        ({"tokens": 20}, {"tokens": 30}),
        ({"emails": 2}, {"emails": 3}),
        ({"calls": {"send": 2}}, {"calls": {"send": 3}}),
        ({"repeats": 3}, {"repeats": 4}),
    ],
    ids=lambda limit: next(iter(limit)),
)
def test_every_limit_but_time_asks(limit: dict[str, Any], higher: dict[str, Any]) -> None:
    @guarded_step(usage=Usage(tokens=10, emails=1))
    def send() -> str:
        return "sent"

    with Guard.in_memory(telemetry=False) as guard, ThreadPoolExecutor(1) as pool:

        def run() -> list[str]:
            with guard.run("mail", run_id="r", budget=Budget(**limit, on_limit="ask")):
                return [send() for _ in range(3)]

        future = pool.submit(run)
        asked(guard)
        guard.set_budget("r", Budget(**higher))
        assert future.result(60) == ["sent"] * 3


def test_time_does_not_ask(tmp_path: Path) -> None:
    clock = FakeClock()
    with Guard.in_memory(telemetry=False, clock=clock) as guard:
        budget = Budget(seconds=5, on_limit="ask")
        with pytest.raises(BudgetExceededError), guard.run("r", budget=budget):
            clock.advance(6)
            pay(0)


def test_an_excess_over_a_reservation_stops_the_run_at_once(guard: Guard) -> None:
    with pytest.raises(BudgetExceededError), guard.run("r", budget=ASKS) as run:
        run.call("pay", int, reserve=Usage(usd="0.5"), usage=lambda _: Usage(usd=3))


@pytest.mark.parametrize("whose", ["scope", "tenant"])
def test_a_limit_that_nobody_could_raise_does_not_ask(guard: Guard, whose: str) -> None:
    with guard.run("r") as run, pytest.raises(ValueError, match=f"a {whose}'s budget cannot have on_limit"):
        if whose == "scope":
            with run.scope("s", budget=ASKS):
                pass
        else:
            guard.set_tenant_budget("acme", ASKS)


@pytest.mark.parametrize(
    "fields", [{"on_limit": "beg"}, {"on_limit": None}, {"ask_timeout": 0}, {"ask_timeout": -1}]
)
def test_a_budget_names_what_cannot_be_right_in_it(fields: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=next(iter(fields))):
        Budget(usd=1, **fields)


# --- replay, recovery, commands ------------------------------------------------------------------


def test_a_replay_serves_the_raise_and_the_denial_that_are_on_record(guard: Guard) -> None:
    with running(guard, payments=6) as future:
        guard.set_budget("r", RAISED)
        wait_until(lambda: any(found.key == "main/pay#6" for found in guard.approvals()))
        guard.deny("r", "main/pay#6")
        with pytest.raises(BudgetExceededError):
            future.result(60)
    before = types(guard)
    with pytest.raises(BudgetExceededError) as caught, guard.replay("r") as replayed:
        for n in range(6):
            pay(n)
    assert caught.value.limit == 2
    assert replayed.spent.usd == Decimal(2)
    assert types(guard) == before


CRASHING = """
import sys
from agentguard import Budget, Guard, Usage
with Guard.open(sys.argv[1], telemetry=False) as guard:
    with guard.run("billing", run_id="r", budget=Budget(usd=1, on_limit="ask")) as run:
        for n in range(3):
            run.call("pay", int, n, usage=Usage(usd="0.40"))
"""


@pytest.mark.parametrize("answer", ["before", "after", "deny"])
def test_a_question_survives_a_crash_and_is_answered_before_or_after_the_recovery(
    url: str, guard: Guard, answer: str
) -> None:
    if url == "memory://":
        pytest.skip("it ends with its process")
    process = subprocess.Popen([sys.executable, "-c", CRASHING, url])
    wait_until(guard.approvals, 60)
    process.kill()
    process.wait()

    def recover() -> list[int]:
        with guard.recover("r", take_over=True) as run:
            return [run.call("pay", int, n, usage=Usage(usd="0.40")) for n in range(3)]

    if answer == "before":
        guard.set_budget("r", RAISED)
        assert recover() == [0, 1, 2]
    else:
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(recover)
            wait_until(lambda: "run_recovered" in types(guard))
            found = asked(guard)
            if answer == "after":
                guard.set_budget("r", RAISED, asked=found.key)
                assert future.result(60) == [0, 1, 2]
            else:
                guard.deny("r", found.key)
                with pytest.raises(BudgetExceededError):
                    future.result(60)
    assert guard.summary("r").usage.usd == Decimal("0.8" if answer == "deny" else "1.2")
    assert guard.verify()


def test_the_question_is_listed_and_answered_by_command(
    sqlite_guard: Guard, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(sqlite_guard) as future:
        assert main(["approvals", "--json"]) == 0
        [found] = json.loads(capsys.readouterr().out)
        assert (found["key"], found["limit"]["requested"]) == ("main/pay#3", "0.4")
        assert main(["approvals"]) == 0
        assert "0.4 more requested" in " ".join(capsys.readouterr().out.split())
        assert main(["set-budget", "r", "--usd", "1.1"]) == 1
        assert main(["set-budget", "r", "--usd", "2", "--asked", "main/pay#3", "--actor", "ann"]) == 0
        assert future.result(60) == [0, 1, 2]
        assert main(["set-budget", "r", "--usd", "9", "--asked", "main/pay#3"]) == 1
        assert main(["show", "r"]) == 0
    said = capsys.readouterr().out
    assert "asks for a higher limit of usd" in said
