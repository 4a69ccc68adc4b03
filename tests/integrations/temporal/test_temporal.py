"""Activities of a real Temporal are steps: what is tried again is not repeated, and a stop is for good."""

from __future__ import annotations

import asyncio
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agentguard import Budget, Guard, RunState
from tests.temporal import TemporalServer, temporal_server

pytest.importorskip("temporalio")

from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import Replayer, SharedStateManager

from agentguard_temporal import GuardedActivities, end_finished_runs, step_options

HERE = Path(__file__).parent
#: So that an activity hears of a kill at its heartbeat; one of a busy machine may come late.
BEATS = {"heartbeat_timeout": 30}
#: So that a worker that died is found out soon, and one of a busy machine is not taken for dead.
TIMES_OUT = {"start_to_close_timeout": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    with temporal_server(tmp_path_factory.mktemp("temporal")) as server:
        yield server


class Office:
    """A guard, a client, and workers here and in other processes."""

    def __init__(self, server: TemporalServer, folder: Path) -> None:
        self.folder = folder
        self.address = server.address
        self.guard = Guard.open(telemetry=False)
        self.module = importlib.import_module("office")
        self.queue = f"office-{uuid.uuid4()}"
        self.client: Client
        self.processes: list[subprocess.Popen[bytes]] = []

    @asynccontextmanager
    async def working(self, **options: Any) -> AsyncIterator[Office]:
        self.client = await Client.connect(self.address)
        async with self.module.worker(self.client, self.guard, self.queue, **options):
            yield self

    async def start(self, workflow: str, *args: Any) -> WorkflowHandle[Any, Any]:
        return await self.client.start_workflow(
            workflow, args=list(args), id=f"wf-{uuid.uuid4()}", task_queue=self.queue
        )

    def process(self, **budget: Any) -> None:
        """Start a worker in a process of its own."""
        command = [sys.executable, str(HERE / "office.py"), self.address, self.queue, json.dumps(budget)]
        with (self.folder / "worker.log").open("ab") as log:
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ}))

    def told(self) -> list[str]:
        file = self.folder / "told"
        return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []

    def pids(self, what: str) -> list[int]:
        lines = [line.split() for line in (self.folder / "told").read_text().splitlines()]
        return [int(pid) for told, pid in lines if told == what]

    def events(self, run_id: str, kind: str) -> list[Any]:
        return [event for event in self.guard.history(run_id) if event.type == kind]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def until_attempt(handle: WorkflowHandle[Any, Any], number: int) -> None:
    """Return when Temporal has begun that attempt at the workflow's activity."""
    async with asyncio.timeout(60):
        while (await pending(handle)).attempt < number:
            await asyncio.sleep(0.02)


async def pending(handle: WorkflowHandle[Any, Any]) -> Any:
    """What Temporal says of the workflow's activity."""
    [activity] = (await handle.describe()).raw_description.pending_activities
    return activity


def run_of(handle: WorkflowHandle[Any, Any]) -> str:
    return f"temporal-{handle.first_execution_run_id}"


async def failed(handle: WorkflowHandle[Any, Any]) -> ApplicationError:
    """The error of the activity with which a workflow failed."""
    with pytest.raises(WorkflowFailureError) as failure:
        await handle.result()
    error = failure.value.cause.cause  # type: ignore[union-attr]
    assert isinstance(error, ApplicationError), error
    return error


@pytest.fixture
def office(server: TemporalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    monkeypatch.setenv("OFFICE_FOLDER", str(tmp_path))
    monkeypatch.syspath_prepend(HERE)
    office = Office(server, tmp_path)
    yield office
    for process in office.processes:
        process.kill()
        process.wait()
    office.guard.close()


@pytest.fixture(params=["sqlite", "postgres"])
def office_on_each_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Office:
    if request.param == "postgres":
        monkeypatch.setenv("AGENTGUARD_STORE", request.getfixturevalue("postgres_url"))
    found: Office = request.getfixturevalue("office")
    return found


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 120))


# --- a step, a run -------------------------------------------------------------------------------


def test_activities_are_steps_of_one_run_that_ends_with_its_workflow(office: Office) -> None:
    async def story() -> None:
        async with office.working(budget=Budget(steps=10), tenant=lambda info: info.workflow_type.lower()):
            calls = [
                ["tell", "a", {}],
                ["tell_in_thread", "b", {}],
                ["tell", "c", {"local": True}],
                ["where", "", {}],
            ]
            handle = await office.start("Calls", calls)
            assert await handle.result() == ["a", "b", "c", [run_of(handle), "Calls", "calls"]]
            await until(lambda: office.guard.summary(run_of(handle)).state is RunState.COMPLETED)
        summary = office.guard.summary(run_of(handle))
        assert (summary.steps, summary.budget.steps, summary.tenant) == (4, 10, "calls")
        assert summary.metadata["temporal.workflow_id"] == handle.id
        assert [event.key for event in office.events(run_of(handle), "step_started")] == [
            "key:tell@1", "key:tell_in_thread@2", "key:tell@3", "key:where@4",
        ]  # fmt: skip
        assert office.guard.verify()

    run(story())


