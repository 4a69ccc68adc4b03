"""Cancellation: what a stop cancels, whose cancellation it is, and what stays the caller's own."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from contextlib import nullcontext, suppress
from functools import partial

import pytest

from agentguard import (
    Budget,
    BudgetExceededError,
    Guard,
    KillSwitchTriggeredError,
    RunState,
    RunStopped,
    Usage,
    current_run,
    guarded_step,
)
from agentguard.testing import FakeClock


@guarded_step
async def sleeper(entered: asyncio.Event | None = None) -> None:
    if entered is not None:
        entered.set()
    await asyncio.Event().wait()


@guarded_step
async def quick() -> str:
    await asyncio.sleep(0)
    return "done"


def outcome_of(guard: Guard, run_id: str, name: str) -> dict:
    """The data of the last outcome of a step."""
    events = [
        e for e in guard.history(run_id) if e.name == name and e.type in ("step_completed", "step_failed")
    ]
    return {"type": events[-1].type, **events[-1].data, "usage": events[-1].usage}


def kill_in_flight(guard: Guard, agent, **run_options) -> KillSwitchTriggeredError:
    """Run `agent(entered)` as a task, kill everything once it has entered, and give what came out."""

    async def main() -> None:
        entered = asyncio.Event()
        task = asyncio.create_task(agent(entered))
        await entered.wait()
        guard.kill(reason="test")
        async with asyncio.timeout(60):  # what no kill reaches fails, and does not hang
            await task

    with pytest.raises(KillSwitchTriggeredError) as raised, guard.run("r", **run_options):
        asyncio.run(main())
    assert not isinstance(raised.value.__cause__, TimeoutError), "the kill did not reach the body"
    return raised.value


def test_a_kill_cancels_the_body(guard):
    ended = []

    @guarded_step
    async def body(entered):
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    stop = kill_in_flight(guard, body)
    assert ended == ["cancelled"]
    assert outcome_of(guard, stop.run_id, "body")["error"]["type"] == "KillSwitchTriggeredError"
    assert guard.summary(stop.run_id).state is RunState.KILLED


def test_a_kill_from_another_thread_cancels_the_body(guard):
    async def main() -> None:
        entered = asyncio.Event()
        task = asyncio.create_task(sleeper(entered))
        await entered.wait()
        killer = threading.Thread(target=guard.kill, kwargs={"reason": "thread"})
        killer.start()
        try:
            await task
        finally:
            killer.join()

    with pytest.raises(KillSwitchTriggeredError), guard.run("r"):
        asyncio.run(main())


def test_every_body_in_flight_is_cancelled(guard):
    async def main() -> list[object]:
        events = [asyncio.Event() for _ in range(16)]
        tasks = [asyncio.create_task(sleeper(event)) for event in events]
        for event in events:
            await event.wait()
        guard.kill(reason="all")
        return await asyncio.gather(*tasks, return_exceptions=True)

    with pytest.raises(KillSwitchTriggeredError), guard.run("r") as run:
        ends = asyncio.run(main())
        assert len(ends) == 16
        assert all(end is run.stop for end in ends)


@pytest.mark.parametrize("level", ["run", "scope", "outer run", "tenant"])
def test_a_refusal_leaves_in_flight_what_has_its_reservation(guard, level):
    """As in sync code, where nothing could cut it off."""
    finished = []

    @guarded_step(usage=Usage(emails=1))
    async def send(n: int, refused: asyncio.Event) -> int:
        await refused.wait()
        finished.append(n)
        return n

    async def main() -> list[object]:
        refused = asyncio.Event()
        with suppress(BudgetExceededError), scope():
            sent = [asyncio.create_task(send(n, refused)) for n in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(BudgetExceededError):
                await send(3, refused)
        refused.set()
        return await asyncio.gather(*sent)

    budget = Budget(emails=3)
    if level == "tenant":
        guard.set_tenant_budget("acme", budget)
    limited = {"budget": budget} if level in {"run", "outer run"} else {}
    with suppress(BudgetExceededError), guard.run("r", tenant="acme", **limited) as run:
        with guard.run("inner", tenant="acme") if level == "outer run" else nullcontext(run) as inner:
            scope = partial(inner.scope, "s", budget) if level == "scope" else nullcontext
            assert asyncio.run(main()) == [0, 1, 2]
    assert finished == [0, 1, 2]
    assert run.spent["emails"] == 3
    assert run.summary().open_steps == ()


def test_a_kill_after_a_refusal_cancels_what_went_on(guard):
    async def main() -> list[object]:
        entered = asyncio.Event()
        other = asyncio.create_task(sleeper(entered))
        await entered.wait()
        with pytest.raises(BudgetExceededError):
            await quick()
        guard.kill(run=run.id, reason="stop")
        return await asyncio.gather(other, return_exceptions=True)

    with pytest.raises(BudgetExceededError), guard.run("r", budget=Budget(steps=1)) as run:
        [end] = asyncio.run(main())
        assert isinstance(end, KillSwitchTriggeredError)


def test_a_scopes_deadline_cancels_inside_it_alone():
    clock = FakeClock()

    async def main(run) -> None:
        outside_entered, inside_entered, finish = asyncio.Event(), asyncio.Event(), asyncio.Event()

        @guarded_step
        async def outside() -> str:
            outside_entered.set()
            await finish.wait()
            return "unharmed"

        other = asyncio.create_task(outside())
        await outside_entered.wait()
        with pytest.raises(BudgetExceededError) as raised, run.scope("s", Budget(seconds=0.2)):
            inside = asyncio.create_task(sleeper(inside_entered))
            await inside_entered.wait()
            clock.advance(0.2)
            with pytest.raises(BudgetExceededError):
                await inside
        assert raised.value.scope == "s"
        finish.set()
        assert await other == "unharmed"

    with Guard.in_memory(telemetry=False, clock=clock) as guard, guard.run("r") as run:
        asyncio.run(main(run))
    assert run.state is RunState.COMPLETED


def test_the_outermost_body_turns_the_cancellation_into_the_stop(guard):
    """So code between two bodies cannot swallow it with `except Exception` and go on for ever."""
    went_on = []

    @guarded_step
    async def inner(entered):
        entered.set()
        await asyncio.Event().wait()

    @guarded_step
    async def agent(entered):
        with suppress(Exception):
            await inner(entered)
        went_on.append(True)
        await asyncio.Event().wait()

    for _ in range(8):
        with Guard.in_memory(telemetry=False) as fresh:
            kill_in_flight(fresh, agent)
    assert not went_on


def test_nested_runs_in_one_task_are_cancelled_once(guard):
    cancellations = []

    @guarded_step
    async def inner(entered):
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancellations.append(asyncio.current_task().cancelling())
            raise

    @guarded_step
    async def agent(entered):
        with guard.run("child"):
            await inner(entered)

    kill_in_flight(guard, agent)
    assert cancellations == [1]


def test_the_count_is_as_it_was(guard):
    """After the conversion the task is not cancelled any more, so its cleanup can await."""
    counts = []

    @guarded_step
    async def body(entered):
        entered.set()
        await asyncio.Event().wait()

    async def agent(entered):
        try:
            await body(entered)
        finally:
            counts.append(asyncio.current_task().cancelling())
            await asyncio.sleep(0)
            counts.append("cleaned up")

    kill_in_flight(guard, agent)
    assert counts == [0, "cleaned up"]


def test_a_body_that_returns_first_is_completed(guard):
    """A stop that finds the body over leaves its outcome alone, and does not cancel what follows."""

    @guarded_step
    async def kills_and_returns():
        guard.kill(reason="by the body itself")
        return "result"

    async def main() -> None:
        assert await kills_and_returns() == "result"
        await asyncio.sleep(0)  # a cancellation left over would show here

    with pytest.raises(KillSwitchTriggeredError), guard.run("r") as run:
        asyncio.run(main())
    assert outcome_of(guard, run.id, "kills_and_returns")["type"] == "step_completed"


def test_a_body_that_swallows_the_cancellation_is_completed(guard):
    @guarded_step
    async def stubborn(entered):
        entered.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "all the same"

    async def agent(entered):
        assert await stubborn(entered) == "all the same"
        await asyncio.sleep(0)

    stop = kill_in_flight(guard, agent)
    assert outcome_of(guard, stop.run_id, "stubborn")["type"] == "step_completed"


async def as_function(body) -> None:
    await guarded_step(name="body")(body)()


async def as_generator(body) -> None:
    @guarded_step(name="body")
    async def items():
        yield await body()

    async for _ in items():
        pass


async def as_block(body) -> None:
    async with current_run().step("body"):
        await body()


KINDS = pytest.mark.parametrize("kind", [as_function, as_generator, as_block])


@KINDS
@pytest.mark.parametrize("elsewhere", [False, True], ids=["in the loop", "in a thread"])
def test_all_bodies_of_a_process_end_before_any_of_their_steps_is_settled(guard, kind, elsewhere):
    """Nested runs too: a kill reaches what runs first, and the books after."""
    waiting, run_ids, settled_before = asyncio.Semaphore(0), [], []

    async def body() -> None:
        waiting.release()
        try:
            await asyncio.Event().wait()
        finally:
            settled_before.append([i for i in run_ids if guard.summary(i).open_steps == ()])

    async def agent(depth: int) -> None:
        with suppress(RunStopped):
            async with guard.run("r") as run:
                run_ids.append(run.id)
                async with asyncio.TaskGroup() as group:
                    group.create_task(kind(body))
                    if depth:
                        group.create_task(agent(depth - 1))

    async def main() -> None:
        tasks = [asyncio.create_task(agent(depth=1)) for _ in range(8)]
        async with asyncio.timeout(60):
            for _ in range(16):
                await waiting.acquire()
            if elsewhere:
                await asyncio.to_thread(guard.kill, reason="all")
            else:
                guard.kill(reason="all")
            await asyncio.gather(*tasks)

    asyncio.run(main())
    assert settled_before == [[]] * 16
    assert {guard.summary(run_id).state for run_id in run_ids} == {RunState.KILLED}
    assert {outcome_of(guard, run_id, "body")["error"]["type"] for run_id in run_ids} == {
        "KillSwitchTriggeredError"
    }


# --- the caller's own cancellation -----------------------------------------------------------------


def test_a_task_cancelled_by_others_stays_cancelled(guard):
    async def main() -> None:
        entered = asyncio.Event()
        task = asyncio.create_task(sleeper(entered))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    with guard.run("r") as run:
        asyncio.run(main())
    assert run.state is RunState.COMPLETED
    outcome = outcome_of(guard, run.id, "sleeper")
    assert (outcome["type"], outcome["outcome"]) == ("step_failed", "cancelled")


def test_a_cancelled_step_is_charged_its_reservation(guard):
    @guarded_step(usage=Usage(usd="0.25"))
    async def pay(entered):
        entered.set()
        await asyncio.Event().wait()

    async def main() -> None:
        entered = asyncio.Event()
        task = asyncio.create_task(pay(entered))
        await entered.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with guard.run("r", budget=Budget(usd=1)) as run:
        asyncio.run(main())
    assert run.spent == Usage(usd="0.25") + Usage.from_amounts({"steps": 1})


def test_both_want_it_cancelled(guard):
    """Then the caller's cancellation passes, the outcome is `cancelled`, and the stop is recorded."""

    async def main() -> None:
        entered = asyncio.Event()
        task = asyncio.create_task(sleeper(entered))
        await entered.wait()
        guard.kill(reason="at the same time")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    with pytest.raises(KillSwitchTriggeredError), guard.run("r") as run:
        asyncio.run(main())
    assert outcome_of(guard, run.id, "sleeper")["outcome"] == "cancelled"
    assert run.state is RunState.KILLED


