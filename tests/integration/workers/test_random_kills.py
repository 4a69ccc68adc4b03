"""Workers are killed at random until every run has ended: no step is lost, none is charged twice."""

from __future__ import annotations

import asyncio
import importlib
import json
import random
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from agentguard import Budget, Guard, RunState, Usage
from agentguard.cli import main
from agentguard.sessions.base import live_run_of
from tests.integration.workers.conftest import OfficeOfTest
from tests.kit import wait_until
from tests.property.test_recovery_programs import (
    TENANT,
    Effects,
    World,
    check_books,
    say_what_became_of,
    whole,
)
from tests.property.test_recovery_programs import programs as random_programs
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


def _end_programs(office: OfficeOfTest, programs: list[Any], deaths: int, seed: int) -> None:
    """Submit programs to workers that die at random effects, until all of them have ended."""
    worker_programs: Any = importlib.import_module("worker_programs")  # it is where the workers run
    guard = office.guard
    guard.set_tenant_budget(TENANT, Budget(usd=10_000, steps=1_000_000))
    inputs = [worker_programs.to_data(ops) for ops in programs]
    expected = [plain_run(worker_programs.from_data(ops)) for ops in inputs]
    worker_programs.deaths(office.folder, deaths, random.Random(seed))
    submitted = [guard.submit(worker_programs.program, ops, tenant=TENANT) for ops in inputs]
    workers = [office.worker(*FAST) for _ in range(3)]

    def all_have_ended() -> bool:
        for number, worker in enumerate(workers):
            if worker.poll() is not None:
                workers[number] = office.worker(*FAST)
        for row in guard.runs(limit=10_000, state=RunState.PAUSED):
            unknown = live_run_of(guard.runtime, row.run_id).fold.pause.get("unknown")
            if unknown is not None:
                say_what_became_of(guard, row.run_id, unknown, Effects(office.folder / "effects"))
        return _ended(submitted)

    try:
        wait_until(all_have_ended, 300)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    effects = Effects(office.folder / "effects")
    for run, (result, plain) in zip(submitted, expected, strict=True):
        assert str(run.state) == "COMPLETED"
        assert json.loads((office.folder / f"result-{run.id}").read_text()) == result
        check_books(guard, plain, effects, run.id)
    assert guard.verify()


def plain_run(ops: Any) -> tuple[Any, Usage]:
    """What a program gives, and what it spends, where nothing happens to it."""
    World.path = World.crash_at = None
    with Guard.in_memory(telemetry=False) as guard:
        run = guard.run("program")
        result = asyncio.run(whole(guard, run, ops))
        return json.loads(json.dumps(result)), run.spent


def _ended(runs: list) -> bool:
    return all(run.state.final for run in runs)


def test_workers_killed_at_random(office: OfficeOfTest) -> None:
    _end_all(office, runs=4, kills=3)


@pytest.fixture
def programs_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield
    sys.modules.pop("worker_programs", None)  # with the office of this test


@pytest.mark.timeout(1200)
@given(programs=st.lists(random_programs, min_size=5, max_size=5), seed=st.integers(0, 2**32))
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=2, phases=[Phase.generate])
def test_random_programs_in_workers_that_die_at_random(
    office: OfficeOfTest, programs_folder: None, programs: list[Any], seed: int
) -> None:
    _end_programs(office, programs, deaths=3, seed=seed)


@pytest.mark.long
@given(programs=st.lists(random_programs, min_size=8, max_size=8), seed=st.integers(0, 2**32))
@settings(
    deadline=None, suppress_health_check=list(HealthCheck), max_examples=scaled(20), phases=[Phase.generate]
)
def test_many_random_programs_in_workers_that_die_at_random(
    office: OfficeOfTest, programs_folder: None, programs: list[Any], seed: int
) -> None:
    _end_programs(office, programs, deaths=12, seed=seed)


@pytest.mark.long
def test_many_workers_killed_at_random(office: OfficeOfTest) -> None:
    _end_all(office, runs=scaled(40), kills=scaled(30))
