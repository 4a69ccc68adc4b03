"""Leaving the block: what leaves a run's block, and what stays behind."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import traceback
from contextlib import suppress
from decimal import Decimal

import pytest

from agentguard import (
    Budget,
    BudgetExceededError,
    Guard,
    KillSwitchTriggeredError,
    NoActiveRunError,
    RunState,
    RunStopped,
    Usage,
    current_run,
    guarded_step,
)


@guarded_step(usage=Usage(usd="0.4"))
def pay() -> str:
    return "paid"


@guarded_step
def look() -> str:
    return "seen"


def spend(times: int) -> None:
    """An agent that swallows everything it can."""
    for _ in range(times):
        with suppress(Exception):
            pay()


def never_meets_itself(error: BaseException) -> bool:
    """Whether no way along causes, contexts and groups leads back to where it came from."""

    def walk(current: BaseException, path: frozenset[int]) -> bool:
        if id(current) in path:
            return False
        onward = [current.__cause__]
        if not current.__suppress_context__:
            onward.append(current.__context__)
        onward += getattr(current, "exceptions", ())
        return all(walk(link, path | {id(current)}) for link in onward if link is not None)

    return walk(error, frozenset())


# --- what arrives, and what is raised --------------------------------------------------------------


def test_nothing_arrives(guard):
    with pytest.raises(BudgetExceededError) as raised, guard.run("r", budget=Budget(usd=1)) as run:
        spend(5)
    assert raised.value is run.stop
    assert raised.value.__cause__ is None
    assert run.state is RunState.FAILED
    assert run.spent.usd == Decimal("0.8")


def test_the_stop_itself_arrives(guard):
    with pytest.raises(BudgetExceededError) as raised, guard.run("r", budget=Budget(usd=1)) as run:
        while True:
            pay()
    assert raised.value is run.stop
    assert raised.value.__cause__ is None


def test_a_wrapper_arrives(guard):
    with pytest.raises(BudgetExceededError) as raised, guard.run("r", budget=Budget(usd=1)) as run:
        try:
            while True:
                pay()
        except RunStopped as stop:
            raise LookupError("the framework's own words") from stop
    assert raised.value is run.stop
    assert isinstance(raised.value.__cause__, LookupError)


def test_a_group_arrives(guard):
    with pytest.raises(BudgetExceededError) as raised, guard.run("r", budget=Budget(usd=1)) as run:
        try:
            while True:
                pay()
        except RunStopped as stop:
            raise ExceptionGroup("tasks", [stop, OSError("beside it")]) from None
    assert raised.value is run.stop
    assert isinstance(raised.value.__cause__, ExceptionGroup)


def test_another_error_arrives(guard):
    with pytest.raises(BudgetExceededError) as raised, guard.run("r", budget=Budget(usd=1)) as run:
        spend(5)
        raise ZeroDivisionError
    assert raised.value is run.stop
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def arrivals(stop: RunStopped) -> list[BaseException]:
    """Errors that hold the stop in one place or another."""

    def having(error: BaseException, cause: object = None, context: object = None) -> BaseException:
        error.__cause__, error.__context__ = cause, context
        error.__suppress_context__ = cause is not None
        return error

    return [
        having(ValueError("cause"), cause=stop),
        having(ValueError("context"), context=stop),
        having(ValueError("deep"), cause=having(ValueError("deeper"), context=stop)),
        having(ValueError("both"), cause=KeyError("other"), context=having(OSError("x"), cause=stop)),
        ExceptionGroup("held", [stop]),
        ExceptionGroup("wrapped inside", [having(ValueError("wrapper"), cause=stop)]),
        having(ValueError("over"), cause=ExceptionGroup("under", [OSError(), stop])),
    ]


@pytest.mark.parametrize("index", range(7))
def test_no_reference_ring(guard, index):
    """What arrived becomes the cause of the stop, so the stop may no longer be behind it."""
    with pytest.raises(BudgetExceededError) as raised, guard.run("r", budget=Budget(usd=1)) as run:
        spend(5)
        raise arrivals(run.stop)[index]
    assert raised.value is run.stop
    text = "".join(traceback.format_exception(raised.value))
    assert text.count("BudgetExceededError: usd limit") <= 2
    if index < 4:  # a group keeps what it holds
        assert never_meets_itself(raised.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_who_wants_out_gets_out(guard, error):
    """The process, the consumer and the caller pass unchanged, and the state still shows the stop."""
    wanted = error()
    with pytest.raises(error) as raised, guard.run("r", budget=Budget(usd=1)) as run:
        spend(5)
        raise wanted
    assert raised.value is wanted
    assert run.state is RunState.FAILED
    assert isinstance(run.stop, BudgetExceededError)
    assert guard.summary(run.id).termination["type"] == "BudgetExceededError"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_who_wants_out_of_a_run_without_a_stop_fails_it(guard, error):
    with pytest.raises(error), guard.run("r") as run:
        raise error
    assert run.state is RunState.FAILED
    assert run.stop is None
    assert guard.summary(run.id).termination["type"].endswith(error.__name__)


def test_the_agents_own_error_goes_on(guard):
    error = ZeroDivisionError("by the agent")
    with pytest.raises(ZeroDivisionError) as raised, guard.run("r") as run:
        raise error
    assert raised.value is error
    assert run.state is RunState.FAILED
    assert run.stop is None
    assert guard.summary(run.id).termination == {"type": "ZeroDivisionError", "message": "by the agent"}


def test_a_kill_ends_as_killed(guard):
    with pytest.raises(KillSwitchTriggeredError) as raised, guard.run("r") as run:
        run.kill("enough", actor="ann")
        spend(1)
    assert raised.value is run.stop
    assert run.state is RunState.KILLED
    assert (raised.value.scope, raised.value.reason, raised.value.actor) == ("run", "enough", "ann")
    assert raised.value.run_id == run.id
    assert raised.value.at is not None


def test_killed_without_a_further_step(guard):
    """A kill that no step has met is found at the exit at the latest."""
    with pytest.raises(KillSwitchTriggeredError), guard.run("r") as run:
        guard.kill(run=run.id, reason="while nothing ran")
    assert run.state is RunState.KILLED


def test_first_stop_wins(guard):
    with pytest.raises(BudgetExceededError), guard.run("r", budget=Budget(usd=1)) as run:
        spend(5)
        run.kill("too late")
    assert run.state is RunState.FAILED


# --- ways out of the block -------------------------------------------------------------------------


def test_return_inside_the_block(guard):
    runs = []

    def agent() -> str:
        with guard.run("r", budget=Budget(usd=1)) as run:
            runs.append(run)
            spend(5)
            return "looks like a success"

    with pytest.raises(BudgetExceededError):
        agent()
    assert runs[0].state is RunState.FAILED


def test_return_without_a_stop(guard):
    def agent() -> str:
        with guard.run("r"):
            return look()

    assert agent() == "seen"


def test_break_out_of_the_block(guard):
    with pytest.raises(BudgetExceededError):
        for _ in range(3):
            with guard.run("r", budget=Budget(usd=1)):
                spend(5)
                break


def test_the_quiet_form(guard):
    with suppress(RunStopped), guard.run("r", budget=Budget(usd=1)) as run:
        while True:
            pay()
    assert run.stop.resource == "usd"
    assert run.state is RunState.FAILED


def test_stop_is_none_after_success(guard):
    with guard.run("r") as run:
        assert run.stop is None
        look()
    assert run.stop is None
    assert run.state is RunState.COMPLETED


def test_async_block(guard):
    async def main() -> None:
        async with guard.run("r", budget=Budget(usd=1)):
            spend(5)

    with pytest.raises(BudgetExceededError):
        asyncio.run(main())


def test_start_and_close(guard):
    run = guard.start("r", budget=Budget(usd=1))
    spend(5)
    with pytest.raises(BudgetExceededError) as raised:
        run.close()
    assert raised.value is run.stop
    assert current_run() is None


def test_closing_twice_says_the_same(guard):
    run = guard.start("r", budget=Budget(usd=1))
    spend(5)
    for _ in range(2):
        with pytest.raises(BudgetExceededError):
            run.close()
    quiet = guard.start("r")
    quiet.close()
    quiet.close()
    assert quiet.state is RunState.COMPLETED


def test_aclose(guard):
    async def main() -> None:
        run = guard.start("r", budget=Budget(usd=1))
        spend(5)
        await run.aclose()

    with pytest.raises(BudgetExceededError):
        asyncio.run(main())


def test_only_what_was_entered_can_be_closed(guard):
    with pytest.raises(NoActiveRunError):
        guard.run("r").close()


def test_a_run_is_entered_once(guard):
    run = guard.run("r")
    with run:
        pass
    with pytest.raises(RuntimeError, match="entered before"), run:
        pass


# --- who ends a run --------------------------------------------------------------------------------


def test_leaving_attach_detaches(guard):
    with guard.run("r") as run:
        with guard.attach(run.id):
            look()
        assert run.state is RunState.RUNNING
        assert current_run() is run
        look()
    assert run.state is RunState.COMPLETED


def test_leaving_attach_raises_the_stop(guard):
    with pytest.raises(BudgetExceededError) as outer, guard.run("r", budget=Budget(usd=1)) as run:
        with pytest.raises(BudgetExceededError) as inner, guard.attach(run.id):
            spend(5)
        assert inner.value is run.stop
    assert outer.value is inner.value


def test_an_error_in_attach_does_not_end_the_run(guard):
    with guard.run("r") as run:
        with pytest.raises(ZeroDivisionError), guard.attach(run.id):
            raise ZeroDivisionError
        assert run.state is RunState.RUNNING


def test_exit_does_not_wait_for_steps_in_flight(guard):
    """It closes admission; what is in flight settles late, and changes spending only."""
    entered, go_on = threading.Event(), threading.Event()

    @guarded_step(usage=Usage(usd="0.25"))
    def slow() -> None:
        entered.set()
        assert go_on.wait(60)

    with guard.run("r", budget=Budget(usd=1)) as run:
        thread = threading.Thread(target=run.bind(slow))
        thread.start()
        assert entered.wait(60)
    ended = guard.summary(run.id)
    assert ended.state is RunState.COMPLETED
    assert ended.usage.usd == 0
    go_on.set()
    thread.join(60)
    settled = guard.summary(run.id)
    assert settled.usage.usd == Decimal("0.25")
    assert (settled.state, settled.ended_at, settled.termination) == (
        ended.state,
        ended.ended_at,
        ended.termination,
    )
    assert [event.type for event in guard.history(run.id)][-2:] == ["run_completed", "step_completed"]
    assert guard.verify(run.id)


def test_a_late_excess_does_not_stop_what_has_completed(guard):
    entered, go_on = threading.Event(), threading.Event()

    @guarded_step(reserve=Usage(usd="0.1"), usage=lambda _: Usage(usd=5))
    def slow() -> None:
        entered.set()
        assert go_on.wait(60)

    with guard.run("r", budget=Budget(usd=1)) as run:
        thread = threading.Thread(target=run.bind(slow))
        thread.start()
        assert entered.wait(60)
    go_on.set()
    thread.join(60)
    assert run.stop is None
    assert guard.summary(run.id).state is RunState.COMPLETED
    assert guard.summary(run.id).usage.usd == 5


def test_no_step_after_the_end(guard):
    """A context that still holds the run is told that it is over."""
    with guard.run("r"):
        later = contextvars.copy_context()
    with pytest.raises(NoActiveRunError, match="COMPLETED"):
        later.run(look)
    with suppress(RunStopped), guard.run("r", budget=Budget(usd=1)):
        later = contextvars.copy_context()
        spend(5)
    with pytest.raises(BudgetExceededError):
        later.run(look)


# --- what is current -------------------------------------------------------------------------------


def test_the_outer_run_is_current_again(guard):
    with guard.run("outer") as outer:
        with guard.run("inner") as inner:
            assert current_run() is inner
        assert current_run() is outer
    assert current_run() is None


def test_entered_in_one_context_and_left_in_another(guard):
    run = contextvars.copy_context().run(guard.start, "r")
    assert current_run() is None
    run.close()
    assert run.state is RunState.COMPLETED


def test_left_in_a_context_that_stands_in_another_run(guard):
    first = contextvars.copy_context().run(guard.start, "first")
    with guard.run("second") as second:
        first.close()
        assert current_run() is second
        assert look() == "seen"
    assert second.spent.steps == 1


def test_left_in_a_copy_of_the_context(guard):
    """As a streaming response does: the block is left in a task that has the run by copy."""
    with guard.run("outer") as outer:
        inner = guard.start("inner")
        copy = contextvars.copy_context()
        copy.run(inner.close)
        assert copy.run(current_run) is outer


def test_where_a_run_was_entered_it_is_not_current_once_it_was_left_in_another_context(guard):
    """As by a notebook's cells, an ASGI lifespan, or a fixture whose two halves have contexts of their own."""
    run = guard.start("r")
    contextvars.copy_context().run(run.close)
    with pytest.raises(NoActiveRunError, match="COMPLETED: it takes no further step; open a new run"):
        look()
    with guard.run("next") as following:
        assert look() == "seen"
    assert following.summary().parent_id is None
    assert current_run() is None
    with pytest.raises(NoActiveRunError, match="no run is active here"):
        look()


