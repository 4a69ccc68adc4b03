"""Ownership: a drain releases ownership and leaves the run RUNNING, for whoever carries it on."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import agentguard
from agentguard import (
    AgentGuardError,
    Budget,
    Guard,
    KillSwitchTriggeredError,
    NoActiveRunError,
    Run,
    RunState,
    RunStopped,
    StoreUnavailableError,
    Usage,
    guarded_step,
)
from agentguard.sessions.upkeep import beat
from agentguard.steps.draining import is_unwinding
from agentguard.steps.stops import Draining

SOURCE = Path(agentguard.__file__).parents[1]


@pytest.fixture
def guard(home: Path) -> Iterator[Guard]:
    with Guard.open(telemetry=False) as guard:
        yield guard


class Bodies:
    """Steps that say when they are in their bodies, and stay there until they are let out."""

    def __init__(self) -> None:
        self.inside = threading.Event()
        self.out = threading.Event()
        self.ran: list[str] = []
        self.slow = guarded_step(effect="read", usage=Usage(coins=1))(self._slow)
        self.quick = guarded_step(effect="read", usage=Usage(coins=1))(self._quick)
        self.aslow = guarded_step(effect="read", usage=Usage(coins=1))(self._aslow)

    def _slow(self, name: str) -> str:
        self.ran.append(name)
        self.inside.set()
        assert self.out.wait(60)
        return f"{name}, {self.quick(f'inside {name}')}"

    def _quick(self, name: str) -> str:
        self.ran.append(name)
        return name

    async def _aslow(self, name: str) -> str:
        self.ran.append(name)
        self.inside.set()
        while not self.out.is_set():
            await asyncio.sleep(0.001)
        return name


@pytest.fixture
def bodies() -> Bodies:
    return Bodies()


@contextmanager
def drained_from_a_thread(run: Run, bodies: Bodies, timeout: float | None = None) -> Iterator[list[bool]]:
    """As a worker's signal handler does it, once a body is in flight; gives what `drain` says."""
    said: list[bool] = []

    def drain() -> None:
        assert bodies.inside.wait(60)
        said.append(run.drain(timeout))

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        yield said
    finally:
        bodies.out.set()
        thread.join(60)


def when(condition: Callable[[], object], then: Callable[[], object]) -> threading.Thread:
    """Do something as soon as a condition holds."""

    def wait() -> None:
        pause = threading.Event()
        while not condition():
            pause.wait(0.001)
        then()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def types(guard: Guard, run_id: str = "r") -> list[tuple[str, str | None]]:
    return [(event.type, event.key) for event in guard.history(run_id)]


def is_let_go(guard: Guard, run_id: str = "r", state: RunState = RunState.RUNNING) -> bool:
    """Nobody owns it, and nothing on record says that it ended."""
    row = guard.components.store.row(run_id)
    return row is not None and row.owner == {} and row.state == state and guard.summary(run_id).state is state


def carried_on(guard: Guard, agent: Callable[[], Any], run_id: str = "r") -> Any:
    """What the agent gives when another process recovers the run, at once; the log adds up then."""
    with Guard.open(telemetry=False) as other, other.recover(run_id):
        result = agent()
    assert guard.summary(run_id).state is RunState.COMPLETED
    assert guard.verify()
    assert guard.reconstruct(run_id) == guard.summary(run_id)
    with guard.replay(run_id):
        assert agent() == result
    return result


# --- what is in flight ---------------------------------------------------------------------------


