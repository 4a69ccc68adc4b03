"""A guarded client is the client: same class, same options, same ways to call it."""

import copy
import hashlib
import pickle
from typing import Any

import httpx
import httpx2
import openai
import pytest

import agentguard_anthropic
import agentguard_openai
from agentguard import Budget, Guard
from tests.integrations.clients.conftest import MESSAGES, PRICES, TEXT, Sdk, closing
from tests.integrations.clients.server import Providers


def test_it_has_the_same_class_and_leaves_the_client_it_was_made_of_alone(sdk: Sdk, guard: Guard) -> None:
    bare = sdk.bare()
    guard_client = agentguard_openai.guard_client if sdk.is_openai else agentguard_anthropic.guard_client
    client = guard_client(bare, prices=PRICES)

    async def program() -> None:
        assert type(client) is type(bare)
        assert client is not bare
        assert isinstance(client._client, httpx2.AsyncClient if sdk.asynchronous else httpx2.Client)
        assert await sdk.ask(bare) == TEXT  # outside a run: not guarded
        with guard.run("ask") as run:
            assert await sdk.ask(bare) == TEXT
            assert run.spent.steps == 0
            assert await sdk.ask(client) == TEXT
            assert run.spent.steps == 1

    closing(program, client)


def test_its_options_are_kept(sdk: Sdk) -> None:
    options: dict[str, Any] = {
        "timeout": 12.5,
        "max_retries": 7,
        "default_headers": {"x-team": "blue"},
        "default_query": {"v": "1"},
        "_strict_response_validation": True,
    }
    bare, client = sdk.bare(**options), sdk.client(**options)
    for each in (bare, client):
        assert (each.timeout, each.max_retries, each.api_key) == (12.5, 7, "k")
        assert each.default_headers["x-team"] == "blue"
        assert each._strict_response_validation is True
        assert dict(each.default_query) == {"v": "1"}
    assert client.base_url == bare.base_url


@pytest.mark.parametrize("name", ["with_options", "copy"])
def test_a_copy_is_guarded_too(sdk: Sdk, guard: Guard, name: str) -> None:
    client = sdk.client()
    again = getattr(client, name)(timeout=3, max_retries=1)
    shallow = copy.copy(client)

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            assert await sdk.ask(again) == TEXT
            assert await sdk.ask(shallow) == TEXT
            assert run.spent.steps == 2

    assert (again.timeout, again.max_retries) == (3, 1)
    closing(program, client)


@pytest.mark.parametrize("name", ["with_options", "copy"])
def test_a_copy_on_another_http_client_is_guarded_too(sdk: Sdk, guard: Guard, name: str) -> None:
    client = sdk.client()
    http = httpx2.AsyncClient() if sdk.asynchronous else httpx2.Client()
    again = getattr(getattr(client, name)(http_client=http), name)(timeout=3)

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            assert await sdk.ask(again) == TEXT
            assert run.spent.steps == 1

    assert type(again) is type(client)
    closing(program, client, again)


def test_it_is_pickled_no_more_than_the_sdks_own_and_its_answers_are(sdk: Sdk, guard: Guard) -> None:
    bare, client = sdk.bare(), sdk.client()
    for each in (bare, client):
        with pytest.raises(TypeError, match="cannot pickle"):
            pickle.dumps(each)

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)):
            answer = await sdk.create(client)
        again = pickle.loads(pickle.dumps(answer))
        assert (type(again), sdk.text(again)) == (type(answer), TEXT)

    closing(program, client, bare)


def test_a_copy_keeps_the_strict_validation_and_the_headers(sdk: Sdk) -> None:
    client = sdk.client(_strict_response_validation=True, default_headers={"x-team": "blue"})
    bare = sdk.bare(_strict_response_validation=True, default_headers={"x-team": "blue"})
    for again, like in ((client.copy(), bare.copy()), (client.with_options(), bare.with_options())):
        assert again._strict_response_validation is like._strict_response_validation
        assert again.default_headers["x-team"] == like.default_headers["x-team"] == "blue"


def test_the_headers_of_a_call_are_sent(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client(default_headers={"x-team": "blue"})

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)):
            await sdk.ask(client, extra_headers={"x-trace": "7"}, extra_body={"extra": 1})

    closing(program, client)
    sent = sdk.server.headers[-1]
    assert (sent["x-team"], sent["x-trace"]) == ("blue", "7")
    assert sdk.server.last["extra"] == 1


