"""A workflow as any other: it knows nothing of agentguard, and is replayed by Temporal as ever."""

from datetime import timedelta

from temporalio import workflow


@workflow.defn
class Letters:
    @workflow.run
    async def run(self, names: list[str]) -> list[str]:
        return [
            await workflow.execute_activity(
                "send",
                f"to {name}",
                start_to_close_timeout=timedelta(seconds=60),
                heartbeat_timeout=timedelta(seconds=2),
            )
            for name in names
        ]