def test_a_drain_lets_what_is_in_flight_finish_and_leaves_the_run_running(guard, bodies):
    def agent() -> list[str]:
        return [bodies.slow("a"), bodies.quick("b")]

    with pytest.raises(RunStopped) as caught, guard.run("job", run_id="r") as run:
        with drained_from_a_thread(run, bodies) as said:
            let_out = when(lambda: run.stop is not None, bodies.out.set)
            agent()
    let_out.join()
    assert said == [True]
    assert type(caught.value) is RunStopped
    assert caught.value is run.stop
    assert caught.value.run_id == "r"
    assert "guard.recover('r')" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).run_id == "r"
    assert is_let_go(guard)
    assert run.state is RunState.RUNNING
    assert bodies.ran == ["a", "inside a"], "what is called in a body in flight is part of it"
    assert types(guard)[2:] == [
        ("step_started", "main/_slow#1"),
        ("step_started", "main/_slow#1/_quick#1"),
        ("step_completed", "main/_slow#1/_quick#1"),
        ("step_completed", "main/_slow#1"),
    ]
    assert carried_on(guard, agent) == ["a, inside a", "b"]
    assert bodies.ran == ["a", "inside a", "b"], "no body ran twice"


def test_what_does_not_finish_in_time_stays_in_flight_on_record(guard, bodies):
    def agent() -> str:
        return bodies.slow("a")

    with pytest.raises(RunStopped), guard.run("job", run_id="r") as run:
        with drained_from_a_thread(run, bodies, timeout=0) as said:
            let_out = when(lambda: is_let_go(guard), bodies.out.set)
            agent()  # its result is on no record, so it is not handed out
            raise AssertionError("it came back")
    let_out.join()
    assert said == [False]
    assert is_let_go(guard)
    assert types(guard)[2:] == [("step_started", "main/_slow#1")]
    assert guard.verify()
    assert carried_on(guard, agent) == "a, inside a"
    assert bodies.ran == ["a", "a", "inside a"], "in doubt; its effect says that it may run again"


def test_a_drain_waits_for_threads_and_refuses_what_they_begin_after_it(guard, bodies):
    def thread(name: str) -> list[str]:
        return [bodies.slow(name), bodies.quick("too late")]

    with pytest.raises(RunStopped), guard.run("job", run_id="r") as run, ThreadPoolExecutor() as pool:
        futures = [pool.submit(run.bind(thread), name) for name in "ab"]
        when(lambda: len(bodies.ran) == 2, bodies.inside.set).join()
        let_out = when(lambda: run.stop is not None, bodies.out.set)
        assert run.drain()
        let_out.join()
        errors = [future.exception(60) for future in futures]
        assert errors == [run.stop, run.stop]
    assert "too late" not in bodies.ran
    assert [kind for kind, _ in types(guard)].count("step_completed") == 4
    assert is_let_go(guard)


def test_an_async_drain_does_not_block_the_loop(guard, bodies, monkeypatch):
    """One body finishes, the other is cancelled when the time is up: that is no outcome of its own."""
    now = [0.0]
    monkeypatch.setattr("agentguard.sessions.drain.time", SimpleNamespace(monotonic=lambda: now[0]))
    never = guarded_step(effect="read", name="never")(lambda: None)
    cancelled: list[str] = []

    @guarded_step(effect="read")
    async def stays() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append("stays")
            raise

    async def main() -> bool:
        async with guard.run("job", run_id="r") as run:
            tasks = [asyncio.ensure_future(bodies.aslow("a")), asyncio.ensure_future(stays())]
            while len(guard.history("r")) < 4:
                await asyncio.sleep(0.001)
            drain = asyncio.ensure_future(run.adrain(1))
            await asyncio.sleep(0)
            bodies.out.set()
            assert await tasks[0] == "a"
            now[0] = 1.0
            with pytest.raises(RunStopped):
                await tasks[1]
            with suppress(Exception):
                never()
            drained.append(await drain)
        return True

    drained: list[bool] = []
    with pytest.raises(RunStopped):
        asyncio.run(main())
    assert drained == [False]
    assert cancelled == ["stays"]
    assert is_let_go(guard)
    assert [kind for kind, _ in types(guard)[2:]] == ["step_started", "step_started", "step_completed"]


