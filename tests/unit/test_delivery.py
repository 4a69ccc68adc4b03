"""Delivery order: async outcomes are delivered one at a time in log order, live as in replay; never a hang."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agentguard import Guard, ReplayDivergenceError, Run, guarded_step
from agentguard.steps import gate

Main = Callable[[], Awaitable[Any]]


@guarded_step
async def fetch(name: str, turns: int = 0) -> str:
    for _ in range(turns):
        await asyncio.sleep(0)
    return name


def both(guard: Guard, main: Main, again: Main | None = None, stall_timeout: float = 5.0) -> tuple[Any, Any]:
    """What a program gives live, and what it, or another one, gives in a replay."""
    with guard.run("program") as run:
        live = asyncio.run(main())  # type: ignore[arg-type]
    with guard.replay(run.id, stall_timeout=stall_timeout):
        return live, asyncio.run((again or main)())  # type: ignore[arg-type]


def order_of(delays: dict[str, int], *, gathered: bool) -> Main:
    """A program that tells in which order its steps came back."""

    async def main() -> list[str]:
        seen: list[str] = []

        async def one(name: str, turns: int) -> None:
            seen.append(await fetch(name, turns))

        if gathered:
            await asyncio.gather(*(one(name, turns) for name, turns in delays.items()))
        else:
            async with asyncio.TaskGroup() as group:
                for name, turns in delays.items():
                    group.create_task(one(name, turns))
        return seen

    return main


@pytest.mark.parametrize("gathered", [True, False], ids=["gather", "group"])
def test_the_recorded_order_comes_again_whatever_the_bodies_took(guard: Guard, gathered: bool) -> None:
    main = order_of({"slow": 20, "fast": 0, "middle": 8}, gathered=gathered)
    live, again = both(guard, main)
    assert again == live == ["fast", "middle", "slow"]


def test_two_outcomes_of_one_turn_are_seen_apart(guard: Guard) -> None:
    """Otherwise `wait(FIRST_COMPLETED)` would give two tasks live, and one of them in a replay."""

    async def main() -> list[int]:
        pending = {asyncio.ensure_future(fetch(name)) for name in "abc"}
        together = []
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            together.append(len(done))
        return together

    live, again = both(guard, main)
    assert again == live == [1, 1, 1]


def test_tasks_that_a_loop_had_before_its_first_step_are_in_the_order_too(guard: Guard) -> None:
    """The run is opened outside the loop, and the tasks are made before any step is called."""

    async def main() -> list[list[str]]:
        tasks = [asyncio.create_task(fetch(name)) for name in "abcd"]
        seen = []
        pending = set(tasks)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            seen.append(sorted(task.result() for task in done))
        return seen

    live, again = both(guard, main)
    assert again == live
    assert [len(names) for names in live] == [1, 1, 1, 1]


@pytest.mark.parametrize("delay", [0.0, 1e-9])
def test_what_an_outcome_sets_going_is_over_before_the_next_one(guard: Guard, delay: float) -> None:
    """Also where the loop has nothing to run in between, until it looks for its timers."""

    async def main() -> list[str]:
        seen: list[str] = []

        async def one(name: str) -> None:
            await fetch(name)
            await asyncio.sleep(delay)
            seen.append(f"{name} went on")

        async def other(name: str) -> None:
            seen.append(await fetch(name))

        await asyncio.gather(one("a"), other("b"), one("c"), other("d"))
        return seen

    live, again = both(guard, main)
    assert again == live == ["a went on", "b", "c went on", "d"]


class Turns(asyncio.SelectorEventLoop):
    """A loop that counts its turns."""

    turns = 0

    def _run_once(self) -> None:
        self.turns += 1
        super()._run_once()  # type: ignore[misc]


class Opaque:
    """A loop that does not show what it has to run, as those that are not written in Python."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.call_soon = loop.call_soon