@KINDS
def test_the_callers_cancellation_passes_when_it_comes_as_a_stopped_body_ends(guard, kind):
    async def body() -> None:
        task = asyncio.current_task()
        try:
            asyncio.get_running_loop().call_soon(partial(guard.kill, reason="now"))
            await asyncio.Event().wait()
        finally:
            asyncio.get_running_loop().call_soon(task.cancel)

    async def main() -> None:
        task = asyncio.create_task(kind(body))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    with pytest.raises(KillSwitchTriggeredError), guard.run("r") as run:
        asyncio.run(main())
    assert outcome_of(guard, run.id, "body")["outcome"] == "cancelled"
    assert run.state is RunState.KILLED
    assert not run.live_run.in_flight.bodies


def test_a_timeout_of_the_caller_is_a_timeout(guard):
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await sleeper()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sleeper(), 0.01)

    with guard.run("r") as run:
        asyncio.run(main())
    assert run.state is RunState.COMPLETED


def test_the_whole_program_is_cancelled(guard):
    """`asyncio.run` is left by a CancelledError: it passes, and the run is FAILED."""

    async def main() -> None:
        async with guard.run("r"):
            asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)
            await sleeper()

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert guard.runs()[0].state is RunState.FAILED


# --- task groups -----------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [True, False], ids=["group in run", "run around asyncio.run"])
def test_the_bare_stop_comes_out_of_a_task_group(guard, inside):
    @guarded_step(usage=Usage(usd="0.3"))
    async def pay():
        await asyncio.sleep(0)

    async def agent() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(pay())

    async def main() -> None:
        async with guard.run("r", budget=Budget(usd=1)):
            await agent()

    with pytest.raises(BudgetExceededError) as raised:
        if inside:
            asyncio.run(main())
        else:
            with guard.run("r", budget=Budget(usd=1)):
                asyncio.run(agent())
    assert isinstance(raised.value.__cause__, ExceptionGroup)
    assert raised.value in raised.value.__cause__.exceptions
    assert guard.runs()[0].usage.usd <= 1


