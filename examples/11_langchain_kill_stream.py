"""Kill a LangChain agent from another process while its model streams: it ends at the next token.

Needs:   pip install 'agentguard[langchain]'
Run it:  python examples/11_langchain_kill_stream.py
The model is scripted, so nothing is sent anywhere.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from agentguard import Guard, KillSwitchTriggeredError
from agentguard_langchain import GuardCallbackHandler, GuardMiddleware


class Talker(BaseChatModel):
    """Stands for a model that talks for an hour."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError("this one only streams")

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        for number in range(360_000):
            yield ChatGenerationChunk(message=AIMessageChunk(f"word {number} "))
            await asyncio.sleep(0.01)


async def listen(run_id: str) -> None:
    """Listen to the agent, and have it killed once it has begun to talk."""
    agent = create_agent(Talker(), [], middleware=[GuardMiddleware()])
    config: Any = {"callbacks": [GuardCallbackHandler()]}
    other: asyncio.Task[str] | None = None
    heard = 0
    try:
        async for chunk, _ in agent.astream(
            {"messages": [("user", "Tell me everything.")]}, config, stream_mode="messages"
        ):
            heard += bool(chunk.content)
            if heard == 3:
                print("the agent talks")
                other = asyncio.create_task(pull_the_switch(run_id))
    except KillSwitchTriggeredError as stop:
        print(f"in the middle of a sentence: {stop.reason!r}")
        raise
    finally:
        if other is not None:
            print(f"the other process: {await other}")


async def pull_the_switch(run_id: str) -> str:
    # The same as typing `agentguard kill --run ID --reason ...` into another terminal.
    command = [sys.executable, "-m", "agentguard.cli", "kill", "--run", run_id, "--reason", "that will do"]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    return output.decode().strip()


def main() -> None:
    with Guard.open() as guard:
        try:
            with guard.run("talk") as run:
                asyncio.run(listen(run.id))
        except KillSwitchTriggeredError as stop:
            print(f"the run's block raises it too: {stop.reason!r}")
        summary = guard.summary(run.id)
        print(f"on record: {summary.state}, {summary.steps} step, none left open")


if __name__ == "__main__":
    # Only so that the example leaves your own state alone; a program needs no such line.
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("AGENTGUARD_HOME", home)
        main()
