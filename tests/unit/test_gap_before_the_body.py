"""The gap before the body: the stop is read again after every wait and immediately before the body."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

import pytest

from agentguard import (
    Budget,
    BudgetExceededError,
    Guard,
    KillSwitchTriggeredError,
    RunState,
    RunStopped,
    Usage,
    guarded_step,
)

#: Half of it is near the limit: admitting a body tells `on_warning`, which is the gap before the body.
LIMITS = Budget(usd=1, warn_at=0.5)


def failed_before_the_body(guard: Guard, run_id: str) -> dict:
    outcome = [e for e in guard.history(run_id) if e.type == "step_failed"][0]
    assert outcome.usage is None
    return outcome.data


@guarded_step(usage=Usage(usd="0.5"))
def body() -> None:
    pytest.fail("the body ran")


@guarded_step(usage=Usage(usd="0.5"))
async def async_body() -> None:
    pytest.fail("the body ran")


@guarded_step(usage=Usage(usd="0.5"))
def items():
    pytest.fail("the body ran")
    yield


@guarded_step(usage=Usage(usd="0.5"))
async def async_items():
    pytest.fail("the body ran")
    yield


async def first_of(agen):
    return await agen.__anext__()


CALLS = {
    "function": body,
    "coroutine": lambda: asyncio.run(async_body()),
    "generator": lambda: next(items()),
    "async generator": lambda: asyncio.run(first_of(async_items())),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_stop_between_step_started_and_the_body(guard, call):
    """The body never runs, the outcome says so, and everything is given back."""

    def kill(warning: dict) -> None:
        guard.kill(reason="in the gap")

    with pytest.raises(KillSwitchTriggeredError), guard.run("r", budget=LIMITS, on_warning=kill) as run:
        call()
    assert [e.type for e in guard.history(run.id)][2:5] == ["step_started", "budget_warning", "run_killed"]
    data = failed_before_the_body(guard, run.id)
    assert data["body_ran"] is False
    assert data["error"]["type"] == "KillSwitchTriggeredError"
    assert run.spent == Usage()
    assert run.remaining.usd == 1
    assert run.summary().steps == 0
    assert guard.reconstruct(run.id) == guard.summary(run.id)


def test_released_at_every_level(guard):
    guard.set_tenant_budget("acme", Budget(usd=1))
    kill = lambda _: guard.kill(reason="in the gap")  # noqa: E731
    with suppress(RunStopped), guard.run("outer", tenant="acme", budget=Budget(usd=1)) as outer:
        with guard.run("inner", budget=LIMITS, on_warning=kill) as inner, inner.scope("s"):
            body()
    accounts = guard.components.store.accounts(["tenant:acme", f"run:{outer.id}"])
    assert len(accounts) == 2
    for account in accounts.values():
        assert account.reserved == {"nano_usd": 0, "steps": 0}
        assert not any(account.spent.values())


@pytest.mark.parametrize("where", ["run", "scope"])
def test_a_refusal_of_another_step_takes_nothing_back(guard, where):
    """What was admitted within the limits runs, so that a budget of 100 is 100 under any interleaving."""
    ran = []
    dear = guarded_step(usage=Usage(usd=9))(lambda: None)
    admitted = guarded_step(usage=Usage(usd="0.5"))(lambda: ran.append(1))

    def meet_the_limit(warning: dict) -> None:
        with suppress(BudgetExceededError):
            dear()

    budget = LIMITS if where == "run" else None
    with suppress(BudgetExceededError), guard.run("r", budget=budget, on_warning=meet_the_limit) as run:
        with suppress(BudgetExceededError), run.scope("s", LIMITS):
            run.bind(admitted)()
    assert ran == [1]
    assert run.spent == Usage(usd="0.5") + Usage.from_amounts({"steps": 1})


def test_a_kill_after_a_refusal_in_the_gap(guard):
    """The run is stopped by its budget already; that does not let a body past the kill."""
    dear = guarded_step(usage=Usage(usd=9))(lambda: None)

    def meet_the_limit_then_kill(warning: dict) -> None:
        with suppress(BudgetExceededError):
            dear()
        guard.kill(reason="and then")

    with pytest.raises(BudgetExceededError):
        with guard.run("r", budget=LIMITS, on_warning=meet_the_limit_then_kill) as run:
            body()
    assert failed_before_the_body(guard, run.id)["body_ran"] is False
    assert run.state is RunState.FAILED


def test_the_stop_is_read_after_a_pause(guard, eventually):
    """A step that waited out a pause is not let through by what it read before."""
    with pytest.raises(KillSwitchTriggeredError), guard.run("r") as run:
        run.pause("wait")
        ended = []

        def work() -> None:
            try:
                body()
            except Exception as error:
                ended.append(error)

        thread = threading.Thread(target=run.bind(work))
        thread.start()
        assert not ended
        guard.kill(run=run.id, reason="while it waited")
        thread.join(60)
        assert isinstance(ended[0], KillSwitchTriggeredError)
    assert [e.type for e in guard.history(run.id)].count("step_started") == 0


def test_no_further_body_starts_after_a_kill(guard):
    """64 threads hammer away; once `kill` has returned, no body begins."""
    killed = threading.Event()
    late = []
    running = threading.Semaphore(0)

    @guarded_step
    def busy() -> None:
        if killed.is_set():
            late.append(1)
        running.release()

    def work() -> None:
        with suppress(RunStopped):
            while True:
                busy()

    with suppress(RunStopped), guard.run("r") as run:
        threads = [threading.Thread(target=run.bind(work)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for _ in range(200):
            running.acquire()
        guard.kill(reason="now")
        killed.set()
        for thread in threads:
            thread.join(60)
    assert len(late) <= 16  # a body that had begun may see the flag, once for each thread
    started = sum(e.type == "step_started" for e in guard.history(run.id))
    assert started == run.spent.steps + sum(
        e.data.get("body_ran") is False for e in guard.history(run.id) if e.type == "step_failed"
    )
    assert guard.verify(run.id)
