"""A scripted model, and what goes with it.  No network, no clock."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import BaseTool, tool

#: What a scripted answer says it used.
USAGE = {
    "input_tokens": 10,
    "output_tokens": 5,
    "total_tokens": 15,
    "input_token_details": {"cache_read": 4},
    "output_token_details": {"reasoning": 2},
}


def answer(text: str = "one two three", *calls: dict[str, Any], usage: Any = USAGE) -> AIMessage:
    """A model's answer, which may ask for tools."""
    return AIMessage(text, tool_calls=list(calls), usage_metadata=usage)


def wants(name: str, call_id: str, **args: Any) -> dict[str, Any]:
    """A tool call."""
    return {"name": name, "args": args, "id": call_id, "type": "tool_call"}


class Scripted(BaseChatModel):
    """A model that answers by a script, and counts the calls that reach its provider."""

    #: Gives the n-th answer, from 1; or the answers in turn, the last one again and again.
    script: Any = None
    #: What reached the provider: the messages of each call.
    seen: list[Any] = []
    #: The keywords of each call.
    settings: list[Any] = []
    #: Called with n when the n-th call reaches the provider, and with (n, i) before its i-th token.
    during: Any = None
    between: Any = None
    model_name: str = "scripted"

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, *, tool_choice: Any = None, **kwargs: Any) -> Any:
        return self.bind(tools=[{"name": t.name} for t in tools], **kwargs)

    def _arrives(self, messages: list[BaseMessage], settings: dict[str, Any]) -> AIMessage:
        self.seen.append(messages)
        self.settings.append(settings)
        number = len(self.seen)
        if self.during is not None:
            self.during(number)
        script = self.script or [answer()]
        return script(number, messages) if callable(script) else script[min(number, len(script)) - 1]

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kw: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._arrives(messages, kw))])

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kw: Any
    ) -> ChatResult:
        message = self._arrives(messages, kw)
        await asyncio.sleep(0)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _chunks(self, message: AIMessage) -> Iterator[ChatGenerationChunk]:
        number = len(self.seen)
        words = str(message.content).split() or [""]
        for index, word in enumerate(words):
            if self.between is not None:
                self.between(number, index)
            last = index == len(words) - 1
            calls = [
                {"name": c["name"], "args": _json(c["args"]), "id": c["id"], "index": i}
                for i, c in enumerate(message.tool_calls if last else [])
            ]
            usage = message.usage_metadata if last else None
            yield ChatGenerationChunk(
                message=AIMessageChunk(content=word, tool_call_chunks=calls, usage_metadata=usage)
            )

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kw: Any
    ) -> Iterator[ChatGenerationChunk]:
        yield from self._chunks(self._arrives(messages, kw))

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kw: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._chunks(self._arrives(messages, kw)):
            await asyncio.sleep(0)
            yield chunk


def _json(args: Any) -> str:
    import json

    return json.dumps(args)


class Inline(BaseCallbackHandler):
    """Somebody else's handler that runs inline, as tracers do."""

    run_inline = True

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        pass


class NotInline(Inline):
    """Somebody else's handler that runs in a thread of its own in async code."""

    run_inline = False


@pytest.fixture
def scripted() -> type[Scripted]:
    """The scripted model's class."""
    return Scripted


@pytest.fixture
def model() -> Scripted:
    """A scripted model that answers the same for ever."""
    return Scripted(seen=[], settings=[])


@pytest.fixture
def search() -> tuple[BaseTool, list[str]]:
    """A tool, and what it was called with."""
    calls: list[str] = []

    @tool
    def search(query: str) -> str:
        """Search."""
        calls.append(query)
        return f"found {query}"

    return search, calls


@pytest.fixture(autouse=True)
def _no_detach_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No span may be left in another context than it was entered in."""
    with caplog.at_level(logging.WARNING):
        yield
    assert "Failed to detach context" not in caplog.text


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_left_for_the_end() -> Iterator[None]:
    """What langchain-core forgets is collected while that is no error: at the end of the session it is one."""
    yield
    gc.collect()


@pytest.fixture
def others(beside: str) -> Iterator[list[BaseCallbackHandler]]:
    """Handlers of somebody else's, as the parameter `beside` says."""
    yield {"alone": [], "inline": [Inline()], "not inline": [NotInline()]}[beside]
    if beside != "alone":
        gc.collect()  # of the coroutines that langchain-core forgets, while that is no error


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # When the first of several inline handlers raises, langchain-core forgets the coroutines of the others
    # (AsyncCallbackManager.on_chat_model_start makes them all before it awaits any).
    forgotten = (
        "ignore:coroutine 'ahandle_event' was never awaited:RuntimeWarning",
        "ignore:Exception ignored in. <coroutine object ahandle_event:pytest.PytestUnraisableExceptionWarning",
    )
    for item in items:
        if "langchain" in item.path.parts:
            for warning in forgotten:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture
def says() -> tuple[Callable[..., AIMessage], Callable[..., dict[str, Any]]]:
    """How scripts are written: `answer(text, *calls)` and `wants(tool, call_id, **args)`."""
    return answer, wants
