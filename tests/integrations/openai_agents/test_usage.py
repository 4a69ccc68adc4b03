"""What an agent used, and its log: counted once, keyed by the agent's tree, replayed without a call."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any

import pytest
from agents import RunConfig, Runner, Usage, function_tool
from agents.exceptions import ToolTimeoutError
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message, function_call
from openai.types.responses import ResponseTextDeltaEvent

from agentguard import Budget, BudgetExceededError, Guard, RunState
from agentguard.cost.prices import ModelPrices
from agentguard_openai_agents import GuardHooks, guard_agent

Drive = Callable[..., Any]
CONFIG = RunConfig(tracing_disabled=True)


def test_usage_is_counted_once_with_its_parts(guard: Guard, script: Any, drive: Drive) -> None:
    script.turns = 2
    with guard.run("agent", budget=Budget(usd=1)) as run:
        drive(script.agent())

    assert (run.spent.input_tokens, run.spent.output_tokens) == (300, 30)
    assert (run.spent.cached_tokens, run.spent.reasoning_tokens) == (120, 12)
    assert run.spent.usd == Decimal("0.003")
    assert run.spent.steps == 5


def test_an_answer_without_usage_is_charged_its_reservation(guard: Guard, script: Any, drive: Drive) -> None:
    with guard.run("agent") as run:
        drive(script.agent(ScriptedModel([ModelStep(output=[assistant_message("hi")], usage=Usage())])))

    assert run.spent.output_tokens == 10
    assert run.spent.usd == Decimal("0.001")


def test_a_failed_call_is_charged_its_reservation(guard: Guard, script: Any, drive: Drive) -> None:
    with pytest.raises(ConnectionError), guard.run("agent") as run:
        drive(script.agent(ScriptedModel([ConnectionError("gone")])))

    assert run.spent.output_tokens == 10
    assert run.summary().open_steps == ()


@pytest.mark.parametrize("streamed", [False, True], ids=["answered", "streamed"])
def test_a_cancelled_call_leaves_no_reservation(guard: Guard, script: Any, streamed: bool) -> None:
    async def main() -> None:
        asked = asyncio.Event()

        async def hang(call: ModelCall) -> Any:
            asked.set()
            await asyncio.Event().wait()

        async def go() -> None:
            agent = script.agent(ScriptedModel([ModelStep(responder=hang)]))
            if not streamed:
                await Runner.run(agent, "go", run_config=CONFIG)
            result = Runner.run_streamed(agent, "go", run_config=CONFIG)
            async for _ in result.stream_events():
                pass

        task = asyncio.ensure_future(go())
        await asked.wait()
        task.cancel()
        await task

    with guard.run("agent") as run, pytest.raises(asyncio.CancelledError):
        asyncio.run(main())

    assert run.state is RunState.COMPLETED
    assert run.summary().open_steps == ()


def test_a_stream_that_is_cancelled_midway_leaves_no_reservation(guard: Guard, script: Any) -> None:
    async def events(call: ModelCall) -> AsyncIterator[ResponseTextDeltaEvent]:
        yield ResponseTextDeltaEvent(
            content_index=0,
            delta="word",
            item_id="1",
            logprobs=[],
            output_index=0,
            sequence_number=1,
            type="response.output_text.delta",
        )
        await asyncio.Event().wait()

    async def main() -> None:
        agent = script.agent(ScriptedModel([ModelStep(stream_events=events)]))
        result = Runner.run_streamed(agent, "go", run_config=CONFIG)
        async for event in result.stream_events():
            if event.type == "raw_response_event":
                result.cancel()

    with guard.run("agent") as run:
        asyncio.run(main())

    assert run.summary().open_steps == ()
    assert run.spent.output_tokens == 10


def test_a_tool_that_times_out_leaves_no_reservation(guard: Guard, script: Any, drive: Drive) -> None:
    @function_tool(timeout=0.001, timeout_behavior="raise_exception")
    async def add(a: int, b: int) -> int:
        await asyncio.Event().wait()
        return 0

    with pytest.raises(ToolTimeoutError), guard.run("agent") as run:
        drive(script.agent(tools=[add]))

    assert run.summary().open_steps == ()


@pytest.mark.parametrize(
    ("budget", "options", "asked", "sent"),
    [
        pytest.param(Budget(output_tokens=500), {}, None, 500, id="lowered-to-the-tokens-left"),
        pytest.param(Budget(usd="0.05"), {}, None, 500, id="lowered-to-the-money-left"),
        pytest.param(Budget(output_tokens=500), {}, 100, 100, id="its-own"),
        pytest.param(Budget(output_tokens=90_000), {}, None, None, id="enough-left"),
        pytest.param(Budget(), {"max_output_tokens": 700}, None, 700, id="by-option"),
    ],
)
def test_max_tokens_are_what_the_budget_leaves(
    guard: Guard, script: Any, go: Drive, budget: Budget, options: Any, asked: Any, sent: Any
) -> None:
    script.turns = 0
    prices = ModelPrices({"ScriptedModel": {"input": 0, "output": 100}}, fallback=None)
    bare = script.bare_agent(model_settings={"max_tokens": asked})
    with guard.run("agent", budget=budget):
        go(guard_agent(bare, prices=prices, **options))

    assert script.requests[0].model_settings.max_tokens == sent


# --- the log --------------------------------------------------------------------------------------


def bare(key: str) -> str:
    """A key without the tasks that the SDK makes for itself."""
    return re.sub(r"/task#\d+", "", key)


def test_the_log_shows_the_agents_tree(guard: Guard, script: Any, drive: Drive) -> None:
    script.turns, script.parallel = 2, 2
    with guard.run("agent") as run:
        drive(script.agent())

    started = [e for e in guard.history(run.id) if e.type == "step_started"]
    assert [bare(e.key) for e in started] == [
        "main/agent#1/ScriptedModel#1",
        "main/agent#1/turn1.0#1/add#1",
        "main/agent#1/turn1.1#1/add#1",
        "main/agent#1/ScriptedModel#2",
        "main/agent#1/turn2.0#1/add#1",
        "main/agent#1/turn2.1#1/add#1",
        "main/agent#1/ScriptedModel#3",
    ]


def test_keys_of_parallel_tools_do_not_depend_on_who_comes_first(guard: Guard, script: Any) -> None:
    async def main() -> None:
        second_ran = asyncio.Event()

        @function_tool
        async def wait(index: int) -> int:
            if index == 0:
                await second_ran.wait()
            second_ran.set()
            return index

        calls = [function_call("wait", {"index": index}, call_id=f"c{index}") for index in range(2)]
        model = ScriptedModel([calls, [assistant_message("done")]])
        agent = script.agent(model, tools=[wait])
        await Runner.run(agent, "go", run_config=CONFIG, hooks=GuardHooks())

    with guard.run("agent") as run:
        asyncio.run(main())

    ended = [bare(e.key) for e in guard.history(run.id) if e.type == "step_completed" and e.kind == "tool"]
    assert ended == ["main/agent#1/turn1.1#1/wait#1", "main/agent#1/turn1.0#1/wait#1"]


def test_an_agent_is_replayed_without_a_call(guard: Guard, script: Any, drive: Drive) -> None:
    script.turns, script.parallel = 2, 2
    with guard.run("agent") as run:
        first = drive(script.agent())
    done = len(script.requests), len(script.ran)

    with guard.replay(run.id):
        second = drive(script.agent())

    assert (len(script.requests), len(script.ran)) == done
    assert second.final_output == first.final_output == "done"


def test_a_replay_stops_where_the_run_did(guard: Guard, script: Any, drive: Drive) -> None:
    with pytest.raises(BudgetExceededError), guard.run("agent", budget=Budget(calls={"kind:llm": 3})) as run:
        drive(script.agent())

    with pytest.raises(BudgetExceededError) as replayed, guard.replay(run.id):
        drive(script.agent())

    assert len(script.requests) == 3
    assert replayed.value.facts() == run.stop.facts()