def test_tries_of_an_activity_are_attempts_of_one_step(office: Office) -> None:
    async def story() -> None:
        async with office.working():
            handle = await office.start("Calls", [["fails_twice", "x", {}]])
            assert await handle.result() == ["x"]
        starts = office.events(run_of(handle), "step_started")
        assert [(event.key, event.attempt) for event in starts] == [
            ("key:fails_twice@1", attempt) for attempt in (1, 2, 3)
        ]

    run(story())


def test_an_id_that_a_workflow_gives_twice_is_two_steps(office: Office) -> None:
    async def story() -> None:
        async with office.working():
            handle = await office.start("Calls", [["tell", "a", {"id": "x"}], ["tell", "b", {"id": "x"}]])
            assert await handle.result() == ["a", "b"]

    run(story())


def test_continuing_as_new_is_a_run_of_its_own_on_one_account(office: Office) -> None:
    async def story() -> None:
        account = {"account": lambda info: info.workflow_id, "account_budget": Budget(steps=3)}
        async with office.working(**account):
            handle = await office.start("Chain", 5)
            error = await failed(handle)
            assert error.type == "BudgetExceededError"
            assert office.told() == ["chain-5", "chain-4", "chain-3"]
            await until(lambda: not [r for r in office.guard.runs() if not r.state.final])
        states = sorted(str(each.state) for each in office.guard.runs())
        assert states == ["COMPLETED", "COMPLETED", "COMPLETED", "FAILED"]

    run(story())


def test_a_child_workflow_is_a_run_of_its_own(office: Office) -> None:
    async def story() -> None:
        async with office.working():
            handle = await office.start("Parent", [["tell", "a", {}]])
            assert await handle.result() == ["a"]
        assert [each.name for each in office.guard.runs()] == ["Calls"]

    run(story())


def test_a_workflow_that_is_terminated_ends_its_run_as_failed(office: Office) -> None:
    async def story() -> None:
        async with office.working(end_every=60):
            handle = await office.start("Waits")
            await until(lambda: "before" in office.told())
            assert await end_finished_runs(office.guard, office.client) == []
            await handle.terminate("enough")
            ended: list[str] = []
            while not ended:  # the server's list lags behind
                ended = await end_finished_runs(office.guard, office.client)
            assert ended == [run_of(handle)]
        summary = office.guard.summary(run_of(handle))
        assert summary.state is RunState.FAILED
        assert summary.termination["message"].endswith("TERMINATED")

    run(story())


def test_a_history_is_replayed_without_agentguard(office: Office) -> None:
    async def story() -> None:
        async with office.working():
            handle = await office.start(
                "Calls", [["tell", "a", {}], ["mail", "b", {}], ["tell", "c", {"local": True}]]
            )
            await handle.result()
        await Replayer(workflows=office.module.WORKFLOWS).replay_workflow(await handle.fetch_history())

    run(story())


def test_an_activity_in_a_process_of_a_pool_is_a_step(office: Office) -> None:
    async def story() -> None:
        spawn = multiprocessing.get_context("spawn")
        with spawn.Manager() as manager, ProcessPoolExecutor(1, mp_context=spawn) as pool:
            async with office.working(
                in_worker={
                    "activity_executor": pool,
                    "shared_state_manager": SharedStateManager.create_from_multiprocessing(manager),
                }
            ):
                handle = await office.start("Calls", [["tell_in_thread", "a", {}], ["tell", "b", {}]])
                assert await handle.result() == ["a", "b"]
        assert office.pids("a") != [os.getpid()]
        assert office.guard.summary(run_of(handle)).steps == 2

    run(story())


# --- limits --------------------------------------------------------------------------------------


def test_a_budget_is_exact_over_activities_at_once_on_several_workers(
    office_on_each_store: Office,
) -> None:
    office = office_on_each_store

    async def story() -> None:
        office.process(mails=7)
        office.process(mails=7)
        async with office.working(budget=Budget(mails=7)):
            calls = [["mail", f"to-{number}", {}] for number in range(20)]
            handle = await office.start("Calls", calls, True)
            done = await handle.result()
        assert len(office.told()) == 7
        assert sum("BudgetExceededError" in each for each in done) >= 13
        assert office.guard.summary(run_of(handle)).usage["mails"] == 7
        assert office.guard.verify()

    run(story())


