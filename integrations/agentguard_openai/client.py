"""`guard_client`: an OpenAI client whose requests to models are guarded steps."""

from __future__ import annotations

from typing import TypeVar, Unpack

from openai import AsyncOpenAI, OpenAI

from agentguard_clients import ClientOptions, guarded_sdk_client
from agentguard_openai._mapping import PROVIDER
from agentguard_openai._sockets import watch_sockets

ClientT = TypeVar("ClientT", bound="OpenAI | AsyncOpenAI")


def guard_client(client: ClientT, **options: Unpack[ClientOptions]) -> ClientT:
    """Return a client like this one whose requests to models are guarded steps.

    Chat completions, responses, embeddings and completions, parsed, raw or streamed, sync and async: each
    attempt, the SDK's own retries too, is reserved before it is sent and charged by what the provider
    counts.  The client has the same class and options, and shares the connections of `client`, which
    stays as it is.  Copies of it (`with_options`, `copy`) are guarded too.

    Args:
        client: an `OpenAI` or `AsyncOpenAI` client, or one of a subclass (`AzureOpenAI`).
        options: `run` (the run that pays; by default the one that is active), `prices` (a `PriceBook`; by
            default genai-prices), `unpriced` (`"refuse"` or `"allow"` calls without a price where USD are
            limited), `max_output_tokens` (the bound of calls that name none), `clamp` (True: lower the
            bound to what the budget leaves), `outside` (`"refuse"` or `"allow"` calls outside a run),
            `provider` (who serves the models, for the price book; by default by the address of a request).

    Raises:
        TypeError: not a client of the OpenAI SDK.

    Example:
        >>> from openai import OpenAI
        >>> client = guard_client(OpenAI(api_key="sk-..."))
        >>> type(client).__name__, client.with_options(timeout=5).timeout
        ('OpenAI', 5)
    """
    watch_sockets()
    return guarded_sdk_client(client, (OpenAI, AsyncOpenAI), PROVIDER, options)
