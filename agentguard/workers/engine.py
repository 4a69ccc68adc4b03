"""Procrastinate as workers use it: jobs that are fenced, and a connection that may break.

What Procrastinate leaves open is closed here:

* A job is finished or put back by the worker that has it, and by no other: a worker that was paused, taken
  for dead and woken changes nothing of what its successor does.
* A server that is away for a while ends no worker.  What was fetched and never arrived, since the connection
  broke, is put back when the server is there again.
* A worker that others took for dead registers again.
* Whoever can connect may notify on the queue's channels.  What is said there is not read: it is a reason to
  look into the queue, and ends or cuts off nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from functools import partial
from typing import Any, Final

import msgspec
import psycopg
from procrastinate import App, JobContext, PsycopgConnector, exceptions
from procrastinate.jobs import Job, Status
from procrastinate.manager import JobManager, NotificationCallback, get_channel_for_queues
from procrastinate.retry import BaseRetryStrategy, RetryDecision
from procrastinate.worker import Worker as Engine

from agentguard import _typed
from agentguard._secrets.urls import public_url
from agentguard.errors import StoreUnavailableError
from agentguard.protocols import RunQueue
from agentguard.stores import _sql
from agentguard.workers.job import ComesAgain, RunJob

_log = logging.getLogger("agentguard.workers")
TASK: Final = "agentguard.run"
#: Seconds before the server is asked again that could not be reached.
_PAUSE: Final = 0.5
#: How many statements show whether a pool gives a connection another session of the server's for each.
_LOOKS: Final = 20
#: Seconds that a connection is waited for: a worker that is told to stop ends, though the server is away.
_PATIENCE: Final = 5.0
#: Procrastinate's own sign of life ends its worker when it fails; `Jobs.beat` takes its place.
_NEVER: Final = 10**8


class Jobs(JobManager):
    """The jobs of one worker."""

    def __init__(self, connector: PsycopgConnector) -> None:
        super().__init__(connector)
        self._connector = connector
        self._sql: dict[str, Any] = _sql.queries("postgres_queue")
        #: The jobs that this worker has.
        self._taken: set[int] = set()
        #: What is to be kept with jobs that come again.
        self.again: dict[int, ComesAgain] = {}
        self._broken = False
        self.stopping = False

    async def fetch_job(self, queues: Iterable[str] | None, worker_id: int) -> Job | None:
        """Return the next job for this worker, or None."""
        try:
            if self._broken:
                taken = list(self._taken)
                await self._execute("fetch_again", worker_id=worker_id, taken=taken)
                self._broken = False
            job = await super().fetch_job(queues, worker_id)
        except exceptions.ConnectorException as error:
            self._broken = True
            _log.warning("the queue cannot be read, and is asked again: %s", said(error))
            await asyncio.sleep(_PAUSE)
            return None
        if job is not None and job.id is not None:
            self._taken.add(job.id)
        return job

    async def finish_job(self, job: Job, status: Status, delete_job: bool) -> None:  # noqa: FBT001
        """Take a job out of the queue; the run's log says how it ended."""
        await self._settle(job, "finish")

    async def retry_job(
        self,
        job: Job,
        retry_at: datetime | None = None,
        priority: int | None = None,
        queue: str | None = None,
        lock: str | None = None,
    ) -> None:
        """Put a job back."""
        again = self.again.pop(job.id or 0, None) or ComesAgain("it was cut off")
        note = msgspec.json.encode(again.note).decode()
        await self._settle(job, "put_back", delay=again.delay, note=note)

    async def _settle(self, job: Job, query: str, **arguments: Any) -> None:
        """Say what becomes of a job, until the server has heard it: while we live nobody else takes it."""
        while True:
            try:
                await self._execute(query, job_id=job.id, worker_id=job.worker_id, **arguments)
            except exceptions.ConnectorException as error:
                if self.stopping:
                    _log.warning("job %s is left to other workers: %s", job.id, said(error))
                    return
                await asyncio.sleep(_PAUSE)
            else:
                self._taken.discard(job.id or 0)
                return

    async def listen_for_jobs(
        self, *, on_notification: NotificationCallback, queues: Iterable[str] | None = None
    ) -> None:
        """Listen, also after a connection that broke; meanwhile the queue is asked every second."""

        async def look(channel: str, payload: str) -> None:
            await on_notification(channel=channel, notification={"type": "job_inserted", "job_id": 0})

        channels = get_channel_for_queues(queues)
        while True:
            try:
                await self.connector.listen_notify(on_notification=look, channels=channels)
            except (exceptions.ConnectorException, psycopg.Error):
                await asyncio.sleep(_PAUSE)

    async def unregister_worker(self, worker_id: int) -> None:
        """Say that this worker has ended; one that cannot is found by its silence."""
        try:
            await super().unregister_worker(worker_id)
        except exceptions.ConnectorException as error:
            _log.warning("the end of this worker could not be said: %s", said(error))

    async def beat(self, worker_id: int) -> bool:
        """Write a sign of life; return False where others have taken this worker for dead."""
        query = self._sql["beat"]
        return bool(await self._connector.execute_query_all_async(query, worker_id=worker_id))

    async def put_back_stalled(self, seconds: float) -> None:
        """Put back the jobs of workers that have been silent for so long, and take those for dead."""
        for job in await self.get_stalled_jobs(seconds_since_heartbeat=seconds):
            _log.warning("the worker of run %s is silent; the run goes on elsewhere", job.lock)
            await self._execute("put_back", job_id=job.id, worker_id=job.worker_id, delay=0.0, note="{}")
        await self.prune_stalled_workers(seconds)

    async def next_silent(self, worker_id: int, seconds: float) -> float | None:
        """Return in how many seconds another worker may be found to be dead; None where there is no other."""
        [row] = await self._connector.execute_query_all_async(
            self._sql["next_silent"], worker_id=worker_id, stalled_after=seconds
        )
        found: float | None = row["seconds"]
        return found

    async def _execute(self, query: str, **arguments: Any) -> None:
        await self._connector.execute_query_async(self._sql[query], **arguments)


