"""`max_tokens` is never lowered to a thinking budget or below: providers refuse such a request and bill it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from anthropic import AsyncAnthropic
from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel, AnthropicModelSettings
from pydantic_ai.providers.anthropic import AnthropicProvider

from agentguard import Budget, BudgetExceededError, Guard
from agentguard_langchain import GuardMiddleware
from agentguard_langchain import _mapping as langchain_mapping
from agentguard_pydantic_ai import GuardCapability
from agentguard_pydantic_ai import _mapping as pydantic_mapping
from tests.integrations.closing import closing_model

THINKING = {"type": "enabled", "budget_tokens": 10_000}
#: A model that takes a thinking budget may be near its end of life, which its client warns of.
pytestmark = pytest.mark.filterwarnings("ignore:The model:DeprecationWarning")
MODEL = "claude-sonnet-4-5"
USAGE = {"input_tokens": 5, "output_tokens": 5}


class Api:
    """A server that answers as Anthropic's does, also to `max_tokens` that leaves no room to think."""

    def __init__(self) -> None:
        api = self
        self.sent: list[int] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, answer = api.answer(body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.sent.append(body["max_tokens"])
        if body["max_tokens"] <= (body.get("thinking") or {}).get("budget_tokens", 0):
            message = "`max_tokens` must be greater than `thinking.budget_tokens`."
            return 400, {"type": "error", "error": {"type": "invalid_request_error", "message": message}}
        content = [{"type": "text", "text": "ok"}]
        answer = {"id": "m", "type": "message", "role": "assistant", "model": MODEL, "content": content}
        return 200, {**answer, "stop_reason": "end_turn", "stop_sequence": None, "usage": USAGE}


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()
    yield api
    api.server.shutdown()
    api.server.server_close()


def by_langchain(api: Api) -> str:
    model = ChatAnthropic(  # type: ignore[call-arg]
        model=MODEL, api_key="x", base_url=api.url, max_tokens=20_000, thinking=THINKING, max_retries=0
    )
    agent = create_agent(model, [], middleware=[GuardMiddleware()])
    with closing_model(model):
        return str(agent.invoke({"messages": [("user", "hi")]})["messages"][-1].content)


def by_pydantic_ai(api: Api) -> str:
    settings = AnthropicModelSettings(max_tokens=20_000, anthropic_thinking=THINKING)  # type: ignore[typeddict-item]

    async def ask() -> str:
        async with AsyncAnthropic(
            api_key="x", base_url=api.url
        ) as client:  # one of the provider's is not closed
            model = AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=client))
            agent = Agent(model, capabilities=[GuardCapability()], model_settings=settings)
            return str((await agent.run("hi")).output)

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [by_langchain, by_pydantic_ai])


@both
@pytest.mark.parametrize("tokens", [100, 8_000, 10_000])
def test_a_call_that_leaves_no_room_beside_the_thinking_is_refused_and_not_sent(
    guard: Guard, api: Api, ask: Any, tokens: int
) -> None:
    with pytest.raises(BudgetExceededError), guard.run("r", budget=Budget(tokens=tokens)) as run:
        ask(api)
    assert api.sent == []
    assert run.spent.tokens == 0


@both
def test_a_call_is_lowered_to_what_is_left_above_the_thinking(guard: Guard, api: Api, ask: Any) -> None:
    with guard.run("r", budget=Budget(tokens=15_000)) as run:
        assert ask(api) == "ok"
    [sent] = api.sent
    assert 10_000 < sent <= 15_000
    assert run.spent.tokens == 10


@both
def test_a_call_that_has_room_is_sent_as_it_is(guard: Guard, api: Api, ask: Any) -> None:
    with guard.run("r", budget=Budget(tokens=50_000)):
        ask(api)
    assert api.sent == [20_000]


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({}, 0),
        ({"thinking": None}, 0),
        ({"thinking": {"type": "adaptive"}}, 0),
        ({"thinking": {"type": "disabled"}}, 0),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, 2048),
        ({"thinking_budget": 512}, 512),
        ({"thinking_budget": -1}, 0),
        ({"additional_model_request_fields": {"thinking": THINKING}}, 10_000),
    ],
)
def test_langchains_ways_to_say_how_much_to_think(settings: dict[str, Any], tokens: int) -> None:
    assert langchain_mapping.thinking_tokens(settings) == tokens


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        (None, 0),
        ({"thinking": "high"}, 0),
        ({"anthropic_thinking": {"type": "adaptive"}}, 0),
        ({"anthropic_thinking": THINKING}, 10_000),
        ({"google_thinking_config": {"thinking_budget": 512}}, 512),
        ({"google_thinking_config": {"thinking_budget": -1}}, 0),
        ({"bedrock_additional_model_requests_fields": {"thinking": THINKING}}, 10_000),
    ],
)
def test_pydantic_ais_ways_to_say_how_much_to_think(settings: Any, tokens: int) -> None:
    assert pydantic_mapping.thinking_tokens(settings) == tokens
