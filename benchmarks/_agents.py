"""Agents of LangChain's whose model is scripted and whose tool does nothing: all machinery."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import copy_context
from itertools import count
from typing import Any

from agentguard import Usage, guarded_step
from benchmarks import _measure as m

#: Tool calls of one agent; it calls its model once more.
TOOL_CALLS = 5
CALLS = 2 * TOOL_CALLS + 1
#: The seconds between two tokens of a stream.
TOKEN = 0.005
_USAGE: Any = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
#: Lets an agent run, after some messages.
Ask = Callable[..., Any]


def agents() -> dict[str, Ask]:
    """The same agent without a guard, with ours, with what does nothing, and with steps made by hand."""
    from langchain.agents import create_agent  # noqa: PLC0415

    from agentguard_langchain import GuardCallbackHandler, GuardMiddleware, _hooks  # noqa: PLC0415

    def asks(middleware: list[Any], handlers: list[Any], think: Ask = _think, act: Ask = _act) -> Ask:
        agent = create_agent(scripted(think), [_tool(act)], middleware=middleware)
        config: Any = {"recursion_limit": 1000, "callbacks": handlers}

        def ask(history: list[Any] | None = None) -> Any:
            return agent.invoke({"messages": [*(history or []), ("user", "Go on.")]}, config)

        return ask

    def unheard(ask: Ask) -> Ask:
        """As in a process without agentguard: the first middleware has LangChain tell it of every call."""

        def alone(*args: Any) -> Any:
            context = copy_context()
            context.run(_hooks._LISTENER.set, None)  # noqa: SLF001
            return context.run(ask, *args)

        return alone

    return {
        "bare": unheard(asks([], [])),
        "both": asks([GuardMiddleware()], [GuardCallbackHandler()]),
        "handler": asks([], [GuardCallbackHandler()]),
        "middleware": asks([GuardMiddleware()], []),
        "empty": unheard(asks(*_idle())),
        "steps": unheard(asks([], [], _think_with_a_step, _act_with_a_step)),
        "by hand": unheard(asks([], [], _think_guarded, _act_guarded)),
    }


def _idle() -> tuple[list[Any], list[Any]]:
    """A middleware and a handler that hear of what ours hear of, and do nothing."""
    from langchain.agents.middleware import AgentMiddleware  # noqa: PLC0415
    from langchain_core.callbacks import BaseCallbackHandler  # noqa: PLC0415

    class Handler(BaseCallbackHandler):
        run_inline = True

        def on_chain_start(self, *args: Any, **kwargs: Any) -> None: ...
        def on_chain_end(self, *args: Any, **kwargs: Any) -> None: ...
        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None: ...
        def on_llm_end(self, *args: Any, **kwargs: Any) -> None: ...
        def on_tool_start(self, *args: Any, **kwargs: Any) -> None: ...
        def on_tool_end(self, *args: Any, **kwargs: Any) -> None: ...

    class Middleware(AgentMiddleware[Any, Any, Any]):
        def wrap_model_call(self, request: Any, handler: Callable[..., Any]) -> Any:
            return handler(request)

        def wrap_tool_call(self, request: Any, handler: Callable[..., Any]) -> Any:
            return handler(request)

    return [Middleware()], [Handler()]


def history(messages: int) -> list[Any]:
    """A conversation of some forty words a message, every fourth of which calls a tool."""
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage  # noqa: PLC0415

    text = "word " * 40
    found: list[Any] = []
    for number in range(messages // 4):
        call: Any = {"name": "search", "args": {"query": "more"}, "id": f"old_{number}"}
        found += [
            HumanMessage(text),
            AIMessage(text, tool_calls=[call], usage_metadata=_USAGE),
            ToolMessage(text, name="search", tool_call_id=call["id"]),
            AIMessage(text, usage_metadata=_USAGE),
        ]
    return found


# --- what the model and the tool do --------------------------------------------------------------


def _think(messages: list[Any]) -> str:
    return "Let me see."


def _act(query: str) -> str:
    return query


#: The thread CPU nanoseconds of each step that the agent with steps has made.
steps_there: list[float] = []
_step = guarded_step(m.work)


def _think_with_a_step(messages: list[Any]) -> str:
    steps_there.append(m.calls(_step, 1))
    return "Let me see."


def _act_with_a_step(query: str) -> str:
    steps_there.append(m.calls(_step, 1))
    return query


@guarded_step(
    kind="llm",
    reserve=lambda said: Usage(input_tokens=sum(len(text) for _, text in said) // 4, output_tokens=4096),
    usage=lambda _: Usage(input_tokens=10, output_tokens=5),
)
def _chat(said: list[tuple[str, str]]) -> str:
    return "Let me see."


def _think_guarded(messages: list[Any]) -> str:
    """What one would write without an integration: the messages as plain data, to a guarded function."""
    return str(_chat([(message.type, message.content) for message in messages]))


_act_guarded = guarded_step(_act)


def talker(model_calls: int) -> Ask:
    """A guarded agent that calls its model so often, and its tool between; a message has some forty words."""
    from langchain.agents import create_agent  # noqa: PLC0415

    from agentguard_langchain import GuardCallbackHandler, GuardMiddleware  # noqa: PLC0415

    text = "word " * 40
    model = scripted(lambda _: text, model_calls - 1)
    agent = create_agent(model, [_tool(text.format)], middleware=[GuardMiddleware()])
    config: Any = {"recursion_limit": 10 * model_calls, "callbacks": [GuardCallbackHandler()]}
    return lambda: agent.invoke({"messages": [("user", "Go on.")]}, config)


def _tool(act: Ask) -> Any:
    from langchain_core.tools import tool  # noqa: PLC0415

    @tool
    def search(query: str) -> str:
        """Search."""
        return str(act(query))

    return search


def scripted(think: Ask = _think, tool_calls: int = TOOL_CALLS) -> Any:
    """A model that asks for the tool again and again, and then answers; a stream of it has no end."""
    from langchain_core.language_models import BaseChatModel  # noqa: PLC0415
    from langchain_core.messages import AIMessage, AIMessageChunk  # noqa: PLC0415
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult  # noqa: PLC0415

    numbers = count()

    class Scripted(BaseChatModel):
        model_name: str = "scripted"

        @property
        def _llm_type(self) -> str:
            return "scripted"

        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
            return self

        def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
            text = think(messages)
            calls: list[Any] = []
            if _asked(messages) < tool_calls:
                calls = [{"name": "search", "args": {"query": "more"}, "id": f"call_{next(numbers)}"}]
            answer = AIMessage(text, tool_calls=calls, usage_metadata=_USAGE)
            return ChatResult(generations=[ChatGeneration(message=answer)])

        def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
            while True:
                time.sleep(TOKEN)
                yield ChatGenerationChunk(message=AIMessageChunk("on "))

        async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
            while True:
                await asyncio.sleep(TOKEN)
                yield ChatGenerationChunk(message=AIMessageChunk("on "))

    return Scripted()


def _asked(messages: list[Any]) -> int:
    """How often the model has answered since the user spoke."""
    answers = 0
    for message in reversed(messages):
        if message.type == "human":
            break
        answers += message.type == "ai"
    return answers
