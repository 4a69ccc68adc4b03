"""Workflows that know nothing of agentguard: they name activities, and Temporal's sandbox runs them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError

QUICK = RetryPolicy(initial_interval=timedelta(milliseconds=50), backoff_coefficient=1, maximum_attempts=20)


@workflow.defn
class Calls:
    """Calls activities, one after the other, or at once: `[[name, argument, options], ...]`."""

    @workflow.run
    async def run(self, calls: list[list[Any]], at_once: bool = False) -> list[Any]:
        if at_once:
            done = await asyncio.gather(*(self.call(*each) for each in calls), return_exceptions=True)
            return [repr(each.cause) if isinstance(each, ActivityError) else each for each in done]
        return [await self.call(*each) for each in calls]

    async def call(self, name: str, argument: Any, options: dict[str, Any]) -> Any:
        seconds = {key: timedelta(seconds=value) for key, value in options.items() if key.endswith("timeout")}
        timeouts = {"start_to_close_timeout": timedelta(seconds=60)} | seconds
        if options.get("local"):
            return await workflow.execute_local_activity(
                name, argument, retry_policy=QUICK, start_to_close_timeout=timeouts["start_to_close_timeout"]
            )
        return await workflow.execute_activity(
            name, argument, retry_policy=QUICK, activity_id=options.get("id"), **timeouts
        )


@workflow.defn
class Chain:
    """Continues as new until the count is down."""

    @workflow.run
    async def run(self, count: int) -> int:
        await workflow.execute_activity(
            "tell", f"chain-{count}", retry_policy=QUICK, start_to_close_timeout=timedelta(seconds=60)
        )
        if count > 1:
            workflow.continue_as_new(count - 1)
        return count


@workflow.defn
class Parent:
    """Leaves the work to a child workflow."""

    @workflow.run
    async def run(self, calls: list[list[Any]]) -> list[Any]:
        return await workflow.execute_child_workflow(Calls.run, args=[calls, False])


@workflow.defn
class Waits:
    """Calls an activity, waits for a signal, and calls another."""

    def __init__(self) -> None:
        self.told = False

    @workflow.signal
    def go_on(self) -> None:
        self.told = True

    @workflow.run
    async def run(self) -> str:
        options = {"retry_policy": QUICK, "start_to_close_timeout": timedelta(seconds=60)}
        await workflow.execute_activity("tell", "before", **options)
        await workflow.wait_condition(lambda: self.told)
        return await workflow.execute_activity("tell", "after", **options)


WORKFLOWS = [Calls, Chain, Parent, Waits]