def test_a_kill_ends_a_task_group(guard):
    async def agent(entered):
        async with asyncio.TaskGroup() as group:
            group.create_task(sleeper(entered))
            group.create_task(sleeper())

    stop = kill_in_flight(guard, agent)
    assert isinstance(stop.__cause__, ExceptionGroup)


def test_a_group_inside_a_body(guard):
    @guarded_step
    async def crew(entered):
        async with asyncio.TaskGroup() as group:
            group.create_task(sleeper(entered))
            group.create_task(asyncio.Event().wait())

    stop = kill_in_flight(guard, crew)
    assert guard.summary(stop.run_id).steps == 2


# --- timeouts and deadlines ------------------------------------------------------------------------


def test_a_steps_timeout_is_no_stop(guard):
    @guarded_step(timeout=0.01)
    async def slow():
        await asyncio.Event().wait()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await slow()
        assert await quick() == "done"

    with guard.run("r") as run:
        asyncio.run(main())
    assert run.stop is None
    assert outcome_of(guard, run.id, "slow")["error"]["type"] == "TimeoutError"


class Late(asyncio.Event):
    """A body that has entered finds that the time is up."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def set(self) -> None:
        self._clock.advance(0.5)
        super().set()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def timed(clock):
    with Guard.in_memory(telemetry=False, clock=clock) as guard:
        yield guard


def test_the_runs_deadline_is_a_budget_stop(timed, clock):
    with pytest.raises(BudgetExceededError) as raised, timed.run("r", budget=Budget(seconds=0.5)) as run:
        asyncio.run(sleeper(Late(clock)))
    assert raised.value.resource == "seconds"
    assert raised.value.limit == 0.5
    assert raised.value.spent >= 0.5
    assert run.state is RunState.FAILED
    assert outcome_of(timed, run.id, "sleeper")["error"]["type"] == "BudgetExceededError"


def test_nested_bodies_at_the_deadline(timed, clock):
    @guarded_step
    async def agent():
        with suppress(Exception):
            await sleeper(Late(clock))
        await asyncio.wait_for(asyncio.Event().wait(), 60)

    with pytest.raises(BudgetExceededError) as raised, timed.run("r", budget=Budget(seconds=0.05)):
        asyncio.run(agent())
    assert raised.value.__cause__ is None


def test_a_scopes_deadline(timed, clock):
    async def main(run) -> str:
        with pytest.raises(BudgetExceededError) as raised:
            async with run.scope("s", Budget(seconds=0.05)):
                await sleeper(Late(clock))
        assert raised.value.scope == "s"
        return await quick()

    with timed.run("r") as run:
        assert asyncio.run(main(run)) == "done"
    assert outcome_of(timed, run.id, "sleeper")["error"]["type"] == "BudgetExceededError"
    assert run.state is RunState.COMPLETED


def test_a_kill_wins_over_a_deadline(guard):
    """Both are met at the same check: the kill is raised."""
    with pytest.raises(KillSwitchTriggeredError), guard.run("r", budget=Budget(seconds=0)) as run:
        guard.components.switch.record("kill_set", {"scope": "global", "reason": "first", "actor": "ann"})
        asyncio.run(quick())
    assert run.state is RunState.KILLED


def test_a_sync_body_meets_the_deadline_at_its_next_step(timed, clock):
    @guarded_step
    def work() -> None:
        clock.advance(0.06)

    with pytest.raises(BudgetExceededError) as raised, timed.run("r", budget=Budget(seconds=0.05)) as run:
        work()
        work()
    assert raised.value.resource == "seconds"
    assert run.spent.steps == 1


# --- code between the steps ------------------------------------------------------------------------


def test_code_between_steps_is_stopped_at_its_next_check(guard):
    reached = []

    async def agent() -> None:
        await quick()
        guard.kill(reason="between")
        await asyncio.sleep(0.01)  # not cancelled
        reached.append("after the await")
        await quick()
        reached.append("never")

    with pytest.raises(KillSwitchTriggeredError), guard.run("r"):
        asyncio.run(agent())
    assert reached == ["after the await"]


def test_run_check_stops_a_loop_without_steps(guard):
    with pytest.raises(KillSwitchTriggeredError), guard.run("r") as run:
        for n in range(10):
            run.check()
            assert n < 1
            run.kill("now")


def test_a_step_block_is_cancelled_too(guard):
    async def agent(entered):
        from agentguard import current_run

        async with current_run().step("block"):
            entered.set()
            await asyncio.Event().wait()

    stop = kill_in_flight(guard, agent)
    assert outcome_of(guard, stop.run_id, "block")["error"]["type"] == "KillSwitchTriggeredError"


def test_no_body_is_left_behind(guard):
    """What a run holds of its bodies is gone when they are."""
    with suppress(RunStopped), guard.run("r", budget=Budget(steps=3)) as run:
        for _ in range(4):
            asyncio.run(quick())
    assert not run.live_run.in_flight.bodies


def test_no_task_is_held_once_it_is_done(guard):
    tasks = weakref.WeakSet()

    async def main() -> None:
        tasks.add(asyncio.current_task())
        await quick()

    with guard.run("r"):
        asyncio.run(main())
        gc.collect()
        assert not tasks


def test_a_budget_stop_of_another_process_leaves_the_body_in_flight(sqlite_guard):
    @guarded_step
    async def waits() -> str:
        began.set()
        while not refused.is_set():
            await asyncio.sleep(0.01)
        return "done"

    @guarded_step
    def one_too_many():
        raise AssertionError

    def other_process(run_id):
        assert began.wait(30)
        with suppress(RunStopped), Guard.open(telemetry=False) as other, other.attach(run_id, branch="b"):
            one_too_many()
        refused.set()

    began, refused = threading.Event(), threading.Event()
    with pytest.raises(BudgetExceededError), sqlite_guard.run("r", budget=Budget(steps=1)) as run:
        thread = threading.Thread(target=other_process, args=(run.id,))
        thread.start()
        assert asyncio.run(waits()) == "done"
        thread.join(30)
    assert run.state is RunState.FAILED
    assert [event.type for event in sqlite_guard.history(run.id)][-1] == "step_completed"


# --- without a task ----------------------------------------------------------------------------------


def test_a_step_that_is_driven_by_no_task_is_counted_and_refused_like_any_other(guard):
    """As by another library's loop, which sends into coroutines itself."""

    @guarded_step
    async def work(n):
        return n

    def drive(coroutine):
        with pytest.raises(StopIteration) as ended:
            coroutine.send(None)
        return ended.value.value

    async def main():
        loop, given = asyncio.get_running_loop(), []
        done = loop.create_future()

        def callback():
            given.append(drive(work(1)))
            with pytest.raises(BudgetExceededError):
                drive(work(2))
            done.set_result(None)

        loop.call_soon(callback)
        await done
        return given

    with pytest.raises(BudgetExceededError), guard.run("r", budget=Budget(steps=1)) as run:
        assert asyncio.run(main()) == [1]
    assert run.spent.steps == 1
    assert run.live_run.in_flight.bodies == set()