def test_the_blocks_end_waits_for_a_drain_in_its_own_loop(guard, bodies):
    """The agent is through before the drain is: the guard must not be closed under it."""

    async def aside() -> None:
        await bodies.aslow("a")

    async def main() -> asyncio.Task[bool]:
        async with guard.run("job", run_id="r") as run:
            task = asyncio.ensure_future(aside())
            while not bodies.inside.is_set():
                await asyncio.sleep(0.001)
            drain = asyncio.ensure_future(run.adrain())
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_later(0.05, bodies.out.set)
            task.add_done_callback(lambda _: None)
            stopped.append(run)
        return drain

    stopped: list[Run] = []
    with pytest.raises(RunStopped) as caught:
        asyncio.run(main())
    assert caught.value is stopped[0].stop
    assert is_let_go(guard)
    assert types(guard)[-1] == ("step_completed", "main/task#1/_aslow#1")


def test_tasks_cancelled_as_the_agent_unwinds_stay_in_flight(guard, bodies):
    """A TaskGroup cancels the others once one is refused; a recovery must not wait for that again."""
    first = True

    async def agent() -> list[str]:
        async with asyncio.TaskGroup() as group:
            slow = group.create_task(bodies.aslow("a"))
            other = group.create_task(twice())
        return [slow.result(), other.result()]

    async def twice() -> str:
        bodies.quick("b")
        while first and not bodies.inside.is_set():
            await asyncio.sleep(0.001)
        if first:
            drains.append(asyncio.get_running_loop().run_in_executor(None, run.drain))
            while run.stop is None:
                await asyncio.sleep(0.001)
        return bodies.quick("c")

    drains: list[Any] = []
    run = guard.run("job", run_id="r")

    async def main() -> None:
        async with run:
            await agent()

    with pytest.raises(RunStopped) as caught:
        asyncio.run(main())
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert is_let_go(guard)
    assert "step_failed" not in dict(types(guard))
    first = False
    bodies.out.set()
    assert carried_on(guard, lambda: asyncio.run(agent())) == ["a", "c"]
    assert bodies.ran == ["b", "a", "a", "c"] or bodies.ran == ["a", "b", "a", "c"]


def test_a_generator_in_flight_goes_on_and_is_not_closed_early_by_the_way_out(guard):
    @guarded_step(effect="read", name="numbers")
    def numbers(upto: int) -> Iterator[int]:
        yield from range(upto)

    quick = guarded_step(effect="read", name="quick")(lambda: None)

    def agent(run: Run | None = None) -> list[int]:
        seen = []
        for n in numbers(3):
            seen.append(n)
            if n == 0 and run is not None:
                drains.append(when(lambda: True, lambda: run.drain(20)))
                when(lambda: run.stop is not None, lambda: None).join()
        for n in numbers(5):
            seen.append(n)
            quick()
        return seen

    drains: list[threading.Thread] = []
    with pytest.raises(RunStopped), guard.run("job", run_id="r") as run:
        agent(run)
    assert is_let_go(guard)
    assert types(guard)[2:] == [("step_started", "main/numbers#1"), ("step_completed", "main/numbers#1")]
    assert carried_on(guard, agent) == [0, 1, 2, 0, 1, 2, 3, 4]

    def half(run: Run | None = None) -> list[int]:
        items = numbers(4)
        seen = [next(items)]
        if run is not None:
            drains.append(when(lambda: True, lambda: run.drain(0.2)))
            when(lambda: run.stop is not None, lambda: None).join()
        try:
            quick()
            return [*seen, *items]
        finally:
            items.close()

    with pytest.raises(RunStopped), guard.run("job", run_id="half") as run:
        half(run)
    assert types(guard, "half")[2:] == [("step_started", "main/numbers#1")]
    assert carried_on(guard, half, "half") == [0, 1, 2, 3]


# --- the agent's way out -------------------------------------------------------------------------


