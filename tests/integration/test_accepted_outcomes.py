"""An outcome that PostgreSQL's writer has accepted, and whose step is cut short before it is committed.

Whatever becomes of the commit, the outcome is on record afterwards, once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import psycopg
import pytest

from agentguard import Budget, Guard, RunState, Usage, guarded_step
from agentguard.steps import outcome
from tests.kit import wait_until
from tests.postgres import execute
from tests.unit.test_exception_at_any_line import agrees

# What is raised in a finaliser is reported by the interpreter.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("what_is_left_is_collected"),
]

COIN = Usage(coins=1)


@guarded_step(usage=COIN, effect="idempotent")
def work() -> int:
    return 1


@guarded_step(usage=COIN, effect="idempotent")
async def awaited() -> int:
    return 1


STEPS: dict[str, Callable[[], object]] = {"sync": work, "async": lambda: asyncio.run(awaited())}  # type: ignore[arg-type]


@pytest.fixture
def guard(postgres_url: str) -> Iterator[Guard]:
    with Guard.open(postgres_url, telemetry=False) as guard:
        yield guard


def cut_short(guard: Guard, act: Callable[[], object], program: Callable[[], object]) -> None:
    """Run a program; once an outcome is accepted, call `act`, and raise as a signal handler does.

    The background thread that commits has nothing to do then, so that it is not faster.
    """
    commits = guard.components.store._commits  # type: ignore[attr-defined]

    def at_the_end(_frame: FrameType, event: str, _arg: object) -> Any:
        if event == "return":
            sys.settrace(None)
            act()
            raise KeyboardInterrupt
        return at_the_end

    def tracer(frame: FrameType, _event: str, _arg: object) -> Any:
        if frame.f_code is not outcome._leave.__code__:
            return None
        wait_until(lambda: not commits._untold and not commits._writing.locked())
        return at_the_end

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        with pytest.raises(KeyboardInterrupt):
            program()
    finally:
        sys.settrace(before)


def nothing() -> None:
    """What need not happen."""


@pytest.mark.parametrize("step", STEPS)
def test_it_is_on_record_where_the_end_of_its_nested_run_recalls_it(guard: Guard, step: str) -> None:
    def program() -> None:
        with guard.run("outer", tenant="t") as outer:
            runs.append(outer)
            with guard.run("nested", budget=Budget(coins=5)) as nested:
                runs.append(nested)
                STEPS[step]()

    runs: list[Any] = []
    guard.set_tenant_budget("t", Budget(coins=100))
    cut_short(guard, nothing, program)
    for run in runs:
        assert run.state is RunState.FAILED
        assert run.spent["coins"] == 1
        agrees(guard, run)
    assert guard.tenants()[0].spent["coins"] == 1


def cut_connections(url: str, _run_id: str) -> None:
    execute(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'agentguard' AND datname = current_database()",
    )


def change_budget(url: str, run_id: str) -> None:
    with Guard.open(url, telemetry=False) as other:
        other.set_budget(run_id, Budget(coins=50))


def kill(url: str, run_id: str) -> None:
    with Guard.open(url, telemetry=False) as other:
        other.kill(run=run_id, reason="enough")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("act", [change_budget, kill, cut_connections])
def test_it_is_on_record_where_others_come_first(
    guard: Guard, postgres_url: str, act: Callable[[str, str], None], step: str
) -> None:
    def program() -> None:
        with guard.run("r", budget=Budget(coins=5)) as run:
            runs.append(run)
            cut_short(guard, lambda: act(postgres_url, run.id), STEPS[step])
            raise KeyboardInterrupt

    runs: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        program()
    [run] = runs
    assert run.state is (RunState.KILLED if act is kill else RunState.FAILED)
    assert run.spent["coins"] == 1
    agrees(guard, run)


def test_it_is_on_record_where_its_task_is_cancelled_and_another_writer_holds_the_run(
    guard: Guard, postgres_url: str
) -> None:
    other = psycopg.connect(postgres_url)

    @guarded_step(usage=COIN)
    async def held() -> int:
        other.execute("SELECT FROM agentguard.run FOR UPDATE")
        return 1

    async def main() -> Any:
        async with guard.run("r", budget=Budget(coins=5)) as run:
            log = run.live_run.log
            task = asyncio.create_task(held())  # type: ignore[arg-type]
            while not log.fold.steps or log.fold.open:
                await asyncio.sleep(0)
            commit = log.commit
            assert commit is not None
            task.cancel()
            await asyncio.to_thread(wait_until, commit.future.done)
            assert commit.error is not None
            other.rollback()
            with pytest.raises(asyncio.CancelledError):
                await task
        return run

    try:
        run = asyncio.run(main())
    finally:
        other.close()
    assert run.state is RunState.COMPLETED
    assert run.spent["coins"] == 1
    agrees(guard, run)


@pytest.mark.parametrize("step", STEPS)
def test_a_process_that_is_killed_before_the_commit_is_recovered_and_charges_once(
    guard: Guard, postgres_url: str, step: str
) -> None:
    def program(of: Guard) -> None:
        with of.run("outer", run_id="r", tenant="t"), of.run("nested", budget=Budget(coins=5)):
            STEPS[step]()

    guard.set_tenant_budget("t", Budget(coins=100))
    pid = os.fork()
    if not pid:
        try:
            with Guard.open(postgres_url, telemetry=False) as own:
                cut_short(own, lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: program(own))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    with guard.recover("r") as outer, guard.run("nested", budget=Budget(coins=5)) as nested:
        STEPS[step]()
    for run in (outer, nested):
        assert run.state is RunState.COMPLETED
        agrees(guard, run)
    events = [event.type for event in guard.history(nested.id)]
    assert events.count("step_started") == 1 + events.count("step_resolved")
    assert guard.tenants()[0].spent["coins"] == outer.spent["coins"] == 1 + events.count("step_resolved")
