"""Calls as the SDKs' own READMEs and examples make them, unchanged, on guarded clients."""

import inspect
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import anthropic
import openai
import pydantic
import pytest

from agentguard import Budget, Guard
from tests.integrations.clients.conftest import ANSWER_USD, MESSAGES, Sdk, closing
from tests.integrations.clients.server import Providers, chat, message


class Number(pydantic.BaseModel):
    value: int


WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


async def settled(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def after(value: Any, *readers: Callable[[Any], Any]) -> Any:
    """What the readers make of a call's result, one after the other, sync and async alike."""
    value = await settled(value)
    for reader in readers:
        value = await settled(reader(value))
    return value


async def every(items: Any) -> list[Any]:
    return [item async for item in items] if hasattr(items, "__aiter__") else list(items)


def in_block(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    async def reader(block: Any) -> Any:
        if hasattr(block, "__aenter__"):
            async with block as opened:
                return await settled(read(opened))
        with block as opened:
            return await settled(read(opened))

    return reader


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
        "chat parsed": lambda: after(
            chat.parse(**ask, response_format=Number), lambda c: c.choices[0].message.parsed.value
        ),
        "chat streamed": lambda: after(chat.create(**ask, stream=True), every),
        "chat streamed in a block": lambda: after(chat.create(**ask, stream=True), in_block(every)),
        "chat by the helper": lambda: after(chat.stream(**ask), in_block(lambda s: s.get_final_completion())),
        "chat parsed by the helper": lambda: after(
            chat.stream(**ask, response_format=Number),
            in_block(lambda s: s.get_final_completion()),
            lambda c: c.choices[0].message.parsed.value,
        ),
        "chat raw": lambda: after(
            chat.with_raw_response.create(**ask), lambda r: r.parse(), lambda c: c.choices
        ),
        "chat line by line": lambda: after(
            chat.with_streaming_response.create(**ask), in_block(lambda r: every(r.iter_lines()))
        ),
        "chat with options": lambda: client.with_options(max_retries=5, timeout=20).chat.completions.create(
            **ask
        ),
        "responses": lambda: after(
            responses.create(**say, instructions="Be short."), lambda r: r.output_text
        ),
        "responses streamed": lambda: after(responses.create(**say, stream=True), every),
        "responses by the helper": lambda: after(
            responses.stream(**say), in_block(lambda s: s.get_final_response()), lambda r: r.output_text
        ),
        "responses parsed": lambda: after(
            responses.parse(**say, text_format=Number), lambda r: r.output_parsed.value
        ),
        "responses raw": lambda: after(
            responses.with_raw_response.create(**say), lambda r: r.parse(), lambda r: r.id
        ),
        "embeddings": lambda: after(
            client.embeddings.create(model="gpt-test", input=["a", "b"]), lambda e: e.data[1].embedding
        ),
        "completions": lambda: client.completions.create(model="gpt-test", prompt="Say it.", max_tokens=7),
        "models": lambda: after(client.models.list(), every),
        "moderations": lambda: after(client.moderations.create(input="text"), lambda m: m.id),
        "by its path": lambda: client.post("/chat/completions", cast_to=object, body=ask),
    }


def anthropic_calls(client: Any) -> dict[str, Callable[[], Any]]:
    messages = client.messages
    ask: dict[str, Any] = {"model": "claude-test", "max_tokens": 1024, "messages": MESSAGES}
    return {
        "messages": lambda: after(messages.create(**ask), lambda m: m.content[0].text),
        "messages with a system": lambda: messages.create(**ask, system="Be short."),
        "messages with tools": lambda: messages.create(
            **ask, tools=[{"name": "weather", "description": "", "input_schema": {"type": "object"}}]
        ),
        "messages with a cache": lambda: messages.create(
            **ask, system=[{"type": "text", "text": "Long.", "cache_control": {"type": "ephemeral"}}]
        ),
        "messages streamed": lambda: after(messages.create(**ask, stream=True), every),
        "messages by the helper": lambda: after(
            messages.stream(**ask), in_block(lambda s: every(s.text_stream))
        ),
        "final message": lambda: after(messages.stream(**ask), in_block(lambda s: s.get_final_message())),
        "final text": lambda: after(messages.stream(**ask), in_block(lambda s: s.get_final_text())),
        "messages raw": lambda: after(
            messages.with_raw_response.create(**ask), lambda r: r.parse(), lambda m: m.id
        ),
        "messages line by line": lambda: after(
            messages.with_streaming_response.create(**ask), in_block(lambda r: every(r.iter_lines()))
        ),
        "tokens counted": lambda: after(
            messages.count_tokens(model="claude-test", messages=MESSAGES), lambda t: t.input_tokens
        ),
        "with options": lambda: client.with_options(max_retries=5).messages.create(**ask),
    }


@pytest.mark.parametrize("name", ["openai", "anthropic"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_the_sdks_own_examples_give_what_they_give_on_the_bare_client(
    name: str, asynchronous: bool, server: Providers, guard: Guard
) -> None:
    sdk = Sdk(name, asynchronous, server)
    bare, client = sdk.bare(), sdk.client()
    calls_of = openai_calls if sdk.is_openai else anthropic_calls

    async def program() -> None:
        expected = {key: await settled(call()) for key, call in calls_of(bare).items()}
        with guard.run("examples", budget=Budget(usd=50)) as run:
            for key, call in calls_of(client).items():
                found = await settled(call())
                assert found, key
                assert found == expected[key], key
        free = {"models", "moderations", "tokens counted"} & expected.keys()
        assert run.spent.steps == len(expected) - len(free)

    closing(program, client, bare)


# --- helpers that call tools -----------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_each_request_of_the_tool_runner_is_a_step(
    asynchronous: bool, server: Providers, guard: Guard
) -> None:
    sdk = Sdk("anthropic", asynchronous, server)
    client = sdk.client()
    use = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}}
    server.next.append(message({"model": "claude-test"}, content=[use]))
    asked: list[str] = []

    def weather(city: str) -> str:
        """Tell the weather of a city."""
        asked.append(city)
        return "sun"

    async def weather_async(city: str) -> str:
        return weather(city)

    tool = (
        anthropic.beta_async_tool(weather_async, name="weather", description="Tell the weather.")
        if asynchronous
        else anthropic.beta_tool(weather)
    )

    async def program() -> None:
        with guard.run("tools", budget=Budget(usd=5)) as run:
            runner = client.beta.messages.tool_runner(
                model="claude-test", max_tokens=100, messages=MESSAGES, tools=[tool]
            )
            kinds = [answer.content[0].type for answer in await every(runner)]
        assert (kinds, asked) == (["tool_use", "text"], ["Rome"])
        assert (run.spent.steps, run.spent.usd) == (2, 2 * Decimal(ANSWER_USD))

    closing(program, client)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_tool_of_a_pydantic_model_is_parsed_and_charged(
    asynchronous: bool, server: Providers, guard: Guard
) -> None:
    sdk = Sdk("openai", asynchronous, server)
    client = sdk.client()
    call = {"id": "c", "type": "function", "function": {"name": "Number", "arguments": '{"value": 42}'}}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    server.next.append(chat({"model": "gpt-test"}, message=said))

    async def program() -> None:
        with guard.run("tools", budget=Budget(usd=5)) as run:
            made = client.chat.completions.parse(
                model="gpt-test",
                max_tokens=100,
                messages=MESSAGES,
                tools=[openai.pydantic_function_tool(Number)],
            )
            answer = await settled(made)
        assert answer.choices[0].message.tool_calls[0].function.parsed_arguments == Number(value=42)
        assert run.spent.usd == Decimal(ANSWER_USD)

    closing(program, client)
