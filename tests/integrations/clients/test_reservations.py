"""What is reserved before a request is never less than what it can be billed for."""

import asyncio
import base64
import contextlib
import contextvars
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import httpx2
import pytest
from anthropic import Anthropic
from openai import OpenAI

import agentguard_anthropic
from agentguard import Budget, BudgetExceededError, Guard, UnknownCostError
from agentguard.cost import GENAI_PRICES, ModelCosts, ModelPrices, ModelRequest, ModelUsage, reserve_of
from agentguard.cost.request import prompt_tokens
from agentguard_anthropic._mapping import PROVIDER as ANTHROPIC
from agentguard_openai import guard_client
from agentguard_openai._mapping import PROVIDER as OPENAI
from tests.integrations.clients.conftest import ANSWER_USD, MESSAGES, TEXT, Sdk, closing
from tests.integrations.clients.server import Pause, Providers, Reply, chat, message, response

SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "description": "The type."},
        "size": {"type": ["integer", "null"]},
        "of": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["type", "size", "of"],
    "additionalProperties": False,
}


def reserved(guard: Guard, run: Any) -> dict[str, Any]:
    events = guard.history(run.id)
    found: dict[str, Any] = next(event for event in events if event.type == "step_started").data["reserve"]
    return found


# --- prompts -------------------------------------------------------------------------------------


def test_any_json_schema_may_be_in_a_request(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()
    if sdk.is_openai:
        tool: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
    else:
        tool = {"name": "f", "input_schema": SCHEMA}

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            assert await sdk.ask(client, tools=[tool]) == TEXT
        assert run.spent.usd == Decimal(ANSWER_USD)

    closing(program, client)


@pytest.mark.parametrize(
    ("value", "least"),
    [
        ([1, 20, 100_000], 3),
        ([[7] * 1_000, [8] * 500], 1_500),
        ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "word " * 3_000}}, 5_000),
        ({"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "a b " * 900}]}}, 1_200),
        ({"type": "document", "source": {"type": "url", "url": "https://x"}, "context": "word " * 6_000}, 10_000),
        ({"type": ["image", "null"]}, 1),
    ],
    ids=["numbers", "prompts-in-tokens", "text", "content", "context", "schema"],
)  # fmt: skip
def test_a_prompt_is_counted_whatever_it_is_made_of(value: Any, least: int) -> None:
    assert least <= prompt_tokens(value) < 4 * least + 10


#: The most that an image is: 8 tiles, 1,536 patches, 10,000 patches, or what the page says.
@pytest.mark.parametrize(
    ("model", "detail", "least"),
    [
        ("gpt-4o", None, 85 + 8 * 170),
        ("gpt-4o-mini", None, 2833 + 8 * 5667),
        ("openai/gpt-4o-mini-2024-07-18", "high", 2833 + 8 * 5667),
        ("gpt-4o-mini", "low", 2833),
        ("gpt-4.1-nano", "high", 3779),
        ("gpt-5-mini", None, 2304),
        ("gpt-5.4", "high", 3000),
        ("gpt-6-sol", "original", 12_000),
        ("claude-sonnet-4-5", None, 1600),
        ("us.anthropic.claude-opus-4-8", None, 4784),
        ("claude-opus-5-5", None, 4784),
    ],
)
@pytest.mark.parametrize("shape", ["chat", "responses"])
def test_an_image_is_as_many_tokens_as_the_model_takes_for_it(
    shape: str, model: str, detail: str | None, least: int
) -> None:
    more = {} if detail is None else {"detail": detail}
    url = "data:image/png;base64," + "A" * 90_000
    if shape == "chat":
        part: dict[str, Any] = {"type": "image_url", "image_url": {"url": url, **more}}
    else:
        part = {"type": "input_image", "image_url": url, **more}
    found = ModelRequest((), {"model": model, "messages": [{"role": "user", "content": [part]}]})

    assert least <= found.input_tokens < least + 1_700


def pdf(pages: int) -> str:
    page = b"3 0 obj << /Type /Page /Parent 2 0 R >> endobj\n"
    return base64.b64encode(b"%PDF-1.4\n1 0 obj << /Type /Pages /Count 9 >> endobj\n" + page * pages).decode()


def compressed(size: int) -> str:
    return base64.b64encode(b"%PDF-1.7\n" + b"\x00" * size).decode()


