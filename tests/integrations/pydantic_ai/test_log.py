"""The log of an agent: keys from the agent's tree, and a log that the agent can be run on again."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from agentguard import Budget, BudgetExceededError, Guard

Drive = Callable[[Agent[None, str]], None]


def bare(key: str) -> str:
    """A key without the tasks that the framework makes for itself."""
    return re.sub(r"/task#\d+", "", key)


def test_the_log_shows_the_agents_tree(guard: Guard, script: Any, go: Callable[..., Any]) -> None:
    script.turns, script.parallel = 1, 3
    with guard.run("agent") as run:
        go(script.agent())

    started = {bare(e.key): e for e in guard.history(run.id) if e.type == "step_started"}
    assert list(started) == [
        "main/adder#1/house#1",
        "main/adder#1/turn1.0#1/add#1",
        "main/adder#1/turn1.1#1/add#1",
        "main/adder#1/turn1.2#1/add#1",
        "main/adder#1/house#2",
    ]
    assert [e.kind for e in started.values()] == ["llm", "tool", "tool", "tool", "llm"]
    assert started["main/adder#1/house#1"].data["reserve"]["output_tokens"] == 10


def test_keys_of_parallel_tools_do_not_depend_on_who_comes_first(guard: Guard, script: Any) -> None:
    async def main() -> None:
        second_ran = asyncio.Event()
        agent = script.agent()

        @agent.tool_plain
        async def wait(index: int) -> int:
            if index == 0:
                await second_ran.wait()
            second_ran.set()
            return index

        def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
            if len(messages) > 1:
                return script.answer(messages, info)
            return ModelResponse(parts=[ToolCallPart("wait", {"index": index}) for index in range(2)])

        script.turns = 0
        with agent.override(model=FunctionModel(answer, model_name="house")):
            await agent.run("go")

    with guard.run("agent") as run:
        asyncio.run(main())

    ended = [bare(e.key) for e in guard.history(run.id) if e.type == "step_completed" and e.kind == "tool"]
    assert ended == ["main/adder#1/turn1.1#1/wait#1", "main/adder#1/turn1.0#1/wait#1"]


def test_an_agent_is_replayed_without_a_request(guard: Guard, script: Any, drive: Drive) -> None:
    script.turns, script.parallel = 2, 2
    with guard.run("agent") as run:
        drive(script.agent())
    requests, ran = len(script.requests), len(script.ran)

    with guard.replay(run.id):
        drive(script.agent())

    assert (len(script.requests), len(script.ran)) == (requests, ran)


def test_a_replay_stops_where_the_run_did(guard: Guard, script: Any, drive: Drive) -> None:
    with pytest.raises(BudgetExceededError), guard.run("agent", budget=Budget(calls={"kind:llm": 3})) as run:
        drive(script.agent())

    with pytest.raises(BudgetExceededError) as replayed, guard.replay(run.id):
        drive(script.agent())

    assert len(script.requests) == 3
    assert replayed.value.facts() == run.stop.facts()
