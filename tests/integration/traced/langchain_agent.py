"""A LangChain agent, traced: one run ends well, one meets its budget, one is killed in a tool.

`python langchain_agent.py ENDPOINT` prints the trace of each run, by the run's name, as JSON.
"""

import contextlib
import json
import sys
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool

import agentguard.telemetry
from agentguard import Budget, Guard, RunStopped, current_run
from agentguard.cost.prices import ModelPrices
from agentguard_langchain import GuardMiddleware


class Scripted(BaseChatModel):
    """A model that asks for its tool once and then answers."""

    model_name: str = "scripted-1"
    max_tokens: int = 200

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=[tool.name for tool in tools])

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        answered = any(message.type == "tool" for message in messages)
        call = {"name": "look_up", "args": {"order": "A-1"}, "id": "call-1"}
        answer = AIMessage("It was shipped.") if answered else AIMessage("", tool_calls=[call])
        answer.usage_metadata = {"input_tokens": 1000, "output_tokens": 200, "total_tokens": 1200}
        return ChatResult(generations=[ChatGeneration(message=answer)])


@tool
def look_up(order: str) -> str:
    """Look an order up."""
    run = current_run()
    if run is not None and run.name == "doomed":
        run.kill("enough", actor="ann")
    return f"{order} was shipped"


#: USD for a million tokens: a call costs 0.005 + 0.003 USD.
PRICES = ModelPrices({"scripted-1": {"input": 5, "output": 15}}, fallback=None)
QUESTION: Any = {"messages": [("user", "Where is A-1?")]}
BUDGETS = {"desk": Budget(usd="1"), "spender": Budget(usd="0.008"), "doomed": Budget()}


def main(endpoint: str) -> None:
    traces = {}
    with agentguard.telemetry.setup(endpoint=endpoint, service_name="langchain"), Guard.in_memory() as guard:
        for name, budget in BUDGETS.items():
            agent = create_agent(Scripted(), [look_up], middleware=[GuardMiddleware(prices=PRICES)])
            with contextlib.suppress(RunStopped), guard.run(name, budget=budget, tenant="acme") as run:
                agent.invoke(QUESTION)
            traces[name] = guard.history(run.id)[0].trace_id
    print(json.dumps(traces))


main(sys.argv[1])
