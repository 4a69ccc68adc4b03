"""Workers are killed at random until every run has ended: no step is lost, none is charged twice."""

from __future__ import annotations

import random

import pytest

from agentguard import Budget
from agentguard.cli import main
from tests.integration.workers.conftest import OfficeOfTest
from tests.kit import wait_until
from tests.scale import scaled

FAST = ("--heartbeat", "0.4", "--stalled-after", "2", "--concurrency", "3", "--most-deaths", "100")
COUNT = 12


def _end_all(office: OfficeOfTest, runs: int, kills: int) -> None:
    tenants = ("acme", "globex")
    for tenant in tenants:
        office.guard.set_tenant_budget(tenant, Budget(steps=100_000, coins=100_000))
    submitted = [
        office.guard.submit(
            office.agents.many_steps, COUNT, tenant=tenants[number % 2], retries=3, backoff=0.1
        )
        for number in range(runs)
    ]
    draw = random.Random(runs * 1000 + kills)
    workers = [office.worker(*FAST) for _ in range(3)]
    for _ in range(kills):
        before = len(office.told())
        wait_until(lambda before=before: len(office.told()) > before or _ended(submitted), 60)
        victim = draw.randrange(len(workers))
        workers[victim].kill()
        workers[victim].wait()
        workers[victim] = office.worker(*FAST)
    assert [office.ends(run) for run in submitted] == ["COMPLETED"] * runs

    spent = dict.fromkeys(tenants, 0)
    for run in submitted:
        summary = office.guard.summary(run.id)
        events = office.guard.history(run.id)
        completed = [event.key for event in events if event.type == "step_completed"]
        assert sorted(completed) == sorted(f"main/pay#{number}" for number in range(1, COUNT + 1))
        charged = sum(event.usage["coins"] for event in events if event.usage is not None)
        assert summary.usage["coins"] == charged
        assert summary.open_steps == ()
        assert office.guard.reconstruct(run.id) == summary
        spent[run.tenant] += charged
    for account in office.guard.tenants():
        assert account.spent["coins"] == spent[account.tenant]
    assert office.guard.verify()
    assert main(["doctor"]) == 0


def _ended(runs: list) -> bool:
    return all(run.state.final for run in runs)


def test_workers_killed_at_random(office: OfficeOfTest) -> None:
    _end_all(office, runs=4, kills=3)


@pytest.mark.long
def test_many_workers_killed_at_random(office: OfficeOfTest) -> None:
    _end_all(office, runs=scaled(40), kills=scaled(30))