def test_a_limit_fails_the_activity_and_temporal_does_not_try_it_again(office: Office) -> None:
    async def story() -> None:
        async with office.working(budget=Budget(mails=1)):
            handle = await office.start("Calls", [["mail", "a", {}], ["mail", "b", {}]])
            error = await failed(handle)
        assert (error.type, error.non_retryable) == ("BudgetExceededError", True)
        assert error.details[0]["resource"] == "mails"
        assert office.told() == ["a"]
        assert office.guard.summary(run_of(handle)).state is RunState.FAILED

    run(story())


def test_a_stop_that_an_activity_swallows_fails_it_all_the_same(office: Office) -> None:
    async def story() -> None:
        async with office.working(budget=Budget(steps=1)):
            (office.folder / "gate").touch()
            error = await failed(await office.start("Calls", [["swallows", "gate", {}]]))
        assert error.type == "BudgetExceededError"

    run(story())


# --- kills ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["waits", "waits_in_thread"])
def test_a_kill_ends_an_activity_in_flight_at_its_heartbeat(office: Office, name: str) -> None:
    async def story() -> None:
        async with office.working():
            handle = await office.start("Calls", [[name, "never", BEATS], ["tell", "after", {}]])
            await until(lambda: "waits" in office.told())
            await asyncio.to_thread(office.guard.kill, reason="enough", run=run_of(handle))
            error = await failed(handle)
        assert (error.type, error.non_retryable) == ("KillSwitchTriggeredError", True)
        assert "after" not in office.told()
        assert office.told().count("waits") == 1
        assert office.guard.summary(run_of(handle)).state is RunState.KILLED

    run(story())


def test_a_kill_before_the_first_activity_refuses_it(office: Office) -> None:
    async def story() -> None:
        office.guard.kill(reason="closed", tenant="acme")
        async with office.working(tenant="acme"):
            error = await failed(await office.start("Calls", [["tell", "a", {}]]))
        assert error.type == "KillSwitchTriggeredError"
        assert office.told() == []

    run(story())


@pytest.mark.parametrize("name", ["waits", "waits_in_thread"])
def test_a_cancelled_workflow_cancels_its_activity_and_the_run_is_not_killed(
    office: Office, name: str
) -> None:
    async def story() -> None:
        async with office.working():
            handle = await office.start("Calls", [[name, "never", BEATS]])
            await until(lambda: "waits" in office.told())
            await handle.cancel()
            with pytest.raises(WorkflowFailureError):
                await handle.result()
            await until(lambda: office.guard.summary(run_of(handle)).state.final)
        assert (await handle.describe()).status is WorkflowExecutionStatus.CANCELED
        assert office.guard.summary(run_of(handle)).state is RunState.FAILED
        assert office.guard.verify()

    run(story())


# --- workers that die ----------------------------------------------------------------------------


def test_what_a_worker_had_completed_when_it_died_is_not_repeated(
    office_on_each_store: Office,
) -> None:
    office = office_on_each_store

    async def story() -> None:
        office.client = await Client.connect(office.address)
        (office.folder / "die-x-3").touch()
        office.process()
        handle = await office.start("Calls", [["tell", "a", {}], ["two_inside", "x", TIMES_OUT]])
        await until(lambda: "x-3" in office.told())
        office.processes[0].wait(60)
        async with office.working():
            assert await handle.result() == ["a", ["x-1", "x-2", "x-3"]]
        assert office.told() == ["a", "x-1", "x-2", "x-3", "x-3"]
        assert len(set(office.pids("x-3"))) == 2
        assert office.guard.verify()

    run(story())


def test_a_mail_in_doubt_is_sent_again_under_the_same_idempotency_key(office: Office) -> None:
    async def story() -> None:
        office.client = await Client.connect(office.address)
        (office.folder / "die-ann").touch()
        office.process()
        handle = await office.start("Calls", [["mail", "ann", TIMES_OUT]])
        await until(lambda: "ann" in office.told())
        async with office.working(budget=Budget(mails=2)):
            [sent] = await handle.result()
        starts = office.events(run_of(handle), "step_started")
        assert [event.attempt for event in starts] == [1, 2]
        assert sent.startswith("ann ")
        assert office.guard.summary(run_of(handle)).usage["mails"] == 2, "the first may have gone out"

    run(story())