@pytest.mark.parametrize(
    ("part", "least", "most"),
    [
        ({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": pdf(20)}}, 60_000, 160_000),
        ({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": compressed(200_000)}}, 33_000, 90_000),
        ({"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64," + pdf(3)}, 9_000, 25_000),
        ({"type": "file", "file": {"file_data": "data:application/pdf;base64," + pdf(3)}}, 9_000, 25_000),
        ({"type": "input_file", "file_data": "data:application/pdf;base64,%%%"}, 3_000, 8_000),
        ({"type": "file", "file": {"file_data": "data:text/plain;base64," + "QUJD" * 10_000}}, 10_000, 15_000),
        ({"type": "input_file", "file_url": "https://x/a.pdf"}, 1_600, 5_000),
        ({"type": "input_audio", "input_audio": {"data": "A" * 4_000_000, "format": "mp3"}}, 1_800, 8_000),
        ({"type": "input_audio", "input_audio": {"data": "A" * 4_000_000, "format": "wav"}}, 600, 1_000),
    ],
    ids=["pages", "pages-compressed", "responses", "chat", "no-base64", "words", "address", "mp3", "wav"],
)  # fmt: skip
@pytest.mark.parametrize("model", ["gpt-5", "claude-opus-4-8", "gpt-audio"])
def test_a_file_or_a_sound_is_reserved_by_what_is_in_it(
    part: dict[str, Any], least: int, most: int, model: str
) -> None:
    asked = {"model": model, "messages": [{"role": "user", "content": [part]}]}
    assert least <= ModelRequest((), asked).input_tokens <= most


def test_sound_in_a_prompt_is_reserved_at_its_price(server: Providers, guard: Guard) -> None:
    client = guard_client(OpenAI(api_key="k", base_url=f"{server.url}/v1"))
    sound = {"type": "input_audio", "input_audio": {"data": "A" * 4_000_000, "format": "mp3"}}
    asked: dict[str, Any] = {"model": "gpt-audio", "max_completion_tokens": 100}
    with client, guard.run("hear", budget=Budget(usd=5)) as run:
        client.chat.completions.create(**asked, messages=[{"role": "user", "content": [sound]}])
    most = reserved(guard, run)
    heard = 7_510  # 750 seconds at 4,000 bytes, and one more

    assert heard < most["input_tokens"] < heard + 100
    assert most["nano_usd"] == bill(
        "gpt-audio", input_tokens=most["input_tokens"], input_audio_tokens=heard, output_tokens=100
    )


def test_an_embedding_of_tokens_is_reserved_by_their_number(server: Providers, guard: Guard) -> None:
    client = guard_client(OpenAI(api_key="k", base_url=f"{server.url}/v1"))
    with client, guard.run("embed", budget=Budget(usd=5)) as run:
        client.embeddings.create(model="text-embedding-3-small", input=[[5] * 4_000, [6] * 4_000])
    assert reserved(guard, run)["input_tokens"] >= 8_000


def test_every_prompt_of_a_text_completion_has_its_answers(server: Providers, guard: Guard) -> None:
    client = guard_client(OpenAI(api_key="k", base_url=f"{server.url}/v1"))
    prompts: list[Any] = [["a", "b", "c"], [[1, 2], [3]], "a", [1, 2, 3]]
    found = []
    with client:
        for prompt in prompts:
            with guard.run("complete", budget=Budget(usd=5)) as run:
                client.completions.create(model="gpt-3.5-turbo-instruct", prompt=prompt, max_tokens=50, n=2)
            found.append(reserved(guard, run)["output_tokens"])
    assert found == [300, 200, 100, 100]
    assert {asked["max_tokens"] for asked in server.requests} == {50}


# --- prices --------------------------------------------------------------------------------------


def bill(model: str, **counts: int) -> int:
    price = GENAI_PRICES.price(model, ModelUsage(counts={**counts}), provider="openai")
    assert price is not None
    return price.nano_usd


@pytest.mark.parametrize("model", ["gpt-5.6-luna", "gpt-6-sol", "gpt-6.1-terra"])
def test_a_prompt_that_is_cached_unasked_is_reserved_at_the_price_of_writing_it(
    server: Providers, guard: Guard, model: str
) -> None:
    client = guard_client(OpenAI(api_key="k", base_url=f"{server.url}/v1"))
    with client, guard.run("ask", budget=Budget(usd=5)) as run:
        client.responses.create(model=model, input="word " * 5_000, max_output_tokens=100)
    most = reserved(guard, run)
    given = most["input_tokens"]

    assert most["nano_usd"] == bill(model, input_tokens=given, cache_write_tokens=given, output_tokens=100)
    assert most["nano_usd"] > bill(model, input_tokens=given, output_tokens=100)
    by_hand = reserve_of("openai", model=model)("word " * 5_000, max_output_tokens=100)
    given = by_hand.input_tokens
    assert by_hand.usd * 10**9 == bill(model, input_tokens=given, cache_write_tokens=given, output_tokens=100)


def test_an_answer_that_may_be_sound_is_reserved_at_the_price_of_sound(
    server: Providers, guard: Guard
) -> None:
    client = guard_client(OpenAI(api_key="k", base_url=f"{server.url}/v1"))
    asked: dict[str, Any] = {"model": "gpt-audio", "messages": MESSAGES, "max_completion_tokens": 1_000}
    with client, guard.run("speak", budget=Budget(usd=5)) as run:
        client.chat.completions.create(
            **asked, modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"}
        )
    most = reserved(guard, run)

    assert most["nano_usd"] == bill(
        "gpt-audio", input_tokens=most["input_tokens"], output_tokens=1_000, output_audio_tokens=1_000
    )


@pytest.mark.parametrize(
    ("model", "more", "usd"),
    [
        ("gpt-5", {"tools": [{"type": "web_search"}], "max_tool_calls": 4}, "0.04"),
        ("gpt-5", {"tools": [{"type": "web_search"}]}, "0.01"),
        ("gpt-4.1", {"tools": [{"type": "web_search_preview"}], "max_tool_calls": 2}, "0.05"),
        ("gpt-5", {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, "0.03"),
        ("gpt-5", {"tools": [{"type": "shell", "environment": {"type": "container_auto", "memory_limit": "4g"}}]}, "0.12"),
        ("gpt-5", {"tools": [{"type": "code_interpreter", "container": "cntr_1"}]}, "0"),
        ("gpt-5", {"tools": [{"type": "image_generation", "model": "gpt-image-1.5"}]}, "0.19968"),
        ("gpt-5", {"tools": [{"type": "function", "name": "f", "parameters": SCHEMA}]}, "0"),
    ],
)  # fmt: skip
def test_what_hosted_tools_may_cost_is_reserved(
    server: Providers, guard: Guard, model: str, more: dict[str, Any], usd: str
) -> None:
    client = guard_client(OpenAI(api_key="k", base_url=f"{server.url}/v1"))
    with client, guard.run("ask", budget=Budget(usd=5)) as run:
        client.responses.create(model=model, input="Why?", max_output_tokens=100, **more)
    most = reserved(guard, run)
    tokens = bill(model, input_tokens=most["input_tokens"], output_tokens=100)

    assert most["nano_usd"] == tokens + Decimal(usd) * 10**9


def test_searches_of_calls_side_by_side_never_pass_the_limit(server: Providers, guard: Guard) -> None:
    client = guard_client(OpenAI(api_key="k", base_url=f"{server.url}/v1"))
    asked: dict[str, Any] = {"model": "gpt-4o-search-preview", "messages": MESSAGES, "max_tokens": 16}
    server.answers_after = 0.05

    def ask() -> None:
        with contextlib.suppress(BudgetExceededError):
            client.chat.completions.create(**asked)

    with client, contextlib.suppress(BudgetExceededError):
        with guard.run("search", budget=Budget(usd="0.08")) as run:
            with ThreadPoolExecutor(8) as pool:
                for _ in range(8):
                    pool.submit(contextvars.copy_context().run, ask)
    assert 1 <= len(server.requests) <= 3
    assert run.spent.usd == len(server.requests) * (Decimal("0.025") + Decimal("0.00015"))


def test_searches_of_claude_are_reserved(server: Providers, guard: Guard) -> None:
    client = agentguard_anthropic.guard_client(Anthropic(api_key="k", base_url=server.url))
    tool: Any = {"type": "web_search_20260209", "name": "web_search", "max_uses": 5}
    asked: dict[str, Any] = {"model": "claude-sonnet-4-6", "max_tokens": 100, "messages": MESSAGES}
    found = []
    for tools in ([], [tool]):
        with guard.run("ask", budget=Budget(usd=5)) as run:
            client.messages.create(**asked, tools=tools)
        found.append(reserved(guard, run)["nano_usd"])
    client.close()
    assert found[1] - found[0] >= 0.05 * 10**9


def test_a_tier_whose_price_is_not_published_is_refused(server: Providers, guard: Guard) -> None:
    client = guard_client(OpenAI(api_key="k", base_url=f"{server.url}/v1"))
    with client, pytest.raises(UnknownCostError, match="no price is known"):
        with guard.run("ask", budget=Budget(usd=5)):
            client.responses.create(model="gpt-5.6-sol", input="Why?", service_tier="ultrafast")
    assert server.requests == []


def test_own_prices_are_reserved_as_they_are(guard: Guard) -> None:
    costs = ModelCosts(ModelPrices({"house-7b": {"input": 1, "output": 10}}, fallback=None))
    with guard.run("ask") as run:
        bound = costs.bound(run, "house-7b", input_tokens=1_000, max_tokens=100, spoken=True)
    assert bound.reserve.usd == Decimal("0.002")


# --- answers that nothing bounds -----------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"max_output_tokens": 500}])
def test_a_call_that_wants_no_answer_gets_none(server: Providers, guard: Guard, options: Any) -> None:
    client = agentguard_anthropic.guard_client(Anthropic(api_key="k", base_url=server.url), **options)
    kept: Any = [{"type": "text", "text": "word " * 500, "cache_control": {"type": "ephemeral"}}]
    asked: dict[str, Any] = {"model": "claude-sonnet-4-6", "messages": MESSAGES, "system": kept}
    for budget in (Budget(usd=5), Budget(tokens=1_500)):
        with guard.run("warm", budget=budget) as run:
            client.messages.create(**asked, max_tokens=0)
        assert reserved(guard, run).get("output_tokens", 0) == 0
        assert server.last["max_tokens"] == 0
    client.close()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_response_in_the_background_needs_a_bound(
    server: Providers, guard: Guard, asynchronous: bool, stream: bool
) -> None:
    sdk = Sdk("openai", asynchronous, server)
    client, bounding = sdk.client(), sdk.client({"max_output_tokens": 900})

    async def ask(**options: Any) -> Any:
        asked = {"model": sdk.model, "input": "Why?", "background": True, "stream": stream, **options}
        made = client.responses.create(**asked)
        made = await made if asynchronous else made
        if stream:
            await sdk.close(made)
        return made

    async def program() -> None:
        with pytest.raises(UnknownCostError, match="max_output_tokens"):
            with guard.run("ask", budget=Budget(usd=5)):
                await ask()
        assert server.requests == []
        server.next += [queued(stream=stream), queued(stream=stream), queued(stream=False)]
        with guard.run("ask", budget=Budget(usd=5)) as run:
            await ask(max_output_tokens=700)
        assert run.spent.output_tokens == 700
        with guard.run("ask", budget=Budget(steps=5)):
            await ask()
        with guard.run("ask", budget=Budget(usd=5)) as run:
            made = bounding.responses.create(model=sdk.model, input="Why?", background=True)
            await made if asynchronous else made
        assert run.spent.output_tokens == 900

    closing(program, client, bounding)


def queued(*, stream: bool) -> Reply:
    reply = response({"model": "gpt-test", "stream": stream})
    if stream:
        reply.events.insert(2, Pause())
        return reply
    assert reply.body is not None
    return Reply({**reply.body, "status": "queued", "output": [], "usage": None})


@pytest.mark.parametrize("counts", ["chat", "responses"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_stream_without_a_bound_that_ends_early_is_charged_what_came(
    server: Providers, guard: Guard, asynchronous: bool, counts: str
) -> None:
    sdk = Sdk("openai", asynchronous, server)
    client = sdk.client()
    body = {"model": sdk.model, "stream": True, "stream_options": {"include_usage": True}}
    reply = (chat if counts == "chat" else response)(body)
    at = 3 if counts == "chat" else 5
    reply.events[at:at] = [reply.events[at]] * 6_000 + [Pause()]
    server.next.append(reply)

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            asked: dict[str, Any] = {"model": sdk.model, "stream": True}
            if counts == "chat":
                made = client.chat.completions.create(messages=MESSAGES, **asked)
            else:
                made = client.responses.create(input="Why?", **asked)
            stream = await made if asynchronous else made
            for _ in range(6_000):
                await sdk.next(stream)
            await sdk.close(stream)
            assert (await asyncio.to_thread(server.gone.wait, 10)) is True
        assert 5_990 <= run.spent.output_tokens <= 2 * 6_010
        assert run.spent.usd >= Decimal("0.0599")

    closing(program, client)


@pytest.mark.parametrize("told", [None, {"prompt_tokens": 5, "completion_tokens": -1}], ids=str)
def test_an_answer_without_a_bound_that_counts_nothing_is_charged_what_came(
    server: Providers, guard: Guard, told: Any
) -> None:
    client = Sdk("openai", False, server).client()
    said = {"role": "assistant", "content": "word " * 20_000}
    reply = chat({"model": "gpt-test"}, message=said)
    assert reply.body is not None
    reply.body["usage"] = told
    server.next.append(reply)
    with client, guard.run("ask", budget=Budget(usd=5)) as run:
        answer = client.chat.completions.create(model="gpt-test", messages=MESSAGES)
    assert answer.choices[0].message.content == said["content"]
    assert run.spent.output_tokens >= 20_000


# --- counts that cannot be right -----------------------------------------------------------------


@pytest.mark.parametrize("wrong", [-5, "many", True, 1.5e300 * 1e300, [], {"n": 1}], ids=str)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_count_that_cannot_be_right_is_charged_as_reserved_and_the_answer_handed_on(
    sdk: Sdk, guard: Guard, stream: bool, wrong: Any
) -> None:
    client = sdk.client()
    field = "completion_tokens" if sdk.is_openai else "output_tokens"
    body = {"model": sdk.model, "stream": stream, "stream_options": {"include_usage": True}}
    reply = (chat if sdk.is_openai else message)(body)
    for told in [reply.body or {}, *reply.events]:
        for holder in (told, told.get("message")) if isinstance(told, dict) else ():
            if holder and holder.get("usage"):
                holder["usage"] = {**holder["usage"], field: wrong}
    sdk.server.next.append(reply)

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            answer = await sdk.create(client, stream=stream)
            if stream:
                assert "".join([sdk.piece(event) async for event in sdk.events(answer)]) == TEXT
            else:
                assert sdk.text(answer) == TEXT
        most = reserved(guard, run)
        assert run.spent.output_tokens == most["output_tokens"] == 100
        assert run.spent.usd * 10**9 == most["nano_usd"]

    closing(program, client)


# --- addresses -----------------------------------------------------------------------------------


class Routed(httpx2.HTTPTransport):
    """Whatever the address, the local server answers."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = httpx2.URL(url)

    def handle_request(self, request: Any) -> Any:
        here = {"scheme": self._url.scheme, "host": self._url.host, "port": self._url.port}
        request.url = request.url.copy_with(**here)
        return super().handle_request(request)


@pytest.mark.parametrize(
    ("address", "model", "usd"),
    [
        ("https://api.openai.com/v1", "gpt-5.4", "0.0002"),
        ("https://eu.api.openai.com/v1", "gpt-5.4", "0.00022"),
        ("https://eu.api.openai.com/v1", "gpt-5", "0.000125"),
        ("https://api.groq.com/openai/v1", "openai/gpt-oss-120b", "0.000009"),
    ],
)
@pytest.mark.parametrize("late", [False, True], ids=["at-once", "by-a-copy"])
def test_the_price_is_that_of_the_address_that_is_asked(
    server: Providers, guard: Guard, address: str, model: str, usd: str, late: bool
) -> None:
    first = "https://api.deepseek.com/v1" if late else address
    http = httpx2.Client(transport=Routed(server.url))
    client = guard_client(OpenAI(api_key="k", base_url=first, http_client=http))
    if late:
        client = client.with_options(base_url=address)
    with client, guard.run("ask", budget=Budget(usd=5)) as run:
        client.chat.completions.create(model=model, messages=MESSAGES)  # type: ignore[arg-type]
    assert run.spent.usd == Decimal(usd)  # 20 tokens and 10


@pytest.mark.parametrize(
    ("provider", "host", "by", "regional"),
    [
        (OPENAI, "api.openai.com", "openai", False),
        (OPENAI, "us.api.openai.com", "openai", True),
        (OPENAI, "acme.openai.azure.com", "azure", False),
        (OPENAI, "bedrock-mantle.us-east-1.api.aws", "aws", False),
        (OPENAI, "api.cerebras.ai", "cerebras", False),
        (OPENAI, "notopenai.com", None, False),
        (OPENAI, "127.0.0.1", None, False),
        (ANTHROPIC, "api.anthropic.com", "anthropic", False),
        (ANTHROPIC, "bedrock-runtime.us-east-1.amazonaws.com", "aws", False),
        (ANTHROPIC, "bedrock-mantle.us-east-1.api.aws", "aws", False),
        (ANTHROPIC, "aiplatform.googleapis.com", "anthropic", False),
        (ANTHROPIC, "us-east5-aiplatform.googleapis.com", "anthropic", True),
        (ANTHROPIC, "aiplatform.eu.rep.googleapis.com", "anthropic", True),
    ],
)
def test_an_address_says_who_serves_it_and_whether_in_one_region(
    provider: Any, host: str, by: str | None, regional: bool
) -> None:
    assert provider.served_by(host) == by
    assert provider.terms(host) == ({"endpoint": "regional"} if regional else {})
