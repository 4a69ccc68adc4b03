"""A stop cannot be swallowed: wherever it is raised, it sticks, and it leaves the run's block."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from agentguard import (
    Budget,
    BudgetExceededError,
    KillSwitchTriggeredError,
    NoActiveRunError,
    RunState,
    RunStopped,
    UnknownCostError,
    Usage,
    current_run,
    guarded_step,
)

ran: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_ran_yet():
    ran.clear()


@guarded_step
def tool(name: str = "tool") -> str:
    ran.append(name)
    return name


@guarded_step
async def async_tool(name: str = "tool") -> str:
    ran.append(name)
    await asyncio.sleep(0)
    return name


def swallowing_loop() -> None:
    for _ in range(10):
        try:
            tool()
        except Exception:
            pass


def bare_except() -> None:
    for _ in range(10):
        try:
            tool()
        except:
            pass


def retrying() -> None:
    def attempt(left: int) -> None:
        try:
            tool()
        except Exception:
            if left:
                attempt(left - 1)

    for _ in range(5):
        attempt(3)


def translating() -> None:
    for _ in range(10):
        with suppress(RuntimeError):
            try:
                tool()
            except Exception as error:
                raise RuntimeError("tool failed") from error


def in_finally() -> None:
    with suppress(Exception):
        try:
            for _ in range(10):
                tool()
        finally:
            tool("cleanup")


def through_a_generator() -> None:
    def results():
        for _ in range(10):
            with suppress(Exception):
                yield tool()

    assert len(list(results())) == 3


def through_a_pool() -> None:
    run = current_run()
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(run.bind(tool)) for _ in range(10)]
    assert sum(future.exception() is None for future in futures) == 3


def in_bare_threads_of_its_own() -> None:
    threads = [threading.Thread(target=current_run().bind(swallowing_loop)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def by_gather() -> None:
    async def agent():
        return await asyncio.gather(*(async_tool() for _ in range(10)), return_exceptions=True)

    assert sum(isinstance(result, str) for result in asyncio.run(agent())) == 3


def by_task_group() -> None:
    async def agent():
        with suppress(BaseException):
            async with asyncio.TaskGroup() as group:
                for _ in range(10):
                    group.create_task(async_tool())

    asyncio.run(agent())


def by_run_call() -> None:
    for _ in range(10):
        with suppress(Exception):
            current_run().call("lambda", lambda: ran.append("tool"))


def by_run_step() -> None:
    for _ in range(10):
        with suppress(Exception), current_run().step("block"):
            ran.append("tool")


AGENTS = [
    swallowing_loop,
    bare_except,
    retrying,
    translating,
    in_finally,
    through_a_generator,
    through_a_pool,
    in_bare_threads_of_its_own,
    by_gather,
    by_task_group,
    by_run_call,
    by_run_step,
]


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.__name__)
def test_no_agent_swallows_a_budget_stop(guard, agent):
    with pytest.raises(BudgetExceededError) as raised, guard.run("r", budget=Budget(steps=3)) as run:
        agent()
    assert raised.value is run.stop
    assert len(ran) == 3
    assert run.spent.steps == 3
    assert run.state is RunState.FAILED
    assert guard.verify(run.id)


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.__name__)
def test_no_agent_swallows_a_kill(guard, agent):
    with pytest.raises(KillSwitchTriggeredError) as raised, guard.run("r") as run:
        guard.kill(reason="before it began")
        with suppress(AssertionError):  # some count what they did
            agent()
    assert raised.value is run.stop
    assert ran == []
    assert run.state is RunState.KILLED


def test_a_stop_is_sticky(guard):
    """Every later check raises the same stop, whatever it would need."""
    free = guarded_step(lambda: ran.append("free"))
    with suppress(RunStopped), guard.run("r", budget=Budget(usd=1)) as run:
        with pytest.raises(BudgetExceededError) as first:
            run.call("dear", tool, usage=Usage(usd=2))
        for attempt in (
            free,
            tool,
            run.check,
            lambda: run.call("x", tool),
            lambda: run.scope("s").__enter__(),
            lambda: guard.run("inner").__enter__(),
            lambda: run.step("block").__enter__(),
            run.now,
            lambda: run.record("v", lambda: 1),
            lambda: asyncio.run(async_tool()),
        ):
            with pytest.raises(BudgetExceededError) as later:
                attempt()
            assert later.value is first.value
    assert ran == []


def test_one_refusal_is_logged_however_often_it_is_met(guard):
    with suppress(RunStopped), guard.run("r", budget=Budget(steps=1)) as run:
        swallowing_loop()
    types = [event.type for event in guard.history(run.id)]
    assert types.count("step_refused") == 1
    assert types[-2:] == ["step_refused", "run_failed"]


def test_the_stop_in_a_guarded_generator(guard):
    @guarded_step
    def items():
        for n in range(10):
            tool(f"item {n}")
            yield n

    with pytest.raises(BudgetExceededError), guard.run("r", budget=Budget(steps=4)):
        seen = []
        with suppress(Exception):
            seen.extend(items())
    assert len(ran) == 3


def test_the_stop_in_a_nested_scope_is_caught_there(guard):
    with guard.run("r") as run:
        with pytest.raises(BudgetExceededError) as raised, run.scope("a", Budget(steps=2)):
            with run.scope("b"):
                swallowing_loop()
        assert raised.value.scope == "a"
        assert tool("after") == "after"
    assert run.state is RunState.COMPLETED
    assert ran == ["tool", "tool", "after"]


def test_the_stop_of_a_scope_fails_the_run_only_if_it_leaves_the_run(guard):
    with pytest.raises(BudgetExceededError), guard.run("r") as run, run.scope("a", Budget(steps=1)):
        swallowing_loop()
    assert run.state is RunState.FAILED
    assert run.stop.scope == "a"


def test_the_stop_of_an_outer_run_in_an_inner_one(guard):
    with pytest.raises(BudgetExceededError), guard.run("outer", budget=Budget(steps=3)) as outer:
        with suppress(Exception), guard.run("inner") as inner:
            swallowing_loop()
        tool("never")
    assert inner.state is RunState.FAILED
    assert outer.state is RunState.FAILED
    assert ran == ["tool"] * 3


def test_a_bare_thread_is_told_what_to_do(guard):
    told = []

    def work() -> None:
        try:
            tool()
        except NoActiveRunError as error:
            told.append(str(error))

    with guard.run("r"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert "run.bind" in told[0]


@pytest.mark.parametrize("base", [RuntimeError, ValueError, NotImplementedError, TypeError, OSError])
def test_a_stop_is_an_exception_of_its_own_kind(base):
    for stop in (RunStopped, BudgetExceededError, KillSwitchTriggeredError, UnknownCostError):
        assert issubclass(stop, Exception)
        assert not issubclass(stop, base)


def test_an_llm_step_without_a_price_is_a_stop(guard):
    ask = guarded_step(kind="llm")(lambda: ran.append("asked"))
    with pytest.raises(UnknownCostError) as raised, guard.run("r", budget=Budget(usd=1)) as run:
        with suppress(Exception):
            ask()
        swallowing_loop()
    assert raised.value.resources == ("usd",)
    assert raised.value.run_id == run.id
    assert ran == []
    assert run.state is RunState.FAILED


def test_a_stop_raised_from_a_framework_callback(guard):
    """An error hook that runs steps of its own meets the stop as well, and nothing loops."""

    def framework(action, on_error):
        try:
            return action()
        except Exception as error:
            return on_error(error)

    def on_error(error):
        return framework(tool, lambda error: "gave up")

    with pytest.raises(BudgetExceededError), guard.run("r", budget=Budget(steps=2)):
        results = [framework(tool, on_error) for _ in range(5)]
        assert results == ["tool", "tool", "gave up", "gave up", "gave up"]
