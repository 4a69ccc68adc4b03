"""LangChain's ToolCallLimitMiddleware with its defaults: calls past the limit get an error message."""

import asyncio

from langchain.agents import create_agent
from langchain.agents.middleware import ToolCallLimitMiddleware
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import StructuredTool

REQUIRES = "langchain==1.5.2"
STOPS = ()


class Scripted(GenericFakeChatModel):
    def bind_tools(self, tools, **_):
        return self


def drive(limit, body, calls, at_once):
    async def abody():
        return await body()

    is_async = asyncio.iscoroutinefunction(body)
    given = {"coroutine": abody} if is_async else {"func": lambda: body()}  # noqa: PLW0108 - a signature is read
    tool = StructuredTool.from_function(**given, name="step", description="A step.")
    asked = [AIMessage("", tool_calls=_calls(number, at_once)) for number in range(calls // at_once)]
    limits = [] if limit is None else [ToolCallLimitMiddleware(run_limit=limit)]
    agent = create_agent(Scripted(messages=iter([*asked, AIMessage("Done.")])), [tool], middleware=limits)
    given = {"messages": [("user", "Go on.")]}
    ended = asyncio.run(agent.ainvoke(given)) if is_async else agent.invoke(given)
    return "a message to the model" if "limit exceeded" in str(ended) else None


def _calls(number, at_once):
    return [{"name": "step", "args": {}, "id": f"{number}-{each}"} for each in range(at_once)]
