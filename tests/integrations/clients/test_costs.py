"""Reserved before it is sent, charged by what the provider counts, refused where it does not fit."""

from decimal import Decimal

import pytest
from openai import OpenAI

from agentguard import Budget, BudgetExceededError, Guard, NoActiveRunError, UnknownCostError
from agentguard.testing import allow_outside
from agentguard_openai import guard_client
from tests.integrations.clients.conftest import ANSWER_USD, MESSAGES, TEXT, Sdk, closing
from tests.integrations.clients.server import Providers, anthropic_usage, chat, message, openai_usage


def test_a_call_is_charged_by_what_the_provider_counts(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            assert await sdk.ask(client) == TEXT
        assert run.spent.usd == Decimal(ANSWER_USD)
        assert (run.spent.input_tokens, run.spent.output_tokens) == (20, 10)
        started = next(event for event in guard.history(run.id) if event.type == "step_started")
        assert started.name == sdk.step
        assert started.kind == "llm"
        assert started.data["attributes"]["gen_ai.request.model"] == sdk.model
        assert started.data["reserve"]["output_tokens"] == 100

    closing(program, client)


def test_a_call_that_does_not_fit_is_never_sent(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client({"clamp": False})

    async def program() -> None:
        with pytest.raises(BudgetExceededError) as caught:
            with guard.run("ask", budget=Budget(usd="0.0005")):
                with pytest.raises(BudgetExceededError):
                    await sdk.ask(client)
                await sdk.ask(client)
        assert caught.value.resource == "usd"

    closing(program, client)
    assert sdk.server.requests == []


def test_a_run_stops_at_its_limit_and_never_beyond(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()

    async def program() -> None:
        with pytest.raises(BudgetExceededError):
            with guard.run("ask", budget=Budget(usd="0.002")) as run:
                while True:
                    await sdk.ask(client)
        assert Decimal(0) < run.spent.usd <= Decimal("0.002")

    closing(program, client)


def test_the_bound_of_an_answer_is_lowered_to_what_the_budget_leaves(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()

    async def program() -> None:
        with guard.run("ask", budget=Budget(tokens=100)):
            await sdk.ask(client)
        with guard.run("ask", budget=Budget(usd="0.0005")):
            await sdk.ask(client)

    closing(program, client)
    assert all(16 <= asked["max_tokens"] < 100 for asked in sdk.server.requests)
    assert [asked["messages"] for asked in sdk.server.requests] == [MESSAGES, MESSAGES]


def test_a_stream_that_is_read_to_its_end_is_charged_once(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            stream = await sdk.create(client, stream=True)
            assert "".join([sdk.piece(event) async for event in sdk.events(stream)]) == TEXT
        assert run.spent.usd == Decimal(ANSWER_USD)
        assert run.spent.steps == 1

    closing(program, client)


@pytest.mark.parametrize("provider", ["openai"])
def test_a_stream_is_asked_for_its_usage_which_its_consumer_does_not_see(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            stream = await sdk.create(client, stream=True)
            assert all([event.choices async for event in sdk.events(stream)])
            asked = {"include_usage": True}
            stream = await sdk.create(client, stream=True, stream_options=asked)
            assert [bool(event.choices) async for event in sdk.events(stream)][-1] is False
            stream = await sdk.create(client, stream=True, stream_options={"include_usage": False})
            assert all([event.choices async for event in sdk.events(stream)])
        assert run.spent.usd > 2 * Decimal(ANSWER_USD) + Decimal("0.001")  # the third as reserved

    closing(program, client)
    assert [asked["stream_options"]["include_usage"] for asked in sdk.server.requests] == [True, True, False]


@pytest.mark.parametrize("provider", ["anthropic"])
def test_the_bound_is_never_lowered_into_a_thinking_budget(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()
    thinking = {"type": "enabled", "budget_tokens": 1024}

    async def program() -> None:
        with pytest.raises(BudgetExceededError):
            with guard.run("think", budget=Budget(usd="0.0103")):
                await sdk.ask(client, max_tokens=2000, thinking=thinking)
        with guard.run("think", budget=Budget(usd="0.012")):
            await sdk.ask(client, max_tokens=2000, thinking=thinking)

    closing(program, client)
    assert [1024 < asked["max_tokens"] < 2000 for asked in sdk.server.requests] == [True]


@pytest.mark.parametrize("stream", [False, True])
def test_cached_tokens_are_on_record(sdk: Sdk, guard: Guard, stream: bool) -> None:
    client = sdk.client()
    body = {"model": sdk.model, "stream": stream, "stream_options": {"include_usage": True}}
    if sdk.is_openai:
        reply = chat(body, usage=openai_usage(prompt=1000, cached=600))
    else:
        reply = message(body, usage=anthropic_usage(input_tokens=400, cache_read_input_tokens=600))
    sdk.server.next.append(reply)

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            answer = await sdk.create(client, stream=stream)
            if stream:
                assert [event async for event in sdk.events(answer)]
        assert (run.spent.input_tokens, run.spent.cached_tokens) == (1000, 600)

    closing(program, client)


def test_a_model_without_a_price_is_refused_before_the_call(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()

    async def program() -> None:
        with pytest.raises(UnknownCostError, match="no price is known"):
            with guard.run("ask", budget=Budget(usd=5)):
                await sdk.ask(client, model="unheard-of")
        with guard.run("ask", budget=Budget(tokens=10_000)) as run:
            await sdk.ask(client, model="unheard-of")
        assert run.spent.tokens == 30

    closing(program, client)
    assert len(sdk.server.requests) == 1


def test_a_paid_request_that_nobody_can_price_is_refused_under_a_limit(sdk: Sdk, guard: Guard) -> None:
    client, lenient = sdk.client(), sdk.client({"unpriced": "allow"})

    async def paid(by: object) -> object:
        made = (
            by.images.generate(prompt="a cat", model="gpt-image-1")
            if sdk.is_openai
            else by.messages.batches.create(requests=[])
        )
        return await made if sdk.asynchronous else made

    async def program() -> None:
        with pytest.raises(UnknownCostError, match="unpriced='allow'"):
            with guard.run("paid", budget=Budget(usd=5)):
                await paid(client)
        assert sdk.server.requests == []
        with guard.run("paid", budget=Budget(usd=5)) as run:
            await paid(lenient)
        with guard.run("paid", budget=Budget(steps=5)):
            await paid(client)
        assert run.spent.steps == 1

    closing(program, client, lenient)
    assert len(sdk.server.requests) == 2


def test_a_call_outside_a_run_is_refused_unless_it_is_allowed(sdk: Sdk, guard: Guard) -> None:
    client, open_client = sdk.client(), sdk.client({"outside": "allow"})

    async def program() -> None:
        with pytest.raises(NoActiveRunError, match="guard_client"):
            await sdk.ask(client)
        assert await sdk.ask(open_client) == TEXT
        with allow_outside():
            assert await sdk.ask(client) == TEXT

    closing(program, client, open_client)
    assert len(sdk.server.requests) == 2


def test_models_are_priced_by_their_names_at_an_address_that_nobody_knows(
    server: Providers, guard: Guard
) -> None:
    client = guard_client(OpenAI(api_key="k", base_url=f"{server.url}/v1"))
    with client, guard.run("ask", budget=Budget(usd=5)) as run:
        client.embeddings.create(model="text-embedding-3-small", input="What?")
        assert run.spent.usd == Decimal("0.00000016")  # 8 tokens at 0.02 USD a million
        client.chat.completions.create(model="gpt-5-mini", messages=MESSAGES)  # type: ignore[arg-type]
    assert run.spent.usd == Decimal("0.00002516")  # and 20 at 0.25, 10 at 2


def test_a_client_may_be_given_the_run_that_pays(sdk: Sdk, guard: Guard) -> None:
    async def program() -> None:
        run = guard.start("ask", budget=Budget(usd=5))
        client = sdk.client({"run": run})
        with guard.run("another") as other:
            await sdk.ask(client)
        run.close()
        assert (run.spent.steps, other.spent.steps) == (1, 0)
        await sdk.close(client)

    closing(program)
