"""An incident of a LangGraph agent, run again on a laptop from its log: no model, no tools, no keys.

Needs:   pip install 'agentguard[langchain]'
Run it:  python examples/33_langgraph_replay.py
The model is scripted, so nothing is sent anywhere; in the replay it is one that cannot be called at all.
"""

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool

from agentguard import Budget, BudgetExceededError, Guard, ReplayDivergenceError, Usage
from agentguard_langchain import GuardMiddleware

ASK = {"messages": [("user", "Refund what ann and bob paid twice.")]}
PHYSICAL_CALLS: list[str] = []


class Generous(BaseChatModel):
    """Stands for the model of the incident: it refunds twice as much with every turn."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=[tool.name for tool in tools])

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        PHYSICAL_CALLS.append("model")
        turn = sum(message.type == "ai" for message in messages)
        calls = [
            {"name": "refund", "args": {"customer": name, "eur": 20 * 2**turn}, "id": f"{name}-{turn}"}
            for name in ("ann", "bob")
        ]
        answer = AIMessage("" if turn < 3 else "Done.", tool_calls=calls if turn < 3 else [])
        answer.usage_metadata = {"input_tokens": 60, "output_tokens": 20, "total_tokens": 80}
        return ChatResult(generations=[ChatGeneration(message=answer)])


class Unplugged(Generous):
    """Stands for a laptop without a key for the model."""

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        raise ConnectionError("there is no model here")


@tool
async def refund(customer: str, eur: int) -> str:
    """Pay money back."""
    PHYSICAL_CALLS.append(f"refund {eur} to {customer}")
    await asyncio.sleep(0)
    return f"refunded {eur} EUR to {customer}"


def agent_with(model: BaseChatModel) -> Any:
    # A refund reserves what it would pay out; the two of a turn run at the same time.
    options: dict[str, dict[str, Any]] = {"refund": {"reserve": lambda eur, **_: Usage(refunded_eur=eur)}}
    return create_agent(model, [refund], middleware=[GuardMiddleware(tool_options=options)])


async def in_production(path: Path) -> None:
    with Guard.open() as guard:
        run = guard.run("refunds", budget=Budget(refunded_eur=200))
        try:
            async with run:
                await agent_with(Generous()).ainvoke(ASK)
        except BudgetExceededError as stop:
            print(f"in production: stopped, {stop.spent} of {stop.limit} {stop.resource}")
        print(f"  physical calls: {len(PHYSICAL_CALLS)}")
        guard.export(run.id, path)


async def on_a_laptop(path: Path) -> None:
    PHYSICAL_CALLS.clear()
    with Guard.open(f"file://{path}") as guard:
        run_id = guard.runs()[0].run_id
        replay = guard.replay(run_id)
        try:
            async with replay:
                await agent_with(Unplugged()).ainvoke(ASK)
        except BudgetExceededError as stop:
            print(f"replayed: stopped as recorded, {stop.spent} of {stop.limit} {stop.resource}")
        print(f"  physical calls: {len(PHYSICAL_CALLS)}; steps from the log: {replay.summary().steps}")

        print("with another question:")
        try:
            async with guard.replay(run_id):
                await agent_with(Unplugged()).ainvoke({"messages": [("user", "Refund nobody.")]})
        except ReplayDivergenceError as difference:
            print(f"  the first difference: {difference.kind} at {difference.key}")
        print(f"  physical calls: {len(PHYSICAL_CALLS)}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "incident.jsonl"
        asyncio.run(in_production(log))
        asyncio.run(on_a_laptop(log))


if __name__ == "__main__":
    # Only so that the example leaves your own state alone; a program needs no such line.
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("AGENTGUARD_HOME", home)
        main()