def test_several_runs_that_were_left_elsewhere_are_not_current_where_they_were_entered(guard):
    with guard.run("around") as around:
        first = guard.start("first")
        second = guard.start("second")
        thread = threading.Thread(target=lambda: (second.close(), first.close()))
        thread.start()
        thread.join()
        assert current_run() is around
        with guard.run("inside") as inside:
            assert look() == "seen"
        assert inside.summary().parent_id == around.id
    assert current_run() is None


def test_a_task_that_outlives_its_run_opens_no_run_outside_of_its_budget(guard):
    """A copy of the context is not the context in which the run was entered."""
    with guard.run("r", budget=Budget(usd=1)):
        later = contextvars.copy_context()
    run = guard.start("s", budget=Budget(usd=1))
    copied = contextvars.copy_context()
    contextvars.copy_context().run(run.close)
    for context in (later, copied):
        with pytest.raises(NoActiveRunError, match="COMPLETED"):
            context.run(lambda: guard.run("out").__enter__())
    assert current_run() is None


def test_async_generator_left_elsewhere(guard):
    """A run opened in an async generator that another task closes."""

    async def stream():
        with guard.run("stream"):
            yield look()
            yield look()

    async def main() -> None:
        items = stream()
        assert await items.__anext__() == "seen"
        await asyncio.create_task(items.aclose())

    asyncio.run(main())
    assert guard.runs()[0].termination["type"] == "GeneratorExit"


