"""An agent of the OpenAI Agents SDK with a limited tool, and its answer as a stream.  No network.

Run it:  python examples/21_openai_agents.py        (pip install 'agentguard[openai-agents]')
"""

import asyncio

from agents import Agent, RunConfig, Runner, Usage, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call

from agentguard import Budget, BudgetExceededError, Guard
from agentguard.cost.prices import ModelPrices
from agentguard_openai_agents import GuardHooks, guard_agent

USED = Usage(requests=1, input_tokens=500, output_tokens=50, total_tokens=550)
PRICES = ModelPrices({"ScriptedModel": {"input": "2.00", "output": "8.00"}})  # USD for a million tokens
CONFIG = RunConfig(tracing_disabled=True)  # the SDK's own tracing would use the network


@function_tool
async def refund(order: str) -> str:  # async: the SDK calls others in threads, whose lines would mix
    """Pay an order back."""
    print(f"  refunded {order}")
    return "done"


def support(script: list) -> Agent:
    """A guarded agent that follows a script."""
    agent = Agent(
        name="support",
        model=ScriptedModel(script, default_usage=USED),
        tools=[refund],
        model_settings={"max_tokens": 50},
    )
    return guard_agent(agent, prices=PRICES)


async def generous(guard: Guard) -> None:
    """Refunds two orders in each answer, until it is stopped."""
    script = [
        [function_call("refund", {"order": f"A-{n}{x}"}, call_id=f"{n}{x}") for x in "ab"]
        for n in range(1, 20)
    ]
    try:
        async with guard.run("support", budget=Budget(usd="1.00", calls={"refund": 3})) as run:
            await Runner.run(support(script), "Make them happy.", hooks=GuardHooks(), run_config=CONFIG)
    except BudgetExceededError as stop:
        print(f"stopped: {stop.resource}, {stop.spent} of {stop.limit}")
    print(f"{run.state}: {run.spent.usd} USD, {run.spent.tokens} tokens")


async def streamed(guard: Guard) -> None:
    """Answers word by word; each word is a place where a kill would end it."""
    agent = support([[assistant_message("Your order is on its way.")]])
    async with guard.run("support", budget=Budget(usd="1.00")) as run:
        result = Runner.run_streamed(agent, "Where is it?", hooks=GuardHooks(), run_config=CONFIG)
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                print(f"  {event.data.delta}")
    print(f"{run.state}: {run.spent.usd} USD")


async def main() -> None:
    with Guard.in_memory() as guard:
        print("an agent that refunds whatever it is told:")
        await generous(guard)
        print("a streamed answer:")
        await streamed(guard)


asyncio.run(main())
