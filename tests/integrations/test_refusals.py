"""What a provider refuses costs nothing, under every framework; what may have been carried out is charged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from agentguard import Budget, Guard
from agentguard.cost import ModelPrices, proves_refusal
from tests.integrations.clients.server import Break, Providers, error, serve
from tests.integrations.closing import closing_model

PRICES = ModelPrices(
    {name: {"input": 1, "output": 10} for name in ("gpt-test", "claude-test")}, fallback=None
)


def by_langchain(server: Providers, retries: int) -> None:
    pytest.importorskip("langchain_anthropic")
    from langchain.agents import create_agent
    from langchain_anthropic import ChatAnthropic

    from agentguard_langchain import GuardMiddleware

    model = ChatAnthropic(  # type: ignore[call-arg]
        model="claude-test", api_key="k", base_url=server.url, max_retries=retries, max_tokens=100
    )
    agent: Any = create_agent(model, [], middleware=[GuardMiddleware(prices=PRICES)])
    with closing_model(model):
        agent.invoke({"messages": [("user", "What?")]})


def by_langchain_handler(server: Providers, retries: int) -> None:
    pytest.importorskip("langchain_anthropic")
    from langchain_anthropic import ChatAnthropic

    from agentguard_langchain import GuardCallbackHandler

    model = ChatAnthropic(  # type: ignore[call-arg]
        model="claude-test", api_key="k", base_url=server.url, max_retries=retries, max_tokens=100
    )
    with closing_model(model):
        model.invoke("What?", config={"callbacks": [GuardCallbackHandler(prices=PRICES)]})


def by_openai_agents(server: Providers, retries: int, *, streamed: bool = False) -> None:
    pytest.importorskip("agents")
    from agents import Agent, OpenAIResponsesModel, RunConfig, Runner

    from agentguard_openai_agents import guard_agent

    async def main() -> None:
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(api_key="k", base_url=url, max_retries=retries) as client:
            agent = guard_agent(
                Agent(name="one", model=OpenAIResponsesModel("gpt-test", client)), prices=PRICES
            )
            config = RunConfig(tracing_disabled=True)
            if not streamed:
                await Runner.run(agent, "What?", run_config=config)
                return
            async for _ in Runner.run_streamed(agent, "What?", run_config=config).stream_events():
                pass

    asyncio.run(main())


def by_openai_agents_streamed(server: Providers, retries: int) -> None:
    by_openai_agents(server, retries, streamed=True)


def by_pydantic_ai(server: Providers, retries: int, *, streamed: bool = False) -> None:
    pytest.importorskip("pydantic_ai")
    from pydantic_ai import Agent
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    from agentguard_pydantic_ai import GuardCapability

    async def main() -> None:
        async with anthropic.AsyncAnthropic(api_key="k", base_url=server.url, max_retries=retries) as client:
            model = AnthropicModel("claude-test", provider=AnthropicProvider(anthropic_client=client))
            agent = Agent(model, capabilities=[GuardCapability(prices=PRICES)])
            if not streamed:
                await agent.run("What?")
                return
            async with agent.run_stream("What?") as answer:
                await answer.get_output()

    asyncio.run(main())


def by_pydantic_ai_streamed(server: Providers, retries: int) -> None:
    by_pydantic_ai(server, retries, streamed=True)


WAYS = [
    by_langchain,
    by_langchain_handler,
    by_openai_agents,
    by_openai_agents_streamed,
    by_pydantic_ai,
    by_pydantic_ai_streamed,
]
Way = Callable[[Providers, int], None]


def spent(way: Way, *answers: Any, retries: int = 0) -> Decimal:
    with serve() as server, Guard.in_memory() as guard:
        server.next += answers
        with guard.run("ask", budget=Budget(usd=1)) as run, pytest.raises(Exception, match=r".") as caught:
            way(server, retries)
        assert not isinstance(caught.value, AssertionError)
        assert len(server.requests) == retries + 1
        assert run.spent.steps == 1
        return Decimal(run.spent.usd)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("status", [400, 401, 429, 500, 529])
def test_a_refused_call_is_free(way: Way, status: int) -> None:
    assert spent(way, error(status, "no")) == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "answer", [error(408, "late"), error(504, "late"), Break()], ids=["408", "504", "break"]
)
def test_a_call_that_may_have_been_carried_out_is_charged(way: Way, answer: Any) -> None:
    assert spent(way, answer) > 0


@pytest.mark.parametrize("way", [by_langchain, by_openai_agents, by_pydantic_ai])
def test_a_refusal_after_an_attempt_that_nobody_saw_is_charged(way: Way) -> None:
    assert spent(way, Break(), error(429, "no"), retries=1) > 0


def test_an_answer_that_the_error_makes_up_proves_nothing() -> None:
    litellm = pytest.importorskip("litellm")
    answer = httpx2.Response(429, request=httpx2.Request("POST", "http://h/"))
    made_up = litellm.exceptions.InternalServerError("broke off", llm_provider="openai", model="m")
    made_up.response = answer
    assert not proves_refusal(made_up)
    assert proves_refusal(openai.RateLimitError("no", response=answer, body=None))
