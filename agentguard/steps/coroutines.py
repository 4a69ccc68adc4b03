"""The async driver: a coroutine function as a guarded step."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

from agentguard.errors import RunStopped
from agentguard.steps import spinning
from agentguard.steps.aio import require_asyncio
from agentguard.steps.flow import open_step, prepare
from agentguard.steps.following import replayed, run_to_end
from agentguard.steps.model import InRun, Step
from agentguard.steps.served import ReplaySource
from agentguard.steps.spec import Args, AsyncFunction, Kwargs, StepSpec


def call(
    spec: StepSpec,
    position: InRun,
    fn: AsyncFunction,
    args: Args,
    kwargs: Kwargs,
    *,
    attributes: Mapping[str, object] | None = None,
) -> Awaitable[object]:
    """One guarded call of a coroutine function: its key is fixed here, the rest when awaited."""
    step = open_step(spec, position, args, kwargs)
    step.attributes = attributes
    player = step.live_run.player
    return run_to_end(step, fn, args, kwargs) if player is None else _served(step, player, fn, args, kwargs)


async def _served(step: Step, player: ReplaySource, fn: AsyncFunction, args: Args, kwargs: Kwargs) -> object:
    """Return what the log has of a step, or run it."""
    require_asyncio(step)
    prepare(step, args, kwargs)
    try:
        continued = player.continuations(step)
        served = None if continued else await player.serve_async(step)
    except RunStopped as stop:
        await spinning.refused_async(step, stop)
        raise
    if continued:
        return replayed(step, continued, args, kwargs)
    if served is not None:
        if (refusal := served.refusal) is not None:
            await spinning.refused_async(step, refusal)
        return served.result()
    return await run_to_end(step, fn, args, kwargs)
