"""What is booked in every framework is what the provider bills: tiers, caches, places, searches."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import openai
import pytest

pytest.importorskip("litellm")
pytest.importorskip("langchain_anthropic")

import litellm
from agents import Agent as OpenAIAgent
from agents import (
    CodeInterpreterTool,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
)
from agents import RunConfig as OpenAIRunConfig
from agents import WebSearchTool as AgentsSearch
from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai import WebSearchTool
from pydantic_ai.capabilities import NativeTool
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

import agentguard_langchain as lc
import agentguard_litellm
import agentguard_openai_agents as oa
import agentguard_pydantic_ai as pa
from agentguard import Budget, BudgetExceededError, Guard, RunStopped, UnknownCostError
from agentguard.cost import ModelPrices
from tests.integrations.clients.server import (
    Providers,
    anthropic_usage,
    chat,
    message,
    openai_usage,
    response,
    serve,
)
from tests.integrations.closing import close_litellm, closing_model

pytestmark = pytest.mark.filterwarnings("ignore")  # the frameworks' own
ASKED = "What is the answer?"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(litellm, "suppress_debug_info", True)
    yield
    asyncio.run(close_litellm())


@pytest.fixture
def server() -> Iterator[Providers]:
    with serve() as providers:
        yield providers


@pytest.fixture
def guard() -> Iterator[Guard]:
    with Guard.in_memory() as opened:
        yield opened


def spent(guard: Guard, call: Callable[[], Any], usd: str = "5") -> Decimal:
    try:
        with guard.run("ask", budget=Budget(usd=usd)) as run:
            call()
    except RunStopped:
        pass
    return run.spent.usd


# --- Claude ----------------------------------------------------------------------------------------------


def claude(model: str, usage: dict[str, Any], *, stream: bool) -> Any:
    """Claude's answer; a stream tells the ages of a cache and the place at its start alone."""
    reply = message({"model": model, "stream": stream}, usage=anthropic_usage(**usage))
    late = (*_SHORT, "cache_creation_input_tokens", "server_tool_use", "iterations")
    searches = usage.get("server_tool_use", {}).get("web_search_requests", 0)
    found: list[Any] = []
    for event in reply.events:
        if event["type"] == "message_delta":
            event["usage"] = {name: usage[name] for name in late if name in usage}
            for n in range(1, searches + 1):
                block = {"type": "server_tool_use", "id": f"srvtoolu_{n}", "name": "web_search", "input": {}}
                found.append({"type": "content_block_start", "index": n, "content_block": block})
                found.append({"type": "content_block_stop", "index": n})
        found.append(event)
    reply.events = found
    return reply


def by_langchain(server: Providers, model: str, *, stream: bool) -> Any:
    with closing_model(_langchain(server, model, stream=stream)) as chat_model:
        agent = create_agent(chat_model, [], middleware=[lc.GuardMiddleware()])
        return agent.invoke({"messages": [("user", ASKED)]})


def by_langchain_handler(server: Providers, model: str, *, stream: bool) -> Any:
    with closing_model(_langchain(server, model, stream=stream)) as chat_model:
        return chat_model.invoke(ASKED, {"callbacks": [lc.GuardCallbackHandler()]})


def _langchain(server: Providers, model: str, *, stream: bool, **options: Any) -> ChatAnthropic:
    given: dict[str, Any] = {"model": model, "api_key": "k", "base_url": server.url, "max_tokens": 1000}
    return ChatAnthropic(**given, streaming=stream, max_retries=0, **options)


def by_pydantic_ai(server: Providers, model: str, *, stream: bool) -> Any:
    provider = AnthropicProvider(api_key="k", base_url=server.url)
    agent = PydanticAgent(AnthropicModel(model, provider=provider), capabilities=[pa.GuardCapability()])
    return _run_pydantic_ai(agent, {"max_tokens": 1000}, stream=stream)


def _run_pydantic_ai(agent: Any, settings: Any, *, stream: bool) -> Any:
    async def program() -> None:
        async with agent:  # closes its provider's client
            if not stream:
                await agent.run(ASKED, model_settings=settings)
                return
            async with agent.run_stream(ASKED, model_settings=settings) as result:
                await result.get_output()

    asyncio.run(program())


def by_litellm(server: Providers, model: str, *, stream: bool) -> Any:
    return _litellm(server, f"anthropic/{model}", "/v1/messages", stream=stream, max_tokens=1000)


