"""A swallowed stop does not spin: a program that swallows its stop and calls again is slowed down, then cancelled."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import pytest

from agentguard import (
    Budget,
    BudgetExceededError,
    KillSwitchTriggeredError,
    RunStopped,
    StoreUnavailableError,
    current_run,
    guarded_step,
)
from agentguard.steps import spinning
from agentguard.steps.exit_rule import StopSwallowedError

#: More than any place here is refused before it is cancelled; a loop that comes so far was not.
FAR = 10 * spinning.LAST


@guarded_step
def tool() -> str:
    return "done"


@guarded_step
async def async_tool() -> str:
    return "done"


@guarded_step(key="mine")
def keyed() -> str:
    return "done"


def open_scope() -> None:
    with current_run().scope("inner"):
        pass


def open_run(guard) -> None:
    with guard.run("inner"):
        pass


PLACES = {
    "a step": lambda guard: tool(),
    "a step with a key": lambda guard: keyed(),
    "a check": lambda guard: current_run().check(),
    "a scope": lambda guard: open_scope(),
    "a recorded value": lambda guard: current_run().now(),
    "a nested run": open_run,
}


def spin(call, *args) -> None:
    """Retry for ever what raises an Exception, as a bare `@retry` does."""
    for _ in range(FAR):
        with suppress(Exception):
            call(*args)


@pytest.mark.parametrize("place", PLACES)
def test_a_sync_loop_that_swallows_the_kill_ends(guard, place):
    with pytest.raises(KillSwitchTriggeredError) as raised, guard.run("r") as run:
        guard.kill(run=run.id, reason="stop")
        spin(PLACES[place], guard)
        pytest.fail("the loop was never cancelled")
    assert isinstance(raised.value.__cause__, StopSwallowedError)


def test_each_delay_is_longer_than_the_one_before_up_to_the_longest(guard, monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(spinning, "time", SimpleNamespace(sleep=slept.append))
    with pytest.raises(KillSwitchTriggeredError), guard.run("r") as run:
        guard.kill(run=run.id, reason="stop")
        for _ in range(spinning.LAST + 10):
            with suppress(RunStopped, StopSwallowedError):
                tool()
    assert len(slept) == 11 + spinning.LAST - spinning.PATIENCE
    assert slept == sorted(slept)
    assert slept[0] < slept[-1] == 0.1


def test_fewer_refusals_than_the_patience_cost_nothing_and_raise_the_stop(guard, monkeypatch):
    monkeypatch.setattr(spinning, "time", SimpleNamespace(sleep=lambda _: pytest.fail("slowed down")))
    with pytest.raises(KillSwitchTriggeredError), guard.run("r") as run:
        guard.kill(run=run.id, reason="stop")
        for _ in range(spinning.PATIENCE - 1):
            with pytest.raises(KillSwitchTriggeredError):
                tool()


def test_a_run_that_is_not_stopped_is_never_slowed(guard, monkeypatch):
    monkeypatch.setattr(spinning, "time", SimpleNamespace(sleep=lambda _: pytest.fail("slowed down")))

    @guarded_step
    def fails() -> None:
        raise OSError("again")

    with guard.run("r") as run:
        for _ in range(3 * spinning.LAST):
            with suppress(OSError):
                fails()
            tool()
        assert run.live_run.stops.refusals == {}


def test_a_scope_that_refuses_among_calls_that_succeed_is_never_slowed(guard, monkeypatch):
    monkeypatch.setattr(spinning, "time", SimpleNamespace(sleep=lambda _: pytest.fail("slowed down")))
    with guard.run("r") as run:
        with suppress(BudgetExceededError), run.scope("s", budget=Budget(steps=0)):
            refuse = run.bind(tool)
            tool()
        for _ in range(2 * spinning.LAST):
            with pytest.raises(BudgetExceededError):
                refuse()
            tool()


def test_a_loop_inside_a_stopped_scope_ends_and_the_run_goes_on(guard):
    with guard.run("r") as run:
        with pytest.raises(BudgetExceededError), run.scope("s", budget=Budget(steps=1)):
            spin(tool)
            pytest.fail("the loop was never cancelled")
        assert tool() == "done"
    assert run.state == "COMPLETED"


def test_an_async_loop_ends_while_its_neighbour_goes_on(guard):
    async def neighbour(turns: list[int]) -> None:
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    async def spinner() -> None:
        for _ in range(FAR):
            with suppress(Exception):
                await async_tool()
        pytest.fail("the loop was never cancelled")

    async def main() -> None:
        turns: list[int] = []
        beside = asyncio.create_task(neighbour(turns))
        try:
            async with guard.run("r") as run:
                guard.kill(run=run.id, reason="stop")
                before = len(turns)
                try:
                    await spinner()
                finally:
                    assert len(turns) - before >= spinning.LAST - spinning.PATIENCE
        finally:
            beside.cancel()

    with pytest.raises(KillSwitchTriggeredError):
        asyncio.run(main())


def test_a_task_that_swallows_the_kill_is_cancelled(guard):
    async def spinner() -> None:
        for _ in range(FAR):
            with suppress(Exception):
                await async_tool()

    async def main() -> None:
        async with guard.run("r") as run:
            task = asyncio.create_task(spinner())
            guard.kill(run=run.id, reason="stop")
            await asyncio.wait({task})
            assert task.cancelled()

    with pytest.raises(KillSwitchTriggeredError):
        asyncio.run(main())


def test_sync_code_in_an_event_loop_is_cancelled_and_not_put_to_sleep_for_long(guard, monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(spinning, "time", SimpleNamespace(sleep=slept.append))

    async def main() -> None:
        async with guard.run("r") as run:
            guard.kill(run=run.id, reason="stop")
            spin(tool)
            pytest.fail("the loop was never cancelled")

    with pytest.raises(KillSwitchTriggeredError):
        asyncio.run(main())
    assert max(slept) <= 0.001


def test_an_async_body_that_swallows_both_its_cancellation_and_its_stop_ends_as_the_stop(guard):
    @guarded_step
    async def body() -> None:
        guard.kill(run=current_run().id, reason="stop")
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        for _ in range(FAR):
            with suppress(Exception):
                await async_tool()
        pytest.fail("the loop was never cancelled")

    async def main() -> None:
        async with guard.run("r"):
            with pytest.raises(KillSwitchTriggeredError):
                await body()

    with pytest.raises(KillSwitchTriggeredError):
        asyncio.run(main())


def test_each_thread_that_spins_ends(guard):
    ended: list[BaseException] = []

    def worker() -> None:
        try:
            spin(tool)
        except StopSwallowedError as error:
            ended.append(error)

    with pytest.raises(KillSwitchTriggeredError), guard.run("r") as run:
        threads = [threading.Thread(target=run.bind(worker)) for _ in range(3)]
        guard.kill(run=run.id, reason="stop")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(ended) == 3


def test_threads_in_copies_of_one_context_meet_the_stop_itself(guard):
    met: list[type[BaseException]] = []

    def work() -> None:
        try:
            tool()
        except BaseException as error:
            met.append(type(error))

    with pytest.raises(KillSwitchTriggeredError), guard.run("threads") as run:
        guard.kill(reason="enough", run=run.id)
        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(work,))
            for _ in range(3 * spinning.LAST)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(met) == {KillSwitchTriggeredError}
    assert len(met) == len(threads)


def test_a_wide_fan_out_meets_the_stop_itself_in_each_branch(guard):
    calls = 3 * spinning.LAST

    async def main() -> None:
        async with guard.run("r", budget=Budget(steps=0)):
            got = await asyncio.gather(*(async_tool() for _ in range(calls)), return_exceptions=True)
            assert [type(error) for error in got] == [BudgetExceededError] * calls

    with pytest.raises(BudgetExceededError):
        asyncio.run(main())


async def in_a_task_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(async_tool())


async def in_a_task_that_calls() -> None:
    async def call() -> str:
        return await async_tool()

    await asyncio.create_task(call())


async def in_a_gather() -> None:
    await asyncio.gather(async_tool(), async_tool())


@pytest.mark.parametrize("attempt", [in_a_task_group, in_a_task_that_calls, in_a_gather])
def test_a_loop_that_makes_a_task_for_each_try_ends(guard, attempt):
    tries = 0

    async def agent() -> None:
        nonlocal tries
        while tries < 4 * spinning.BRANCHES:
            tries += 1
            try:
                await attempt()
                break
            except Exception:
                continue

    with suppress(RunStopped), guard.run("r") as run:
        run.kill("stop")
        asyncio.run(agent())
    assert 1 < tries < 2 * spinning.BRANCHES


def test_a_loop_that_binds_a_job_for_each_try_ends(guard):
    tries = 0
    with suppress(RunStopped), guard.run("r") as run, ThreadPoolExecutor(1) as pool:
        run.kill("stop")
        while tries < 4 * spinning.BRANCHES:
            tries += 1
            with suppress(Exception):
                pool.submit(run.bind(tool)).result()
    assert 1 < tries < 2 * spinning.BRANCHES


def test_it_is_told_once_in_the_program_s_log_and_on_the_stop(guard, caplog):
    with caplog.at_level(logging.WARNING, "agentguard"), suppress(RunStopped), guard.run("r") as run:
        guard.kill(run=run.id, reason="stop")
        with suppress(StopSwallowedError):
            spin(tool)
        with suppress(StopSwallowedError):
            spin(tool)
    told = [record for record in caplog.records if "in a row" in record.getMessage()]
    assert len(told) == 1
    assert run.id in told[0].getMessage()
    assert sum("in a row" in note for note in run.stop.__notes__) == 1
    assert guard.summary(run.id).state == "KILLED"


# --- on record -----------------------------------------------------------------------------------


def told(guard, run_id) -> list[dict]:
    return [event.data for event in guard.history(run_id) if event.type == "stop_swallowed"]


SLOWED_AND_CANCELLED = [
    {"branch": "main", "refusals": spinning.PATIENCE, "action": "slowed"},
    {"branch": "main", "refusals": spinning.LAST, "action": "cancelled"},
]


@pytest.mark.parametrize("place", PLACES)
def test_that_it_was_slowed_and_cancelled_is_on_record_after_the_run_s_end(guard, place):
    with suppress(RunStopped), guard.run("r") as run:
        guard.kill(run=run.id, reason="stop")
        spin(PLACES[place], guard)
    assert told(guard, run.id) == SLOWED_AND_CANCELLED
    types = [event.type for event in guard.history(run.id)]
    assert types.index("run_killed") < types.index("stop_swallowed")
    assert guard.verify(run.id)
    assert guard.summary(run.id).head.seq == len(types)


def test_an_async_loop_that_swallows_its_stop_is_on_record(guard):
    async def main() -> None:
        async with guard.run("r", run_id="r"):
            guard.kill(run="r", reason="stop")
            for _ in range(FAR):
                with suppress(Exception):
                    await async_tool()

    with suppress(RunStopped):
        asyncio.run(main())
    assert told(guard, "r") == SLOWED_AND_CANCELLED
    assert guard.verify("r")


@guarded_step
def items():
    yield 1


PROGRAMS = {
    "a step": lambda: tool(),
    "a generator": lambda: list(items()),
    "a check": lambda: current_run().check(),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_loop_inside_a_stopped_scope_is_on_record_and_its_replay_ends_in_the_same_place(guard, program):
    """What is put on record meanwhile is no progress of the program, and no part of what is replayed."""

    def agent() -> int:
        tries = 0
        with suppress(BudgetExceededError), current_run().scope("s", budget=Budget(steps=0)):
            with suppress(BudgetExceededError):
                tool()
            while tries < FAR:
                tries += 1
                with suppress(Exception):
                    PROGRAMS[program]()
            pytest.fail("the loop was never cancelled")
        current_run().call("after", str)
        return tries

    with guard.run("r") as run:
        tries = agent()
    assert [data["action"] for data in told(guard, run.id)] == ["slowed", "cancelled"]
    assert guard.verify(run.id)
    events = len(guard.history(run.id))
    with guard.replay(run.id):
        assert agent() == tries
    assert len(guard.history(run.id)) == events, "a replay writes nothing"


def test_the_replay_of_a_loop_that_swallowed_its_kill_ends_too(guard):
    tries = []

    def agent(kill: bool) -> None:
        tool()
        if kill:
            current_run().kill("stop")
        tries.append(0)
        while tries[-1] < FAR:
            tries[-1] += 1
            with suppress(Exception):
                tool()
        pytest.fail("the loop was never cancelled")

    with pytest.raises(KillSwitchTriggeredError), guard.run("r") as run:
        agent(True)
    with pytest.raises(KillSwitchTriggeredError), guard.replay(run.id):
        agent(False)
    assert tries[0] == tries[1] < FAR


def test_the_replay_of_an_async_loop_that_swallowed_its_kill_ends_too(guard):
    tries = []

    async def agent(kill: bool) -> None:
        await async_tool()
        if kill:
            current_run().kill("stop")
        tries.append(0)
        while tries[-1] < FAR:
            tries[-1] += 1
            with suppress(Exception):
                await async_tool()
        pytest.fail("the loop was never cancelled")

    async def main(kill: bool) -> None:
        async with guard.run("r", run_id="r") if kill else guard.replay("r"):
            await agent(kill)

    for kill in (True, False):
        with pytest.raises(KillSwitchTriggeredError):
            asyncio.run(main(kill))
    assert tries[0] == tries[1] < FAR


def test_of_many_branches_that_spin_some_are_on_record(guard, monkeypatch):
    monkeypatch.setattr(spinning, "time", SimpleNamespace(sleep=lambda _: None))
    with suppress(RunStopped), guard.run("r") as run, ThreadPoolExecutor(8) as pool:
        guard.kill(run=run.id, reason="stop")
        for job in [pool.submit(run.bind(spin), tool) for _ in range(100)]:
            assert isinstance(job.exception(), StopSwallowedError)
    assert 0 < len(told(guard, run.id)) <= 40


def test_a_store_that_takes_nothing_saves_no_loop_from_its_end(guard):
    with suppress(RunStopped, StoreUnavailableError), guard.run("r") as run:
        guard.kill(run=run.id, reason="stop")
        guard.components.store.close()
        with pytest.raises(StopSwallowedError):
            spin(tool)
