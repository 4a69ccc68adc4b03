"""Rule 4 with the tenants' accounts on a real server: many processes, kill -9, and a server that goes away."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentguard import (
    Budget,
    BudgetExceededError,
    Guard,
    RunState,
    StoreUnavailableError,
    Usage,
    guarded_step,
)
from agentguard.ledgers.redis import RedisLedger
from agentguard.steps import apart
from agentguard.steps.booked import books
from tests.servers import Valkey, wait_for

TENANT = "tenant:default"
#: Seconds that a server is given for an answer, where one is made not to give any.
PATIENCE = 1.0


@guarded_step(reserve=Usage(coins=3), usage=lambda used: Usage(coins=used))
def spend(used: int) -> int:
    return used


@guarded_step(usage=Usage(coins=1))
def one() -> None: ...


def opened(url: str) -> Guard:
    return Guard.open(ledger=url, telemetry=False)


def amounts(guard: Guard) -> tuple[int, int]:
    """What is spent and what is reserved at the ledger."""
    account = guard.parts.apart.ledger.accounts([TENANT])[TENANT]
    return account.spent.get("coins", 0), account.reserved.get("coins", 0)


def agree(guard: Guard) -> None:
    """The ledger says what a fold of the whole log says."""
    parts = guard.parts
    parts.refresh()
    expected, _ = books(parts.store, parts.tenants, parts.clock.wall(), 1)
    found = parts.apart.ledger.accounts(list(expected))
    for name, account in expected.items():
        for kind in ("spent", "reserved", "calls"):
            said = [{k: v for k, v in getattr(a, kind).items() if v} for a in (found[name], account)]
            assert said[0] == said[1], (name, kind)


def process(url: str, act: Callable[[Guard], Any]) -> int:
    """Begin an act in a process of its own; gives its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        with opened(url) as guard:
            act(guard)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def guard(home: Path, redis_url: str) -> Iterator[Guard]:
    with opened(redis_url) as guard:
        yield guard


# --- many processes ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4])
def test_rule_04_processes_together_spend_exactly_the_tenants_limit(home, redis_url, tmp_path, count):
    with opened(redis_url) as guard:
        guard.set_tenant_budget("default", Budget(coins=100))
    go = tmp_path / "go"

    def agent(guard: Guard) -> None:
        wait_for(go.exists)
        while True:
            try:
                with guard.run("r"):
                    for _ in range(7):
                        one()
            except BudgetExceededError:
                return

    pids = [process(redis_url, agent) for _ in range(count)]
    go.touch()
    assert [status(pid) for pid in pids] == [0] * count
    with opened(redis_url) as guard:
        assert amounts(guard) == (100, 0)
        agree(guard)
        completed = [
            event
            for row in guard.parts.store.rows(limit=1000)
            for event in guard.history(row.run_id)
            if event.type == "step_completed"
        ]
        assert len(completed) == 100
        assert guard.verify()


def test_rule_04_forked_children_open_connections_of_their_own(home, redis_url):
    with opened(redis_url) as guard:
        guard.set_tenant_budget("default", Budget(coins=100))
        with guard.run("r"):
            one()
        parent = guard.parts.apart.ledger

        def in_child() -> int:
            pid = os.fork()
            if pid:
                return pid
            done = 1
            try:
                for _ in range(20):
                    with guard.run("child"):
                        one()
                done = 0
            finally:
                os._exit(done)

        pids = [in_child() for _ in range(2)]
        with guard.run("r"):
            for _ in range(20):
                one()
        assert [status(pid) for pid in pids] == [0, 0]
        assert guard.parts.apart.ledger is parent
        assert amounts(guard) == (61, 0)
        agree(guard)


# --- kill -9 -------------------------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def between_reservation_and_start(guard: Guard) -> None:
    reserve = apart.Apart.reserve

    def then_die(self: Any, step: Any) -> Any:
        reserve(self, step)
        die()

    apart.Apart.reserve = then_die  # type: ignore[method-assign]
    spend(2)


