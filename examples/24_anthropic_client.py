"""Async Anthropic calls side by side under one budget, and a kill in the middle of a stream.

Run it:  ANTHROPIC_API_KEY=... python examples/24_anthropic_client.py
It needs:  pip install 'agentguard[anthropic]'
"""

import asyncio

from anthropic import AsyncAnthropic

from agentguard import Budget, Guard, KillSwitchTriggeredError
from agentguard_anthropic import guard_client

client = guard_client(AsyncAnthropic())
MODEL = "claude-haiku-4-5"


async def ask(question: str) -> str:
    answer = await client.messages.create(
        model=MODEL, max_tokens=200, messages=[{"role": "user", "content": question}]
    )
    return "".join(block.text for block in answer.content if block.type == "text")


async def side_by_side(guard: Guard) -> None:
    """Three calls at once: each is reserved before it is sent, so together they cannot overshoot."""
    async with guard.run("three", budget=Budget(usd="0.01")) as run:
        answers = await asyncio.gather(*(ask(f"Name a {what}.") for what in ("river", "lake", "sea")))
    print(f"{len(answers)} answers; {run.state}: {run.spent.steps} steps")


async def killed(guard: Guard) -> None:
    """The stream ends where the kill finds it, and its connection is closed."""
    said = ""
    try:
        async with guard.run("story") as run:
            async with client.messages.stream(
                model=MODEL, max_tokens=200, messages=[{"role": "user", "content": "Tell a story."}]
            ) as stream:
                async for text in stream.text_stream:
                    said += text
                    guard.kill(run=run.id, reason="that will do")  # as `agentguard kill` would
    except KillSwitchTriggeredError as stop:
        print(f"stopped after {len(said)} letters: {stop.reason}")
    print(f"on record: {run.state}")


async def main() -> None:
    with Guard.in_memory() as guard:
        await side_by_side(guard)
        await killed(guard)
    await client.close()


asyncio.run(main())
