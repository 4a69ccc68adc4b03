"""What one execution of a submitted run makes of failures and obstacles; the store is in memory, no queue is asked."""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from agentguard import Guard, RunState
from agentguard.errors import StoreUnavailableError
from agentguard.protocols import QueueDepth, WorkerSign
from agentguard.sessions.options import RunOptions
from agentguard.sessions.submitted import SubmittedSession
from agentguard.workers.execution import Execution
from agentguard.workers.job import ComesAgain, RunJob, backoff
from tests.kit import wait_until

HERE = Path(__file__).parent


class Always:
    """A queue whose jobs nobody takes away."""

    url = ""
    tenant = None

    def holds(self, job_id: int, worker_id: int) -> bool:
        return True

    def transaction(self) -> AbstractContextManager[None]:
        return nullcontext()

    def put(self, *args: Any, **kwargs: Any) -> None: ...

    def depth(self) -> list[QueueDepth]:
        return []

    def workers(self) -> list[WorkerSign]:
        return []


class Job:
    """A submitted run, and the tries at it."""

    def __init__(self, guard: Guard, folder: Path, agents: Any, function: str, retries: int) -> None:
        self.guard = guard
        self.folder = folder
        self.agents = agents
        session = SubmittedSession(guard.runtime, RunOptions(name="job", inputs="server"), retries=retries)
        session.submit(lambda: None)
        self.run_id = session.run_id
        self.known = {"function": f"worker_office:{function}", "retries": retries, "backoff": 0.0}

    def execute(self) -> ComesAgain | None:
        """Try once; gives how the job comes again, if it does."""
        job = RunJob(run_id=self.run_id, tenant="default", **self.known)
        execution = Execution(
            runtime=self.guard.runtime,
            queue=Always(),
            job=job,
            job_id=1,
            worker=1,
            allowed=(),
            most_deaths=3,
            on_open=lambda run: None,
        )
        try:
            execution.carry_out()
        except ComesAgain as again:
            self.known |= again.note
            return again
        return None

    def until_the_end(self) -> RunState:
        for _ in range(10):
            if self.execute() is None:
                return self.state
        raise AssertionError("it goes on coming again")

    @property
    def state(self) -> RunState:
        return self.guard.summary(self.run_id).state

    def told(self) -> list[str]:
        lines = (self.folder / "told").read_text().splitlines()
        return [line.rpartition(" ")[0] for line in lines]


@pytest.fixture
def guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    monkeypatch.setenv("OFFICE_FOLDER", str(tmp_path))
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.delitem(sys.modules, "worker_office", raising=False)
    with Guard.in_memory(telemetry=False) as guard:
        components = guard.components
        components.abilities = components.abilities._replace(queue=Always())
        yield guard
    sys.modules.pop("worker_office", None)


def job(guard: Guard, folder: Path, function: str, *, retries: int = 0, fails: int = 0) -> Job:
    (folder / "fails-server").write_text(str(fails))
    return Job(guard, folder, importlib.import_module("worker_office"), function, retries)


AGENTS = [
    "retried",
    "retried_inside",
    "retried_beside",
    "retried_beside_slow",
    "retried_outside",
    "retried_wrapped",
]


@pytest.mark.parametrize("agent", AGENTS)
def test_another_try_repeats_what_failed_and_nothing_else(guard: Guard, tmp_path: Path, agent: str) -> None:
    run = job(guard, tmp_path, agent, retries=2, fails=2)
    assert run.until_the_end() is RunState.COMPLETED
    told = run.told()
    assert (told.count("step first"), told.count("step last")) == (1, 1)
    events = guard.history(run.run_id)
    assert [event.type for event in events].count("run_recovered") == 3
    assert guard.verify(run.run_id)
    assert guard.reconstruct(run.run_id) == guard.summary(run.run_id)


@pytest.mark.parametrize("agent", AGENTS)
def test_a_run_that_was_tried_again_replays(guard: Guard, tmp_path: Path, agent: str) -> None:
    run = job(guard, tmp_path, agent, retries=2, fails=2)
    assert run.until_the_end() is RunState.COMPLETED
    told = run.told()
    function = getattr(run.agents, agent)
    with guard.replay(run.run_id) as replayed:
        made = function(replayed.inputs)
        if asyncio.iscoroutine(made):
            asyncio.run(_in(replayed, made))
    steps = [line for line in run.told()[len(told) :] if line != "between"]
    assert steps == [], "no body runs"


async def _in(replayed: Any, made: Any) -> None:
    await made