class _Again(BaseRetryStrategy):
    """A job comes again where it says so, or was cut off by the end of its worker."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        """Return a decision; `Jobs.retry_job` knows when."""
        again = isinstance(exception, ComesAgain | asyncio.CancelledError)
        return RetryDecision() if again else None


Execute = Callable[[RunJob, Job], Awaitable[None]]


class Deployment:
    """The queue's application in one worker: what is executed, and the connections."""

    def __init__(self, queue: RunQueue, execute: Execute, *, concurrency: int) -> None:
        self._queue = queue
        connector = PsycopgConnector(
            conninfo=queue.url,
            min_size=1,
            max_size=min(concurrency, 8) + 3,
            timeout=_PATIENCE,
            configure=self._configure,
        )
        self.app = App(connector=connector)
        self.app.job_manager = self.jobs = Jobs(connector)

        async def run(context: JobContext, /, **args: Any) -> None:
            job = context.job
            try:
                await execute(_typed.convert(args, RunJob), job)
            except ComesAgain as again:
                self.jobs.again[job.id or 0] = again
                raise

        self.app.task(name=TASK, pass_context=True, retry=_Again())(run)

    async def check_session(self) -> None:
        """Refuse a pool that shares connections by transaction: workers listen, and set what is to stay set.

        Raises:
            StoreUnavailableError: the URL leads to one, or the server cannot be reached.
        """
        url, where = self._queue.url, public_url(self._queue.url)
        connect = partial(psycopg.AsyncConnection.connect, url, autocommit=True, prepare_threshold=None)
        try:
            async with await connect() as one:
                if await _backends(one, 1) == {one.info.backend_pid}:
                    return  # the server itself: a pool has no process of the server's to name
                mine = await _backends(one, _LOOKS)
                async with await connect() as other, other.transaction():
                    taken = mine & await _backends(other, 1)
                    pooled = taken or len(mine) > 1 or await _backends(one, _LOOKS) != mine
        except psycopg.Error as error:
            raise StoreUnavailableError(f"{where}: {said(error)}") from error
        if pooled:
            raise StoreUnavailableError(
                f"{where} is a pool in transaction mode (PgBouncer), in which a worker cannot listen; "
                "name the server itself, or a pool in session mode"
            )

    async def _configure(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Let a connection find Procrastinate's tables, and see one tenant alone where the store does."""
        await connection.set_autocommit(True)
        await connection.execute("SET search_path TO agentguard_queue, pg_catalog")
        if self._queue.tenant is not None:
            await connection.execute(
                "SELECT set_config('agentguard.tenant', %s, false)", (self._queue.tenant,)
            )

    def engine(
        self,
        *,
        queues: Iterable[str] | None,
        concurrency: int,
        poll: float,
        stalled_after: float,
        grace: float,
    ) -> Engine:
        """Return the loop that fetches jobs; the caller beats for it."""
        return Engine(
            self.app,
            queues=list(queues) if queues else None,
            name="agentguard",
            concurrency=concurrency,
            fetch_job_polling_interval=poll,
            abort_job_polling_interval=_NEVER,
            update_heartbeat_interval=_NEVER,
            stalled_worker_timeout=stalled_after,
            shutdown_graceful_timeout=grace,
            install_signal_handlers=False,
        )


async def _backends(connection: psycopg.AsyncConnection[Any], looks: int) -> set[int]:
    """Return which processes of the server carry out statements of a connection."""
    found: set[int] = set()
    for _ in range(looks):
        [(backend,)] = await (await connection.execute("SELECT pg_backend_pid()")).fetchall()
        found.add(backend)
    return found


def said(error: BaseException) -> str:
    """Return what the server, or its absence, says."""
    return str(error.__cause__ or error).strip().partition("\n")[0]
