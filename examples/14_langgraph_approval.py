"""A LangGraph agent whose application answers by `Command(resume=...)`: a refund is approved, a limit raised.

Needs:   pip install 'agentguard[langchain]'
Run it:  python examples/14_langgraph_approval.py
The model is scripted, so nothing is sent anywhere.
"""

import os
import tempfile
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from agentguard import Budget, Guard, Usage
from agentguard_langchain import GuardMiddleware

PAID: list[int] = []


class Clerk(BaseChatModel):
    """Stands in for a model: it refunds 20 EUR, then 300, then says so."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=[tool.name for tool in tools])

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        turn = sum(message.type == "tool" for message in messages)
        eur = (20, 300)[turn] if turn < 2 else None
        calls = [{"name": "refund", "args": {"eur": eur}, "id": f"call-{turn}"}] if eur else []
        return ChatResult(generations=[ChatGeneration(message=AIMessage("Both are paid.", tool_calls=calls))])


@tool
def refund(eur: int) -> str:
    """Pay money back."""
    PAID.append(eur)
    return f"refunded {eur} EUR"


def make_agent() -> Any:
    options: dict[str, Any] = {
        "approval": lambda eur: eur > 100,
        "reserve": lambda eur: Usage(refunded_eur=eur),
    }
    guarded = GuardMiddleware(approvals="interrupt", tool_options={"refund": options})
    return create_agent(Clerk(), [refund], middleware=[guarded], checkpointer=InMemorySaver())


def in_the_browser(asked: dict[str, Any]) -> dict[str, Any]:
    """Stands in for the application's own UI, and for the person in front of it."""
    if asked["type"] == "limit":
        print(f"  ann is asked: {asked['description']}")
        return {"type": "raise", "limits": {"refunded_eur": 500}, "actor": "ann", "reason": "a good customer"}
    print(f"  ann is asked: {asked['name']} {asked['args']}?")
    return {"type": "approve", "actor": "ann", "reason": "checked"}


def serve(agent: Any) -> str:
    config: Any = {"configurable": {"thread_id": "42"}}
    found = agent.invoke({"messages": [("user", "Refund what ann paid twice.")]}, config)
    while interrupts := found.get(
        "__interrupt__"
    ):  # here a web application would return, and be called again
        found = agent.invoke(Command(resume=in_the_browser(interrupts[0].value)), config)
    return str(found["messages"][-1].content)


def main() -> None:
    with Guard.open() as guard:
        with guard.run("refunds", budget=Budget(refunded_eur=200, on_limit="ask")) as run:
            print(serve(make_agent()))
        print("paid:", PAID)
        for event in guard.history(run.id):
            if "actor" in event.data:
                print(f"  {event.type} by {event.data['actor']}: {event.data['reason']}")
        PAID.clear()
        with guard.replay(run.id):
            print("replayed:", serve(make_agent()), "paid:", PAID)


if __name__ == "__main__":
    # Only so that the example leaves your own state alone; a program needs no such line.
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("AGENTGUARD_HOME", home)
        main()
