"""The SDK's sessions that compact themselves, against a server that answers as OpenAI's does."""

from __future__ import annotations

import asyncio
from contextlib import closing
from decimal import Decimal
from typing import Any

import pytest
from agents import Agent, OpenAIResponsesModel, Runner, SQLiteSession
from agents.memory import OpenAIResponsesCompactionSession
from openai import AsyncOpenAI

from agentguard import Budget, BudgetExceededError, Guard
from agentguard.cost.prices import ModelPrices
from agentguard_openai import guard_client
from agentguard_openai_agents import guard_agent
from tests.integrations.clients.server import Providers, serve
from tests.integrations.openai_agents.conftest import CONFIG

#: An answer of 20 and 10 tokens, and a compaction likewise, is 0.00012 USD.
PRICES = ModelPrices({"gpt-4.1": {"input": 1, "output": 10}}, fallback=None)
QUESTIONS = ("What?", "Why?", "How?")


async def conversation(
    server: Providers, *, guarded: bool, streamed: bool = False, mode: Any = "auto"
) -> dict[str, Any]:
    """Three turns in a session that is compacted once it has four items; what it holds, and what was asked."""
    asked = len(server.requests)
    client = AsyncOpenAI(api_key="k", base_url=server.url + "/v1")
    agent: Any = Agent(name="one", model=OpenAIResponsesModel("gpt-4.1", client))
    with closing(SQLiteSession("s")) as kept:
        session = OpenAIResponsesCompactionSession(
            "s",
            kept,
            client=guard_client(client, prices=PRICES) if guarded else client,
            compaction_mode=mode,
            should_trigger_compaction=lambda context: len(context["session_items"]) >= 4,
        )
        if guarded:
            agent = guard_agent(agent, prices=PRICES)
        async with client:
            results = []
            for question in QUESTIONS:
                if streamed:
                    result: Any = Runner.run_streamed(agent, question, session=session, run_config=CONFIG)
                    async for _ in result.stream_events():
                        pass
                else:
                    result = await Runner.run(agent, question, session=session, run_config=CONFIG)
                results.append(result)
        return {
            "items": await session.get_items(),
            "answers": [result.final_output for result in results],
            "tokens": [result.context_wrapper.usage.total_tokens for result in results],
            "asked": list(zip(server.paths[asked:], server.requests[asked:], strict=True)),
        }


@pytest.mark.parametrize("mode", ["auto", "input", "previous_response_id"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_session_is_compacted_as_without_the_guard(guard: Guard, mode: str, streamed: bool) -> None:
    with serve() as server:
        bare = asyncio.run(conversation(server, guarded=False, streamed=streamed, mode=mode))
        assert [path for path, _ in bare["asked"]].count("/v1/responses/compact") >= 1
        with guard.run("talk", budget=Budget(usd=1)) as run:
            live = asyncio.run(conversation(server, guarded=True, streamed=streamed, mode=mode))
        assert live == bare
        assert run.spent.usd == len(live["asked"]) * Decimal("0.00012")
        sent = len(server.requests)
        with guard.replay(run.id):
            again = asyncio.run(conversation(server, guarded=True, streamed=streamed, mode=mode))
        assert again == {**live, "asked": []}
        assert len(server.requests) == sent


def test_a_compaction_that_the_budget_has_no_room_for_is_not_sent(guard: Guard) -> None:
    with serve() as server, pytest.raises(BudgetExceededError), guard.run("talk", budget=Budget(steps=2)):
        asyncio.run(conversation(server, guarded=True))
    assert server.paths == ["/v1/responses", "/v1/responses"]
