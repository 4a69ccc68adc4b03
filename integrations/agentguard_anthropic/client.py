"""`guard_client`: an Anthropic client whose requests to models are guarded steps."""

from __future__ import annotations

from typing import TypeVar, Unpack, get_args

from anthropic import (
    Anthropic,
    AnthropicBedrock,
    AnthropicBedrockMantle,
    AnthropicVertex,
    AsyncAnthropic,
    AsyncAnthropicBedrock,
    AsyncAnthropicBedrockMantle,
    AsyncAnthropicVertex,
)

from agentguard_anthropic._mapping import PROVIDER
from agentguard_clients import ClientOptions, guarded_sdk_client

#: Clients; those of other platforms are of subclasses.
_SYNC = Anthropic | AnthropicBedrock | AnthropicBedrockMantle | AnthropicVertex
_ASYNC = AsyncAnthropic | AsyncAnthropicBedrock | AsyncAnthropicBedrockMantle | AsyncAnthropicVertex
ClientT = TypeVar("ClientT", bound=_SYNC | _ASYNC)


def guard_client(client: ClientT, **options: Unpack[ClientOptions]) -> ClientT:
    """Return a client like this one whose requests to models are guarded steps.

    Messages (created, parsed, raw, streamed, by the tool runner) and completions, sync and async: each
    attempt, the SDK's own retries too, is reserved before it is sent and charged by what the provider
    counts.  The client has the same class and options, and shares the connections of `client`, which
    stays as it is.  Copies of it (`with_options`, `copy`) are guarded too.

    Args:
        client: an `Anthropic` or `AsyncAnthropic` client, or that of a platform (`AnthropicBedrock`).
        options: `run` (the run that pays; by default the one that is active), `prices` (a `PriceBook`; by
            default genai-prices), `unpriced` (`"refuse"` or `"allow"` calls without a price where USD are
            limited), `max_output_tokens` (the bound of calls that name none), `clamp` (True: lower
            `max_tokens` to what the budget leaves, but never to a thinking budget), `outside`
            (`"refuse"` or `"allow"` calls outside a run), `provider` (who serves the models, for the
            price book; by default by the address of a request).

    Raises:
        TypeError: not a client of the Anthropic SDK.

    Example:
        >>> from anthropic import Anthropic
        >>> client = guard_client(Anthropic(api_key="sk-ant-..."))
        >>> type(client).__name__, client.with_options(timeout=5).timeout
        ('Anthropic', 5)
    """
    return guarded_sdk_client(client, (*get_args(_SYNC), *get_args(_ASYNC)), PROVIDER, options)
