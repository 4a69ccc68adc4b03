"""What a replayed program orders of its runs is ordered of nothing that is live, and no run is opened anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from agentguard import Budget, Guard, ReplayDivergenceError, Run, RunStopped, current_run, guarded_step

RAN: list[int] = []


@guarded_step
def step(n: int) -> int:
    RAN.append(n)
    return n


def kill(run: Run) -> None:
    run.kill("enough")


def pause(run: Run) -> None:
    run.pause("look at it first")
    run.resume()


def set_budget(run: Run) -> None:
    run.set_budget(Budget(steps=40))


ORDERS = [kill, pause, set_budget]
Order = Callable[[Run], None]
Program = Callable[[], Any]


def nested(guard: Guard, order: Order, depth: int) -> list[int]:
    """Steps around an order that the innermost run gives of itself."""
    if depth == 0:
        return []
    done = [step(depth)]
    with suppress(RunStopped), guard.run("inner", budget=Budget(steps=50)) as inner:
        done += nested(guard, order, depth - 1)
        if depth == 1:
            done.append(step(10))
            order(inner)
            done.append(step(11))
    return [*done, step(20 + depth)]


def by_id(guard: Guard, order: Order) -> list[int]:
    with suppress(RunStopped), guard.run("inner", run_id="inner", if_exists="recover") as inner:
        step(1)
        order(inner)
        step(2)
    return [step(3)]


def decorated(guard: Guard, order: Order) -> list[int]:
    @guard.run("inner")
    def inner(n: int) -> int:
        run = guard.run("innermost")
        with run:
            order(run)
            return step(n)

    with suppress(RunStopped):
        inner(1)
    return [step(2)]


def asynchronous(guard: Guard, order: Order) -> list[int]:
    async def main() -> int:
        async with guard.run("inner") as inner:
            order(inner)
            return await asyncio.to_thread(step, 1)

    with suppress(RunStopped):
        asyncio.run(main())
    return [step(2)]


WAYS: dict[str, Callable[[Guard, Order], Any]] = {
    "inside": lambda guard, order: nested(guard, order, 1),
    "two deep": lambda guard, order: nested(guard, order, 2),
    "by id": by_id,
    "decorated": decorated,
    "async": asynchronous,
}


def state_of(guard: Guard) -> dict[str, Any]:
    """All that is on record: every run's log and summary, the control log, the kills."""
    runs = {run.run_id: (run, guard.history(run.run_id)) for run in guard.runs()}
    return {"runs": runs, "control": guard.history("control"), "kills": guard.kills()}


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.__name__)
@pytest.mark.parametrize("way", WAYS)
def test_an_order_of_a_nested_run_is_not_given_again(guard: Guard, way: str, order: Order) -> None:
    with guard.run("outer") as outer:
        live = WAYS[way](guard, order)
    before, ran = state_of(guard), len(RAN)
    assert len(before["kills"]) == (order is kill)
    with guard.replay(outer.id):
        assert WAYS[way](guard, order) == live
    assert state_of(guard) == before
    assert len(RAN) == ran


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.__name__)
def test_an_order_of_the_replayed_run_is_not_given_again(guard: Guard, order: Order) -> None:
    def program(run: Run) -> None:
        with suppress(RunStopped):
            step(1)
            order(run)
            step(2)

    with suppress(RunStopped), guard.run("outer") as outer:
        program(outer)
    before = state_of(guard)
    with suppress(RunStopped), guard.replay(outer.id) as again:
        program(again)
    assert state_of(guard) == before
    assert outer.state == again.state


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.__name__)
def test_an_order_of_a_nested_run_that_has_ended_is_not_given_again_by_a_recovery(
    guard: Guard, order: Order
) -> None:
    """It is served from the log, as the steps beside it are."""
    with pytest.raises(RunStopped), guard.run("outer") as outer:
        live = nested(guard, order, 2)
        outer.drain()
    before, ran = state_of(guard), len(RAN)
    with guard.recover(outer.id):
        assert nested(guard, order, 2) == live
        assert step(30) == 30
    after = state_of(guard)
    assert (after["control"], after["kills"]) == (before["control"], before["kills"])
    del before["runs"][outer.id], after["runs"][outer.id]
    assert after["runs"] == before["runs"]
    assert len(RAN) == ran + 1


# --- runs that are in no log but their own ---------------------------------------------------------


def detached(guard: Guard) -> None:
    with guard.run("other", detached=True):
        step(1)


def joined(guard: Guard) -> None:
    with guard.run("other", run_id="joined", if_exists="join"):
        step(1)


def attached(guard: Guard) -> None:
    run = current_run()
    assert run is not None
    with guard.attach(run.id, branch="w"):
        step(1)


def recovered(guard: Guard) -> None:
    if "crashed" not in {run.run_id for run in guard.runs()}:
        with suppress(RunStopped), guard.run("crashed", run_id="crashed", detached=True) as run:
            run.drain()
    with guard.recover("crashed"):
        step(1)


def forked(guard: Guard) -> None:
    with guard.fork("origin", at=2):
        step(1)


def inside_a_nested_run(guard: Guard) -> None:
    with guard.run("nested"):
        detached(guard)


OPENED = [detached, joined, attached, forked, inside_a_nested_run, recovered]


@pytest.mark.parametrize("open_another", OPENED, ids=lambda way: way.__name__)
def test_a_run_that_the_log_does_not_have_is_not_opened_in_a_replay(
    guard: Guard, open_another: Callable[[Guard], None]
) -> None:
    """Its steps would be done for real, and be charged."""
    with guard.run("origin", run_id="origin"):
        pass
    with suppress(RunStopped), guard.run("outer") as outer:
        open_another(guard)
        outer.drain()  # it has not ended, so that a step that goes live is not refused for that
    before, ran = state_of(guard), len(RAN)
    with pytest.raises(ReplayDivergenceError) as caught, guard.replay(outer.id):
        open_another(guard)
    assert caught.value.kind == "not_replayable"
    assert state_of(guard) == before
    assert len(RAN) == ran