def test_a_nested_run_that_failed_has_ended_and_is_not_tried_again(guard: Guard, tmp_path: Path) -> None:
    run = job(guard, tmp_path, "fails_in_a_nested_run", retries=5, fails=1)
    run.agents.guard = guard
    assert run.until_the_end() is RunState.FAILED
    assert run.told() == ["step first", "flaky server attempt 1"]


def test_a_failure_that_the_program_handles_is_served_as_it_was(guard: Guard, tmp_path: Path) -> None:
    """The first failure is no reason for another try, though the last one says the same."""
    run = job(guard, tmp_path, "handles_one_failure", retries=1, fails=2)
    assert run.until_the_end() is RunState.COMPLETED
    assert run.told() == [
        "flaky server attempt 1",
        "step instead",
        "flaky server attempt 1",
        "flaky server attempt 2",
    ]


def test_a_run_fails_when_no_try_is_left(guard: Guard, tmp_path: Path) -> None:
    run = job(guard, tmp_path, "retried", retries=2, fails=9)
    assert run.until_the_end() is RunState.FAILED
    assert len([line for line in run.told() if line.startswith("flaky")]) == 3
    termination = guard.summary(run.run_id).termination
    assert termination == {"type": "ConnectionError", "message": "server is away"}


def test_without_retries_the_first_failure_ends_the_run(guard: Guard, tmp_path: Path) -> None:
    run = job(guard, tmp_path, "retried", fails=1)
    assert run.until_the_end() is RunState.FAILED
    assert len([line for line in run.told() if line.startswith("flaky")]) == 1


def test_a_step_that_may_be_done_once_is_not_tried_again(guard: Guard, tmp_path: Path) -> None:
    run = job(guard, tmp_path, "never_again", retries=5)
    assert run.until_the_end() is RunState.FAILED
    assert run.told().count("once server") == 1


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("worker_office:gone", "no function gone"),
        ("os:system", "own library"),
        ("worker_office:os.system", "own library"),
        ("worker_office:Path.cwd", "own library"),
        ("worker_office:Run", "defined in another module"),
        ("worker_office.egg-info/../evil.py:go", "functions of modules"),
        ("no_such:fn", "cannot import"),
    ],
)
def test_a_run_whose_function_no_worker_finds_is_ended_at_last(
    guard: Guard, tmp_path: Path, function: str, said: str
) -> None:
    run = job(guard, tmp_path, "nothing")
    run.known["function"] = function
    again = run.execute()
    assert again is not None
    assert again.note == {"obstacles": 1}
    assert run.state is RunState.CREATED
    assert run.until_the_end() is RunState.FAILED
    assert said in guard.summary(run.run_id).termination["message"]


def test_a_run_of_another_program_is_ended_at_last(guard: Guard, tmp_path: Path) -> None:
    run = job(guard, tmp_path, "retried", retries=1, fails=1)
    assert run.execute() is not None
    run.known["function"] = "worker_office:plain"  # a deployment that is another program
    assert run.until_the_end() is RunState.FAILED
    assert guard.summary(run.run_id).termination["type"] == "agentguard.errors.ReplayDivergenceError"


def test_an_outage_of_the_store_is_no_death_of_a_worker(
    guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run keeps its owner, who could not let it go, and is no nearer to its end."""

    def away(*args: object) -> None:
        raise StoreUnavailableError("the store is away")

    run = job(guard, tmp_path, "store_is_away")
    for outages in range(1, 6):
        with monkeypatch.context() as patched:
            patched.setattr(guard.components.store, "update_row", away)
            again = run.execute()
        assert again is not None
        assert again.note == {"outages": outages}
        assert run.state is RunState.RUNNING
    run.known["function"] = "worker_office:nothing"
    assert run.until_the_end() is RunState.COMPLETED


def test_a_run_whose_threads_go_on_is_not_tried_again(guard: Guard, tmp_path: Path) -> None:
    run = job(guard, tmp_path, "leaves_a_thread_at_work", retries=3, fails=1)
    try:
        assert run.until_the_end() is RunState.FAILED
    finally:
        (tmp_path / "gate-left").touch()
    wait_until(lambda: not any(thread.name == "left" for thread in threading.enumerate()))
    assert run.told() == ["flaky server attempt 1"]


def test_the_back_off_grows_and_has_an_end() -> None:
    pauses = [backoff(1.0, times) for times in range(1, 60)]
    assert 0.75 <= pauses[0] <= 1.25
    assert pauses[5] > pauses[0]
    assert max(pauses) <= 300 * 1.25
