"""The plugin of a worker: guarded activities, and an end for the runs of workflows that have ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from temporalio.plugin import SimplePlugin
from temporalio.service import RPCError

from agentguard import AgentGuardError, Guard
from agentguard_temporal.activities import GuardedActivities
from agentguard_temporal.ends import GRACE, end_finished_runs

if TYPE_CHECKING:
    from temporalio.client import Client
    from temporalio.worker import Worker

_log = logging.getLogger("agentguard.temporal")


class GuardPlugin(SimplePlugin):
    """Guards the activities of a worker: `Worker(..., plugins=[GuardPlugin(guard, budget=...)])`.

    Args:
        guard: the Guard; its store must be one that all workers share.
        end_every: seconds between two looks for workflows that have ended, whose runs are then ended.
        grace: seconds that activities which outlive their workflow have to end by themselves; after that they
            are charged what they reserved.
        options: those of `GuardedActivities`: `budget`, `tenant`, `account`, `account_budget`, `effect`,
            `interrupt_threads`.

    Raises:
        TypeError, ValueError: an argument cannot be meant; the message names it.
    """

    def __init__(
        self, guard: Guard, *, end_every: float = 15.0, grace: float = GRACE, **options: Any
    ) -> None:
        if not end_every > 0:
            raise ValueError(f"end_every must be seconds above 0, not {end_every!r}")
        self._guard = guard
        self._activities = GuardedActivities(guard, **options)
        self._end_every = end_every
        self._grace = grace
        super().__init__("agentguard.GuardPlugin", interceptors=[self._activities])

    async def run_worker(self, worker: Worker, next: Callable[[Worker], Awaitable[None]]) -> None:
        """See Temporal's `Plugin`."""
        ending = asyncio.create_task(self._end_runs(worker.client))
        try:
            await super().run_worker(worker, next)
        finally:
            ending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ending
            await asyncio.to_thread(self._activities.runs.close)

    async def _end_runs(self, client: Client) -> None:
        while True:
            # Not all workers at the same moment.
            await asyncio.sleep(self._end_every * random.uniform(0.5, 1.0))  # noqa: S311
            try:
                for run_id in await end_finished_runs(self._guard, client, grace=self._grace):
                    self._activities.runs.ended(run_id)
            except (AgentGuardError, RPCError) as error:
                _log.warning("runs of workflows that have ended could not be ended: %s", error)