def test_no_agent_can_swallow_a_drain(guard, bodies):
    refused = 0
    with pytest.raises(RunStopped) as caught, guard.run("job", run_id="r") as run:
        bodies.quick("a")
        assert run.drain()
        for act in (
            lambda: bodies.quick("b"),
            lambda: run.call("c", len, "abc"),
            lambda: run.record("v", lambda: 1),
            run.now,
            run.check,
            lambda: run.scope("s").__enter__(),
            lambda: guard.run("nested").__enter__(),
            lambda: run.step("block").__enter__(),
        ):
            with pytest.raises(RunStopped) as stop:
                act()
            assert stop.value is run.stop
            refused += 1
    assert refused == 8
    assert caught.value is run.stop
    assert types(guard)[2:] == [("step_started", "main/_quick#1"), ("step_completed", "main/_quick#1")]
    assert run.summary().steps == run.spent.steps == 1
    assert run.remaining.usd is None
    assert guard.runs() == [guard.summary("r")]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, LookupError, None])
def test_however_the_block_is_left_a_drained_run_has_not_ended(guard, bodies, error):
    expected = RunStopped if error in (None, LookupError) else error
    with pytest.raises(expected) as caught, guard.run("job", run_id="r") as run:
        run.drain()
        if error is not None:
            raise error
    assert is_let_go(guard)
    if error is LookupError:
        assert isinstance(caught.value.__cause__, LookupError)


def test_a_scope_left_on_the_way_out_is_not_closed(guard, bodies):
    def agent(run: Run, *, leaves: bool) -> None:
        with run.scope("part", Budget(coins=10)):
            bodies.quick("a")
            if leaves:
                run.drain()
            bodies.quick("b")

    with pytest.raises(RunStopped), guard.run("job", run_id="r") as run:
        agent(run, leaves=True)
    assert [kind for kind, _ in types(guard)[2:]] == ["scope_opened", "step_started", "step_completed"]
    with guard.recover("r") as run:
        agent(run, leaves=False)
    assert bodies.ran == ["a", "b"]
    assert guard.verify()
    assert guard.summary("r").usage["coins"] == 2


def test_a_scope_left_while_the_drain_still_waits_is_not_closed(guard, bodies):
    def agent(run: Run) -> None:
        with run.scope("part", Budget(coins=30)):
            bodies.slow("a")
            bodies.quick("b")

    with (
        pytest.raises(RunStopped),
        guard.run("job", run_id="r") as run,
        drained_from_a_thread(run, bodies),
    ):
        when(lambda: run.stop is not None, bodies.out.set)
        agent(run)
    assert "scope_closed" not in [kind for kind, _ in types(guard)]
    with guard.recover("r") as run:
        agent(run)
    assert types(guard)[-4:-1] == [
        ("step_started", "main/_quick#1"),
        ("step_completed", "main/_quick#1"),
        ("scope_closed", "main/part#1"),
    ]


@pytest.mark.parametrize("keeps", [False, True], ids=["dropped", "kept"])
def test_a_drain_does_not_wait_for_a_generator_that_the_agent_has_left(guard, keeps):
    @guarded_step(effect="read", name="numbers")
    def numbers(upto: int) -> Iterator[int]:
        yield from range(upto)

    quick = guarded_step(effect="read", name="quick")(lambda n: n)
    said: list[bool] = []

    def agent(run: Run | None = None) -> list[int]:
        seen = []
        kept = numbers(3)
        for n in kept if keeps else numbers(3):
            if n == 1 and run is not None:
                drains.append(when(lambda: True, lambda: said.append(run.drain())))
                when(lambda: run.stop is not None, lambda: None).join()
            seen.append(quick(n))
        return seen

    drains: list[threading.Thread] = []
    with pytest.raises(RunStopped), guard.run("job", run_id="r") as run:
        agent(run)
    drains[0].join(60)
    assert said == [False], "what the agent left is in flight on record"
    assert types(guard)[-1] == ("step_completed", "main/quick#1")
    assert carried_on(guard, agent) == [0, 1, 2]


def test_a_run_that_a_decorator_made_or_start_opened_is_drained_likewise(guard, bodies):
    @guard.run("job")
    def agent(name: str) -> str:
        run = agentguard.current_run()
        assert run is not None
        ids.append(run.id)
        run.drain()
        return bodies.quick(name)

    ids: list[str] = []
    with pytest.raises(RunStopped):
        agent("a")
    assert is_let_go(guard, ids[0])

    run = guard.start("notebook")
    assert run.drain()
    with pytest.raises(RunStopped):
        run.close()
    with pytest.raises(RunStopped):
        run.close()
    assert is_let_go(guard, run.id)


