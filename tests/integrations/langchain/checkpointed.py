"""An agent with a checkpointer; run as a program, it dies in one of its tool calls: `DB CRASH_AT PARALLEL`."""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.sqlite import SqliteSaver

from agentguard import Budget, Guard
from agentguard_langchain import GuardMiddleware

USAGE = {"input_tokens": 10, "output_tokens": 1, "total_tokens": 11}
GO: Any = {"messages": [("user", "go")]}
BUDGET = Budget(tokens=1000, steps=20)


def thread(name: str = "t") -> Any:
    return {"configurable": {"thread_id": name}}


class Model(BaseChatModel):
    """Asks for `work` with 0, 1 and 2: one after the other, or side by side."""

    parallel: bool = False
    asked: list[int] = []

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        return self

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kw: Any) -> ChatResult:
        done = sum(isinstance(message, ToolMessage) for message in messages)
        self.asked.append(done)
        wanted = [] if done >= 3 else list(range(3)) if self.parallel else [done]
        calls = [{"name": "work", "args": {"n": n}, "id": f"c{n}"} for n in wanted]
        message = AIMessage("" if calls else "done", tool_calls=calls, usage_metadata=USAGE)
        return ChatResult(generations=[ChatGeneration(message=message)])


class Program:
    """The agent, and what it physically did."""

    def __init__(self, saver: Any, *, parallel: bool = False, crash_at: int | None = None) -> None:
        self.worked: list[int] = []
        self.model = Model(parallel=parallel, asked=[])

        def work(n: int) -> str:
            """Work."""
            if n == crash_at:
                os._exit(9)
            self.worked.append(n)
            return f"did {n}"

        guarding = GuardMiddleware(tool_options={"work": {"effect": "idempotent"}}, max_output_tokens=50)
        self.agent = create_agent(self.model, [work], checkpointer=saver, middleware=[guarding])

    def go(self, inputs: Any = None, name: str = "t") -> str:
        found = self.agent.invoke(inputs, {**thread(name), "max_concurrency": 1}, durability="sync")
        return str(found["messages"][-1].content)


if __name__ == "__main__":
    db, crash_at, parallel = sys.argv[1:]
    with closing(sqlite3.connect(db, check_same_thread=False)) as connection:
        program = Program(SqliteSaver(connection), parallel=bool(int(parallel)), crash_at=int(crash_at))
        with Guard.open(telemetry=False) as guard, guard.run("a", run_id="r", budget=BUDGET):
            program.go(GO)