def inside_a_body(guard: Guard) -> None:
    @guarded_step(reserve=Usage(coins=3))
    def dies() -> None:
        die()

    dies()


def between_outcome_and_settlement(guard: Guard) -> None:
    apart.Apart.closed = lambda *_: die()  # type: ignore[method-assign]
    spend(2)


@pytest.mark.parametrize(
    ("where", "held", "comes_to"),
    [
        (between_reservation_and_start, (1, 3), (1, 0)),
        (inside_a_body, (1, 3), (4, 0)),
        (between_outcome_and_settlement, (1, 3), (3, 0)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_rule_04_what_a_killed_process_held_is_settled_by_its_log(home, redis_url, where, held, comes_to):
    def killed(guard: Guard) -> None:
        apart.LEASE = 0.05
        with guard.run("r", run_id="r"):
            spend(1)
            where(guard)

    with opened(redis_url) as guard:
        guard.set_tenant_budget("default", Budget(coins=10))
        assert status(process(redis_url, killed)) == -signal.SIGKILL
        assert amounts(guard) == held
        wait_for(guard.parts.apart.ledger.overdue)
        guard.parts.apart.reconcile()
        assert amounts(guard) == comes_to
        if where is inside_a_body:  # charged, and still in flight by the log
            assert guard.parts.apart.ledger.overdue() == []
            with guard.recover("r") as run:
                spend(1)
                run.call("dies", lambda: None, reserve=Usage(coins=3), effect="read")
        else:
            agree(guard)


def test_rule_04_killed_between_reservation_and_start_the_run_is_carried_on_at_once(home, redis_url):
    def killed(guard: Guard) -> None:
        with guard.run("r", run_id="r"):
            between_reservation_and_start(guard)

    with opened(redis_url) as guard:
        guard.set_tenant_budget("default", Budget(coins=3))
        assert status(process(redis_url, killed)) == -signal.SIGKILL
        with guard.recover("r"):
            assert spend(2) == 2
        assert amounts(guard) == (2, 0)
        agree(guard)


# --- the server goes away ------------------------------------------------------------------------


@pytest.fixture
def lonely(home: Path, own_redis: Valkey) -> Iterator[Guard]:
    """A guard whose server may be stopped."""
    with opened(f"{own_redis.url}?socket_timeout={PATIENCE}") as guard:
        guard.set_tenant_budget("default", Budget(coins=100))
        yield guard


def test_rule_04_an_outcome_is_told_when_the_server_is_back(lonely, own_redis):
    inside, go_on = threading.Event(), threading.Event()

    @guarded_step(reserve=Usage(coins=3), usage=lambda _: Usage(coins=2))
    def slow() -> str:
        inside.set()
        assert go_on.wait(20)
        return "done"

    with lonely.run("r") as run:
        spend(1)
        results: list[str] = []
        thread = threading.Thread(target=run.bind(lambda: results.append(slow())))
        thread.start()
        assert inside.wait(20)
        own_redis.stop()
        with pytest.raises(StoreUnavailableError, match=rf"127\.0\.0\.1:{own_redis.port}"):
            spend(1)
        go_on.set()
        thread.join()
        assert results == ["done"], "the agent is not harmed"
        assert [event.type for event in lonely.history(run.id)][-1] == "step_completed"
        with pytest.raises(StoreUnavailableError):
            spend(1)
        own_redis.start()
        lonely.parts.apart.beat()
        assert amounts(lonely) == (3, 0)
        spend(1)
        assert amounts(lonely) == (4, 0)
    assert run.state is RunState.COMPLETED
    agree(lonely)


def test_rule_04_a_server_that_was_emptied_grants_nothing_until_it_is_rebuilt(lonely, own_redis):
    with lonely.run("r"):
        spend(2)
        own_redis.command("FLUSHALL")
        with pytest.raises(StoreUnavailableError, match="has lost its books"):
            spend(2)
        own_redis.command("SCRIPT", "FLUSH")
        assert lonely.rebuild_ledger() == 0
        spend(1)
    assert amounts(lonely) == (3, 0)
    agree(lonely)


def test_rule_04_an_account_that_the_server_threw_away_is_noticed(lonely, own_redis):
    """As it does with a `maxmemory-policy` other than noeviction."""
    with lonely.run("r"):
        spend(2)
        own_redis.command("DEL", "{agentguard}:account:" + TENANT)
        with pytest.raises(StoreUnavailableError, match="has lost its books"):
            spend(2)
        lonely.rebuild_ledger()
        spend(1)
    assert amounts(lonely) == (3, 0)


def test_rule_04_a_server_without_memory_settles_and_grants_nothing(lonely, own_redis):
    @guarded_step(reserve=Usage(coins=3), usage=lambda _: Usage(coins=2))
    def while_it_fills() -> None:
        own_redis.command("CONFIG", "SET", "maxmemory", "1")

    with lonely.run("r"):
        while_it_fills()
        assert amounts(lonely) == (2, 0)
        with pytest.raises(StoreUnavailableError, match="maxmemory"):
            spend(1)
        own_redis.command("CONFIG", "SET", "maxmemory", "0")
        spend(1)
    assert amounts(lonely) == (3, 0)


def test_rule_04_a_server_that_may_not_be_written_or_wants_a_password_refuses_the_step(lonely, own_redis):
    with lonely.run("r"):
        spend(1)
        own_redis.command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(StoreUnavailableError, match="(?i)readonly|read only"):
            spend(1)
        own_redis.command("REPLICAOF", "NO", "ONE")
        own_redis.command("CONFIG", "SET", "requirepass", "hunter2")
        lonely.parts.apart.ledger.close()
        with pytest.raises(StoreUnavailableError, match="(?i)auth"):
            spend(1)
    wrong = RedisLedger(f"redis://:wrong@127.0.0.1:{own_redis.port}/0")
    with pytest.raises(StoreUnavailableError) as refused:
        wrong.generation()
    assert "wrong@" not in str(refused.value)
    assert f"127.0.0.1:{own_redis.port}" in str(refused.value)
    wrong.close()


def test_rule_04_a_server_that_does_not_answer_refuses_in_time(lonely, own_redis):
    with lonely.run("r"):
        spend(1)
        own_redis.send(signal.SIGSTOP)
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(StoreUnavailableError):
                spend(1)
            assert time.monotonic() - began < 5 * PATIENCE
        own_redis.send(signal.SIGCONT)
        spend(1)
    assert amounts(lonely) == (2, 0)
    agree(lonely)


def test_rule_04_while_a_server_does_not_answer_other_tasks_run(lonely, own_redis):
    @guarded_step(reserve=Usage(coins=3), usage=lambda used: Usage(coins=used))
    async def aspend(used: int) -> int:
        return used

    async def agent() -> int:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        async with lonely.run("r"):
            await aspend(1)
            own_redis.send(signal.SIGSTOP)
            task = asyncio.create_task(other())
            try:
                with pytest.raises(StoreUnavailableError):
                    await aspend(1)
            finally:
                task.cancel()
                own_redis.send(signal.SIGCONT)
            return turns

    assert asyncio.run(agent()) > 100


def test_rule_04_what_the_server_does_after_it_was_given_up_holds_nothing(lonely, own_redis):
    """It was halted: the reservation waits in its socket, and may be made after it was given back."""
    with lonely.run("r"):
        spend(1)
        ledger = lonely.parts.apart.ledger
        own_redis.send(signal.SIGSTOP)
        with pytest.raises(StoreUnavailableError):
            spend(1)
        own_redis.send(signal.SIGCONT)
        lonely.parts.apart.beat()
        assert amounts(lonely) == (1, 0)
        spend(2)
    assert amounts(lonely) == (3, 0)
    assert ledger.overdue() == []
    agree(lonely)
