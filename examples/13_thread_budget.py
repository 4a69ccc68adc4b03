"""One budget for a conversation of a LangChain agent, over all its turns and restarts.

Needs:   pip install 'agentguard[langchain]'
Run it:  python examples/13_thread_budget.py
The model is scripted, so nothing is sent anywhere.
"""

import os
import tempfile
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from agentguard import Budget, BudgetExceededError, Guard
from agentguard.cost.prices import ModelPrices
from agentguard_langchain import GuardMiddleware


class Chatty(BaseChatModel):
    """Stands in for a model, and answers without a network."""

    model_name: str = "chatty"

    @property
    def _llm_type(self) -> str:
        return "chatty"

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        used: Any = {"input_tokens": 100, "output_tokens": 40, "total_tokens": 140}
        return ChatResult(
            generations=[ChatGeneration(message=AIMessage("Tell me more.", usage_metadata=used))]
        )


guarded = GuardMiddleware(
    thread_budget=Budget(usd="0.01"),  # for each thread, over all its runs
    prices=ModelPrices({"chatty": {"input": 10, "output": 50}}, fallback=None),
    max_output_tokens=50,
)
agent = create_agent(Chatty(), [], middleware=[guarded])


def turn(guard: Guard, thread: str) -> None:
    """Answer one message of a conversation: a run of its own."""
    with guard.run("turn"):
        agent.invoke({"messages": [("user", "Hello")]}, {"configurable": {"thread_id": thread}})


with tempfile.TemporaryDirectory() as home:
    os.environ["AGENTGUARD_HOME"] = home
    for number in range(1, 6):
        with Guard.open() as guard:  # as after a restart of the process
            try:
                turn(guard, "ann")
                print(f"turn {number} of ann: answered")
            except BudgetExceededError as stop:
                print(f"turn {number} of ann: {stop.scope} has spent {stop.spent} of {stop.limit} USD")
    with Guard.open() as guard:
        turn(guard, "bob")
        print("turn 1 of bob: answered")
        for line in guard.costs(by="account"):
            print(f"  {line.key}: {line.usd} USD in {line.steps} calls")
