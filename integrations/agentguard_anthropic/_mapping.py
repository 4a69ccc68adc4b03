"""The requests of Anthropic's API: which call a model, what bounds them, where they tell their usage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from anthropic import AnthropicError

from agentguard_clients import Endpoint, Provider

Body = dict[str, Any]


class _Messages(Endpoint):
    """`POST /v1/messages`, and the same on Bedrock and Vertex, where the path names the model."""

    name = "messages"
    path = re.compile(
        r"/v1/messages$|/model/([^/]+)/invoke(?:-with-response-stream)?$"
        r"|/models/([^/:]+):(?:raw|streamRaw)Predict$"
    )
    bounds = ("max_tokens",)

    def least_output(self, body: Body) -> int:
        """See `Endpoint`; the bound must be more than the thinking budget that it holds."""
        thinking = body.get("thinking")
        budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
        least = super().least_output(body)
        return budget + least if isinstance(budget, int) else least

    def is_final(self, event: Mapping[str, Any], answers: int) -> bool:
        """See `Endpoint`: events before the one with the reason of the end count what was used so far."""
        delta = event.get("delta") or {}
        return event.get("type") == "message_delta" and delta.get("stop_reason") is not None


class _Complete(Endpoint):
    """`POST /v1/complete`, the text completions of old, which count nothing."""

    name = "completions"
    operation = "text_completion"
    path = re.compile(r"/v1/complete$")
    bounds = ("max_tokens_to_sample",)


PROVIDER: Final = Provider(
    name="anthropic",
    endpoints=(_Messages(), _Complete()),
    free=re.compile(
        r"/messages/count_tokens$|count-tokens:rawPredict$|/v1/(files|skills)(/(?!.*/(messages|complete)$)|$)|/batches/[^/]+/cancel$"
    ),
    hosts={
        "anthropic.com": "anthropic",
        "amazonaws.com": "aws",
        "bedrock-mantle.*.api.aws": "aws",
        "googleapis.com": "anthropic",
    },
    lets_through=AnthropicError,
    regional=re.compile(r"-aiplatform\.googleapis\.com$|\.rep\.googleapis\.com$"),
)
