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
    """Yield a LangChain model of Anthropic, and close its client.

    LangChain keeps the connection by base URL, closed or not, and a later server may have the same port.
    """
    from langchain_anthropic import _client_utils

    try:
        yield model
    finally:
        model._client.close()
        _client_utils._get_default_httpx_client.cache_clear()


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
    kept.flush_cache()  # type: ignore[no-untyped-call]