# --- runs in runs --------------------------------------------------------------------------------


def test_a_drain_goes_down_into_the_runs_nested_in_this_process(guard, bodies):
    def agent(guard: Guard, run: Run | None = None) -> str:
        bodies.quick("a")
        with guard.run("inner"):
            bodies.quick("b")
            if run is not None:
                with pytest.raises(AgentGuardError, match=f"is nested in run {run.id}: drain that one"):
                    agentguard.current_run().drain()
                run.drain()
            return bodies.quick("c")

    with pytest.raises(RunStopped) as caught, guard.run("outer", run_id="r", budget=Budget(coins=9)) as run:
        agent(guard, run)
    assert caught.value is run.stop
    (inner,) = [row for row in guard.runs() if row.name == "inner"]
    assert is_let_go(guard)
    assert is_let_go(guard, inner.run_id)
    assert [kind for kind, _ in types(guard, inner.run_id)[2:]] == ["step_started", "step_completed"]
    with Guard.open(telemetry=False) as other, other.recover("r"):
        assert agent(other) == "c"
    assert bodies.ran == ["a", "b", "c"]
    assert guard.summary("r").state is guard.summary(inner.run_id).state is RunState.COMPLETED
    assert guard.summary("r").usage["coins"] == 3
    assert guard.verify()


def test_a_run_nested_in_a_body_in_flight_ends_as_it_would(guard, bodies):
    @guarded_step
    def sub_agent() -> list[str]:
        with guards[-1].run("inner"):
            return [bodies.slow("a"), bodies.quick("a, too")]

    def agent() -> list[str]:
        return [sub_agent(), bodies.quick("b")]

    guards = [guard]
    with pytest.raises(RunStopped), guard.run("outer", run_id="r") as run:
        with drained_from_a_thread(run, bodies) as said:
            let_out = when(lambda: run.stop is not None, bodies.out.set)
            agent()
    let_out.join()
    assert said == [True]
    (inner,) = [row for row in guard.runs() if row.name == "inner"]
    assert inner.state is RunState.COMPLETED
    assert is_let_go(guard)
    with Guard.open(telemetry=False) as other, other.recover("r"):
        guards.append(other)
        assert agent() == [["a, inside a", "a, too"], "b"]
    assert bodies.ran == ["a", "inside a", "a, too", "b"]


# --- kills, pauses, and who else is there --------------------------------------------------------


def test_a_kill_during_a_drain_wins(guard, bodies):
    with pytest.raises(KillSwitchTriggeredError), guard.run("job", run_id="r") as run:
        with drained_from_a_thread(run, bodies) as said:
            killed = when(lambda: run.stop is not None, lambda: (run.kill("enough"), bodies.out.set()))
            bodies.slow("a")
    killed.join()
    assert said == [True], "there is nothing to let go of"
    assert guard.summary("r").state is RunState.KILLED
    assert guard.verify()
    assert guard.reconstruct("r") == guard.summary("r")


def test_a_drained_run_can_be_killed(guard, bodies):
    """Nobody is there to write it: the killer does."""
    with suppress(RunStopped), guard.run("job", run_id="r") as run:
        run.drain()
    guard.kill(run="r", reason="not wanted any more")
    assert guard.summary("r").state is RunState.KILLED
    assert guard.verify()


def test_a_paused_run_is_drained_and_stays_paused(guard, bodies):
    with suppress(RunStopped), guard.run("job", run_id="r") as run:
        run.pause("look at it first")
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(run.bind(bodies.quick), "a")
            when(lambda: run.live_run.time.waiters, lambda: None).join()
            assert run.drain()
            assert waiting.exception(60) is run.stop
    assert is_let_go(guard, state=RunState.PAUSED)
    guard.resume("r")
    assert carried_on(guard, lambda: bodies.quick("a")) == "a"


