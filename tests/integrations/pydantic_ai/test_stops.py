"""A stop ends an agent, whichever way it is run, after exactly the calls that were allowed."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic_ai import Agent, ModelRetry, RunContext
from pydantic_ai.capabilities import AbstractCapability, ModelFallback
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.concurrency import ConcurrencyLimitedModel
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import AgentInfo, FunctionModel

from agentguard import (
    Budget,
    BudgetExceededError,
    Guard,
    KillSwitchTriggeredError,
    NoActiveRunError,
    RunState,
    RunStopped,
    UnknownCostError,
    Usage,
    guarded_step,
)
from agentguard_pydantic_ai import GuardCapability, GuardedModel

Drive = Callable[[Agent[None, str]], None]

THREE_CALLS = [
    pytest.param(Budget(calls={"kind:llm": 3}), "calls:kind:llm", id="calls"),
    pytest.param(Budget(output_tokens=30), "output_tokens", id="tokens"),
    pytest.param(Budget(usd="0.003"), "usd", id="usd"),
]


@pytest.mark.parametrize(("budget", "resource"), THREE_CALLS)
def test_a_budget_of_three_calls_gives_three(
    guard: Guard, script: Any, drive: Drive, budget: Budget, resource: str
) -> None:
    with pytest.raises(BudgetExceededError) as stopped, guard.run("agent", budget=budget) as run:
        drive(script.agent())

    assert len(script.requests) == 3
    assert stopped.value is run.stop
    assert stopped.value.resource == resource
    assert run.state is RunState.FAILED
    assert guard.summary(run.id).termination["type"] == "BudgetExceededError"
    assert run.summary().open_steps == ()
    assert guard.verify(run.id)


def test_twenty_agents_that_ignore_the_stop_get_three_calls(guard: Guard, script: Any, drive: Drive) -> None:
    script.turns = 0

    def insist() -> None:
        for _ in range(20):
            with contextlib.suppress(Exception):
                drive(script.agent())

    with pytest.raises(BudgetExceededError), guard.run("agents", budget=Budget(calls={"kind:llm": 3})) as run:
        insist()

    assert len(script.requests) == 3
    assert run.state is RunState.FAILED
    assert run.summary().open_steps == ()


def test_a_kill_at_the_second_call_lets_no_third_begin(guard: Guard, script: Any, drive: Drive) -> None:
    run = guard.run("agent")
    script.at[2] = lambda: run.kill("enough", actor="test")
    with pytest.raises(KillSwitchTriggeredError) as stopped, run:
        drive(script.agent())

    assert len(script.requests) == 2
    assert stopped.value.reason == "enough"
    assert run.state is RunState.KILLED
    assert run.summary().open_steps == ()


def test_a_kill_cancels_a_request_in_flight(guard: Guard, script: Any) -> None:
    async def hang(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        run.kill("enough")
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(KillSwitchTriggeredError), guard.run("agent") as run:
        asyncio.run(script.agent(model=FunctionModel(hang, model_name="house")).run("go"))

    assert run.state is RunState.KILLED
    assert run.summary().open_steps == ()


@pytest.mark.parametrize("unpriced", ["refuse", "allow"])
def test_a_model_without_a_price_is_refused_before_the_call_where_usd_are_limited(
    guard: Guard, script: Any, drive: Drive, unpriced: Any
) -> None:
    script.turns = 1
    agent = script.agent(GuardCapability(unpriced=unpriced))
    outcome: Any = pytest.raises(UnknownCostError) if unpriced == "refuse" else contextlib.nullcontext()
    with outcome as stopped, guard.run("agent", budget=Budget(usd=1)) as run:
        drive(agent)

    assert len(script.requests) == (0 if unpriced == "refuse" else 2)
    if unpriced == "refuse":
        assert stopped.value.name == "house"
        assert "ModelPrices({'house'" in str(stopped.value)
        assert "unpriced='allow'" in str(stopped.value)
        assert run.state is RunState.FAILED
        assert [e.type for e in guard.history(run.id)][-2:] == ["step_refused", "run_failed"]


def test_without_a_limit_on_usd_an_unknown_model_may_be_used(
    guard: Guard, script: Any, go: Callable[..., Any]
) -> None:
    script.turns = 0
    with guard.run("agent", budget=Budget(tokens=10_000)) as run:
        by_run = go(script.agent(GuardCapability()))

    assert by_run.output == "done"
    assert run.spent.usd == 0


def test_a_limit_on_a_tool_stops_the_agent_at_the_tool(guard: Guard, script: Any, drive: Drive) -> None:
    with (
        pytest.raises(BudgetExceededError) as stopped,
        guard.run("agent", budget=Budget(calls={"add": 2})) as run,
    ):
        drive(script.agent())

    assert script.ran == [(1, 0), (2, 0)]
    assert stopped.value.resource == "calls:add"
    assert run.summary().open_steps == ()


def test_options_of_a_tool_are_those_of_a_step(guard: Guard, script: Any, go: Callable[..., Any]) -> None:
    options = {"add": {"usage": Usage(emails=1), "effect": "idempotent"}}
    with pytest.raises(BudgetExceededError), guard.run("agent", budget=Budget(emails=2)) as run:
        go(script.agent(GuardCapability(tool_options=options)))

    started = [e for e in guard.history(run.id) if e.type == "step_started" and e.kind == "tool"]
    assert [e.data["effect"] for e in started] == ["idempotent", "idempotent"]
    assert len(script.ran) == 2


def test_each_retry_of_a_tool_counts(guard: Guard, script: Any, go: Callable[..., Any]) -> None:
    agent = script.agent()

    @agent.tool_plain(retries=5)
    def moody(a: int) -> int:
        raise ModelRetry("again")

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=[ToolCallPart("moody", {"a": 1})])

    with (
        pytest.raises(BudgetExceededError),
        agent.override(model=FunctionModel(answer, model_name="house")),
        guard.run("agent", budget=Budget(calls={"moody": 3})) as run,
    ):
        go(agent)

    failed = [e for e in guard.history(run.id) if e.type == "step_failed"]
    assert [e.name for e in failed] == ["moody"] * 3
    assert run.summary().open_steps == ()


# --- what could swallow a stop, or hide calls -----------------------------------------------------


def _overloaded(requests: list[str]) -> FunctionModel:
    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        requests.append("overloaded")
        raise ModelHTTPError(503, "overloaded")

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        yield answer(messages, info).text or ""

    return FunctionModel(answer, stream_function=stream, model_name="house")


def _none(model: Any) -> Any:
    return model


def _limited(model: Any) -> Any:
    return ConcurrencyLimitedModel(model, limiter=5)


@pytest.mark.parametrize("around", [_none, _limited], ids=["bare", "wrapped"])
def test_every_candidate_of_a_fallback_model_counts(
    guard: Guard, script: Any, drive: Drive, around: Callable[[Any], Any]
) -> None:
    first = _overloaded(script.requests)
    agent = script.agent(model=around(FallbackModel(first, script.model)))
    with (
        pytest.raises(BudgetExceededError),
        guard.run("agent", budget=Budget(calls={"kind:llm": 3})) as run,
    ):
        drive(agent)

    assert len(script.requests) == 3
    assert run.summary().open_steps == ()


def test_every_attempt_of_the_fallback_capability_counts(
    guard: Guard, script: Any, go: Callable[..., Any]
) -> None:
    agent = script.agent(model=_overloaded(script.requests), capabilities=[ModelFallback(script.model)])
    with pytest.raises(BudgetExceededError), guard.run("agent", budget=Budget(calls={"kind:llm": 3})):
        go(agent)

    assert len(script.requests) == 3


def test_a_fallback_on_every_error_reaches_no_provider_after_the_stop(
    guard: Guard, script: Any, go: Callable[..., Any]
) -> None:
    agent = script.agent(model=FallbackModel(script.model, script.model, fallback_on=(Exception,)))
    with pytest.raises(BudgetExceededError), guard.run("agent", budget=Budget(calls={"kind:llm": 3})) as run:
        go(agent)

    assert len(script.requests) == 3
    assert run.state is RunState.FAILED


class Forgiving(AbstractCapability[Any]):
    """Turns every error of a tool into an answer for the model."""

    async def on_tool_execute_error(self, ctx: RunContext[Any], **parts: Any) -> Any:
        return "never mind"


@guarded_step(usage=Usage(emails=1))
def send_email() -> None: ...


def test_a_stop_that_is_swallowed_in_a_tool_ends_the_agent_at_the_next_call(
    guard: Guard, script: Any, go: Callable[..., Any]
) -> None:
    agent = script.agent(capabilities=[Forgiving()], tools=[])

    @agent.tool_plain
    def mail() -> None:
        send_email()

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        script.requests.append(1)
        return ModelResponse(parts=[ToolCallPart("mail", {})])

    with (
        pytest.raises(BudgetExceededError) as stopped,
        agent.override(model=FunctionModel(answer, model_name="house")),
        guard.run("agent", budget=Budget(emails=0)) as run,
    ):
        go(agent)

    assert stopped.value.resource == "emails"
    assert len(script.requests) == 1
    assert run.state is RunState.FAILED


def test_a_kill_during_the_last_answer_is_raised_at_the_end_of_the_agent(
    guard: Guard, script: Any, go: Callable[..., Any]
) -> None:
    script.turns = 0
    run = guard.run("agent")
    script.at[1] = lambda: run.kill("enough")
    with contextlib.suppress(KillSwitchTriggeredError), run, pytest.raises(KillSwitchTriggeredError):
        go(script.agent())

    assert run.state is RunState.KILLED


def test_a_guarded_model_is_guarded_without_the_capability(guard: Guard, script: Any, drive: Drive) -> None:
    with pytest.raises(BudgetExceededError), guard.run("agent", budget=Budget(calls={"kind:llm": 3})) as run:
        drive(Agent(GuardedModel(script.model), tools=[add]))

    assert len(script.requests) == 3
    assert run.summary().open_steps == ()


def test_a_guarded_model_is_guarded_once_under_the_capability(
    guard: Guard, script: Any, go: Callable[..., Any]
) -> None:
    script.turns = 0
    with guard.run("agent") as run:
        go(script.agent(model=GuardedModel(script.model)))

    assert run.spent.steps == 1


def test_the_capability_given_twice_guards_once(guard: Guard, script: Any, go: Callable[..., Any]) -> None:
    script.turns = 1
    with guard.run("agent") as run:
        go(script.agent(), capabilities=[GuardCapability(unpriced="allow")])

    assert run.spent.steps == 3


def test_batches_are_refused(guard: Guard, script: Any) -> None:
    with guard.run("agent"), pytest.raises(NotImplementedError, match="past the guard"):
        asyncio.run(GuardedModel(script.model).batch_create([]))


def test_without_a_run_nothing_is_asked(script: Any, drive: Drive) -> None:
    with pytest.raises(NoActiveRunError, match="GuardCapability"):
        drive(script.agent())

    assert script.requests == []


def add(a: int, b: int) -> int:
    return a + b


def test_a_subagent_in_a_tool_is_charged_to_its_scope_and_stops_with_it(
    guard: Guard, script: Any, go: Callable[..., Any]
) -> None:
    inner = script.agent(name="inner")
    outer_requests: list[int] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        outer_requests.append(1)
        if len(outer_requests) == 1:
            return ModelResponse(parts=[ToolCallPart("research", {})])
        return ModelResponse(parts=[TextPart("done")])

    outer: Agent[None, str] = Agent(
        FunctionModel(answer, model_name="house"),
        capabilities=[GuardCapability(unpriced="allow")],
        name="outer",
    )

    @outer.tool_plain
    async def research() -> str:
        try:
            async with run.scope("research", Budget(calls={"kind:llm": 2})):
                await inner.run("go")
        except RunStopped as stop:
            return f"stopped: {stop.scope}"
        return "finished"

    with guard.run("agent") as run:
        answer_text = go(outer).output

    assert answer_text == "done"
    assert len(script.requests) == 2
    assert run.state is RunState.COMPLETED
    assert started_keys(guard, run.id) == [
        "main/outer#1/house#1",
        "main/outer#1/turn1.0#1/research#1",
        "main/outer#1/turn1.0#1/research#1/inner#1/house#1",
        "main/outer#1/turn1.0#1/research#1/inner#1/turn1.0#1/add#1",
        "main/outer#1/turn1.0#1/research#1/inner#1/house#2",
        "main/outer#1/turn1.0#1/research#1/inner#1/turn2.0#1/add#1",
        "main/outer#1/house#2",
    ]


def started_keys(guard: Guard, run_id: str) -> list[str]:
    """The keys of the steps, without the tasks that the framework makes for itself."""
    keys = [e.key for e in guard.history(run_id) if e.type == "step_started"]
    return [re.sub(r"/task#\d+", "", key) for key in keys]
