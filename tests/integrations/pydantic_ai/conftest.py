"""An agent on a scripted model: every answer asks for a tool again, so that only a guard ends it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from pydantic_ai.usage import RequestUsage

from agentguard.cost.prices import ModelPrices
from agentguard_pydantic_ai import GuardCapability

#: Output is 0.0001 USD a token, input is free: an answer of 10 tokens is 0.001 USD.
PRICES = ModelPrices({"house": {"input": 0, "output": 100}}, fallback=None)
#: Each answer is bounded by 10 tokens and uses 10.
BOUNDED: Any = {"max_tokens": 10}


@dataclass
class Script:
    """A model that goes on asking for the tool `add`, and what was physically done."""

    turns: int = 20
    parallel: int = 1
    requests: list[Any] = field(default_factory=list)
    ran: list[tuple[int, int]] = field(default_factory=list)
    #: Called at the n-th request, by its number.
    at: dict[int, Callable[[], Any]] = field(default_factory=dict)

    def answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        number = self._requested(info)
        calls = [
            ToolCallPart("add", {"a": number, "b": index}, tool_call_id=f"call-{number}-{index}")
            for index in range(self.parallel)
        ]
        return ModelResponse(
            parts=calls if number <= self.turns else [TextPart("done")],
            usage=RequestUsage(
                input_tokens=100, cache_read_tokens=40, output_tokens=10, output_reasoning_tokens=4
            ),
        )

    async def stream(self, messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
        number = self._requested(info)
        if number > self.turns:
            yield "do"
            yield "ne"
            return
        for index in range(self.parallel):
            call_id = f"call-{number}-{index}"
            yield {index: DeltaToolCall("add", f'{{"a": {number}, ', tool_call_id=call_id)}
            yield {index: DeltaToolCall(None, f'"b": {index}}}', tool_call_id=call_id)}

    def _requested(self, info: AgentInfo) -> int:
        self.requests.append(info.model_settings)
        number = len(self.requests)
        self.at.get(number, lambda: None)()
        return number

    @property
    def model(self) -> FunctionModel:
        return FunctionModel(self.answer, stream_function=self.stream, model_name="house")

    def agent(self, guard: GuardCapability | None = None, **options: Any) -> Agent[None, str]:
        """An agent with the tool, guarded."""
        capabilities = [*options.pop("capabilities", ()), guard or GuardCapability(prices=PRICES)]
        options = {"model_settings": BOUNDED, "name": "adder", **options}
        agent: Agent[None, str] = Agent(
            options.pop("model", self.model), capabilities=capabilities, **options
        )

        @agent.tool_plain
        def add(a: int, b: int) -> int:
            self.ran.append((a, b))
            return a + b

        return agent


@pytest.fixture
def script() -> Script:
    return Script()


def by_run(agent: Agent[None, str]) -> None:
    asyncio.run(agent.run("go"))


def by_run_sync(agent: Agent[None, str], **options: Any) -> Any:
    # In a loop of ours, since the one that `run_sync` makes is never closed.
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        asyncio.set_event_loop(loop)
        try:
            return agent.run_sync("go", **options)
        finally:
            asyncio.set_event_loop(None)


def by_run_stream(agent: Agent[None, str]) -> None:
    async def main() -> None:
        async with agent.run_stream("go") as result:
            await result.get_output()

    asyncio.run(main())


def by_run_stream_events(agent: Agent[None, str]) -> None:
    async def main() -> None:
        async with agent.run_stream_events("go") as events:
            async for _ in events:
                pass

    asyncio.run(main())


def by_event_stream_handler(agent: Agent[None, str]) -> None:
    async def handler(ctx: Any, events: AsyncIterator[Any]) -> None:
        async for _ in events:
            pass

    asyncio.run(agent.run("go", event_stream_handler=handler))


def by_iter(agent: Agent[None, str]) -> None:
    async def main() -> None:
        async with agent.iter("go") as run:
            async for _ in run:
                pass

    asyncio.run(main())


WAYS = [by_run, by_run_sync, by_run_stream, by_run_stream_events, by_event_stream_handler, by_iter]


@pytest.fixture
def go() -> Callable[..., Any]:
    """Run an agent and give its result."""
    return by_run_sync


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__.removeprefix("by_"))
def drive(request: pytest.FixtureRequest) -> Callable[[Agent[None, str]], None]:
    """Every way to run an agent."""
    way: Callable[[Agent[None, str]], None] = request.param
    return way
