"""An agent whose refund asks by an interrupt; run as a program, it dies: `DB interrupted`, or `DB "in the tool"`."""

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
from langgraph.types import Command

from agentguard import Budget, Guard
from agentguard_langchain import GuardMiddleware


class Model(BaseChatModel):
    """Asks for one refund."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        return self

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kw: Any) -> ChatResult:
        done = any(isinstance(message, ToolMessage) for message in messages)
        calls: Any = [] if done else [{"name": "refund", "args": {"usd": 500}, "id": "c1"}]
        return ChatResult(generations=[ChatGeneration(message=AIMessage("done", tool_calls=calls))])


class Program:
    """The agent, and what it physically paid."""

    def __init__(self, saver: Any, *, dies: bool = False) -> None:
        self.paid: list[int] = []

        def refund(usd: int) -> str:
            """Pay money back."""
            if dies:
                os._exit(9)
            self.paid.append(usd)
            return f"paid {usd}"

        options = {"refund": {"approval": True, "effect": "idempotent"}}
        guarding = GuardMiddleware(approvals="interrupt", tool_options=options)
        self.agent = create_agent(Model(), [refund], checkpointer=saver, middleware=[guarding])

    def go(self, given: Any) -> Any:
        return self.agent.invoke(given, {"configurable": {"thread_id": "t"}}, durability="sync")


if __name__ == "__main__":
    db, dies = sys.argv[1:]
    with closing(sqlite3.connect(db, check_same_thread=False)) as connection:
        program = Program(SqliteSaver(connection), dies=True)
        with Guard.open(telemetry=False) as guard, guard.run("a", run_id="r", budget=Budget(steps=20)):
            program.go({"messages": [("user", "go")]})
            if dies == "in the tool":
                program.go(Command(resume={"type": "approve", "actor": "ann", "reason": "checked"}))
            os._exit(9)
