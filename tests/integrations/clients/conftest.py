"""The four SDK clients against a local server, asked in the same words."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import anthropic
import openai
import pytest

import agentguard_anthropic
import agentguard_openai
from agentguard import Guard
from agentguard.cost.prices import ModelPrices
from tests.integrations.clients.server import Providers, serve

MESSAGES = [{"role": "user", "content": "What is the answer?"}]
#: 0.000001 USD a token of the prompt, 0.00001 USD a token of the answer: an answer costs 0.00012 USD.
PRICES = ModelPrices(
    {name: {"input": 1, "output": 10} for name in ("gpt-test", "claude-test")}, fallback=None
)
ANSWER_USD = "0.00012"
TEXT = "The answer is 42."


@dataclass
class Sdk:
    """One SDK client, asked in the same words as the others."""

    name: str
    asynchronous: bool
    server: Providers

    @property
    def is_openai(self) -> bool:
        return self.name == "openai"

    @property
    def model(self) -> str:
        return "gpt-test" if self.is_openai else "claude-test"

    @property
    def step(self) -> str:
        return "chat.completions" if self.is_openai else "messages"

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.is_openai else "/v1/messages"

    @property
    def error(self) -> Any:
        return openai if self.is_openai else anthropic

    def bare(self, **options: Any) -> Any:
        module, prefix = (openai, "/v1") if self.is_openai else (anthropic, "")
        name = ("Async" if self.asynchronous else "") + ("OpenAI" if self.is_openai else "Anthropic")
        return getattr(module, name)(**{"api_key": "k", "base_url": self.server.url + prefix, **options})

    def client(self, guarding: dict[str, Any] | None = None, **options: Any) -> Any:
        guard_client = agentguard_openai.guard_client if self.is_openai else agentguard_anthropic.guard_client
        return guard_client(self.bare(**options), **{"prices": PRICES, **(guarding or {})})

    async def create(self, client: Any, **options: Any) -> Any:
        """The answer as the SDK gives it, or its stream."""
        create = client.chat.completions.create if self.is_openai else client.messages.create
        asked = {"model": self.model, "messages": MESSAGES, "max_tokens": 100, **options}
        made = create(**asked)
        return await made if self.asynchronous else made

    async def ask(self, client: Any, **options: Any) -> str:
        return self.text(await self.create(client, **options))

    def text(self, answer: Any) -> str:
        return answer.choices[0].message.content if self.is_openai else answer.content[0].text

    def piece(self, event: Any) -> str:
        if self.is_openai:
            return event.choices[0].delta.content or ""
        return event.delta.text if event.type == "content_block_delta" else ""

    async def events(self, stream: Any) -> AsyncIterator[Any]:
        if self.asynchronous:
            async for event in stream:
                yield event
        else:
            for event in stream:
                yield event

    async def close(self, closable: Any) -> None:
        closed = closable.close()
        if self.asynchronous:
            await closed

    async def next(self, stream: Any) -> Any:
        return await anext(stream) if self.asynchronous else next(stream)


@pytest.fixture
def server() -> Iterator[Providers]:
    with serve() as providers:
        yield providers


@pytest.fixture(params=["openai", "anthropic"])
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["sync", "async"])
def sdk(request: pytest.FixtureRequest, provider: str, server: Providers) -> Sdk:
    return Sdk(provider, request.param == "async", server)


@pytest.fixture
def guard() -> Iterator[Guard]:
    with Guard.in_memory() as opened:
        yield opened


def closing(program: Callable[[], Any], *clients: Any) -> Any:
    """Run an async program, and close clients in its loop at the end."""

    async def whole() -> Any:
        try:
            return await program()
        finally:
            for client in clients:
                closed = client.close()
                with contextlib.suppress(Exception):
                    if asyncio.iscoroutine(closed):
                        await closed

    return asyncio.run(whole())


def outcomes(guard: Guard, run: Any) -> list[str]:
    """The types of the events of a run's steps."""
    return [event.type for event in guard.history(run.id) if event.type.startswith("step_")]
