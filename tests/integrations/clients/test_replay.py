"""A replay hands out what the log has, by the SDK's own parsing, and uses no network."""

import pytest

from agentguard import Budget, Guard, ReplayDivergenceError
from tests.integrations.clients.conftest import TEXT, Sdk, closing, outcomes
from tests.integrations.clients.server import Break, chat, error, message


def test_answers_and_streams_come_back_without_the_network(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()

    async def agent() -> list[object]:
        answer = await sdk.create(client)
        stream = await sdk.create(client, stream=True)
        return [answer, [event async for event in sdk.events(stream)]]

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            live = await agent()
        asked = len(sdk.server.requests)
        with guard.replay(run.id):
            assert await agent() == live
        assert len(sdk.server.requests) == asked

    closing(program, client)


def test_failed_attempts_come_back_and_the_sdk_tries_again(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()
    sdk.server.next += [error(429, "slow down", {"retry-after": "30", "retry-after-ms": "1"}), Break()]

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            assert await sdk.ask(client) == TEXT
        assert outcomes(guard, run).count("step_failed") == 2
        with guard.replay(run.id):
            assert await sdk.ask(client) == TEXT
        assert len(sdk.server.requests) == 3

    closing(program, client)


def test_an_error_of_the_provider_comes_back_as_the_sdks_own(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client(max_retries=0)
    sdk.server.next.append(error(429, "slow down"))

    async def agent() -> None:
        with pytest.raises(sdk.error.RateLimitError, match="slow down") as caught:
            await sdk.ask(client)
        assert caught.value.status_code == 429

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            await agent()
        with guard.replay(run.id):
            await agent()

    closing(program, client)


def test_another_question_is_a_divergence(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            await sdk.ask(client)
        with pytest.raises(ReplayDivergenceError) as caught:
            with guard.replay(run.id):
                await sdk.ask(client, max_tokens=99)
        assert caught.value.kind == "arguments"

    closing(program, client)


def test_a_stream_closed_early_is_replayed_as_far_as_it_was_read(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()

    async def agent() -> list[object]:
        stream = await sdk.create(client, stream=True)
        events = [await sdk.next(stream), await sdk.next(stream)]
        await sdk.close(stream)
        return events

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            live = await agent()
        with guard.replay(run.id):
            assert await agent() == live

    closing(program, client)


def test_a_run_under_a_lowered_bound_is_replayed_by_what_was_asked(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()
    body = {"model": sdk.model}
    sdk.server.next.append(chat(body) if sdk.is_openai else message(body))

    async def program() -> None:
        with guard.run("ask", budget=Budget(tokens=80)) as run:
            await sdk.ask(client)
        assert sdk.server.last["max_tokens"] < 100
        with guard.replay(run.id):
            await sdk.ask(client)

    closing(program, client)
