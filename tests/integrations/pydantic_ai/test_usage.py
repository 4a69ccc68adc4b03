"""What an agent used: counted once, streamed or not, and charged by estimate where nobody counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from agentguard import Budget, Guard, KillSwitchTriggeredError, RunState, Usage
from agentguard.cost.prices import ModelPrices
from agentguard_pydantic_ai import GuardCapability

Drive = Callable[[Agent[None, str]], None]


def llm_usage(guard: Guard, run_id: str) -> list[Usage]:
    ended = {"step_completed", "step_failed"}
    return [e.usage for e in guard.history(run_id) if e.type in ended and e.kind == "llm"]


def test_usage_is_counted_once_with_its_parts(guard: Guard, script: Any, go: Callable[..., Any]) -> None:
    script.turns = 2
    with guard.run("agent", budget=Budget(usd=1)) as run:
        go(script.agent())

    assert (run.spent.input_tokens, run.spent.output_tokens) == (300, 30)
    assert (run.spent.cached_tokens, run.spent.reasoning_tokens) == (120, 12)
    assert run.spent.usd == Decimal("0.003")
    assert run.spent.steps == 5


def test_a_stream_is_charged_what_its_events_counted(guard: Guard, script: Any, drive: Drive) -> None:
    script.turns = 0
    with guard.run("agent") as run:
        drive(script.agent())

    (usage,) = llm_usage(guard, run.id)
    assert 0 < usage.output_tokens <= 10
    assert usage.usd == Decimal(usage.output_tokens) / 10_000


def test_an_answer_without_usage_is_charged_its_reservation(
    guard: Guard, script: Any, go: Callable[..., Any]
) -> None:
    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=[TextPart("done")], usage=RequestUsage(unmeasured_requests=1))

    with guard.run("agent") as run:
        go(script.agent(model=FunctionModel(answer, model_name="house")))

    assert run.spent.output_tokens == 10
    assert run.spent.usd == Decimal("0.001")


def test_a_failed_request_is_charged_its_reservation(
    guard: Guard, script: Any, go: Callable[..., Any]
) -> None:
    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError), guard.run("agent") as run:
        go(script.agent(model=FunctionModel(answer, model_name="house")))

    assert run.spent.output_tokens == 10
    assert run.summary().open_steps == ()


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_a_cancelled_request_leaves_no_reservation(guard: Guard, script: Any, how: str) -> None:
    asked = asyncio.Event()

    async def hang(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def main() -> None:
        agent = script.agent(model=FunctionModel(hang, model_name="house"))
        if how == "timeout":
            async with asyncio.timeout(None) as deadline:
                asyncio.get_running_loop().call_soon(deadline.reschedule, 0)
                await agent.run("go")
        task = asyncio.ensure_future(agent.run("go"))
        await asked.wait()
        task.cancel()
        await task

    with guard.run("agent") as run, pytest.raises((asyncio.CancelledError, TimeoutError)):
        asyncio.run(main())

    assert run.state is RunState.COMPLETED
    assert run.summary().open_steps == ()


def test_a_cancelled_tool_leaves_no_reservation(guard: Guard, script: Any) -> None:
    async def main() -> None:
        inside = asyncio.Event()
        agent = script.agent()

        @agent.tool_plain
        async def wait() -> None:
            inside.set()
            await asyncio.Event().wait()

        def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
            return ModelResponse(parts=[ToolCallPart("wait", {}), ToolCallPart("wait", {})])

        with agent.override(model=FunctionModel(answer, model_name="house")):
            task = asyncio.ensure_future(agent.run("go"))
            await inside.wait()
            task.cancel()
            await task

    with guard.run("agent") as run, pytest.raises(asyncio.CancelledError):
        asyncio.run(main())

    assert run.summary().open_steps == ()


# --- streams -------------------------------------------------------------------------------------


def endless(seen: list[int], at: Callable[[int], Any] = lambda _: None) -> FunctionModel:
    """A model that streams for ever."""

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        number = 0
        while True:
            number += 1
            seen.append(number)
            at(number)
            yield "word "

    return FunctionModel(stream_function=stream, model_name="house")


def test_a_kill_ends_a_stream_within_one_event(guard: Guard, script: Any) -> None:
    seen: list[int] = []
    run = guard.run("agent")
    model = endless(seen, lambda number: run.kill("enough") if number == 5 else None)

    async def main() -> None:
        async with script.agent(model=model).run_stream("go") as result:
            async for _ in result.stream_text(debounce_by=None):
                pass

    with pytest.raises(KillSwitchTriggeredError), run:
        asyncio.run(main())

    assert len(seen) <= 6
    assert run.state is RunState.KILLED
    assert run.summary().open_steps == ()


def test_a_kill_ends_a_stream_that_hangs(guard: Guard, script: Any) -> None:
    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        yield "word"
        run.kill("enough")
        await asyncio.Event().wait()

    async def main() -> None:
        model = FunctionModel(stream_function=stream, model_name="house")
        async with script.agent(model=model).run_stream("go") as result:
            async for _ in result.stream_text(debounce_by=None):
                pass

    with pytest.raises(KillSwitchTriggeredError), guard.run("agent") as run:
        asyncio.run(main())

    assert run.state is RunState.KILLED


def test_a_stream_closed_early_is_charged_its_reservation(guard: Guard, script: Any) -> None:
    seen: list[int] = []

    async def main() -> None:
        async with script.agent(model=endless(seen)).run_stream("go") as result:
            async for _ in result.stream_text(debounce_by=None):
                break

    with guard.run("agent") as run:
        asyncio.run(main())

    assert run.spent.output_tokens == 10
    assert run.spent.usd == Decimal("0.001")
    assert run.summary().open_steps == ()
    (ended,) = (e for e in guard.history(run.id) if e.type == "step_completed")
    assert ended.data["closed_early"]


def test_a_cancelled_stream_leaves_no_reservation(guard: Guard, script: Any) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
            yield "word"
            begun.set()
            await asyncio.Event().wait()

        async def read() -> None:
            model = FunctionModel(stream_function=stream, model_name="house")
            async with script.agent(model=model).run_stream("go") as result:
                await result.get_output()

        task = asyncio.ensure_future(read())
        await begun.wait()
        task.cancel()
        await task

    with guard.run("agent") as run, pytest.raises(asyncio.CancelledError):
        asyncio.run(main())

    assert run.summary().open_steps == ()


# --- max_tokens ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "guard_options", "settings", "sent"),
    [
        pytest.param(Budget(output_tokens=500), {}, None, 500, id="lowered-to-the-tokens-left"),
        pytest.param(Budget(usd="0.05"), {}, None, 500, id="lowered-to-the-money-left"),
        pytest.param(Budget(output_tokens=500), {}, {"max_tokens": 100}, 100, id="its-own"),
        pytest.param(Budget(output_tokens=500), {}, {"max_tokens": 900}, 500, id="its-own-lowered"),
        pytest.param(Budget(output_tokens=90_000), {}, None, None, id="enough-left"),
        pytest.param(Budget(), {"max_output_tokens": 700}, None, 700, id="by-option"),
        pytest.param(Budget(output_tokens=9_000), {"clamp": False}, None, None, id="not-clamped"),
    ],
)
def test_max_tokens_are_what_the_budget_leaves(
    guard: Guard,
    script: Any,
    go: Callable[..., Any],
    budget: Budget,
    guard_options: Any,
    settings: Any,
    sent: Any,
) -> None:
    script.turns = 0
    prices = ModelPrices({"house": {"input": 0, "output": 100}}, fallback=None)
    with guard.run("agent", budget=budget):
        go(script.agent(GuardCapability(prices=prices, **guard_options), model_settings=settings))

    assert (script.requests[0] or {}).get("max_tokens") == sent
