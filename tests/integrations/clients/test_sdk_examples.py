"""Calls as the SDKs' own READMEs and examples make them, unchanged, on guarded clients."""

from collections.abc import Callable
from typing import Any

import pydantic
import pytest

import agentguard_anthropic
import agentguard_openai
from agentguard import Budget, Guard
from tests.integrations.clients.conftest import MESSAGES, PRICES, Sdk
from tests.integrations.clients.server import Providers


class Number(pydantic.BaseModel):
    value: int


WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


def last(items: Any) -> Any:
    return list(items)[-1]


def in_block(block: Any, read: Callable[[Any], Any]) -> Any:
    with block as opened:
        return read(opened)


def openai_calls(client: Any) -> dict[str, Callable[[], Any]]:
    chat, responses = client.chat.completions, client.responses
    ask: dict[str, Any] = {"model": "gpt-test", "messages": MESSAGES}
    say: dict[str, Any] = {"model": "gpt-test", "input": "How do I check if an object is an instance?"}
    return {
        "chat": lambda: chat.create(**ask),
        "chat with roles": lambda: chat.create(
            model="gpt-test", messages=[{"role": "developer", "content": "Talk like a pirate."}, *MESSAGES]
        ),
        "chat with tools": lambda: chat.create(**ask, tools=[WEATHER], tool_choice="auto"),
        "chat of several": lambda: chat.create(**ask, n=2, max_completion_tokens=50),
        "chat with an image": lambda: chat.create(
            model="gpt-test",
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is in it?"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                    ],
                }
            ],
        ),
        "chat in JSON": lambda: chat.create(**ask, response_format={"type": "json_object"}),
        "chat parsed": lambda: (
            chat.parse(**ask, response_format=Number).choices[0].message.parsed.value == 42
        ),
        "chat streamed": lambda: last(chat.create(**ask, stream=True)).choices[0].finish_reason == "stop",
        "chat streamed in a block": lambda: in_block(chat.create(**ask, stream=True), last),
        "chat by the helper": lambda: in_block(chat.stream(**ask), lambda s: s.get_final_completion()),
        "chat parsed by the helper": lambda: in_block(
            chat.stream(**ask, response_format=Number),
            lambda s: s.get_final_completion().choices[0].message.parsed.value == 42,
        ),
        "chat raw": lambda: chat.with_raw_response.create(**ask).parse().choices,
        "chat line by line": lambda: in_block(
            chat.with_streaming_response.create(**ask), lambda r: list(r.iter_lines())
        ),
        "chat with options": lambda: client.with_options(max_retries=5, timeout=20).chat.completions.create(
            **ask
        ),
        "responses": lambda: responses.create(**say, instructions="Be short.").output_text,
        "responses streamed": lambda: last(responses.create(**say, stream=True)).type == "response.completed",
        "responses by the helper": lambda: in_block(
            responses.stream(**say), lambda s: s.get_final_response().output_text
        ),
        "responses parsed": lambda: responses.parse(**say, text_format=Number).output_parsed.value == 42,
        "responses raw": lambda: responses.with_raw_response.create(**say).parse().id,
        "embeddings": lambda: client.embeddings.create(model="gpt-test", input=["a", "b"]).data[1].embedding,
        "completions": lambda: client.completions.create(model="gpt-test", prompt="Say it.", max_tokens=7),
        "models": lambda: [model.id for model in client.models.list()],
        "moderations": lambda: client.moderations.create(input="text").id,
        "by its path": lambda: client.post("/chat/completions", cast_to=object, body=ask),
    }


def anthropic_calls(client: Any) -> dict[str, Callable[[], Any]]:
    messages = client.messages
    ask: dict[str, Any] = {"model": "claude-test", "max_tokens": 1024, "messages": MESSAGES}
    return {
        "messages": lambda: messages.create(**ask).content[0].text,
        "messages with a system": lambda: messages.create(**ask, system="Be short."),
        "messages with tools": lambda: messages.create(
            **ask, tools=[{"name": "weather", "description": "", "input_schema": {"type": "object"}}]
        ),
        "messages with a cache": lambda: messages.create(
            **ask, system=[{"type": "text", "text": "Long.", "cache_control": {"type": "ephemeral"}}]
        ),
        "messages streamed": lambda: last(messages.create(**ask, stream=True)).type == "message_stop",
        "messages by the helper": lambda: in_block(messages.stream(**ask), lambda s: "".join(s.text_stream)),
        "final message": lambda: in_block(messages.stream(**ask), lambda s: s.get_final_message().usage),
        "final text": lambda: in_block(messages.stream(**ask), lambda s: s.get_final_text()),
        "messages raw": lambda: messages.with_raw_response.create(**ask).parse().id,
        "messages line by line": lambda: in_block(
            messages.with_streaming_response.create(**ask), lambda r: list(r.iter_lines())
        ),
        "tokens counted": lambda: messages.count_tokens(model="claude-test", messages=MESSAGES).input_tokens,
        "with options": lambda: client.with_options(max_retries=5).messages.create(**ask),
    }


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_the_sdks_own_examples_run_unchanged(provider: str, server: Providers, guard: Guard) -> None:
    sdk = Sdk(provider, asynchronous=False, server=server)
    guard_client = agentguard_openai.guard_client if sdk.is_openai else agentguard_anthropic.guard_client
    client = guard_client(sdk.bare(), prices=PRICES)
    calls = (openai_calls if sdk.is_openai else anthropic_calls)(client)
    with guard.run("examples", budget=Budget(usd=50)) as run:
        for name, call in calls.items():
            assert call(), name
        free = {"models", "moderations", "tokens counted"} & calls.keys()
        assert run.spent.steps == len(calls) - len(free)
    client.close()
