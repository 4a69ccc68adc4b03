"""A commit of other tasks' appends that a signal handler's exception cuts short: they are told all the same."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import psycopg
import pytest

from agentguard import Budget, Guard, Run, guarded_step
from tests.kit import wait_until
from tests.postgres import execute, waiting
from tests.unit.test_exception_at_any_line import agrees, first, interrupt, traced

TASKS = 3


@guarded_step
async def work() -> int:
    return 1


@pytest.fixture
def guard(postgres_url: str) -> Iterator[Guard]:
    with Guard.open(postgres_url, telemetry=False) as guard:
        yield guard


class Interruption(Exception):
    """What a signal handler raises."""


class Loop(threading.Thread):
    """Tasks in a loop of their own, each of which takes a step."""

    def __init__(self, run: Run) -> None:
        super().__init__(daemon=True)
        self._bound = run.bind(asyncio.run)
        self.results: list[int] = []

    async def _main(self) -> None:
        self.results = await asyncio.gather(*(work() for _ in range(TASKS)))

    def run(self) -> None:
        self._bound(self._main())


@pytest.mark.parametrize("tenant", ["default", "t"])
def test_a_commit_that_the_server_carries_out_after_its_connection_was_dropped_is_found(
    guard: Guard, postgres_url: str, tenant: str
) -> None:
    """A second try finds the run held, by the first one; nobody is told that others were first."""

    def handler(_signal: int, _frame: FrameType | None) -> None:
        raise Interruption  # for which psycopg, unlike for KeyboardInterrupt, does not cancel the query

    def interrupt_main() -> None:
        wait_until(lambda: waiting(postgres_url, "advisory") == 1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    execute(
        postgres_url,
        """
        CREATE FUNCTION public.held() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
            PERFORM set_config('lock_timeout', '0', true), pg_advisory_xact_lock_shared(1);
            RETURN NULL;
        END $$;
        CREATE TRIGGER held AFTER INSERT ON agentguard.event FOR EACH ROW EXECUTE FUNCTION public.held();
        """,
    )
    commits = guard.components.store._commits  # type: ignore[attr-defined]
    guard.set_tenant_budget("t", Budget(steps=TASKS))
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with psycopg.connect(postgres_url) as holder, guard.run("r", tenant=tenant) as run:
            loop = Loop(run)
            with commits._writing:
                loop.start()
                wait_until(lambda: len(commits._queue) == TASKS)
                holder.execute("SELECT pg_advisory_lock(1)")
                threading.Thread(target=interrupt_main, daemon=True).start()
                with pytest.raises(Interruption):
                    commits._commit()
            for waits in (1, 0, 1):  # it gives up, and tries again
                wait_until(lambda waits=waits: waiting(postgres_url, "transactionid") == waits)
            holder.execute("SELECT pg_advisory_unlock(1)")
            loop.join(60)
            assert loop.results == [1] * TASKS
    finally:
        signal.signal(signal.SIGTERM, before)
    agrees(guard, run)


@pytest.mark.parametrize("apart", [3, pytest.param(1, marks=pytest.mark.long)])
def test_tasks_whose_commit_was_cut_short_at_any_line_go_on(guard: Guard, apart: int) -> None:
    commits = guard.components.store._commits  # type: ignore[attr-defined]
    line, more = first("commit", apart), True
    while more:
        with guard.run("r") as run:
            loop = Loop(run)
            with commits._writing:  # which the background thread waits for
                loop.start()
                wait_until(lambda: len(commits._queue) == TASKS)
                more = traced(line, interrupt, commits._commit)
            loop.join(60)
            assert loop.results == [1] * TASKS, f"line {line}"
        agrees(guard, run)
        line += apart
    assert line > 100
