"""`interrupt_threads=True` at any line: of a body, and of the guard's own code that a body calls.

A tracer lets another thread interrupt the body at each line in turn.  It arrives in code of the body alone; the
guard's blocks, steps and generators that are open there end, and nothing stays reserved.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import agentguard
from agentguard import Budget, Guard, KillSwitchTriggeredError, RunState, Usage, guarded_step
from agentguard.steps import interrupt
from agentguard.steps.live import LiveRun
from tests.unit.test_exception_at_any_line import books_are_right, here

pytestmark = [
    # What is raised in the thread may hit coverage's own code, which then holds its lock for ever.
    pytest.mark.no_cover,
    # It may arrive in a finaliser, where the interpreter can only report it.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("what_is_left_is_collected"),
]

PACKAGE = str(Path(agentguard.__file__).parent)
COIN = Usage(coins=1)


@pytest.fixture(params=["memory", "sqlite"])
def guard(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guard]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'events.db'}"
    with Guard.open(url, kill_switch="memory", telemetry=False) as guard:
        yield guard


@guarded_step(usage=COIN)
def small() -> None:
    """A step inside the body."""


@guarded_step(usage=COIN)
def items() -> Iterator[int]:
    yield from range(3)


def in_nested_runs(guard: Guard) -> None:
    with guard.run("nested", budget=Budget(coins=9)):
        small()
        for item in items():
            if item == 1:
                break


def in_generators(guard: Guard) -> None:
    list(items())
    opened = items()
    next(opened)
    opened.close()
    next(items())


def in_blocks(guard: Guard) -> None:
    run = agentguard.current_run()
    assert run is not None
    with run.scope("scope", budget=Budget(coins=9)), run.step("block", usage=COIN):
        pass
    run.call("call", small.__wrapped__, usage=COIN)


BODIES = {"nested runs": in_nested_runs, "generators": in_generators, "blocks": in_blocks}


class Interrupts:
    """A tracer that has another thread interrupt the bodies of this one, at the n-th line of chosen files."""

    def __init__(self, line: int, files: tuple[str, ...]) -> None:
        self.left = line
        self.acted = threading.Event()
        self._files = files
        self._live_runs: list[LiveRun] = []
        self._go, self._done = threading.Event(), threading.Event()
        threading.Thread(target=self._interrupt, daemon=True).start()

    def _interrupt(self) -> None:
        self._go.wait()
        for live_run in self._live_runs:
            for body in tuple(live_run.in_flight.bodies):
                body.stop(KillSwitchTriggeredError("run", "enough"))
        self._done.set()

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(self._files):
            return None
        if event == "line" and not self.acted.is_set():
            self.left -= 1
            if self.left < 0:
                self.acted.set()
                sys.settrace(None)
                run = agentguard.current_run()
                assert run is not None
                self._live_runs = [run.live_run, *(around.live_run for around in run.live_run.around)]
                self.end()
        return self

    def end(self) -> None:
        self._go.set()
        self._done.wait()


def interrupted(guard: Guard, line: int, body: Callable[[Guard], None], *files: str) -> bool:
    """Interrupt a body at one line of some files; return False if it has not so many."""
    tracer = Interrupts(line, files)

    @guarded_step(usage=COIN)
    def traced() -> None:
        before = sys.gettrace()
        sys.settrace(tracer)
        try:
            body(guard)
        finally:
            sys.settrace(before)
        while tracer.acted.is_set():  # it has come, or comes here
            pass

    with suppress(KillSwitchTriggeredError), guard.run("r", tenant="t", interrupt_threads=True) as run:
        traced()
    assert run.state is (RunState.KILLED if tracer.acted.is_set() else RunState.COMPLETED)
    tracer.end()
    return tracer.acted.is_set()


@pytest.mark.parametrize(
    "apart", [pytest.param(59, id="some lines"), pytest.param(3, id="most lines", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("body", BODIES)
def test_an_interruption_at_any_line_arrives_in_the_body_alone(guard: Guard, body: str, apart: int) -> None:
    """No run stays RUNNING, no step in flight, and the books of the tenant are right."""
    line, more = 0, True
    while more:
        guard.set_tenant_budget("t", Budget(coins=10**6))
        before = guard.tenants()[0].spent["coins"]
        more = interrupted(guard, line, BODIES[body], PACKAGE, __file__)
        assert agentguard.current_run() is None
        books_are_right(guard, before)
        line += apart
    assert line > 100


def test_the_start_of_a_thread_is_out_of_reach() -> None:
    """Until a new thread runs, Python takes it for the one that starts it: it would be raised there."""
    body = sys._getframe()
    body.f_trace_opcodes = True  # Python 3.12 looks at it as tracing begins
    reached: dict[bool, set[bool]] = {True: set(), False: set()}

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        frame.f_trace_opcodes = True
        if event == "opcode":
            each: FrameType | None = frame
            while each is not None and each.f_code is not threading.Thread.start.__code__:
                each = each.f_back
            reached[each is not None].add(interrupt._is_reachable(frame, body))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        thread = threading.Thread(target=int)
        thread.start()
    finally:
        sys.settrace(before)
    thread.join()
    assert reached == {True: {False}, False: {False, True}}


@pytest.mark.parametrize(
    "blocks",
    [lambda guard: guard.run("nested"), lambda _: here().scope("s"), lambda _: here().step("b", usage=COIN)],
    ids=["run", "scope", "step"],
)
def test_an_interruption_that_a_failing_c_function_takes_along_leaves_the_blocks_around_it(
    guard: Guard, blocks: Callable[[Guard], AbstractContextManager[object]]
) -> None:
    """It is raised as `__exit__` of the innermost block is called, before that begins."""
    guard.set_tenant_budget("t", Budget(coins=10**6))
    terminal, other_end = os.openpty()
    began = threading.Event()

    @guarded_step(usage=COIN)
    def reads() -> None:
        with guard.run("outer"), blocks(guard):
            next(items())
            began.set()
            os.read(terminal, 1)  # an error once the other end is closed

    def kill() -> None:
        began.wait()
        run.kill("enough")
        os.close(other_end)

    with pytest.raises(KillSwitchTriggeredError, match="enough"):
        with guard.run("r", tenant="t", interrupt_threads=True) as run:
            thread = threading.Thread(target=kill)
            thread.start()
            reads()
    thread.join()
    os.close(terminal)
    assert agentguard.current_run() is None
    assert {each.state for each in guard.runs(limit=10)} == {RunState.KILLED}
    books_are_right(guard, before=0)