def test_a_foreign_kill_fails_but_does_not_kill(guard):
    """The kill of a detached run is, to the run around it, an error like any other."""
    with pytest.raises(KillSwitchTriggeredError), guard.run("outer") as outer:
        with guard.run("inner", detached=True) as inner:
            inner.kill("this one alone")
    assert inner.state is RunState.KILLED
    assert outer.state is RunState.FAILED
    assert outer.stop is None


def test_verdict_and_record_agree_when_a_kill_races_the_end():
    """Whichever came first: a run on record as COMPLETED raises nothing."""
    for _ in range(30):
        with Guard.in_memory(telemetry=False) as guard:
            start = threading.Barrier(2)
            run = guard.start("r")

            def kill(guard: Guard = guard, start: threading.Barrier = start) -> None:
                start.wait()
                guard.kill(reason="race")

            thread = threading.Thread(target=kill)
            thread.start()
            start.wait()
            try:
                run.close()
            except KillSwitchTriggeredError:
                verdict = RunState.KILLED
            else:
                verdict = RunState.COMPLETED
            thread.join()
            assert guard.summary(run.id).state is verdict
            assert (run.stop is None) == (verdict is RunState.COMPLETED)


def test_a_group_that_holds_the_end_of_the_process_passes(guard):
    wanted = BaseExceptionGroup("both", [ValueError(), KeyboardInterrupt()])
    with pytest.raises(BaseExceptionGroup) as raised, guard.run("r", budget=Budget(steps=0)) as run:
        with suppress(RunStopped):
            pay()
        raise wanted
    assert raised.value is wanted
    assert run.state is RunState.FAILED


def test_runs_left_in_the_order_they_were_entered_in(guard):
    with guard.run("around") as around:
        first, second = guard.start("first"), guard.start("second")
        first.close()
        second.close()
        assert current_run() is around
    assert current_run() is None
