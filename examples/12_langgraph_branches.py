"""A LangGraph graph with parallel branches, each a sub-agent in a scope with a budget of its own.

Needs:   pip install 'agentguard[langchain]'
Run it:  python examples/12_langgraph_branches.py
The models are scripted, so nothing is sent anywhere.
"""

import asyncio
import operator
import os
import tempfile
from typing import Annotated, Any, TypedDict

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from langgraph.types import Send

from agentguard import Budget, BudgetExceededError, Guard, current_run
from agentguard_langchain import GuardMiddleware

#: How many pages a topic has; the longest of them is more than its researcher may read.
PAGES = {"tides": 2, "winds": 3, "everything": 50}


class Researcher(BaseChatModel):
    """Stands for a model that reads every page of a topic before it answers."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=[tool.name for tool in tools])

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        topic, read = str(messages[0].content), sum(message.type == "tool" for message in messages)
        answer = AIMessage(f"{topic}: {read} pages")
        if read < PAGES[topic]:
            call = {"name": "fetch", "args": {"topic": topic, "page": read + 1}, "id": f"{topic}-{read}"}
            answer = AIMessage("", tool_calls=[call])
        answer.usage_metadata = {"input_tokens": 50, "output_tokens": 10, "total_tokens": 60}
        return ChatResult(generations=[ChatGeneration(message=answer)])


@tool
async def fetch(topic: str, page: int) -> str:
    """Fetch a page."""
    await asyncio.sleep(0)
    return f"page {page} about {topic}"


researcher = create_agent(Researcher(), [fetch], middleware=[GuardMiddleware()])


class Report(TypedDict):
    topics: list[str]
    findings: Annotated[list[str], operator.add]


async def research(state: dict[str, str]) -> dict[str, list[str]]:
    """One branch: a sub-agent that may make ten model calls, whatever the others do."""
    topic = state["topic"]
    try:
        async with current_run().scope(f"research {topic}", budget=Budget(calls={"kind:llm": 10})):
            result = await researcher.ainvoke({"messages": [("user", topic)]})
    except BudgetExceededError as stop:
        # The scope is stopped, for good; the run is not, and this branch has something to say.
        return {"findings": [f"{topic}: given up, {stop.resource} of {stop.scope!r} are used up"]}
    return {"findings": [result["messages"][-1].content]}


def graph() -> Any:
    builder = StateGraph(Report)
    builder.add_node("research", research)
    builder.add_conditional_edges(
        START, lambda state: [Send("research", {"topic": topic}) for topic in state["topics"]]
    )
    return builder.compile()


async def main() -> None:
    with Guard.open() as guard:
        async with guard.run("report", budget=Budget(tokens=20_000, steps=100)) as run:
            report = await graph().ainvoke({"topics": list(PAGES), "findings": []})
        for finding in report["findings"]:
            print(finding)
        print(f"{run.state}: {run.spent.tokens} tokens in {run.spent.steps} steps")

        # Keys say where a call lies: node, step, branch; never which call came first.
        keys = sorted(str(event.key) for event in guard.history(run.id) if event.type == "step_started")
        for key in [key for key in keys if key.startswith("main/research@1.0/")]:
            print(f"  {key}")


if __name__ == "__main__":
    # Only so that the example leaves your own state alone; a program needs no such line.
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("AGENTGUARD_HOME", home)
        asyncio.run(main())
