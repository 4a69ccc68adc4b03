"""Workers that die, hang and come back, and a server that goes away: runs go on, and nothing is done twice."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import psycopg

from agentguard.stores._postgres_schema import migrate
from agentguard.workers.engine import Deployment
from agentguard.workers.job import RunJob
from tests.integration.workers.conftest import FAST, OfficeOfTest
from tests.kit import wait_until
from tests.postgres import Postgres, execute


def owner(office: OfficeOfTest, run_id: str) -> int | None:
    row = office.guard.components.store.row(run_id)
    assert row is not None
    return row.owner.get("pid")


def test_another_worker_carries_on_after_a_kill(office: OfficeOfTest) -> None:
    run = office.guard.submit(office.agents.letters, [["a", "b"], "c", ["d"]])
    first = office.worker(*FAST)
    office.until("waits c")
    second = office.worker(*FAST)
    first.kill()
    first.wait()
    office.until("waits c", times=2)  # effect="read": what was in flight runs again
    assert owner(office, run.id) == second.pid
    office.open_gate("c")
    assert office.ends(run) == "COMPLETED"
    assert office.told() == ["step a", "step b", "waits c", "waits c", "step d"]
    claims = [event for event in office.guard.history(run.id) if event.type == "run_recovered"]
    assert ["from" in (claim.data or {}) for claim in claims] == [False, True]
    assert office.guard.verify()
    assert second.poll() is None


def say(url: str, job: int) -> int:
    """Say things on the queue's channel as a login without any right; gives how many."""
    stranger = url.rpartition("/")[2] + "_stranger"
    execute(url, f"CREATE ROLE {stranger} LOGIN")
    said = [f'{{"type":"{kind}","job_id":{job}}}' for kind in ("abort_job_requested", "job_inserted", "x")]
    said += ["x", "{}", "[]", ""]
    try:
        with psycopg.connect(url, user=stranger, autocommit=True) as connection:
            for payload in said:
                connection.execute("SELECT pg_notify('procrastinate_any_queue_v1', %s)", (payload,))
    finally:
        execute(url, f"DROP ROLE {stranger}")
    return len(said)


def test_what_is_said_on_the_queues_channel_is_no_more_than_a_reason_to_look(
    office: OfficeOfTest, postgres_url: str
) -> None:
    queue: Any = office.guard.components.abilities.queue
    heard: list[Any] = []

    async def note(*, channel: str, notification: Any) -> None:
        heard.append(notification["type"])

    async def nothing(job: RunJob, queued: Any) -> None: ...

    async def main() -> None:
        deployment = Deployment(queue, nothing, concurrency=1)
        async with deployment.app.open_async():
            listening = asyncio.create_task(deployment.jobs.listen_for_jobs(on_notification=note))
            while not heard:  # until it listens
                await asyncio.to_thread(say, postgres_url, 1)
            known = len(heard)
            said = await asyncio.to_thread(say, postgres_url, 1)
            await asyncio.to_thread(wait_until, lambda: len(heard) >= known + said)
            listening.cancel()

    asyncio.run(main())
    assert set(heard) == {"job_inserted"}


def test_what_is_said_on_the_queues_channel_cuts_off_no_run(office: OfficeOfTest, postgres_url: str) -> None:
    run = office.guard.submit(office.agents.letters, [["a"], "b", ["c"]], tenant="b")
    worker = office.worker(*FAST)
    office.until("waits b")
    [[job]] = execute(postgres_url, "SELECT id FROM agentguard_queue.procrastinate_jobs")
    say(postgres_url, job)
    later = office.guard.submit(office.agents.alone)
    assert str(later.wait(60)) == "COMPLETED"  # told after them
    office.open_gate("b")
    assert office.ends(run) == "COMPLETED"
    assert office.told().count("waits b") == 1
    claims = [event for event in office.guard.history(run.id) if event.type == "run_recovered"]
    assert len(claims) == 1
    assert worker.poll() is None


