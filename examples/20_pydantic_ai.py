"""A Pydantic AI agent under a money limit, and a run of it again from its log.  The model is scripted.

Run it:  python examples/20_pydantic_ai.py        (pip install 'agentguard[pydantic-ai]')
"""

from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from agentguard import Budget, BudgetExceededError, Guard, Usage
from agentguard.cost.prices import ModelPrices
from agentguard_pydantic_ai import GuardCapability


def scripted(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Searches again and again; writes a mail when somebody says that it is enough."""
    turn = sum(isinstance(message, ModelResponse) for message in messages) + 1
    print(f"  the model is asked: {turn}")
    if "two pages" in str(messages[0]) and turn > 2:
        return ModelResponse(parts=[TextPart("Here is what I found.")], usage=USED)
    call = ToolCallPart("search", {"query": f"question {turn}"})
    return ModelResponse(parts=[call], usage=USED)


USED = RequestUsage(input_tokens=1_000, cache_read_tokens=600, output_tokens=100)
#: USD for a million tokens.
PRICES = ModelPrices({"house-7b": {"input": "1.00", "cached": "0.25", "output": "4.00"}})

agent = Agent(
    FunctionModel(scripted, model_name="house-7b"),
    name="researcher",
    capabilities=[
        GuardCapability(
            prices=PRICES,
            max_output_tokens=100,
            tool_options={"search": {"usage": Usage(usd="0.001", pages=1), "effect": "read"}},
        )
    ],
)


@agent.tool_plain
def search(query: str) -> str:
    """Search the web."""
    print(f"  searching: {query}")
    return f"a page about {query}"


def main() -> None:
    with Guard.in_memory() as guard:
        print("an agent that does not end by itself:")
        try:
            with guard.run("research", budget=Budget(usd="0.006")) as run:
                agent.run_sync("Find out everything.")
        except BudgetExceededError as stop:
            print(
                f"stopped: {stop.resource}, {stop.spent} of {stop.limit} spent; {stop.requested} more wanted"
            )
        print(f"{run.state}: {run.spent.usd} USD, {run.spent['pages']} pages, {run.spent.tokens} tokens")

        print("one that does:")
        with guard.run("research", budget=Budget(usd="0.05")) as run:
            print(agent.run_sync("Find two pages.").output)
        print(f"{run.state}: {run.spent.usd} USD, {run.spent.cached_tokens} tokens from the cache")

        print("the same, from its log; no model and no tool is called:")
        with guard.replay(run.id):
            print(agent.run_sync("Find two pages.").output)

        for event in guard.history(run.id):
            if event.type == "step_completed":
                print(f"  {event.seq:>2} {event.key}  {event.usage.usd} USD")


main()
