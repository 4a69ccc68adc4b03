"""LiteLLM, guarded by a wrapper: real LiteLLM against a local server."""

import asyncio
import logging
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pydantic
import pytest

from tests.kit import wait_until

pytest.importorskip("litellm")

import litellm as bare
from litellm.integrations.custom_logger import CustomLogger

import agentguard_litellm
from agentguard import (
    Budget,
    BudgetExceededError,
    Guard,
    KillSwitchTriggeredError,
    NoActiveRunError,
    UnknownCostError,
)
from agentguard.cost import ModelPrices
from tests.integrations.clients.conftest import ANSWER_USD, MESSAGES, TEXT, outcomes
from tests.integrations.clients.server import Break, Pause, Providers, chat, error, openai_usage
from tests.integrations.closing import close_litellm, with_litellm

PRICES = ModelPrices(
    {name: {"input": 1, "output": 10} for name in ("openai/gpt-test", "anthropic/claude-test")}, fallback=None
)
pytestmark = pytest.mark.filterwarnings("ignore")  # LiteLLM's own


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    bare.suppress_debug_info = True
    yield
    bare.callbacks = []
    asyncio.run(close_litellm())


@pytest.fixture
def litellm() -> Any:
    return agentguard_litellm.guard_client(bare, prices=PRICES)


def asked(server: Providers, **options: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"model": "openai/gpt-test", "messages": MESSAGES, "max_tokens": 100}
    return {**defaults, "api_key": "k", "api_base": f"{server.url}/v1", **options}


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, litellm: Any) -> Any:
    def call(**options: Any) -> Any:
        if request.param == "sync":
            answer = litellm.completion(**options)
            return list(answer) if options.get("stream") else answer

        async def program() -> Any:
            answer = await litellm.acompletion(**options)
            return [chunk async for chunk in answer] if options.get("stream") else answer

        return asyncio.run(with_litellm(program()))

    return call


def text(answer: Any) -> str:
    if isinstance(answer, list):
        return "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    return str(answer.choices[0].message.content)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_charged_replayed_and_refused(
    ask: Any, server: Providers, guard: Guard, stream: bool
) -> None:
    call = asked(server, stream=stream)
    with guard.run("ask", budget=Budget(usd=5)) as run:
        live = ask(**call)
        assert text(live) == TEXT
    assert run.spent.usd == Decimal(ANSWER_USD)
    with guard.replay(run.id):
        again = ask(**call)
        assert type(again) is type(live)
        assert text(again) == TEXT
    assert len(server.requests) == 1
    with pytest.raises(BudgetExceededError):
        with guard.run("ask", budget=Budget(steps=0)):
            ask(**call)
    assert len(server.requests) == 1


def test_a_stream_that_counts_all_along_and_ends_early_is_charged_as_reserved(
    litellm: Any, server: Providers, guard: Guard
) -> None:
    def counting() -> Any:
        reply = chat({"model": "gpt-test", "stream": True, "stream_options": {"include_usage": True}})
        for n, event in enumerate(reply.events[:-2]):
            event["usage"] = openai_usage(completion=2 * n)
        return reply

    async def program() -> None:
        server.next += [counting(), counting()]
        async with guard.run("ask", budget=Budget(usd=5)) as run:
            stream = await litellm.acompletion(**asked(server, stream=True))
            await anext(stream)
            await anext(stream)
            await stream.aclose()
        assert Decimal("0.001") < run.spent.usd < Decimal("0.002")
        async with guard.run("ask", budget=Budget(usd=5)) as run:
            async for _ in await litellm.acompletion(**asked(server, stream=True)):
                pass
        assert run.spent.usd == Decimal(ANSWER_USD)

    asyncio.run(with_litellm(program()))


def test_every_answer_is_reserved_where_nothing_bounds_them(
    ask: Any, server: Providers, guard: Guard
) -> None:
    with guard.run("ask", budget=Budget(usd=5)) as run:
        ask(**asked(server, n=3, max_tokens=None))
    started = next(event for event in guard.history(run.id) if event.type == "step_started")
    assert started.data["reserve"]["output_tokens"] == 3 * 4096
    assert "max_tokens" not in server.last


def test_a_count_that_cannot_be_right_is_charged_as_reserved(
    ask: Any, server: Providers, guard: Guard
) -> None:
    server.next.append(chat({"model": "gpt-test"}, usage={**openai_usage(), "completion_tokens": -5}))
    with guard.run("ask", budget=Budget(usd=5)) as run:
        ask(**asked(server))
    assert Decimal("0.001") < run.spent.usd < Decimal("0.002")


def shape(chunks: list[Any]) -> list[Any]:
    return [(len(chunk.choices), [choice.delta.content for choice in chunk.choices]) for chunk in chunks]


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}])
def test_a_stream_has_the_chunks_that_it_has_without_the_guard(
    ask: Any, server: Providers, guard: Guard, options: dict[str, Any]
) -> None:
    """The guard asks for the usage; a caller who has not does not meet its chunk, which has no choices."""
    call = asked(server, stream=True, **options)
    live = list(bare.completion(**call))
    with guard.run("ask", budget=Budget(usd=5)) as run:
        assert shape(ask(**call)) == shape(live)
    assert run.spent.usd == Decimal(ANSWER_USD)


def test_another_provider_is_charged_too(ask: Any, server: Providers, guard: Guard) -> None:
    call = asked(server, model="anthropic/claude-test", api_base=f"{server.url}/v1/messages")
    with guard.run("ask", budget=Budget(usd=5)) as run:
        assert text(ask(**call)) == TEXT
    assert run.spent.usd == Decimal(ANSWER_USD)