def test_a_once_activity_in_doubt_waits_for_an_operator(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentguard_temporal._mapping.LATER", timedelta(seconds=0.2))

    async def story() -> None:
        office.client = await Client.connect(office.address)
        (office.folder / "die-a").touch()
        office.process()
        handle = await office.start("Calls", [["once", "a", TIMES_OUT]])
        await until(lambda: "a" in office.told())
        async with office.working():
            await until(lambda: office.guard.summary(run_of(handle)).state is RunState.PAUSED)
            [key] = office.guard.summary(run_of(handle)).open_steps
            await asyncio.to_thread(office.guard.resolve, run_of(handle), key, "completed", result="by hand")
            assert await handle.result() == ["by hand"]
        assert office.told() == ["a"]

    run(story())


def test_a_result_that_came_too_late_for_temporal_is_served(office: Office) -> None:
    async def story() -> None:
        async with office.working():
            handle = await office.start("Calls", [["waits_deaf", "gate", {"start_to_close_timeout": 1}]])
            await until(lambda: "deaf" in office.told())
            await until_attempt(handle, 2)
            (office.folder / "gate").touch()
            assert await handle.result() == ["gate"]
        assert office.told() == ["deaf"]

    run(story())


@pytest.mark.parametrize("name", ["slow_after_one", "slow_after_one_in_thread"])
def test_an_activity_that_was_cut_off_goes_on_where_it_was(office: Office, name: str) -> None:
    async def story() -> None:
        async with office.working():
            handle = await office.start("Calls", [[name, "gate", {"start_to_close_timeout": 1}]])
            await until(lambda: office.told().count("slow") == 2)
            (office.folder / "gate").touch()
            assert await handle.result() == [["one", "gate"]]
        assert office.told().count("one") == 1
        assert office.guard.verify()

    run(story())


def test_a_once_activity_that_was_cut_off_waits_for_an_operator(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentguard_temporal._mapping.LATER", timedelta(seconds=0.2))

    async def story() -> None:
        async with office.working():
            handle = await office.start("Calls", [["once_slow", "gate", {"start_to_close_timeout": 1}]])
            await until(lambda: "once" in office.told())
            await until(lambda: office.guard.summary(run_of(handle)).state is RunState.PAUSED)
            [key] = office.guard.summary(run_of(handle)).open_steps
            await asyncio.to_thread(office.guard.resolve, run_of(handle), key, "completed", result="by hand")
            assert await handle.result() == ["by hand"]
        assert office.told() == ["once"]

    run(story())


def test_the_server_may_die_and_come_back(office: Office, tmp_path: Path) -> None:
    async def story(server: TemporalServer) -> None:
        office.address = server.address
        async with office.working():
            handle = await office.start("Waits")
            await until(lambda: "before" in office.told())
            server.kill()
            await asyncio.to_thread(server.start)
            await handle.signal("go_on")
            assert await handle.result() == "after"
            await until(lambda: office.guard.summary(run_of(handle)).state is RunState.COMPLETED)
        assert office.told() == ["before", "after"]

    with temporal_server(tmp_path) as server:
        run(story(server))


# --- operators -----------------------------------------------------------------------------------


def test_an_activity_that_waits_for_an_approval_is_kept_alive(office: Office) -> None:
    async def story() -> None:
        async with office.working():
            handle = await office.start("Calls", [["asks", "a", {"heartbeat_timeout": 3}]])
            await until(office.guard.approvals)
            first = await pending(handle)
            waited = timedelta(seconds=4)
            while (now := await pending(handle)).last_heartbeat_time.ToDatetime() < (
                first.last_started_time.ToDatetime() + waited
            ):
                assert now.attempt == 1
            [asked] = office.guard.approvals()
            await asyncio.to_thread(office.guard.approve, asked.run_id, asked.key)
            assert await handle.result() == ["a"]
        assert len(office.events(run_of(handle), "step_started")) == 1

    run(story())


def test_a_denied_approval_fails_the_activity_for_good(office: Office) -> None:
    async def story() -> None:
        async with office.working():
            handle = await office.start("Calls", [["asks", "a", {}]])
            await until(office.guard.approvals)
            [asked] = office.guard.approvals()
            await asyncio.to_thread(office.guard.deny, asked.run_id, asked.key, reason="no")
            assert (await failed(handle)).type == "ApprovalDeniedError"

    run(story())


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"key": "a"}, TypeError, "key="),
        ({"efect": "read"}, TypeError, "efect"),
        ({"effect": "maybe"}, ValueError, "effect"),
    ],
)
def test_options_of_a_step_that_cannot_be_are_named(
    options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        step_options(**options)(len)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"budget": 5}, "budget must be a Budget"),
        ({"tenant": 5}, "tenant must be a str"),
        ({"effect": "x"}, "effect must"),
    ],
)
def test_options_of_the_interceptor_that_cannot_be_are_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        GuardedActivities(Guard.in_memory(), **options)