def test_a_worker_that_was_stopped_and_wakes_appends_nothing(office: OfficeOfTest) -> None:
    run = office.guard.submit(office.agents.letters, [["a"], "b", ["c", "d"]])
    zombie = office.worker(*FAST)
    office.until("waits b")
    zombie.send_signal(signal.SIGSTOP)
    second = office.worker(*FAST)
    office.until("waits b", times=2)
    assert owner(office, run.id) == second.pid
    before = len(office.guard.history(run.id))
    zombie.send_signal(signal.SIGCONT)  # both wait at the gate now
    wait_until(lambda: "others took its runs over" in office.log(), 60)
    assert len(office.guard.history(run.id)) == before
    office.open_gate("b")
    assert office.ends(run) == "COMPLETED"
    assert owner(office, run.id) == second.pid
    told = office.told()
    assert [told.count(f"step {name}") for name in "acd"] == [1, 1, 1]
    assert [event.type for event in office.guard.history(run.id)].count("run_completed") == 1
    assert office.guard.verify()
    second.terminate()
    assert second.wait(60) == 0
    later = office.guard.submit(office.agents.alone)
    assert office.ends(later) == "COMPLETED", "by the one that woke, which has registered again"
    assert zombie.poll() is None


def test_a_zombie_changes_nothing_of_the_job_that_its_successor_has(
    office: OfficeOfTest, postgres_url: str
) -> None:
    run = office.guard.submit(office.agents.letters, [[], "b", []])
    queue: Any = office.guard.components.abilities.queue

    async def nothing(job: RunJob, queued: Any) -> None: ...

    async def main() -> None:
        deployment = Deployment(queue, nothing, concurrency=1)
        jobs = deployment.jobs
        async with deployment.app.open_async():
            first, second = await jobs.register_worker(), await jobs.register_worker()
            old = await jobs.fetch_job(None, first)
            assert old is not None
            execute(
                postgres_url,
                "UPDATE agentguard_queue.procrastinate_workers SET last_heartbeat = '2020-01-01' "
                f"WHERE id = {first}",
            )
            await jobs.put_back_stalled(10.0)
            new = await jobs.fetch_job(None, second)
            assert new is not None
            assert (new.id, new.worker_id) == (old.id, second)
            await jobs.retry_job(old)
            await jobs.finish_job(old, None, delete_job=True)  # type: ignore[arg-type]
            assert await asyncio.to_thread(queue.holds, new.id, second)
            assert not await asyncio.to_thread(queue.holds, new.id, first)
            await jobs.finish_job(new, None, delete_job=True)  # type: ignore[arg-type]
            assert not await asyncio.to_thread(queue.holds, new.id, second)

    asyncio.run(main())
    assert office.guard.queue() == []
    assert str(run.state) == "CREATED"


def test_a_run_that_comes_again_and_again_leaves_no_rows_behind(
    office: OfficeOfTest, postgres_url: str
) -> None:
    """As one that is paused for days does."""
    office.guard.submit(office.agents.letters, [[], "b", []])
    events = "SELECT count(*) FROM agentguard_queue.procrastinate_events"

    async def main(deployment: Deployment) -> None:
        jobs = deployment.jobs
        async with deployment.app.open_async():
            worker = await jobs.register_worker()
            [[before]] = execute(postgres_url, events)
            for _ in range(20):
                job = await jobs.fetch_job(None, worker)
                assert job is not None
                await jobs.retry_job(job)
            [[after]] = execute(postgres_url, events)
        assert after <= before + 2

    asyncio.run(main(deployment_of(office)))
    [queue] = office.guard.queue()
    assert (queue.waiting, queue.oldest_seconds >= 0) == (1, True)


def test_a_worker_knows_when_the_next_one_will_count_as_dead(office: OfficeOfTest, postgres_url: str) -> None:
    async def main(deployment: Deployment) -> None:
        jobs = deployment.jobs
        async with deployment.app.open_async():
            mine = await jobs.register_worker()
            assert await jobs.next_silent(mine, 10) is None, "there is no other"
            other = await jobs.register_worker()
            silent = f"UPDATE agentguard_queue.procrastinate_workers SET last_heartbeat = now() - interval '%s s' WHERE id = {other}"
            execute(postgres_url, silent % 4)
            left = await jobs.next_silent(mine, 10)
            assert left is not None
            assert left <= 6
            execute(postgres_url, silent % 400)
            left = await jobs.next_silent(mine, 10)
            assert left is not None
            assert left < 0
            await jobs.put_back_stalled(10)
            assert await jobs.next_silent(mine, 10) is None

    asyncio.run(main(deployment_of(office)))


