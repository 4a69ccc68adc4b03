"""The SDK's own models against a server whose answers leave out what the SDK puts up with."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    ToolOutputImage,
    function_tool,
)
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call
from openai import AsyncOpenAI
from pydantic import BaseModel

from agentguard import Budget, Guard
from agentguard.cost.prices import ModelPrices
from agentguard_openai_agents import guard_agent
from tests.integrations.clients.server import Reply, response, serve
from tests.integrations.openai_agents.conftest import CONFIG

#: An answer of 20 and 10 tokens is 0.00012 USD.
PRICES = ModelPrices({"gpt-test": {"input": 1, "output": 10}}, fallback=None)


async def asked(model: Any, *, streamed: bool, **settings: Any) -> tuple[Any, Any]:
    agent = guard_agent(
        Agent(name="one", model=model, model_settings=ModelSettings(**settings)), prices=PRICES
    )
    if streamed:
        result: Any = Runner.run_streamed(agent, "What?", run_config=CONFIG)
        async for _ in result.stream_events():
            pass
    else:
        result = await Runner.run(agent, "What?", run_config=CONFIG)
    return result.final_output, [item.raw_item for item in result.new_items]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("kind", [OpenAIResponsesModel, OpenAIChatCompletionsModel])
@pytest.mark.filterwarnings("error")
def test_an_answer_is_charged_exactly_and_comes_back(guard: Guard, kind: Any, streamed: bool) -> None:
    async def program() -> None:
        async with AsyncOpenAI(api_key="k", base_url=server.url + "/v1") as client:
            model = kind("gpt-test", client)
            with guard.run("ask", budget=Budget(usd=1)) as run:
                live = await asked(model, streamed=streamed)
            assert live[0] == "The answer is 42."
            assert run.spent.usd == Decimal("0.00012")
            with guard.replay(run.id):
                assert await asked(model, streamed=streamed) == live
        assert len(server.requests) == 1

    with serve() as server:
        asyncio.run(program())


def test_an_item_that_leaves_fields_out_comes_back(guard: Guard) -> None:
    body: Any = response({"model": "gpt-test"}).body
    body["output"] = [
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "42"}]}
    ]

    async def program() -> None:
        async with AsyncOpenAI(api_key="k", base_url=server.url + "/v1") as client:
            model = OpenAIResponsesModel("gpt-test", client)
            with guard.run("ask", budget=Budget(usd=1)) as run:
                live = await asked(model, streamed=False)
            with guard.replay(run.id):
                assert await asked(model, streamed=False) == live

    with serve() as server:
        server.next.append(Reply(body))
        asyncio.run(program())


def test_a_stream_of_a_caller_who_wants_no_usage_is_charged_as_reserved(guard: Guard) -> None:
    async def program() -> None:
        async with AsyncOpenAI(api_key="k", base_url=server.url + "/v1") as client:
            model = OpenAIChatCompletionsModel("gpt-test", client)
            with guard.run("ask", budget=Budget(usd=1)) as run:
                await asked(model, streamed=True, include_usage=False, max_tokens=50)
        assert run.spent.usd >= Decimal("0.0005")
        assert server.last["stream_options"] == {"include_usage": False}

    with serve() as server:
        asyncio.run(program())


class Weather(BaseModel):
    sky: str


@pytest.mark.parametrize(
    "result", [Weather(sky="blue"), ToolOutputImage(image_url="https://example.org/a.png")]
)
def test_a_tools_result_of_any_type_comes_back(guard: Guard, result: Any) -> None:
    @function_tool
    def look() -> Any:
        return result

    def items() -> list[Any]:
        answers = [[function_call("look", {}, call_id="c1")], [assistant_message("seen")]]
        model = ScriptedModel([ModelStep(output=answer) for answer in answers])
        agent = guard_agent(Agent(name="one", model=model, tools=[look]))
        found = asyncio.run(Runner.run(agent, "Look.", run_config=CONFIG)).new_items
        return [getattr(item, "output", None) for item in found]

    with guard.run("look") as run:
        live = items()
    assert result in live
    with guard.replay(run.id):
        assert items() == live
