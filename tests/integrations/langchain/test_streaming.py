"""A kill ends a stream at its next token; what has been streamed is charged."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain")

from langchain.agents import create_agent

from agentguard import Guard, KillSwitchTriggeredError, RunState
from agentguard_langchain import GuardCallbackHandler, GuardMiddleware

HI = {"messages": [("user", "hi")]}
GUARDS = pytest.mark.parametrize("guarded_by", ["handler", "middleware", "both"])
WORDS = "zero one two three four five six"


def agents_words(agent: Any, config: Any, mode: str) -> list[str]:
    """What an agent streams, until it ends."""
    words: list[str] = []

    async def listen() -> None:
        async for chunk, _ in agent.astream(HI, config, stream_mode="messages"):
            words.append(chunk.content)

    try:
        if mode == "async":
            asyncio.run(listen())
        else:
            for chunk, _ in agent.stream(HI, config, stream_mode="messages"):
                words.append(chunk.content)
    except KillSwitchTriggeredError:
        words.append("killed")
    return words


def agent_of(model: Any, guarded_by: str) -> tuple[Any, Any]:
    middleware = [] if guarded_by == "handler" else [GuardMiddleware()]
    handlers = [] if guarded_by == "middleware" else [GuardCallbackHandler()]
    return create_agent(model, [], middleware=middleware), {"callbacks": handlers}


@GUARDS
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_kill_ends_a_streaming_agent_at_the_next_token(
    guard: Guard, model: Any, says: Any, guarded_by: str, mode: str
) -> None:
    model.script = [says[0](WORDS)]
    made: list[int] = []

    def between(number: int, index: int) -> None:
        if index == 3:
            run.kill("enough")
        made.append(index)

    model.between = between
    agent, config = agent_of(model, guarded_by)
    with pytest.raises(KillSwitchTriggeredError), guard.run("stream") as run:
        words = agents_words(agent, config, mode)
    assert words[-1] == "killed"
    # The middleware's own watcher comes after LangGraph's, which has handed that token on by then.
    assert words.count("three") == (guarded_by == "middleware")
    assert made[-1] == 3
    assert run.state is RunState.KILLED
    assert run.summary().open_steps == ()


@pytest.mark.parametrize("mode", ["sync", "async", "events"])
def test_a_kill_ends_the_stream_of_a_model_at_the_next_token(
    guard: Guard, model: Any, says: Any, mode: str
) -> None:
    model.script = [says[0](WORDS)]
    model.between = lambda number, index: index == 3 and run.kill("enough")
    config: Any = {"callbacks": [GuardCallbackHandler()]}
    heard: list[Any] = []

    async def listen() -> None:
        stream = (
            model.astream_events("hi", config, version="v2")
            if mode == "events"
            else model.astream("hi", config)
        )
        async for chunk in stream:
            heard.append(chunk)

    with pytest.raises(KillSwitchTriggeredError), guard.run("stream") as run:
        if mode == "sync":
            for chunk in model.stream("hi", config):
                heard.append(chunk)
        else:
            asyncio.run(listen())
    assert "three" not in str(heard)
    assert "two" in str(heard)


@pytest.mark.parametrize("guarded_by", ["middleware", "both"])  # a handler alone cannot cancel
def test_a_call_that_hangs_is_cancelled_by_a_kill_where_the_middleware_makes_it(
    guard: Guard, scripted: Any, guarded_by: str
) -> None:
    class Hanging(scripted):
        async def _agenerate(
            self, messages: Any, stop: Any = None, run_manager: Any = None, **kw: Any
        ) -> Any:
            run.kill("enough")
            await asyncio.Event().wait()

    agent, config = agent_of(Hanging(seen=[], settings=[]), guarded_by)
    with pytest.raises(KillSwitchTriggeredError), guard.run("hang") as run:
        asyncio.run(agent.ainvoke(HI, config))
    assert run.summary().open_steps == ()


KILLER = """
import sys
from agentguard import Guard
with Guard.open() as guard:
    guard.kill(run=sys.argv[1], reason="from outside", actor="test")
"""


@GUARDS
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_kill_from_another_process_ends_a_streaming_agent_at_the_next_token(
    sqlite_guard: Guard, model: Any, says: Any, guarded_by: str, mode: str, tmp_path: Path
) -> None:
    model.script = [says[0](WORDS)]

    def between(number: int, index: int) -> None:
        if index == 2:
            subprocess.run([sys.executable, "-c", KILLER, run.id], check=True, cwd=tmp_path)

    model.between = between
    agent, config = agent_of(model, guarded_by)
    with (
        pytest.raises(KillSwitchTriggeredError, match="from outside") as stopped,
        sqlite_guard.run("s") as run,
    ):
        words = agents_words(agent, config, mode)
    assert words[-1] == "killed"
    assert words.count("two") == (guarded_by == "middleware")
    assert "three" not in words
    assert (stopped.value.scope, stopped.value.actor) == ("run", "test")
    assert run.state is RunState.KILLED