def test_a_drained_run_can_be_attached_to(guard, bodies):
    """Like any run whose owner is gone: its steps count, and whoever recovers it fences them."""
    with suppress(RunStopped), guard.run("job", run_id="r") as run:
        bodies.quick("a")
        run.drain()
    with guard.attach("r", branch="helper") as attached:
        bodies.quick("b")
        with pytest.raises(AgentGuardError, match="only its owner can drain it"):
            attached.drain()
    assert guard.summary("r").steps == 2
    assert is_let_go(guard)


def test_steps_of_attached_processes_are_not_waited_for(guard, bodies):
    program = """
import sys
from agentguard import Guard, guarded_step

@guarded_step(effect="read")
def stays():
    print("inside", flush=True)
    sys.stdin.readline()

with Guard.open(telemetry=False) as guard, guard.attach("r", branch="helper"):
    stays()
    print(guard.summary("r").steps)
"""
    with suppress(RunStopped), guard.run("job", run_id="r") as run:
        helper = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )
        assert helper.stdout is not None
        assert helper.stdout.readline() == "inside\n"
        bodies.quick("a")
        assert run.drain(), "everything of this process has finished"
        assert is_let_go(guard)
    out, _ = helper.communicate("\n", timeout=60)
    assert helper.returncode == 0
    assert out == "2\n", "the helper goes on until somebody claims the run"
    assert types(guard)[-1] == ("step_completed", "main/helper/stays#1")


def test_a_heartbeat_does_not_take_a_drained_run_back(guard, bodies):
    with suppress(RunStopped), guard.run("job", run_id="r") as run:
        live_run = run.live_run
        run.drain()
        guard.runtime.live["r"] = live_run  # as of a heartbeat that had begun before
        live_run.owner = True
        beat(guard.runtime)
        live_run.owner = False
        del guard.runtime.live["r"]
    assert is_let_go(guard)


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_drain_leaves_the_whole_log_behind(home, bodies, durability):
    def agent() -> list[str]:
        return [bodies.quick(name) for name in "abc"[: 2 if first else 3]]

    first = True
    with Guard.open(telemetry=False, durability=durability) as guard:
        with suppress(RunStopped), guard.run("job", run_id="r") as run:
            agent()
            run.drain()
            with Guard.open(telemetry=False) as other:
                assert len(other.history("r")) == 6
        first = False
        assert carried_on(guard, agent) == ["a", "b", "c"]
    assert bodies.ran == ["a", "b", "c"]


def test_in_memory_the_same_process_carries_on(bodies):
    with Guard.in_memory(telemetry=False) as guard:
        with suppress(RunStopped), guard.run("job", run_id="r") as run:
            bodies.quick("a")
            run.drain()
        with guard.recover("r"):
            assert [bodies.quick("a"), bodies.quick("b")] == ["a", "b"]
        assert guard.summary("r").state is RunState.COMPLETED
    assert bodies.ran == ["a", "b"]


def test_a_recovered_run_can_be_drained_again_also_before_it_is_live(guard, bodies):
    def agent(upto: int, drain_at: int | None = None) -> None:
        for n in range(upto):
            if n == drain_at:
                agentguard.current_run().drain()
            bodies.quick(str(n))

    with suppress(RunStopped), guard.run("job", run_id="r"):
        agent(4, drain_at=3)
    for drain_at in (1, 3, 4):
        with pytest.raises(RunStopped), guard.recover("r"):
            agent(5, drain_at)
        assert is_let_go(guard)
    with guard.recover("r"):
        agent(5)
    assert bodies.ran == list("01234")
    assert guard.verify()
    assert [kind for kind, _ in types(guard)].count("run_recovered") == 4


# --- what it refuses -----------------------------------------------------------------------------


def test_a_drain_inside_a_step_is_refused_and_changes_nothing(guard, bodies):
    @guarded_step
    def drains() -> None:
        agentguard.current_run().drain()

    with guard.run("job", run_id="r") as run:
        with pytest.raises(AgentGuardError, match="between steps, or in another thread"):
            drains()
        assert run.stop is None
        bodies.quick("a")
    assert guard.summary("r").state is RunState.COMPLETED