@pytest.mark.parametrize(
    ("tasks", "shown", "turns"),
    [(0, True, 2), (3, True, gate.TURNS), (0, False, gate.TURNS)],
    ids=["idle", "busy", "not shown"],
)
def test_a_loop_is_given_its_turns_only_while_it_has_something_to_run(
    tasks: int, shown: bool, turns: int
) -> None:
    """Each costs time, and the loop of many tasks that wait for commits is often idle."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Turns)
        busy = [asyncio.ensure_future(after(1000)) for _ in range(tasks)]
        await after(gate.TURNS)
        came = loop.create_future()
        before = loop.turns
        given: Any = loop if shown else Opaque(loop)
        gate.after_turns(given, gate.TURNS, lambda: came.set_result(loop.turns - before))
        for task in busy:
            came.add_done_callback(lambda _, task=task: task.cancel())
        return int(await came)

    with asyncio.Runner(loop_factory=Turns) as runner:
        assert runner.run(main()) == turns


def test_delivery_does_not_wait_for_its_consumer(guard: Guard) -> None:
    async def main() -> list[str]:
        never_asked = asyncio.ensure_future(fetch("left alone"))
        seen = [await fetch("b", 3), await fetch("c")]
        await asyncio.wait([never_asked])
        return seen

    live, again = both(guard, main)
    assert again == live == ["b", "c"]


def test_a_step_that_was_cancelled_stays_pending_until_it_is_again(guard: Guard) -> None:
    async def main() -> list[str]:
        forever = asyncio.ensure_future(fetch("forever", 10**9))
        seen = [await fetch("a"), await fetch("b", 2)]
        assert not forever.done()
        forever.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forever
        return [*seen, await fetch("c")]

    live, again = both(guard, main)
    assert again == live == ["a", "b", "c"]


def test_a_cancelled_step_that_is_waited_for_is_a_difference_and_no_hang(guard: Guard) -> None:
    async def cancels() -> None:
        forever = asyncio.ensure_future(fetch("forever", 10**9))
        await fetch("a")
        forever.cancel()
        await asyncio.wait([forever])

    async def waits() -> None:
        forever = asyncio.ensure_future(fetch("forever", 10**9))
        await fetch("a")
        await forever

    with pytest.raises(ReplayDivergenceError) as caught:
        both(guard, cancels, waits)
    assert (caught.value.kind, caught.value.key) == ("order", "main/fetch#1")


async def after(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def cancelled_after(turns: int, asked: Any) -> str:
    """Ask for a step, cancel it some turns of the loop later, and tell what became of it."""
    task = asyncio.ensure_future(asked)
    await after(turns)
    task.cancel()
    try:
        return await task  # type: ignore[no-any-return]
    except asyncio.CancelledError:
        return "cancelled"


@pytest.mark.parametrize("turns", range(10))
def test_a_step_may_be_cancelled_in_any_turn_around_its_delivery(guard: Guard, turns: int) -> None:
    """Which of the two is first hangs on a turn of the loop; what comes after does not."""

    async def main() -> list[str]:
        await cancelled_after(turns, fetch("a"))
        other = asyncio.ensure_future(fetch("b", 30))
        await cancelled_after(turns, fetch("c"))
        return [await fetch("d"), await other]

    live, again = both(guard, main)
    assert again == live == ["d", "b"]


def test_what_is_cancelled_in_its_turn_hides_no_difference(guard: Guard) -> None:
    """The next in turn is never asked for: that is told, where the one before it was given up."""

    def program(*, asks: bool) -> Main:
        async def main() -> list[str]:
            last = asyncio.ensure_future(fetch("last", 30))
            seen = [await cancelled_after(3, fetch("given up"))]
            if asks:
                seen.append(await fetch("next"))
            return [*seen, await last]

        return main

    live, again = both(guard, program(asks=True))
    assert again == live == ["cancelled", "next", "last"]
    with pytest.raises(ReplayDivergenceError) as caught:
        both(guard, program(asks=True), program(asks=False))
    assert (caught.value.kind, caught.value.key) == ("order", "main/fetch#3")


def test_an_outcome_reaches_the_loop_that_waits_for_it(guard: Guard) -> None:
    """Two loops in two threads: the one that asks last has its outcome first, and lets the other go on."""
    with guard.run("program") as run:
        live = two_loops(run)
    with guard.replay(run.id) as replay:
        again = two_loops(replay)
    assert sorted(again) == sorted(live) == ["first", "second"]


def two_loops(run: Run) -> list[str]:
    seen: list[str] = []
    first_asked, second_done = threading.Event(), threading.Event()

    @guarded_step
    async def slow() -> str:
        await asyncio.to_thread(second_done.wait, 10)
        return "first"

    async def first() -> None:
        asked = asyncio.ensure_future(slow())
        await after(3)
        first_asked.set()
        seen.append(await asked)

    async def second() -> None:
        first_asked.wait(60)
        seen.append(await asyncio.ensure_future(fetch("second")))
        second_done.set()

    threads = [  # with debug, a loop that is spoken to from a thread that is not its own complains
        threading.Thread(target=run.bind(asyncio.run), args=(main(),), kwargs={"debug": True}, daemon=True)
        for main in (first, second)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "its loop was never woken"
    return seen


def in_turn(first: str, *, then: str) -> Main:
    async def main() -> None:
        asked = {first: asyncio.Event(), then: asyncio.Event()}

        async def one(name: str) -> None:
            if name == then:
                await asked[first].wait()
            await fetch(name)
            asked[name].set()

        await asyncio.gather(one("a"), one("b"))

    return main


def test_a_program_that_waits_for_what_comes_later_is_told_so(guard: Guard) -> None:
    """`b` is asked for only when `a` is back, which came after it: nothing would ever happen again."""
    with pytest.raises(ReplayDivergenceError) as caught:
        both(guard, in_turn("b", then="a"), in_turn("a", then="b"), stall_timeout=0.5)
    assert (caught.value.kind, caught.value.key) == ("order", "main/task#2/fetch#1")
    assert "only main/task#1/fetch#1 asked for" in str(caught.value)


def test_a_loop_with_timers_is_given_the_stall_timeout(guard: Guard) -> None:
    async def ticking() -> None:
        async def tick() -> None:
            while True:
                await asyncio.sleep(0.01)

        clock = asyncio.ensure_future(tick())
        try:
            await in_turn("a", then="b")()
        finally:
            clock.cancel()

    async def recorded() -> None:
        task = asyncio.ensure_future(asyncio.sleep(0))
        await in_turn("b", then="a")()
        await task

    with guard.run("program") as run:
        asyncio.run(recorded())
    with pytest.raises(ReplayDivergenceError) as caught, guard.replay(run.id, stall_timeout=0.5):
        asyncio.run(ticking())
    assert caught.value.kind == "order"


def test_a_difference_in_one_task_reaches_those_that_wait(guard: Guard) -> None:
    async def three(last: str) -> list[Any]:
        return await asyncio.gather(fetch("a"), fetch("b"), fetch(last), return_exceptions=True)

    with pytest.raises(ReplayDivergenceError) as caught:
        both(guard, lambda: three("c"), lambda: three("x"))
    assert (caught.value.kind, caught.value.key) == ("arguments", "main/fetch#3")


# --- what is no stall ----------------------------------------------------------------------------


async def for_a_thread() -> None:
    released = threading.Event()
    threading.Timer(0.5, released.set).start()
    await asyncio.to_thread(released.wait, 60)


async def for_a_thread_in_a_task() -> None:
    await asyncio.wait_for(asyncio.create_task(for_a_thread()), 60)


async def for_a_process() -> None:
    program = "import threading; threading.Event().wait(0.5)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdin=subprocess.DEVNULL)
    assert await process.wait() == 0


async def for_a_connection() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.to_thread(threading.Event().wait, 0.5)
        writer.write(b"here you are\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.readline() == b"here you are\n"
        writer.close()


@pytest.mark.parametrize("wait", [for_a_thread, for_a_thread_in_a_task, for_a_process, for_a_connection])
def test_a_loop_that_waits_for_the_world_outside_is_no_stall(
    guard: Guard, wait: Callable[[], Awaitable[None]]
) -> None:
    """The next outcome belongs to a call that comes only after something slow that is no step."""

    async def first_the_slow_one(slow: Callable[[], Awaitable[None]], *, again: bool) -> list[str]:
        seen: list[str] = []
        came = asyncio.Event()

        async def after_it() -> None:
            await slow()
            seen.append(await fetch("after it"))
            came.set()

        async def at_once() -> None:
            if not again:
                await came.wait()
            seen.append(await fetch("at once"))

        await asyncio.gather(after_it(), at_once())
        return seen

    async def nothing() -> None:
        await asyncio.sleep(0)

    live, again = both(
        guard,
        lambda: first_the_slow_one(nothing, again=False),
        lambda: first_the_slow_one(wait, again=True),
    )
    assert again == live == ["after it", "at once"]


# --- a program that waits outside of any step ----------------------------------------------------


async def gathered(stuck: set[str], event: asyncio.Event) -> None:
    async def one(name: str) -> None:
        if name in stuck:
            await event.wait()
        await fetch(name)

    await fetch("first")
    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(one(name))


async def in_sequence(stuck: set[str], event: asyncio.Event) -> None:
    for name in "abc":
        if name in stuck:
            await event.wait()
        await fetch(name)


@pytest.mark.parametrize("inside", [True, False], ids=["block in the loop", "loop in the block"])
@pytest.mark.parametrize("timer", [True, False], ids=["timer", "no timer"])
@pytest.mark.parametrize(
    ("program", "stuck", "key"),
    [
        (gathered, "a", "main/task#1/fetch#1"),
        (gathered, "c", "main/task#3/fetch#1"),
        (gathered, "abc", "main/task#1/fetch#1"),
        (in_sequence, "b", "main/fetch#2"),
    ],
    ids=["first", "last", "all", "in sequence"],
)
def test_a_program_that_waits_outside_of_steps_is_no_hang(
    guard: Guard,
    program: Callable[[set[str], asyncio.Event], Awaitable[None]],
    stuck: str,
    key: str,
    timer: bool,
    inside: bool,
) -> None:
    async def live() -> None:
        async with guard.run("program", run_id="r"):
            await program(set(), asyncio.Event())

    async def waits() -> None:
        if timer:
            asyncio.get_running_loop().call_later(600, print)
        await program(set(stuck), asyncio.Event())

    async def block() -> None:
        async with guard.replay("r", stall_timeout=0.5):
            await waits()

    if inside:
        asyncio.run(live())
    else:
        with guard.run("program", run_id="r"):
            asyncio.run(program(set(), asyncio.Event()))  # type: ignore[arg-type]
    with pytest.raises(ReplayDivergenceError) as caught:
        if inside:
            asyncio.run(block())
        else:
            with guard.replay("r", stall_timeout=0.5):
                asyncio.run(waits())
    assert (caught.value.kind, caught.value.key) == ("order", key)


def test_a_stall_does_not_cancel_what_is_around_the_replay(guard: Guard) -> None:
    async def main() -> tuple[str, int]:
        async with guard.run("program") as run:
            await fetch("a")
        try:
            async with guard.replay(run.id, stall_timeout=0.5):
                await asyncio.Event().wait()
        except ReplayDivergenceError as difference:
            task = asyncio.current_task()
            assert task is not None
            return difference.kind, task.cancelling()
        return "none", 0

    assert asyncio.run(main()) == ("order", 0)


def test_a_program_that_never_ends_is_no_hang(guard: Guard) -> None:
    async def main(event: asyncio.Event) -> None:
        await fetch("a")
        await event.wait()

    already = asyncio.Event()
    already.set()
    with pytest.raises(ReplayDivergenceError) as caught:
        both_within(guard, lambda: main(already), lambda: main(asyncio.Event()))
    assert (caught.value.kind, caught.value.expected) == ("order", "the program to end")


def both_within(guard: Guard, main: Main, again: Main) -> None:
    with guard.run("program") as run:
        asyncio.run(main())  # type: ignore[arg-type]
    with guard.replay(run.id, stall_timeout=0.5):
        asyncio.run(again())  # type: ignore[arg-type]


def test_a_program_that_keeps_its_loop_busy_is_no_stall(guard: Guard) -> None:
    """It computes, longer than the stall timeout, and no timer of the loop runs meanwhile."""

    async def main() -> list[str]:
        seen = [await fetch("a")]
        until = time.monotonic() + 1.2
        while time.monotonic() < until:
            pass
        await asyncio.sleep(0)
        return [*seen, await fetch("b")]

    both_within(guard, main, main)


def test_a_replay_left_open_does_not_touch_the_loop_s_other_tasks(guard: Guard) -> None:
    """As in a notebook, where the task that opened it is over long before it is closed."""
    with guard.run("program") as run:
        asyncio.run(fetch("a"))

    async def main() -> None:
        replay = guard.replay(run.id, stall_timeout=0.3)

        async def cell() -> None:
            await replay.__aenter__()

        await asyncio.create_task(cell())
        await asyncio.sleep(1)
        with pytest.raises(ReplayDivergenceError) as caught:
            replay.close()
        assert caught.value.kind == "left_over"

    asyncio.run(main())
