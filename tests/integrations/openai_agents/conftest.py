"""An agent on the SDK's scripted model: every answer asks for a tool again, so that only a guard ends it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from agents import Agent, RunConfig, Runner, Usage, function_tool
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call

from agentguard.cost.prices import ModelPrices
from agentguard_openai_agents import GuardHooks, guard_agent

if TYPE_CHECKING:
    from agents.models.interface import Model

#: Output is 0.0001 USD a token, input is free: an answer of 10 tokens is 0.001 USD.
PRICES = ModelPrices({"ScriptedModel": {"input": 0, "output": 100}}, fallback=None)
#: No trace leaves the machine.
CONFIG = RunConfig(tracing_disabled=True)
USAGE = Usage(
    requests=1,
    input_tokens=100,
    output_tokens=10,
    total_tokens=110,
    input_tokens_details={"cached_tokens": 40, "cache_write_tokens": 0},
    output_tokens_details={"reasoning_tokens": 4},
)


@dataclass
class Script:
    """A model that goes on asking for the tool `add`, and what was physically done."""

    turns: int = 20
    parallel: int = 1
    ran: list[tuple[int, int]] = field(default_factory=list)
    #: Called at the n-th request, by its number.
    at: dict[int, Callable[[], Any]] = field(default_factory=dict)
    _model: ScriptedModel | None = None

    @property
    def model(self) -> ScriptedModel:
        if self._model is None:
            steps = [ModelStep(responder=self._answer) for _ in range(100)]
            self._model = ScriptedModel(steps, default_usage=USAGE)
        return self._model

    @property
    def requests(self) -> tuple[Any, ...]:
        return self.model.calls

    def _answer(self, call: Any) -> Any:
        number = len(self.model.calls)
        self.at.get(number, lambda: None)()
        if number > self.turns:
            return [assistant_message("done")]
        return [
            function_call("add", {"a": number, "b": index}, call_id=f"call-{number}-{index}")
            for index in range(self.parallel)
        ]

    def bare_agent(self, model: Model | None = None, **options: Any) -> Agent[None]:
        """The agent, not guarded."""

        @function_tool
        def add(a: int, b: int) -> int:
            self.ran.append((a, b))
            return a + b

        options = {"name": "adder", "tools": [add], "model_settings": {"max_tokens": 10}, **options}
        return Agent(model=model or self.model, **options)

    def agent(self, model: Model | None = None, **options: Any) -> Agent[None]:
        """The agent, guarded."""
        guarding = {key: options.pop(key) for key in ("unpriced", "tool_options", "prices") if key in options}
        return guard_agent(self.bare_agent(model, **options), **{"prices": PRICES, **guarding})


@pytest.fixture
def script() -> Script:
    return Script()


def by_run(agent: Agent[Any], **options: Any) -> Any:
    options = {"hooks": GuardHooks(), "run_config": CONFIG, "max_turns": 50, **options}
    return asyncio.run(Runner.run(agent, "go", **options))


def by_run_sync(agent: Agent[Any], **options: Any) -> Any:
    options = {"hooks": GuardHooks(), "run_config": CONFIG, "max_turns": 50, **options}
    # In a loop of ours, since the one that `run_sync` makes is never closed.
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        asyncio.set_event_loop(loop)
        try:
            return Runner.run_sync(agent, "go", **options)
        finally:
            asyncio.set_event_loop(None)


def by_run_streamed(agent: Agent[Any], **options: Any) -> Any:
    options = {"hooks": GuardHooks(), "run_config": CONFIG, "max_turns": 50, **options}

    async def main() -> Any:
        result = Runner.run_streamed(agent, "go", **options)
        async for _ in result.stream_events():
            pass
        return result

    return asyncio.run(main())


def by_run_without_hooks(agent: Agent[Any], **options: Any) -> Any:
    return by_run(agent, hooks=None, **options)


WAYS = [by_run, by_run_sync, by_run_streamed, by_run_without_hooks]


@pytest.fixture
def go() -> Callable[..., Any]:
    """Run an agent and give its result."""
    return by_run


@pytest.fixture
def stream() -> Callable[..., Any]:
    """Run an agent as a stream."""
    return by_run_streamed


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__.removeprefix("by_"))
def drive(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Every way to run an agent."""
    way: Callable[..., Any] = request.param
    return way