def _litellm(server: Providers, model: str, path: str, *, stream: bool, **options: Any) -> Any:
    prices = options.pop("prices", None)
    guarded = agentguard_litellm.guard_client(litellm, prices=prices)
    messages = [{"role": "user", "content": ASKED}]
    url = server.url + path
    answer = guarded.completion(
        model=model, messages=messages, api_key="k", api_base=url, stream=stream, **options
    )
    return list(answer) if stream else answer


def _cached(age: str) -> dict[str, Any]:
    by_age = {
        "ephemeral_5m_input_tokens": 0,
        "ephemeral_1h_input_tokens": 0,
        f"ephemeral_{age}_input_tokens": 100_000,
    }
    return {
        "input_tokens": 50,
        "output_tokens": 100,
        "cache_creation_input_tokens": 100_000,
        "cache_creation": by_age,
    }


_SHORT = {"input_tokens": 1000, "output_tokens": 100}
_NO_CACHE = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
_COMPACTED = [
    {"type": "compaction", "input_tokens": 60_000, "output_tokens": 1_000, **_NO_CACHE},
    {"type": "message", **_SHORT, **_NO_CACHE},
]
#: Model, usage, and the bill by the prices that https://platform.claude.com/docs/en/about-claude/pricing names.
CLAUDE = {
    "5 minutes": ("claude-sonnet-4-5", _cached("5m"), "0.37665"),
    "1 hour": ("claude-sonnet-4-5", _cached("1h"), "0.60165"),
    "in the US": ("claude-opus-4-7", {**_SHORT, "inference_geo": "us"}, "0.00825"),
    "compaction": ("claude-opus-4-7", {**_SHORT, "iterations": _COMPACTED}, "0.3325"),
    "searches": ("claude-opus-4-7", {**_SHORT, "server_tool_use": {"web_search_requests": 3}}, "0.0375"),
}
#: What a stream has lost there is booked at the most that it can be.
LOSES = {
    (by_litellm, "5 minutes"): "0.60165",
    (by_litellm, "searches"): "0.03825",
    (by_langchain_handler, "5 minutes"): "0.60165",
    (by_langchain_handler, "searches"): "0.03825",
}


#: What is lost there altogether: LiteLLM refuses such calls (below); the page of LangChain says so.
DROPS = {(by_litellm, "compaction", False), (by_litellm, "compaction", True)}
DROPS |= {(by_langchain_handler, "compaction", True)}


ASKS = (by_langchain, by_langchain_handler, by_pydantic_ai, by_litellm)
ALL = [each for each in itertools.product(ASKS, CLAUDE, (False, True)) if each not in DROPS]


@pytest.mark.parametrize(("ask", "case", "stream"), ALL)
def test_claude_is_booked_as_billed(
    server: Providers, guard: Guard, ask: Any, case: str, stream: bool
) -> None:
    model, usage, bill = CLAUDE[case]
    server.next.append(claude(model, usage, stream=stream))
    booked = spent(guard, lambda: ask(server, model, stream=stream))
    lost = LOSES.get((ask, case), bill) if stream else bill
    assert booked == Decimal(lost) >= Decimal(bill)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("ask", [by_langchain, by_pydantic_ai, by_litellm])
def test_a_cache_written_beyond_the_budget_fails_the_run(
    server: Providers, guard: Guard, ask: Any, stream: bool
) -> None:
    server.next.append(claude("claude-sonnet-4-5", _cached("1h"), stream=stream))
    with pytest.raises(BudgetExceededError), guard.run("ask", budget=Budget(usd="0.40")) as run:
        ask(server, "claude-sonnet-4-5", stream=stream)
    assert run.summary().state == "FAILED"


@pytest.mark.parametrize(
    "asked",
    [
        {"context_management": {"edits": [{"type": "compact_20260112"}]}},
        {"tools": [{"type": "advisor_20260301", "name": "advisor", "model": "claude-opus-4-8"}]},
    ],
)
def test_what_litellm_drops_altogether_is_refused(server: Providers, guard: Guard, asked: Any) -> None:
    call = {"stream": False, "max_tokens": 1000, **asked}
    with pytest.raises(UnknownCostError, match="agentguard_anthropic"):
        with guard.run("ask", budget=Budget(usd=5)):
            _litellm(server, "anthropic/claude-opus-4-7", "/v1/messages", **call)
    assert server.requests == []


SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}


def searching_by_langchain(server: Providers) -> Any:
    with closing_model(_langchain(server, "claude-haiku-4-5", stream=False)) as chat_model:
        agent = create_agent(chat_model, [SEARCH], middleware=[lc.GuardMiddleware()])
        return agent.invoke({"messages": [("user", ASKED)]})


def searching_by_langchain_handler(server: Providers) -> Any:
    with closing_model(_langchain(server, "claude-haiku-4-5", stream=False)) as chat_model:
        bound = chat_model.bind_tools([SEARCH])
        return bound.invoke(ASKED, {"callbacks": [lc.GuardCallbackHandler()]})


def searching_by_pydantic_ai(server: Providers) -> Any:
    provider = AnthropicProvider(api_key="k", base_url=server.url)
    model = AnthropicModel("claude-haiku-4-5", provider=provider)
    search = NativeTool(WebSearchTool(max_uses=5))
    agent = PydanticAgent(model, capabilities=[pa.GuardCapability(), search])
    return _run_pydantic_ai(agent, {"max_tokens": 1000}, stream=False)


def searching_by_litellm(server: Providers) -> Any:
    path, model = "/v1/messages", "anthropic/claude-haiku-4-5"
    return _litellm(server, model, path, stream=False, max_tokens=1000, tools=[SEARCH])


def coding_by_agents(server: Providers) -> None:
    async def program() -> None:
        async with openai.AsyncOpenAI(api_key="k", base_url=f"{server.url}/v1", max_retries=0) as client:
            code: Any = {"type": "code_interpreter", "container": {"type": "auto"}}
            tools: Any = [AgentsSearch(), CodeInterpreterTool(tool_config=code)]
            model = OpenAIResponsesModel("gpt-5", client)
            settings = ModelSettings(max_tokens=300)
            agent = oa.guard_agent(OpenAIAgent("a", model=model, model_settings=settings, tools=tools))
            await Runner.run(agent, ASKED, run_config=OpenAIRunConfig(tracing_disabled=True))

    asyncio.run(program())


@pytest.mark.parametrize(
    ("ask", "most"),
    [
        (searching_by_langchain, "0.05"),
        (searching_by_langchain_handler, "0.05"),
        (searching_by_pydantic_ai, "0.05"),
        (searching_by_litellm, "0.05"),
        (coding_by_agents, "0.04"),
    ],
)
def test_what_hosted_tools_may_cost_is_reserved(server: Providers, guard: Guard, ask: Any, most: str) -> None:
    with pytest.raises(RunStopped), guard.run("ask", budget=Budget(usd=most)):
        ask(server)
    assert server.requests == []
    with guard.run("ask", budget=Budget(usd=Decimal(most) + Decimal("0.02"))) as run:
        ask(server)
    assert run.spent.usd < Decimal("0.001")


def test_what_is_asked_for_tells_how_long_a_cache_keeps(server: Providers, guard: Guard) -> None:
    block = {"type": "text", "text": ASKED, "cache_control": {"type": "ephemeral"}}
    handler = {"callbacks": [lc.GuardCallbackHandler()]}
    server.next.append(claude("claude-sonnet-4-5", _cached("5m"), stream=True))
    model = _langchain(server, "claude-sonnet-4-5", stream=True)
    assert spent(guard, lambda: model.invoke([("user", [block])], handler)) == Decimal("0.37665")


# --- OpenAI ----------------------------------------------------------------------------------------------


def tiered(kind: str, tier: str, *, stream: bool) -> Any:
    asked = {"model": "gpt-5", "stream": stream, "stream_options": {"include_usage": True}}
    if kind == "responses":
        reply = response(asked)
        wholes = [event["response"] for event in reply.events if "response" in event]
        for whole in wholes or [reply.body]:
            whole["service_tier"] = tier
            if whole["usage"]:
                whole["usage"] |= {"input_tokens": 1000, "output_tokens": 200, "total_tokens": 1200}
        return reply
    reply = chat(asked, usage=openai_usage(1000, 200))
    for event in reply.events or [reply.body]:
        if isinstance(event, dict):
            event["service_tier"] = tier
    return reply


