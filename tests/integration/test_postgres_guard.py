"""A guard whose store is PostgreSQL does what it does elsewhere."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from agentguard import Budget, BudgetExceededError, Guard, RunStopped, StoreUnavailableError, guarded_step
from agentguard.cli import main
from tests.postgres import execute


@guarded_step
def work(item: int) -> int:
    return item * 2


@guarded_step
async def awork(item: int) -> int:
    await asyncio.sleep(0)
    return item * 2


@pytest.fixture
def guard(postgres_url: str) -> Iterator[Guard]:
    with Guard.open(postgres_url, telemetry=False, store_timeout=10) as guard:
        yield guard


def test_a_run_is_on_record_and_its_log_is_intact(guard: Guard) -> None:
    with guard.run("triage", tenant="acme", budget=Budget(steps=5)) as run:
        assert [work(item) for item in range(5)] == [0, 2, 4, 6, 8]
    summary = guard.summary(run.id)
    assert (summary.state, summary.steps) == ("COMPLETED", 5)
    assert [event.type for event in guard.history(run.id)][-1] == "run_completed"
    assert guard.verify(run.id)
    assert guard.verify()


def test_many_tasks_of_one_run_stay_within_its_budget(guard: Guard) -> None:
    async def main() -> list[object]:
        async with guard.run("many", budget=Budget(steps=20)) as run:
            done = await asyncio.gather(*(awork(item) for item in range(40)), return_exceptions=True)
            assert run.spent.steps == 20
            return done

    with pytest.raises(BudgetExceededError):
        asyncio.run(main())
    [row] = guard.runs()
    assert row.usage.steps == 20
    assert guard.verify()


def test_a_budget_of_a_tenant_is_exact_over_threads_and_runs(guard: Guard) -> None:
    guard.set_tenant_budget("acme", Budget(steps=50))
    granted = []

    def agent() -> None:
        with pytest.raises(RunStopped), guard.run("agent", tenant="acme"):
            while True:
                granted.append(work(1))

    threads = [threading.Thread(target=agent) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(granted) == 50
    [account] = guard.tenants()
    assert account.spent.steps == 50
    assert guard.verify()


def test_a_database_without_our_schema_says_what_to_do(empty_postgres: str) -> None:
    with Guard.open(empty_postgres, telemetry=False) as guard:
        with pytest.raises(StoreUnavailableError, match="agentguard migrate"):
            guard.runs()


def test_migrate_makes_the_schema_and_a_newer_one_is_refused(
    empty_postgres: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTGUARD_STORE", empty_postgres)
    assert main(["migrate"]) == 0
    assert "monthly partitions" in capsys.readouterr().out
    assert main(["migrate", "--json"]) == 0
    assert capsys.readouterr().out.strip() == "[]"
    execute(empty_postgres, "INSERT INTO agentguard.migration (version, name) VALUES (9999, 'later')")
    assert main(["migrate"]) == 5
    assert "upgrade agentguard" in capsys.readouterr().err
    with Guard.open(empty_postgres, telemetry=False) as guard:
        with pytest.raises(StoreUnavailableError, match="upgrade agentguard"):
            guard.runs()
