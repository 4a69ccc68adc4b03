"""A LangChain agent with three tools, under a limit on money, on mails, and with a soft landing.

Needs:   pip install 'agentguard[langchain]'
Run it:  python examples/10_langchain_agent.py
The model is scripted, so nothing is sent anywhere.
"""

import os
import tempfile
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool

from agentguard import Budget, BudgetExceededError, Guard, Usage
from agentguard.cost.prices import ModelPrices
from agentguard_langchain import GuardMiddleware


class Eager(BaseChatModel):
    """Stands for a model that works on and on: it looks up, refunds and writes until it is told to stop."""

    model_name: str = "eager-1"
    max_tokens: int = 500

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=[tool.name for tool in tools])

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        turn = sum(message.type == "ai" for message in messages) + 1
        answer = AIMessage(f"Done after {turn - 1} customers.")
        if kwargs.get("tools"):
            customer = f"customer-{turn}"
            wanted = [
                ("look_up", {"customer": customer}),
                ("refund", {"customer": customer, "eur": 10}),
                ("send_email", {"customer": customer, "text": "You get 10 EUR back."}),
            ]
            calls = [{"name": n, "args": a, "id": f"call-{turn}-{n}"} for n, a in wanted]
            answer = AIMessage("", tool_calls=calls)
        asked = count_tokens_approximately(messages)
        answer.usage_metadata = {"input_tokens": asked, "output_tokens": 200, "total_tokens": asked + 200}
        return ChatResult(generations=[ChatGeneration(message=answer)])


@tool
def look_up(customer: str) -> str:
    """Look a customer up."""
    return f"{customer} paid twice"


@tool
def refund(customer: str, eur: int) -> str:
    """Pay money back."""
    print(f"  refunded {eur} EUR to {customer}")
    return "refunded"


@tool
def send_email(customer: str, text: str) -> str:
    """Write to a customer."""
    print(f"  wrote to {customer}")
    return "sent"


PRICES = ModelPrices({"eager-1": {"input": 5, "output": 15}}, fallback=None)  # USD for a million tokens
TOOL_OPTIONS: dict[str, dict[str, Any]] = {
    "look_up": {"effect": "read"},
    "refund": {"reserve": lambda eur, **_: Usage(refunded_eur=eur)},
    "send_email": {"usage": Usage(emails=1)},
}
ASK = {"messages": [("user", "Refund everybody who paid twice, and tell them.")]}


def agent_with(**options: Any) -> Any:
    guarded = GuardMiddleware(prices=PRICES, tool_options=TOOL_OPTIONS, **options)
    return create_agent(Eager(), [look_up, refund, send_email], middleware=[guarded])


def main() -> None:
    with Guard.open() as guard:
        print("a limit on money:")
        try:
            with guard.run("refunds", budget=Budget(usd="0.02", refunded_eur=500)) as run:
                agent_with().invoke(ASK)
        except BudgetExceededError as stop:
            print(f"stopped: {stop.resource}, {stop.spent} of {stop.limit} used")
        print(f"{run.state}: {run.spent.usd} USD, {run.spent['refunded_eur']} EUR refunded")

        print("two mails, then the tool is refused and the agent told so; near its end it lands softly:")
        limits = Budget(usd="0.03", emails=2, warn_at=0.5)
        with guard.run("refunds", budget=limits) as run:
            result = agent_with(soft=["send_email"], wrap_up=True).invoke(ASK)
        print(f"the agent: {result['messages'][-1].content}")
        print(f"{run.state}: {run.spent.usd} USD, {run.spent['emails']} mails")

        for event in guard.history(run.id)[2:8]:
            print(f"  {event.seq:2} {event.type:15} {event.key}")

        with guard.replay(run.id):
            again = agent_with(soft=["send_email"], wrap_up=True).invoke(ASK)
        print(f"the same again, without model and tools: {again['messages'][-1].content}")


if __name__ == "__main__":
    # Only so that the example leaves your own state alone; a program needs no such line.
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("AGENTGUARD_HOME", home)
        main()