def test_the_raw_response_is_as_the_sdk_gives_it(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            resource = client.chat.completions if sdk.is_openai else client.messages
            asked = {"model": sdk.model, "messages": MESSAGES, "max_tokens": 100}
            raw = resource.with_raw_response.create(**asked)
            raw = await raw if sdk.asynchronous else raw
            assert raw.status_code == 200
            assert raw.headers["content-type"] == "application/json"
            assert raw.elapsed.total_seconds() > 0
            parsed = raw.parse()
            assert sdk.text(await parsed if hasattr(parsed, "__await__") else parsed) == TEXT
            assert run.spent.steps == 1

    closing(program, client)


def test_a_response_may_be_read_bit_by_bit(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()
    asked = {"model": sdk.model, "messages": MESSAGES, "max_tokens": 100}

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            resource = client.chat.completions if sdk.is_openai else client.messages
            block = resource.with_streaming_response.create(**asked)
            if sdk.asynchronous:
                async with block as response:
                    text = "".join([line async for line in response.iter_lines()])
            else:
                with block as response:
                    text = "".join(response.iter_lines())
            assert "42" in text
        assert str(run.spent.usd) == "0.00012"

    closing(program, client)


@pytest.mark.parametrize("provider", ["openai"])
def test_a_client_on_httpx_of_old_is_guarded(sdk: Sdk, guard: Guard) -> None:
    http = httpx.AsyncClient() if sdk.asynchronous else httpx.Client()
    client = sdk.client(http_client=http)

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            assert await sdk.ask(client) == TEXT
            stream = await sdk.create(client, stream=True)
            assert "".join([sdk.piece(event) async for event in sdk.events(stream)]) == TEXT
            assert run.spent.steps == 2
        with guard.replay(run.id):
            assert await sdk.ask(client) == TEXT
            stream = await sdk.create(client, stream=True)
            assert "".join([sdk.piece(event) async for event in sdk.events(stream)]) == TEXT

    closing(program, client)


def test_azure_names_the_model_in_the_path(server: Providers, guard: Guard) -> None:
    client = agentguard_openai.guard_client(
        openai.AzureOpenAI(
            api_key="k", azure_endpoint=server.url, azure_deployment="gpt-test", api_version="2024-10-21"
        ),
        prices=PRICES,
    )
    with guard.run("ask", budget=Budget(usd=5)) as run:
        client.chat.completions.create(model="gpt-test", messages=MESSAGES)  # type: ignore[arg-type]
    assert str(run.spent.usd) == "0.00012"
    assert server.paths[-1].startswith("/openai/deployments/gpt-test/")
    client.close()


class SigningOpenAI(openai.OpenAI):
    """A client that signs the whole request, as those of cloud platforms do."""

    def _prepare_request(self, request: httpx2.Request) -> None:
        request.headers["x-signature"] = hashlib.sha256(request.content).hexdigest()


def test_a_client_that_signs_its_requests_signs_what_is_sent(server: Providers, guard: Guard) -> None:
    client = agentguard_openai.guard_client(
        SigningOpenAI(api_key="k", base_url=f"{server.url}/v1"), prices=PRICES
    )
    with guard.run("ask", budget=Budget(tokens=100)):
        client.chat.completions.create(model="gpt-test", messages=MESSAGES, max_tokens=500)  # type: ignore[arg-type]
    assert server.last["max_tokens"] < 100
    assert server.headers[-1]["x-signature"] == hashlib.sha256(server.raw[-1]).hexdigest()
    client.close()


@pytest.mark.parametrize("wrong", [object(), "client", openai.OpenAI])
def test_what_is_no_client_is_refused(wrong: Any) -> None:
    for module in (agentguard_openai, agentguard_anthropic):
        with pytest.raises(TypeError, match="guard_client takes a client such as"):
            module.guard_client(wrong)


def test_a_client_of_the_other_sdk_is_refused() -> None:
    with pytest.raises(TypeError, match="not OpenAI"):
        agentguard_anthropic.guard_client(openai.OpenAI(api_key="k"))  # type: ignore[type-var]


def test_a_wrong_option_is_refused() -> None:
    client = openai.OpenAI(api_key="k")
    with pytest.raises(ValueError, match="unpriced must be"):
        agentguard_openai.guard_client(client, unpriced="maybe")  # type: ignore[typeddict-item]
    with pytest.raises(TypeError, match="max_price"):
        agentguard_openai.guard_client(client, max_price=1)  # type: ignore[call-arg]
    client.close()


def test_guarding_twice_guards_once(sdk: Sdk, guard: Guard) -> None:
    guard_client = agentguard_openai.guard_client if sdk.is_openai else agentguard_anthropic.guard_client
    client = guard_client(sdk.client(), prices=PRICES)

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            await sdk.ask(client)
        assert run.spent.steps == 1

    closing(program, client)


@pytest.mark.parametrize("folder", ["files", "conversations", "uploads", "vector_stores"])
def test_a_model_call_below_any_address_is_guarded(folder: str) -> None:
    """An address of one's own may have the name of what is free in its path."""
    from agentguard_anthropic._mapping import PROVIDER as ANTHROPIC
    from agentguard_openai._mapping import PROVIDER as OPENAI

    for path in ("chat/completions", "responses", "embeddings", "completions"):
        assert not OPENAI.free.search(f"/{folder}/v1/{path}")
    assert OPENAI.free.search(f"/v1/{folder}/x/parts")
    for path in ("messages", "complete"):
        assert not ANTHROPIC.free.search(f"/v1/{folder}/v1/{path}")
    assert ANTHROPIC.free.search("/v1/files/x")
