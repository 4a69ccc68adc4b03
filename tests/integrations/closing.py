"""Clients that frameworks keep after the call: closed in the loop that opened them.

One that is only dropped is reported as an unclosed socket in whichever test the collector runs next.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Awaitable, Iterator
from typing import Any


@contextlib.contextmanager
def closing_model(model: Any) -> Iterator[Any]:
    """Yield a LangChain model of Anthropic, whose clients are kept by base URL, and close its client."""
    try:
        yield model
    finally:
        model._client.close()


async def with_litellm(answer: Awaitable[Any]) -> Any:
    """Return the awaited answer and close LiteLLM's clients, which it keeps for an hour."""
    try:
        return await answer
    finally:
        await close_litellm()


async def close_litellm() -> None:
    import litellm

    kept = litellm.in_memory_llm_clients_cache
    for client in list(kept.cache_dict.values()):
        closed = client.close()
        if inspect.isawaitable(closed):
            await closed
    kept.flush_cache()