def by_agents(model_class: Any) -> Any:
    def ask(server: Providers, *, stream: bool, tier: str | None = None) -> None:
        async def program() -> None:
            async with openai.AsyncOpenAI(api_key="k", base_url=f"{server.url}/v1", max_retries=0) as client:
                extra = {"service_tier": tier} if tier else {}
                settings = ModelSettings(max_tokens=300, extra_args=extra)
                model = model_class("gpt-5", client)
                agent = oa.guard_agent(OpenAIAgent("a", model=model, model_settings=settings))
                config = OpenAIRunConfig(tracing_disabled=True)
                if not stream:
                    await Runner.run(agent, ASKED, run_config=config)
                    return
                async for _ in Runner.run_streamed(agent, ASKED, run_config=config).stream_events():
                    pass

        asyncio.run(program())

    return ask


def gpt_by_pydantic_ai(server: Providers, *, stream: bool, tier: str | None = None) -> None:
    provider = OpenAIProvider(api_key="k", base_url=f"{server.url}/v1")
    agent = PydanticAgent(OpenAIChatModel("gpt-5", provider=provider), capabilities=[pa.GuardCapability()])
    asked = {"openai_service_tier": tier} if tier else {}
    _run_pydantic_ai(agent, {"max_tokens": 300, **asked}, stream=stream)


def gpt_by_litellm(server: Providers, *, stream: bool, tier: str | None = None) -> None:
    asked = {"service_tier": tier} if tier else {}
    _litellm(server, "openai/gpt-5", "/v1", stream=stream, max_completion_tokens=300, **asked)


GPT = {
    "agents, chat": ("chat", by_agents(OpenAIChatCompletionsModel)),
    "agents, responses": ("responses", by_agents(OpenAIResponsesModel)),
    "pydantic-ai": ("chat", gpt_by_pydantic_ai),
    "litellm": ("chat", gpt_by_litellm),
}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    ("tier", "bill"), [("default", "0.00325"), ("priority", "0.0065"), ("flex", "0.001625")]
)
@pytest.mark.parametrize("by", GPT)
def test_the_tier_of_the_answer_is_booked_though_none_was_asked_for(
    server: Providers, guard: Guard, by: str, tier: str, bill: str, stream: bool
) -> None:
    kind, ask = GPT[by]
    server.next.append(tiered(kind, tier, stream=stream))
    assert spent(guard, lambda: ask(server, stream=stream)) == Decimal(bill)


@pytest.mark.parametrize("by", GPT)
def test_a_dear_tier_is_reserved_at_its_price(server: Providers, guard: Guard, by: str) -> None:
    ask = GPT[by][1]

    def bound() -> int:
        last = server.last
        return int(last.get("max_completion_tokens") or last.get("max_output_tokens") or last["max_tokens"])

    bounds = []
    for tier in (None, "priority"):
        spent(guard, lambda tier=tier: ask(server, stream=False, tier=tier), usd="0.004")
        bounds.append(bound())
    assert bounds[0] == 300
    assert bounds[1] < 200  # 20 USD a million tokens


def test_a_cache_is_reserved_at_its_price(server: Providers, guard: Guard) -> None:
    reserved = []
    with closing_model(_langchain(server, "claude-sonnet-4-5", stream=False)) as model:
        agent = create_agent(model, [], middleware=[lc.GuardMiddleware()])
        for ttl in (None, "5m", "1h"):
            marked = {"cache_control": {"type": "ephemeral", "ttl": ttl}} if ttl else {}
            content = [{"type": "text", "text": ASKED * 100, **marked}]
            with guard.run("ask", budget=Budget(usd=1)) as run:
                agent.invoke({"messages": [("user", content)]})
            started = next(e for e in guard.history(run.id) if e.type == "step_started")
            reserved.append(started.data["reserve"]["nano_usd"])
    assert reserved[0] < reserved[1] < reserved[2]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_own_prices_go_before_the_sum_of_litellm(server: Providers, guard: Guard, stream: bool) -> None:
    own = ModelPrices({"openai/gpt-5": {"input": "12.5", "output": 100}}, fallback=None)
    server.next.append(tiered("chat", "default", stream=stream))
    booked = spent(
        guard, lambda: _litellm(server, "openai/gpt-5", "/v1", stream=stream, max_tokens=300, prices=own)
    )
    assert booked == Decimal("0.0325")