def test_what_cannot_be_drained(guard, bodies):
    run = guard.run("job", run_id="r")
    with pytest.raises(NoActiveRunError):
        run.drain()
    with run:
        bodies.quick("a")
        for timeout, error in (
            (-1, ValueError),
            (float("nan"), ValueError),
            ("1", TypeError),
            (True, TypeError),
        ):
            with pytest.raises(error, match="timeout must"):
                run.drain(timeout)  # type: ignore[arg-type]
        assert run.stop is None
    assert run.drain(), "it has ended: there is nothing to let go of"
    assert asyncio.run(run.adrain())
    assert run.stop is None
    with guard.replay("r") as replay:
        bodies.quick("a")
        with pytest.raises(AgentGuardError, match="nothing to drain"):
            replay.drain()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_cannot_drain_its_parents_run(guard):
    with guard.run("job", run_id="r") as run:
        pid = os.fork()
        if not pid:
            try:
                run.drain()
            except AgentGuardError as error:
                os._exit(0 if "only the process that opened" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert run.stop is None


def test_a_store_that_is_gone_is_told_of_and_nothing_more_is_written(guard, bodies, monkeypatch):
    with pytest.raises(RunStopped), guard.run("job", run_id="r") as run:
        bodies.quick("a")
        home = Path(os.environ["AGENTGUARD_HOME"])
        lock = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
                "c.execute('begin immediate'); print('held', flush=True); sys.stdin.readline()",
                home / "agentguard.db",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert lock.stdout is not None
        assert lock.stdout.readline() == "held\n"
        monkeypatch.setattr(guard.components.store, "_timeout", 0.05)
        with pytest.raises(StoreUnavailableError):
            run.drain()
        lock.communicate("\n", timeout=60)
        with pytest.raises(RunStopped):
            bodies.quick("b")
    assert guard.components.store.row("r").owner["pid"] == os.getpid()
    assert bodies.ran == ["a"]


def test_a_drain_knows_its_stop_wherever_it_is_hidden():
    drain = Draining("r")
    assert not is_unwinding(drain, None)
    assert not is_unwinding(drain, LookupError())
    assert is_unwinding(drain, drain.stop)
    assert is_unwinding(drain, asyncio.CancelledError())
    try:
        try:
            raise drain.stop
        except RunStopped:
            raise LookupError from None
    except LookupError as error:
        assert is_unwinding(drain, ExceptionGroup("two", [ValueError(), error]))


# --- a worker ------------------------------------------------------------------------------------

WORKER = """
import signal, sys, threading, time
from agentguard import Guard, RunStopped, guarded_step

@guarded_step(effect="read")
def work(n):
    print("working on", n, flush=True)
    if n == 2:
        sys.stdin.readline()
    return n

run = None

def leave():
    threading.Thread(target=run.drain, args=(20,)).start()
    while run.stop is None:
        time.sleep(0.001)
    print("leaving", flush=True)

signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=leave).start())
try:
    with Guard.open(telemetry=False) as guard, guard.run("job", run_id="r", if_exists="recover") as run:
        print(sum(work(n) for n in range(5)))
except RunStopped as stop:
    print("drained:", run.state)
"""


def test_a_worker_that_is_told_to_leave_hands_its_run_over(guard):
    def worker() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-u", "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )

    first = worker()
    assert first.stdout is not None
    assert [first.stdout.readline() for _ in range(3)] == [f"working on {n}\n" for n in range(3)]
    first.send_signal(signal.SIGTERM)
    assert first.stdout.readline() == "leaving\n"
    out, _ = first.communicate("\n", timeout=60)
    assert first.returncode == 0
    assert out == "drained: RUNNING\n"
    assert is_let_go(guard)
    second = worker()
    out, _ = second.communicate("\n", timeout=60)
    assert out == "working on 3\nworking on 4\n10\n"
    assert guard.summary("r").state is RunState.COMPLETED
