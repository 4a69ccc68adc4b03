"""The SDKs' own clients, decorated by hand with the presets: charged by what the provider counts."""

import asyncio
import gc
import warnings
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from agentguard import Budget, Guard, KillSwitchTriggeredError, guarded_step
from agentguard.cost import reserve_of, usage_of
from tests.integrations.clients.conftest import ANSWER_USD, MESSAGES, PRICES, TEXT, Sdk, closing, outcomes
from tests.integrations.clients.server import Break, Pause, chat, message

RESERVED = Decimal("0.001")  # 100 tokens of the answer; the prompt comes on top


def guarded(call: Callable[..., Any], sdk: Sdk) -> Callable[..., Any]:
    presets = {"usage": usage_of(sdk.name, prices=PRICES), "reserve": reserve_of(sdk.name, prices=PRICES)}
    return guarded_step(name="ask", kind="llm", **presets)(call)


def create(sdk: Sdk, client: Any) -> Callable[..., Any]:
    return guarded(client.chat.completions.create if sdk.is_openai else client.messages.create, sdk)


def asked(sdk: Sdk, **options: Any) -> dict[str, Any]:
    if sdk.is_openai and options.get("stream"):
        options = {"stream_options": {"include_usage": True}, **options}
    return {"model": sdk.model, "messages": MESSAGES, "max_tokens": 100, **options}


async def made(sdk: Sdk, result: Any) -> Any:
    return await result if sdk.asynchronous else result


def test_a_call_is_one_step_that_is_charged_what_it_used(sdk: Sdk, guard: Guard) -> None:
    client = sdk.bare()

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            assert sdk.text(await made(sdk, create(sdk, client)(**asked(sdk)))) == TEXT
        assert (run.spent.usd, outcomes(guard, run)) == (
            Decimal(ANSWER_USD),
            ["step_started", "step_completed"],
        )

    closing(program, client)


def test_an_error_of_the_sdk_is_the_steps(sdk: Sdk, guard: Guard) -> None:
    client = sdk.bare(max_retries=0)
    sdk.server.next.append(Break())

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            with pytest.raises(sdk.error.APIConnectionError):
                await made(sdk, create(sdk, client)(**asked(sdk)))
        assert outcomes(guard, run) == ["step_started", "step_failed"]

    closing(program, client)


def test_a_kill_cancels_a_request_in_flight(provider: str, guard: Guard, server: Any) -> None:
    sdk = Sdk(provider, True, server)
    client = sdk.bare()
    pause = Pause()
    server.next.append(pause)

    async def program() -> None:
        with pytest.raises(KillSwitchTriggeredError):
            async with guard.run("ask", budget=Budget(usd=5)) as run:
                task = asyncio.ensure_future(create(sdk, client)(**asked(sdk)))
                await asyncio.to_thread(pause.reached.wait, 10)
                await asyncio.to_thread(guard.kill, run=run.id, reason="enough")
                await task
        assert (await asyncio.to_thread(server.gone.wait, 10)) is True

    closing(program, client)


def test_a_call_that_is_never_awaited_is_abandoned_and_charged(
    provider: str, guard: Guard, server: Any
) -> None:
    sdk = Sdk(provider, True, server)
    client = sdk.bare()

    async def program() -> None:
        async with guard.run("ask", budget=Budget(usd=5)) as run:
            call = create(sdk, client)(**asked(sdk))
        assert run.spent.usd > RESERVED
        assert server.requests == []
        call.close()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the SDK's coroutine, which nobody awaited
        closing(program, client)
        gc.collect()


# --- streams ---------------------------------------------------------------------------------------


def test_a_stream_is_charged_what_its_events_say(sdk: Sdk, guard: Guard) -> None:
    client = sdk.bare()

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            stream = await made(sdk, create(sdk, client)(**asked(sdk, stream=True)))
            async for _ in sdk.events(stream):
                pass
        assert (run.spent.usd, outcomes(guard, run)) == (
            Decimal(ANSWER_USD),
            ["step_started", "step_completed"],
        )

    closing(program, client)


def test_a_stream_that_is_closed_early_is_charged_as_reserved(sdk: Sdk, guard: Guard) -> None:
    client = sdk.bare()
    reply = (chat if sdk.is_openai else message)({"model": sdk.model, "stream": True})
    reply.events.insert(3, Pause())
    sdk.server.next.append(reply)

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            stream = await made(sdk, create(sdk, client)(**asked(sdk, stream=True)))
            await sdk.next(stream)
            await sdk.close(stream)
        assert RESERVED < run.spent.usd < 2 * RESERVED

    closing(program, client)


def test_a_stream_that_tells_no_usage_is_charged_as_reserved(server: Any, guard: Guard) -> None:
    sdk = Sdk("openai", False, server)
    client = sdk.bare()
    with guard.run("ask", budget=Budget(usd=5)) as run:
        list(create(sdk, client)(**asked(sdk, stream=True, stream_options=None)))

    assert RESERVED < run.spent.usd < 2 * RESERVED
    client.close()


def helper(sdk: Sdk, client: Any) -> Any:
    opened = client.chat.completions.stream if sdk.is_openai else client.messages.stream
    options = {"stream_options": {"include_usage": True}} if sdk.is_openai else {}
    return guarded(opened, sdk)(model=sdk.model, messages=MESSAGES, max_tokens=100, **options)


@pytest.mark.parametrize("reads", ["events", "the final answer"])
def test_the_helper_of_streams_is_charged_what_was_used(sdk: Sdk, guard: Guard, reads: str) -> None:
    client = sdk.bare()

    async def read(stream: Any) -> None:
        if reads == "events":
            async for _ in sdk.events(stream):
                pass
        else:
            final = stream.get_final_completion() if sdk.is_openai else stream.get_final_message()
            assert sdk.text(await made(sdk, final)) == TEXT

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            if sdk.asynchronous:
                async with helper(sdk, client) as stream:
                    await read(stream)
            else:
                with helper(sdk, client) as stream:
                    await read(stream)
        assert run.spent.usd == Decimal(ANSWER_USD)

    closing(program, client)


@pytest.mark.parametrize("begun", [False, True], ids=["unread", "begun"])
def test_the_helper_of_streams_that_is_left_early_is_charged_as_reserved(
    provider: str, guard: Guard, server: Any, begun: bool
) -> None:
    sdk = Sdk(provider, False, server)
    client = sdk.bare()
    with guard.run("ask", budget=Budget(usd=5)) as run, helper(sdk, client) as stream:
        if begun:
            next(stream)

    assert RESERVED < run.spent.usd < 2 * RESERVED
    client.close()


def test_events_of_responses_are_read_too(server: Any, guard: Guard) -> None:
    sdk = Sdk("openai", False, server)
    client = sdk.bare()
    respond = guarded(client.responses.create, sdk)
    with guard.run("ask", budget=Budget(usd=5)) as run:
        list(respond(model=sdk.model, input="x", max_output_tokens=100, stream=True))

    assert run.spent.usd == Decimal(ANSWER_USD)
    client.close()


def test_a_generator_that_hands_on_the_events_is_charged_what_they_say(server: Any, guard: Guard) -> None:
    sdk = Sdk("openai", False, server)
    client = sdk.bare()

    def stream(**kwargs: Any) -> Any:
        yield from client.chat.completions.create(**kwargs)

    with guard.run("ask", budget=Budget(usd=5)) as run:
        list(guarded(stream, sdk)(**asked(sdk, stream=True)))

    assert run.spent.usd == Decimal(ANSWER_USD)
    client.close()