def deployment_of(office: OfficeOfTest) -> Deployment:
    async def nothing(job: RunJob, queued: Any) -> None: ...

    queue: Any = office.guard.components.abilities.queue
    return Deployment(queue, nothing, concurrency=1)


_CUT = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
    "AND wait_event_type = 'Lock'"
)


def test_a_job_that_was_fetched_and_never_arrived_is_fetched_again(
    office: OfficeOfTest, postgres_url: str
) -> None:
    office.guard.submit(office.agents.alone)
    kept = office.guard.submit(office.agents.alone)
    queue: Any = office.guard.components.abilities.queue

    async def nothing(job: RunJob, queued: Any) -> None: ...

    async def main() -> None:
        deployment = Deployment(queue, nothing, concurrency=2)
        jobs = deployment.jobs
        async with deployment.app.open_async():
            worker = await jobs.register_worker()
            first = await jobs.fetch_job(None, worker)
            assert first is not None
            execute(
                postgres_url,
                "SET search_path TO agentguard_queue; "
                f"UPDATE procrastinate_jobs SET status = 'doing', worker_id = {worker} "
                f"WHERE lock = '{kept.id}'",
            )
            assert await jobs.fetch_job(None, worker) is None
            with psycopg.connect(postgres_url) as other:
                other.execute("LOCK TABLE agentguard_queue.procrastinate_jobs")
                fetching = asyncio.create_task(jobs.fetch_job(None, worker))
                while execute(postgres_url, _CUT) != [(True,)]:
                    await asyncio.sleep(0.01)
                assert await fetching is None, "the connection broke in the middle"
            arrived = await jobs.fetch_job(None, worker)
            assert arrived is not None
            assert arrived.lock == kept.id
            for job in (first, arrived):
                await jobs.finish_job(job, None, delete_job=True)  # type: ignore[arg-type]

    asyncio.run(main())


def test_a_server_that_is_restarted_ends_no_worker(
    own_postgres: Postgres, open_office: Callable[[str], Any]
) -> None:
    migrate(own_postgres.url())
    with open_office(own_postgres.url()) as office:
        run = office.guard.submit(office.agents.letters, [["a"], "b", ["c"]])
        worker = office.worker()
        office.until("waits b")
        own_postgres.kill()
        own_postgres.start()
        office.open_gate("b")
        assert office.ends(run) == "COMPLETED"
        assert office.told() == ["step a", "waits b", "step c"]
        later = office.guard.submit(office.agents.alone)
        assert office.ends(later) == "COMPLETED"
        assert worker.poll() is None


def test_a_worker_ends_when_it_is_told_to_though_the_server_is_away(
    own_postgres: Postgres, open_office: Callable[[str], Any]
) -> None:
    migrate(own_postgres.url())
    with open_office(f"{own_postgres.url()}?store_timeout=2") as office:
        run = office.guard.submit(office.agents.letters, [["a"], "b", ["c"]])
        worker = office.worker("--drain-timeout", "2", *FAST)
        office.until("waits b")
        own_postgres.stop()
        worker.send_signal(signal.SIGTERM)
        office.open_gate("b")
        worker.wait(60)  # what it waited for a connection came to more than that
        own_postgres.start()
        office.worker(*FAST)
        assert run.wait(60) == "COMPLETED"
        assert office.times("step a") == office.times("step c") == 1


def test_a_kill_of_one_tenant_ends_its_runs_wherever_they_are(office: OfficeOfTest) -> None:
    submit, agents = office.guard.submit, office.agents
    running = [submit(agents.letters, [["a"], "b", ["c"]], tenant=tenant) for tenant in ("acme", "globex")]
    office.worker("--concurrency", "1", "--queue", "acme", *FAST)
    office.worker("--concurrency", "1", "--queue", "globex", *FAST)
    office.until("waits b", times=2)
    waiting = [submit(agents.alone, tenant=tenant) for tenant in ("acme", "globex")]
    office.guard.kill(reason="enough", tenant="acme")
    office.open_gate("b")
    assert [office.ends(run) for run in running] == ["KILLED", "COMPLETED"]
    assert [office.ends(run) for run in waiting] == ["KILLED", "COMPLETED"]
    assert office.times("step c") == 1
    wait_until(lambda: office.guard.queue() == [], 60)
    assert office.guard.verify()
