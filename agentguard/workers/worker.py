"""A worker: it takes submitted runs out of the queue and carries them out, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from procrastinate.exceptions import ConnectorException

from agentguard.errors import AgentGuardError, StoreUnavailableError
from agentguard.run import Run
from agentguard.runs.state import RunState
from agentguard.runtime import Runtime
from agentguard.workers.engine import Deployment, said
from agentguard.workers.execution import Execution
from agentguard.workers.job import ComesAgain, RunJob, checked_queue
from agentguard.workers.submission import queue_of

if TYPE_CHECKING:
    from procrastinate.jobs import Job
    from procrastinate.worker import Worker as Engine

_log = logging.getLogger("agentguard.workers")
#: Seconds for what is left to do after a drain: jobs are put back, connections closed.
_AFTER_DRAIN = 5.0
_POLL = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How a worker works.

    Raises:
        ValueError: one cannot be meant; the message names it.
    """

    #: The queues whose runs are taken; all where it is empty.
    queues: tuple[str, ...] = ()
    #: How many runs at a time, each in a thread of its own.
    concurrency: int = 4
    #: Seconds between two signs of life, and looks at other workers'.
    heartbeat: float = 5.0
    #: Seconds of silence after which a worker counts as dead, and its runs are taken over.
    stalled_after: float = 15.0
    #: Seconds that steps in flight have to finish when the worker is told to stop.
    drain_timeout: float = 25.0
    #: How many workers may die in a run, one after the other, before it is ended.
    most_deaths: int = 5
    #: Modules whose functions are called, with those inside them; all where it is empty.
    allowed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for queue in self.queues:
            checked_queue(queue)
        for name in ("concurrency", "most_deaths"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("heartbeat", "stalled_after"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be seconds above 0, not {getattr(self, name)}")
        if not 0 <= self.drain_timeout < math.inf:
            raise ValueError(f"drain_timeout must be seconds from 0 up, not {self.drain_timeout}")
        if self.stalled_after < 2 * self.heartbeat:
            raise ValueError(
                f"stalled_after must be at least twice the heartbeat of {self.heartbeat:g} s, not "
                f"{self.stalled_after:g}: else a worker that is merely slow counts as dead"
            )


@dataclass(eq=False)
class _Busy:
    """A run in progress in this worker."""

    run: Run
    drained: bool = False


@dataclass
class Worker:
    """A worker over the queue of a guard's store; `run` returns when it has been told to stop.

    SIGTERM and SIGINT stop it: it takes no further run, lets the steps in flight finish, and lets its runs go
    for others to carry on.  A second signal ends the process at once, as a crash would.
    """

    runtime: Runtime
    options: WorkerOptions
    _busy: list[_Busy] = field(default_factory=list)
    _threads: set[threading.Thread] = field(default_factory=set)
    _stopping: bool = False

    def run(self) -> bool:
        """Work; return whether every function has returned, and not only let go of its run.

        Raises:
            QueueUnavailableError: the guard's store has no queue.
            StoreUnavailableError: the server cannot be reached, or a pool in transaction mode is in between.
        """
        asyncio.run(self._work())
        return not any(thread.is_alive() for thread in self._threads)

    async def _work(self) -> None:
        options = self.options
        queue = queue_of(self.runtime)
        await asyncio.to_thread(queue.depth)  # a queue that is missing is told of here
        deployment = Deployment(queue, self._execute, concurrency=options.concurrency)
        await deployment.check_session()
        engine = deployment.engine(
            queues=options.queues,
            concurrency=options.concurrency,
            poll=min(1.0, options.heartbeat),
            stalled_after=options.stalled_after,
            grace=options.drain_timeout + _AFTER_DRAIN,
        )
        try:
            async with deployment.app.open_async():
                await self._serve(deployment, engine)
        except ConnectorException as error:
            raise StoreUnavailableError(f"{self.runtime.components.store.url}: {said(error)}") from error

    async def _serve(self, deployment: Deployment, engine: Engine) -> None:
        stopping = asyncio.Event()
        self._heed_signals(stopping)
        self._observe()
        beside = [
            asyncio.create_task(self._beat(deployment, engine)),
            asyncio.create_task(self._drain(deployment, engine, stopping)),
        ]
        try:
            await engine.run()  # type: ignore[no-untyped-call]
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    # --- runs ----------------------------------------------------------------------------------

    async def _execute(self, job: RunJob, queued: Job) -> None:
        if self._stopping:
            raise ComesAgain("this worker stops")
        mine: list[_Busy] = []

        def opened(run: Run) -> None:
            mine.append(_Busy(run))
            self._busy.extend(mine)

        execution = Execution(
            runtime=self.runtime,
            queue=queue_of(self.runtime),
            job=job,
            job_id=queued.id or 0,
            worker=queued.worker_id or 0,
            allowed=self.options.allowed,
            most_deaths=self.options.most_deaths,
            on_open=opened,
        )
        try:
            await self._in_thread(execution.carry_out, f"agentguard-run-{job.run_id}")
        finally:
            for busy in mine:  # not by the job: a worker that was silent may have it twice
                self._busy.remove(busy)

    async def _in_thread(self, call: Callable[[], None], name: str) -> None:
        """Await a call in a thread of its own, which the end of this process does not wait for."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def tell(error: BaseException | None) -> None:
            self._threads.discard(thread)
            if not done.done():
                done.set_result(None) if error is None else done.set_exception(error)

        def work() -> None:
            failure: BaseException | None = None
            try:
                call()
            except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(tell, failure)

        thread = threading.Thread(target=work, name=name, daemon=True)
        self._threads.add(thread)
        thread.start()
        await done

    # --- beside them ---------------------------------------------------------------------------

    async def _beat(self, deployment: Deployment, engine: Engine) -> None:
        """Write signs of life, to the last moment of a drain, and put back the runs of dead workers."""
        jobs, stalled_after = deployment.jobs, self.options.stalled_after
        while True:
            pause = self.options.heartbeat
            try:
                if engine.worker_id is not None and not await jobs.beat(engine.worker_id):
                    _log.warning("this worker was silent for so long that others took its runs over")
                    engine.worker_id = await jobs.register_worker()
                await jobs.put_back_stalled(stalled_after)
                silent = await jobs.next_silent(engine.worker_id or 0, stalled_after)
                if silent is not None:  # at that moment, and not at the next beat
                    pause = min(pause, max(silent, 0) + _POLL)
            except ConnectorException as error:
                _log.warning("no sign of life could be written: %s", said(error))
            await asyncio.sleep(pause)

    def _observe(self) -> None:
        telemetry = self.runtime.components.telemetry
        if telemetry is not None:
            telemetry.observe_queue(queue_of(self.runtime).depth)

    # --- the end -------------------------------------------------------------------------------

    def _heed_signals(self, stopping: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()

        def stop(number: int) -> None:
            if stopping.is_set():
                os._exit(128 + number)
            stopping.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not in the main thread
                loop.add_signal_handler(number, stop, number)

    async def _drain(self, deployment: Deployment, engine: Engine, stopping: asyncio.Event) -> None:
        """Once told to stop: take nothing more, and let go of each run as soon as it can be."""
        await stopping.wait()
        self._stopping = True
        _log.info("stopping: %d runs are let go", len(self._busy))
        deployment.jobs.stopping = True
        engine.stop()  # type: ignore[no-untyped-call]
        while True:
            for busy in tuple(self._busy):
                if not busy.drained and busy.run.state is not RunState.CREATED:
                    busy.drained = True
                    # A drain may wait: an executor would have no room for all of them, nor end.
                    threading.Thread(target=self._let_go, args=(busy.run,), daemon=True).start()
            await asyncio.sleep(_POLL)

    def _let_go(self, run: Run) -> None:
        try:
            run.drain(self.options.drain_timeout)
        except AgentGuardError as error:
            _log.warning("run %s could not be let go: %s", run.id, error)