def test_a_callback_cannot_stop_litellm_which_is_why_this_is_a_wrapper(
    server: Providers, caplog: pytest.LogCaptureFixture
) -> None:
    class Stop(CustomLogger):  # type: ignore[misc]
        def log_pre_api_call(self, model: Any, messages: Any, kwargs: Any) -> None:
            raise RuntimeError("stop")

    bare.callbacks = [Stop()]
    with caplog.at_level(logging.CRITICAL):
        assert text(bare.completion(**asked(server))) == TEXT
    assert len(server.requests) == 1


def test_its_own_retries_are_switched_off(ask: Any, server: Providers, guard: Guard) -> None:
    server.next += [error(500, "oops"), error(429, "slow down")]
    with guard.run("ask", budget=Budget(usd=5)) as run:
        for _ in range(2):
            with pytest.raises((bare.InternalServerError, bare.RateLimitError)):
                ask(**asked(server, num_retries=3))
    assert len(server.requests) == 2
    assert outcomes(guard, run) == ["step_started", "step_failed"] * 2
    assert Decimal("0.001") < run.spent.usd < Decimal("0.002")  # a 500 as reserved, a 429 free


def test_what_nobody_can_follow_is_refused(litellm: Any, server: Providers, guard: Guard) -> None:
    with guard.run("ask", budget=Budget(usd=5)):
        with pytest.raises(ValueError, match="fallbacks"):
            litellm.completion(**asked(server, fallbacks=["openai/other"]))
        with pytest.raises(AttributeError, match="guarded_step"):
            litellm.image_generation(prompt="a cat")
    with pytest.raises(TypeError, match="Router"):
        agentguard_litellm.guard_client(bare.Router(model_list=[]))
    assert server.requests == []


def test_prices_outside_and_bounds_are_as_with_the_other_clients(
    litellm: Any, server: Providers, guard: Guard
) -> None:
    with pytest.raises(NoActiveRunError, match="litellm is guarded"):
        litellm.completion(**asked(server))
    with pytest.raises(UnknownCostError):
        with guard.run("ask", budget=Budget(usd=5)):
            litellm.completion(**asked(server, model="openai/unheard-of"))
    assert server.requests == []
    with guard.run("ask", budget=Budget(tokens=80)):
        litellm.completion(**asked(server))
    assert server.last["max_tokens"] < 80


def test_embeddings_are_charged_by_their_prompt(litellm: Any, server: Providers, guard: Guard) -> None:
    call = {"model": "openai/gpt-test", "input": ["a"], "api_key": "k", "api_base": f"{server.url}/v1"}
    with guard.run("embed", budget=Budget(usd=5)) as run:
        vectors = litellm.embedding(**call)
    assert (run.spent.input_tokens, run.spent.usd) == (8, Decimal("0.000008"))
    with guard.replay(run.id):
        assert litellm.embedding(**call).data == vectors.data


def test_a_kill_cancels_a_call_in_flight(litellm: Any, server: Providers, guard: Guard) -> None:
    pause = Pause()
    server.next.append(pause)

    async def program() -> None:
        with pytest.raises(KillSwitchTriggeredError):
            async with guard.run("ask") as run:
                task = asyncio.create_task(litellm.acompletion(**asked(server)))
                await asyncio.to_thread(pause.reached.wait, 10)
                run.kill("enough")
                with pytest.raises(KillSwitchTriggeredError):
                    await task
        wait_until(server.gone.is_set)

    asyncio.run(with_litellm(program()))


def test_a_stream_closed_early_or_broken_is_charged_as_reserved(
    litellm: Any, server: Providers, guard: Guard
) -> None:
    body = {"model": "gpt-test", "stream": True}
    held, broken = chat(body), chat(body)
    held.events.insert(3, Pause())
    broken.events.insert(3, Break())
    server.next += [held, broken]
    with guard.run("ask", budget=Budget(usd=5)) as run:
        stream = litellm.completion(**asked(server, stream=True))
        next(stream)
        stream.close()
        wait_until(server.gone.is_set)
        assert Decimal("0.001") < run.spent.usd < Decimal("0.0012")
        with pytest.raises(Exception, match=r"(?i)connection|peer|incomplete"):
            list(litellm.completion(**asked(server, stream=True)))
    assert Decimal("0.002") < run.spent.usd < Decimal("0.0024")


class Number(pydantic.BaseModel):
    value: int


def test_an_answer_may_be_asked_for_by_the_class_of_a_model(
    server: Providers, guard: Guard, ask: Any
) -> None:
    with guard.run("ask", budget=Budget(usd=1)) as run:
        live = ask(**asked(server, response_format=Number))
    assert Number.model_validate_json(live.choices[0].message.content).value == 42
    assert run.spent.usd == Decimal(ANSWER_USD)
    with guard.replay(run.id):
        ask(**asked(server, response_format=Number))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [error(429, "slow down"), error(401, "who?"), error(400, "context length"), error(500, "x"), Break()],
)
def test_an_error_comes_back_in_a_replay(server: Providers, guard: Guard, ask: Any, answer: Any) -> None:
    def program() -> list[Any]:
        with pytest.raises(Exception, match=r"litellm\.") as caught:
            ask(**asked(server))
        found: Any = caught.value
        return [type(found), str(found), found.status_code, found.response.status_code, found.llm_provider]

    server.next.append(answer)
    with guard.run("ask", budget=Budget(usd=1)) as run:
        live = program()
    with guard.replay(run.id):
        assert program() == live
    assert len(server.requests) == 1
