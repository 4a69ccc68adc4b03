"""A stop ends an agent, whichever way it is run, after exactly the calls that were allowed."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from agents import (
    Agent,
    Model,
    ModelProvider,
    ModelSettings,
    RunConfig,
    WebSearchTool,
    function_tool,
    handoff,
)
from agents.exceptions import AgentsException
from agents.retry import ModelRetrySettings
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message, function_call
from openai.types.responses import ResponseTextDeltaEvent

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
from agentguard_openai_agents import (
    AgentBudgetExceededError,
    AgentKillSwitchTriggeredError,
    AgentRunStopped,
    AgentUnknownCostError,
    GuardedModel,
    GuardedModelProvider,
    UnguardedModelError,
    guard_agent,
    guard_tools,
)
from agentguard_openai_agents.stops import in_sdk_form

Drive = Callable[..., Any]

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


def test_the_stop_reaches_the_caller_of_the_runner_as_it_is(guard: Guard, script: Any, drive: Drive) -> None:
    run = guard.run("agent", budget=Budget(calls={"add": 0}))
    with contextlib.suppress(RunStopped), run, pytest.raises(BudgetExceededError) as inside:
        drive(script.agent())

    assert type(inside.value) is AgentBudgetExceededError
    assert isinstance(inside.value, AgentsException)
    assert inside.value.facts() == run.stop.facts()
    assert script.ran == []


def test_a_kill_at_the_second_call_lets_no_third_begin(guard: Guard, script: Any, drive: Drive) -> None:
    run = guard.run("agent")
    script.at[2] = lambda: run.kill("enough", actor="test")
    with pytest.raises(KillSwitchTriggeredError) as stopped, run:
        drive(script.agent())

    assert len(script.requests) == 2
    assert stopped.value.reason == "enough"
    assert run.state is RunState.KILLED
    assert run.summary().open_steps == ()


def test_a_kill_cancels_a_call_in_flight(guard: Guard, script: Any, drive: Drive) -> None:
    async def hang(call: Any) -> Any:
        run.kill("enough")
        await asyncio.Event().wait()

    run = guard.run("agent")
    with pytest.raises(KillSwitchTriggeredError), run:
        drive(script.agent(ScriptedModel([ModelStep(responder=hang)])))

    assert run.state is RunState.KILLED
    assert run.summary().open_steps == ()


def test_a_kill_ends_a_stream_within_one_event(guard: Guard, script: Any, stream: Drive) -> None:
    seen: list[int] = []

    async def events(call: ModelCall) -> AsyncIterator[ResponseTextDeltaEvent]:
        while True:
            seen.append(1)
            if len(seen) == 5:
                run.kill("enough")
            yield text_delta("word")

    run = guard.run("agent")
    with pytest.raises(KillSwitchTriggeredError), run:
        stream(script.agent(ScriptedModel([ModelStep(stream_events=events)])))

    assert len(seen) == 5
    assert run.state is RunState.KILLED
    assert run.summary().open_steps == ()


def text_delta(text: str) -> ResponseTextDeltaEvent:
    return ResponseTextDeltaEvent(
        content_index=0,
        delta=text,
        item_id="1",
        logprobs=[],
        output_index=0,
        sequence_number=1,
        type="response.output_text.delta",
    )


@pytest.mark.parametrize("unpriced", ["refuse", "allow"])
def test_a_model_without_a_price_is_refused_before_the_call_where_usd_are_limited(
    guard: Guard, script: Any, drive: Drive, unpriced: Any
) -> None:
    script.turns = 1
    agent = script.agent(unpriced=unpriced, prices=None)
    outcome: Any = pytest.raises(UnknownCostError) if unpriced == "refuse" else contextlib.nullcontext()
    with outcome as stopped, guard.run("agent", budget=Budget(usd=1)) as run:
        drive(agent)

    assert len(script.requests) == (0 if unpriced == "refuse" else 2)
    if unpriced == "refuse":
        assert stopped.value.name == "ScriptedModel"
        assert "ModelPrices({'ScriptedModel'" in str(stopped.value)
        assert run.state is RunState.FAILED


def test_a_limit_on_a_tool_stops_the_agent_at_the_tool(guard: Guard, script: Any, drive: Drive) -> None:
    with (
        pytest.raises(BudgetExceededError) as stopped,
        guard.run("agent", budget=Budget(calls={"add": 2})) as run,
    ):
        drive(script.agent())

    assert script.ran == [(1, 0), (2, 0)]
    assert stopped.value.resource == "calls:add"
    assert run.summary().open_steps == ()


def test_options_of_a_tool_are_those_of_a_step(guard: Guard, script: Any, drive: Drive) -> None:
    options = {"add": {"usage": Usage(emails=1), "effect": "idempotent"}}
    with pytest.raises(BudgetExceededError), guard.run("agent", budget=Budget(emails=2)) as run:
        drive(script.agent(tool_options=options))

    started = [e for e in guard.history(run.id) if e.type == "step_started" and e.kind == "tool"]
    assert [e.data["effect"] for e in started] == ["idempotent", "idempotent"]
    assert len(script.ran) == 2


def test_each_retry_of_a_tool_counts(guard: Guard, script: Any, drive: Drive) -> None:
    """The SDK tells the model that a tool failed, and the model asks for it again."""

    @function_tool
    def add(a: int, b: int) -> int:
        script.ran.append((a, b))
        raise ValueError("moody")

    with pytest.raises(BudgetExceededError), guard.run("agent", budget=Budget(calls={"add": 3})):
        drive(script.agent(tools=[add]))

    assert len(script.ran) == 3


def test_each_retry_of_a_model_call_counts(guard: Guard, script: Any, drive: Drive) -> None:
    model = ScriptedModel([ConnectionError("gone")] * 20)
    retry = ModelRetrySettings(
        max_retries=10, policy=lambda context: True, backoff={"initial_delay": 0, "jitter": False}
    )
    agent = script.agent(model, model_settings=ModelSettings(max_tokens=10, retry=retry))
    with (
        pytest.raises(BudgetExceededError),
        guard.run("agent", budget=Budget(calls={"kind:llm": 3})) as run,
    ):
        drive(agent)

    assert len(model.calls) == 3
    assert run.summary().open_steps == ()


@guarded_step(usage=Usage(emails=1))
def send_email() -> None: ...


def test_a_stop_inside_a_tool_is_not_told_to_the_model(guard: Guard, script: Any, drive: Drive) -> None:
    """The SDK makes a text of whatever a tool raises."""

    @function_tool
    def add(a: int, b: int) -> int:
        send_email()
        return a + b

    with pytest.raises(BudgetExceededError), guard.run("agent", budget=Budget(emails=0)):
        drive(script.agent(tools=[add]))

    assert len(script.requests) == 1


def test_a_tool_without_a_guard_is_counted_by_the_hooks(guard: Guard, script: Any, go: Drive) -> None:
    bare = script.bare_agent()
    with pytest.raises(BudgetExceededError), guard.run("agent", budget=Budget(calls={"add": 2})) as run:
        go(bare.clone(model=GuardedModel(script.model)))

    assert len(script.ran) == 2
    assert run.summary().open_steps == ()


def test_a_model_past_the_guard_is_found_by_the_hooks(guard: Guard, script: Any, go: Drive) -> None:
    config = RunConfig(tracing_disabled=True, model=script.model)
    with pytest.raises(UnguardedModelError, match="'adder' was called past the guard"), guard.run("agent"):
        go(script.agent(), run_config=config)

    assert len(script.requests) == 1


def test_a_provider_guards_the_models_that_it_gives(guard: Guard, script: Any, drive: Drive) -> None:
    class Provider:
        def get_model(self, model_name: str | None) -> Any:
            assert model_name == "house"
            return script.model

        async def aclose(self) -> None: ...

    config = RunConfig(tracing_disabled=True, model_provider=GuardedModelProvider(Provider()))  # type: ignore[arg-type]
    agent = script.bare_agent().clone(model="house")
    with pytest.raises(BudgetExceededError), guard.run("agent", budget=Budget(calls={"kind:llm": 3})):
        drive(agent, run_config=config)

    assert len(script.requests) == 3


def test_a_model_that_is_named_is_resolved_at_its_first_call(guard: Guard, script: Any, go: Drive) -> None:
    asked: list[str | None] = []

    class Provider(ModelProvider):
        def get_model(self, model_name: str | None) -> Model:
            asked.append(model_name)
            return script.model  # type: ignore[no-any-return]

    agent = guard_agent(script.bare_agent().clone(model="house"), provider=Provider(), unpriced="allow")
    assert asked == []
    script.turns = 0
    with guard.run("agent") as run:
        go(agent)
        go(agent)

    assert asked == ["house"]
    assert {e.name for e in guard.history(run.id) if e.type == "step_started"} == {"house"}


def test_a_guarded_model_closes_what_it_guards() -> None:
    closed: list[bool] = []

    class Closing(ScriptedModel):
        async def close(self) -> None:
            closed.append(True)

    asyncio.run(GuardedModel(GuardedModel(Closing())).close())
    asyncio.run(GuardedModel("never resolved").close())

    assert closed == [True]


def test_a_copy_of_a_guarded_tool_is_guarded(guard: Guard, script: Any, drive: Drive) -> None:
    (tool,) = guard_tools(script.bare_agent().tools)
    hosted = WebSearchTool()

    assert guard_tools([tool, hosted]) == [tool, hosted]
    agent = script.bare_agent(GuardedModel(script.model)).clone(tools=[copy.copy(tool)])
    with pytest.raises(BudgetExceededError), guard.run("agent", budget=Budget(calls={"add": 2})) as run:
        drive(agent)

    assert len(script.ran) == 2
    assert run.spent.steps == 5


def test_agents_that_are_handed_over_to_are_guarded(guard: Guard, script: Any, drive: Drive) -> None:
    first = Agent[None](
        name="first",
        model=ScriptedModel([[function_call("transfer_to_adder", {}, call_id="h")]]),
        handoffs=[script.bare_agent()],
    )
    with (
        pytest.raises(BudgetExceededError),
        guard.run("agents", budget=Budget(calls={"kind:llm": 3})) as run,
    ):
        drive(guard_agent(first, unpriced="allow"))

    assert len(script.requests) == 2
    assert run.summary().open_steps == ()


def test_agents_that_hand_over_to_each_other_are_copied_once() -> None:
    one, two = Agent[None](name="one"), Agent[None](name="two")
    one.handoffs, two.handoffs = [two], [one, handoff(one)]

    guarded = guard_agent(one)

    assert guarded.handoffs[0].handoffs[0] is guarded
    assert isinstance(guarded.model, GuardedModel)
    assert one.model is None


def test_a_subagent_as_a_tool_is_charged_inside_the_tool(guard: Guard, script: Any, drive: Drive) -> None:
    script.turns = 1
    inner = script.agent().as_tool("research", "Find out.", run_config=RunConfig(tracing_disabled=True))
    outer = Agent[None](
        name="outer",
        model=ScriptedModel(
            [[function_call("research", {"input": "go"}, call_id="r")], [assistant_message("found")]]
        ),
        tools=[inner],
    )
    with guard.run("agents") as run:
        result = drive(guard_agent(outer, unpriced="allow"))

    assert result.final_output == "found"
    parents = {e.name: e.data.get("parent", "") for e in guard.history(run.id) if e.type == "step_started"}
    assert "/research#1" in parents["add"]
    assert run.spent.steps == 6


def test_without_a_run_nothing_is_asked(script: Any, drive: Drive) -> None:
    with pytest.raises((NoActiveRunError, AgentsException), match="guard_agent"):
        drive(script.agent())

    assert len(script.requests) == 0


@pytest.mark.parametrize(
    ("stop", "form"),
    [
        (BudgetExceededError("steps", 1, 0, 1, 1, run_id="r"), AgentBudgetExceededError),
        (KillSwitchTriggeredError("run", "enough", run_id="r"), AgentKillSwitchTriggeredError),
        (UnknownCostError("house", ("usd",), "r", "no price"), AgentUnknownCostError),
        (RunStopped("over"), AgentRunStopped),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_every_stop_has_a_form_with_the_same_facts(stop: RunStopped, form: type[RunStopped]) -> None:
    error = in_sdk_form(stop)

    assert type(error) is form
    assert isinstance(error, AgentsException)
    assert error.facts() == stop.facts()
    assert str(error) == str(stop)
    assert in_sdk_form(error) is error
