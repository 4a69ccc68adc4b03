"""Worker processes carry submitted runs out, and carry on what a failure interrupted."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agentguard import Budget, RunState, StoreUnavailableError
from agentguard.cli import main
from agentguard.stores._postgres_schema import migrate
from agentguard.stores.postgres import PostgresEventStore
from agentguard.workers.engine import Deployment
from tests.integration.workers.conftest import OfficeOfTest
from tests.kit import wait_until
from tests.postgres import Postgres


def types(office: OfficeOfTest, run_id: str) -> list[str]:
    return [event.type for event in office.guard.history(run_id)]


def test_a_worker_carries_out_decorated_plain_and_async_functions(office: OfficeOfTest) -> None:
    submit, agents = office.guard.submit, office.agents
    office.open_gate("b")
    runs = [
        submit(agents.letters, {"before": ["a"], "wait": "b", "after": ["c"]}),
        submit(agents.alone, ["positional"]),
        submit(agents.plain, {"any": [1]}),
        submit(agents.nothing),
        submit(agents.asynchronous, "async", name="coroutine"),
        submit(agents.Office.static),
    ]
    office.worker()
    assert [office.ends(run) for run in runs] == ["COMPLETED"] * 6
    told = office.told()
    assert [told.count(f"step {name}") for name in ("a", "c", "positional", "plain", "nothing")] == [1] * 5
    assert [told.count(f"step {name}") for name in ("coroutine", "static")] == [1, 1]
    assert "plain {'any': [1]}" in told
    assert office.guard.summary(runs[0].id).steps == 3
    assert office.guard.verify()
    assert office.guard.queue() == [], "the log is what remains"


def test_the_budget_of_a_submitted_run_holds_in_the_worker(office: OfficeOfTest) -> None:
    inputs = {"before": list("abcdef"), "wait": "never", "after": []}
    run = office.guard.submit(office.agents.letters, inputs, budget=Budget(steps=4))
    office.worker()
    assert office.ends(run) == "FAILED"
    assert office.guard.summary(run.id).termination["type"] == "BudgetExceededError"
    assert len(office.told()) == 4


def test_submitted_runs_of_a_conversation_share_its_account(office: OfficeOfTest) -> None:
    inputs = {"before": list("ab"), "wait": "go", "after": []}
    account, limit = "thread:42", Budget(steps=5)
    office.open_gate("go")
    office.worker()
    ends = []
    for _ in range(2):
        run = office.guard.submit(office.agents.letters, inputs, account=account, account_budget=limit)
        ends.append(office.ends(run))
    assert ends == ["COMPLETED", "FAILED"]
    assert office.guard.summary(run.id).termination["scope"] == "account:thread:42"
    assert office.guard.account("thread:42").spent.steps == 5


def test_runs_of_higher_priority_are_taken_first(office: OfficeOfTest) -> None:
    for priority in (0, 5, -5, 9, 5):
        office.guard.submit(office.agents.alone, [f"p{priority}"], priority=priority)
    office.worker("--concurrency", "1")
    wait_until(lambda: office.guard.queue() == [], 60)
    assert office.told() == [f"step p{priority}" for priority in (9, 5, 5, 0, -5)]


def test_the_console_tells_of_the_queue_and_of_its_workers(office: OfficeOfTest) -> None:
    pytest.importorskip("starlette")
    from agentguard.console.health import examine

    def parts() -> list[tuple[str, str, bool]]:
        found = examine(office.guard)
        return [(part.kind, part.detail, part.ok) for part in found if part.kind in ("queue", "worker")]

    run = office.guard.submit(office.agents.letters, {"before": ["a"], "wait": "go", "after": []})
    waiting, none = parts()
    assert waiting[1].startswith("1 waiting, 0 delayed, 0 running, the oldest for")
    assert none == ("worker", "none, and runs wait: agentguard worker", False)
    office.worker()

    def is_told() -> bool:
        (_, queue, _), (kind, worker, works) = parts()
        running = queue == "0 waiting, 0 delayed, 1 running"
        return running and kind == "worker" and works and worker.endswith("has 1 runs")

    wait_until(is_told, 60)
    office.open_gate("go")
    assert office.ends(run) == "COMPLETED"


def test_a_worker_takes_the_runs_of_its_queues_alone(office: OfficeOfTest) -> None:
    mine = [office.guard.submit(office.agents.alone, tenant=tenant) for tenant in ("a", "b")]
    other = office.guard.submit(office.agents.alone, tenant="c")
    office.worker("--queue", "a", "--queue", "b")
    assert [office.ends(run) for run in mine] == ["COMPLETED"] * 2
    assert other.state is RunState.CREATED
    assert [depth.queue for depth in office.guard.queue()] == ["c"]


def test_as_many_runs_as_concurrency_says_are_carried_out_at_a_time(office: OfficeOfTest) -> None:
    runs = [office.guard.submit(office.agents.letters, [[], f"w{n}", []]) for n in range(4)]
    office.worker("--concurrency", "3")
    wait_until(lambda: len(office.told()) == 3, 60)
    [depth] = office.guard.queue()
    assert (depth.waiting, depth.running) == (1, 3)
    for number in range(4):
        office.open_gate(f"w{number}")
    assert [office.ends(run) for run in runs] == ["COMPLETED"] * 4


def test_a_kill_reaches_a_run_that_a_worker_has(office: OfficeOfTest) -> None:
    (office.folder / "slow").touch()
    run = office.guard.submit(office.agents.asynchronous, "async", tenant="acme")
    office.worker()
    office.until("slow async-2")
    office.guard.kill(reason="enough", tenant="acme")
    assert office.ends(run) == "KILLED"
    assert office.guard.queue() == []
    later = office.guard.submit(office.agents.alone, tenant="globex")
    assert office.ends(later) == "COMPLETED", "of another tenant"


# --- failures ------------------------------------------------------------------------------------


def test_a_function_that_fails_is_tried_again_without_repeating_what_was_done(office: OfficeOfTest) -> None:
    office.fails("server", 2)
    run = office.guard.submit(office.agents.retried, "server", retries=2, backoff=0.01)
    office.worker()
    assert office.ends(run) == "COMPLETED"
    flaky = [f"flaky server attempt {attempt}" for attempt in (1, 2, 3)]
    assert office.told() == ["step first", *flaky, "step last"]
    assert office.guard.verify(run.id)
    assert office.guard.queue() == []


def test_a_failure_comes_again_after_its_back_off(office: OfficeOfTest) -> None:
    office.fails("server", 1)
    office.guard.submit(office.agents.retried, "server", retries=1, backoff=300, tenant="acme")
    office.worker()
    wait_until(lambda: [(q.delayed, q.running) for q in office.guard.queue()] == [(1, 0)], 60)
    assert office.guard.queue()[0].oldest_seconds == 0, "it does not wait for a worker"


def test_a_run_in_which_one_worker_after_the_other_dies_is_ended(office: OfficeOfTest) -> None:
    run = office.guard.submit(office.agents.dies)
    for _ in range(2):
        worker = office.worker("--heartbeat", "0.2", "--stalled-after", "0.5", "--most-deaths", "2")
        wait_until(lambda worker=worker: worker.poll() is not None, 60)
    office.worker("--heartbeat", "0.2", "--stalled-after", "0.5", "--most-deaths", "2")
    assert office.ends(run) == "FAILED"
    assert office.guard.summary(run.id).termination["type"].endswith("WorkersDiedError")
    assert office.times("step first") == 1


def test_a_function_that_a_worker_must_not_call_is_not_called(office: OfficeOfTest) -> None:
    run = office.guard.submit(office.agents.alone)
    office.worker("--allow", "billing")
    wait_until(lambda: "(--allow)" in office.log(), 60)
    wait_until(lambda: [(q.delayed, q.running) for q in office.guard.queue()] == [(1, 0)], 60)
    assert (run.state, office.told()) == (RunState.CREATED, [])


# --- leaving -------------------------------------------------------------------------------------


def test_a_worker_that_is_told_to_stop_lets_its_runs_go(office: OfficeOfTest) -> None:
    run = office.guard.submit(office.agents.letters, [["a"], "b", ["c"]])
    first = office.worker()
    office.until("waits b")
    first.terminate()
    wait_until(lambda: "are let go" in office.log(), 60)
    office.open_gate("b")  # the step in flight finishes
    assert first.wait(60) == 0
    assert run.state is RunState.RUNNING
    row = office.guard.components.store.row(run.id)
    assert row is not None
    assert row.owner == {}
    [depth] = office.guard.queue()
    assert (depth.waiting, depth.delayed, depth.running) == (1, 0, 0)
    office.worker()
    assert office.ends(run) == "COMPLETED"
    assert office.told() == ["step a", "waits b", "step c"]


def test_a_function_that_heeds_nothing_does_not_keep_its_worker(office: OfficeOfTest) -> None:
    run = office.guard.submit(office.agents.heeds_nothing)
    worker = office.worker("--drain-timeout", "0.2")
    office.until("deaf")
    worker.terminate()
    assert worker.wait(60) == 0
    assert run.state is RunState.RUNNING
    office.open_gate("deaf")
    office.worker()
    assert office.ends(run) == "COMPLETED"
    assert office.times("step first") == 1


def test_an_async_function_is_let_go_in_the_middle_of_its_steps(office: OfficeOfTest) -> None:
    (office.folder / "slow").touch()
    run = office.guard.submit(office.agents.asynchronous, "async")
    worker = office.worker("--drain-timeout", "0.2")
    office.until("slow async-2")
    worker.terminate()
    assert worker.wait(60) == 0
    assert run.state is RunState.RUNNING
    (office.folder / "slow").unlink()
    office.worker()
    assert office.ends(run) == "COMPLETED"
    assert office.guard.verify(run.id)


def test_the_second_signal_ends_a_worker_at_once(office: OfficeOfTest) -> None:
    office.guard.submit(office.agents.heeds_nothing)
    worker = office.worker()
    office.until("deaf")
    worker.send_signal(signal.SIGINT)
    wait_until(lambda: "are let go" in office.log(), 60)
    worker.send_signal(signal.SIGINT)
    assert worker.wait(60) == 128 + signal.SIGINT


# --- paused runs ---------------------------------------------------------------------------------


def test_a_paused_run_waits_outside_of_the_workers(
    office: OfficeOfTest, capsys: pytest.CaptureFixture[str]
) -> None:
    run = office.guard.submit(office.agents.waits_once, "wire")
    first = office.worker()
    office.until("once wire")
    first.kill()
    first.wait()
    second = office.worker("--heartbeat", "0.2", "--stalled-after", "0.5")
    wait_until(lambda: run.state is RunState.PAUSED, 60)
    wait_until(lambda: [(q.delayed, q.running) for q in office.guard.queue()] == [(1, 0)], 60)
    [key] = [event.key for event in office.guard.history(run.id) if event.name == "once"][:1]
    assert main(["resolve", run.id, str(key), "completed", "--result", json.dumps("wire")]) == 0
    assert office.ends(run) == "COMPLETED"
    assert (office.times("once wire"), office.times("step first"), office.times("step last")) == (1, 1, 1)
    assert second.poll() is None


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--app", "worker_office"], "is not pkg.mod:fn"),
        (["--app", "no_such_module:guard"], "cannot import no_such_module"),
        (["--app", "worker_office:letters"], "is no Guard but a function"),
        (["--app", "worker_office:guard", "--concurrency", "0"], "concurrency"),
        (["--app", "worker_office:guard", "--heartbeat", "5", "--stalled-after", "6"], "twice the heartbeat"),
        (["--app", "worker_office:guard", "--queue", "q" * 41], "queue must have"),
    ],
)
def test_a_command_line_that_cannot_be_meant(
    office: OfficeOfTest, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main(["worker", *options]) == 2
    assert said in capsys.readouterr().err


def test_a_worker_behind_a_pool_in_transaction_mode_is_refused_and_who_submits_is_not(
    own_postgres: Postgres, open_office: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    own_postgres.execute("CREATE DATABASE app")
    migrate(own_postgres.url("app"))
    for pool_size in (1, 4):
        with (
            own_postgres.bouncer(pool_size=pool_size) as bouncer,
            open_office(bouncer.url("app")) as office,
        ):
            office.guard.submit(office.agents.alone, tenant="acme")
            assert main(["worker", "--app", "worker_office:guard"]) == 5
            assert "a pool in transaction mode (PgBouncer)" in capsys.readouterr().err
            assert [depth.running for depth in office.guard.queue()] == [0]


@pytest.mark.parametrize("warm", [1, 2, 3])
@pytest.mark.parametrize("settings", ["server_round_robin=1", "server_round_robin=0", "pool_mode=session"])
def test_a_pool_in_transaction_mode_is_noticed_however_it_hands_out_its_connections(
    own_postgres: Postgres, settings: str, warm: int
) -> None:
    async def execute(*_: object) -> None:
        raise AssertionError("nothing is queued")

    with own_postgres.bouncer(settings=settings) as bouncer, ExitStack() as stack:
        for _ in range(warm):
            stack.enter_context(psycopg.connect(bouncer.url())).execute("SELECT 1")
        stack.close()
        with closing(PostgresEventStore(bouncer.url())) as store:
            check = Deployment(store.queue, execute, concurrency=1).check_session()
            refused = (
                nullcontext() if "session" in settings else pytest.raises(StoreUnavailableError, match="mode")
            )
            with refused:
                asyncio.run(check)


def test_a_worker_on_a_store_without_a_queue_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sqlite_app.py").write_text(
        "from agentguard import Guard\nguard = Guard.open(telemetry=False)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["worker", "--app", "sqlite_app:guard"]) == 1
    assert "submitted runs need PostgreSQL" in capsys.readouterr().err
