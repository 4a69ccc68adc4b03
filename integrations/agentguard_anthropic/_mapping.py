"""The requests of Anthropic's API: which call a model, what bounds them, where they tell their usage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from anthropic import AnthropicError

from agentguard_clients import Asked, Provider

Body = dict[str, Any]

#: What a thinking model needs for its answer beside its thoughts, to say anything at all.
_BESIDE_THINKING: Final = 16


class _Messages:
    """`POST /v1/messages`, and the same on Bedrock and Vertex, where the path names the model."""

    name = "messages"
    operation = "chat"
    _path = re.compile(
        r"/v1/messages$|/model/(?P<bedrock>[^/]+)/invoke(-with-response-stream)?$"
        r"|/models/(?P<vertex>[^/:]+):(raw|streamRaw)Predict$"
    )

    def matches(self, path: str) -> bool:
        """See `Endpoint`."""
        return self._path.search(path) is not None

    def asked(self, path: str, body: Body) -> Asked:
        """See `Endpoint`; `max_tokens` must be more than the thinking budget that it holds."""
        found = self._path.search(path)
        model = body.get("model") or (found and (found["bedrock"] or found["vertex"])) or "unknown"
        thinking = body.get("thinking")
        budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
        least = budget + _BESIDE_THINKING if isinstance(budget, int) else 1
        most = body.get("max_tokens")
        return Asked(str(model), max_tokens=most if isinstance(most, int) else None, least_tokens=least)

    def bounded(self, body: Body, max_tokens: int) -> Body:
        """See `Endpoint`."""
        return {**body, "max_tokens": max_tokens}

    def streaming(self, body: Body) -> Body:
        """See `Endpoint`; every stream tells it."""
        return body

    def answer(self, seen: Body | None, event: Mapping[str, Any]) -> Body | None:
        """See `Endpoint`: the start counts the prompt, each delta what was used so far."""
        if event.get("type") == "message_start":
            return {**event["message"], "final": False}
        if event.get("type") != "message_delta":
            return seen
        before = (seen or {}).get("usage") or {}
        told = {name: count for name, count in (event.get("usage") or {}).items() if count is not None}
        return {**(seen or {}), "usage": {**before, **told}, "final": True}

    def is_extra(self, event: Mapping[str, Any]) -> bool:
        """See `Endpoint`."""
        return False

    def is_final(self, answer: Mapping[str, Any]) -> bool:
        """See `Endpoint`."""
        return bool(answer.get("final", True))


class _Complete(_Messages):
    """`POST /v1/complete`, the text completions of old, which count nothing."""

    name = "completions"
    operation = "text_completion"
    _path = re.compile(r"/v1/complete$(?P<bedrock>)(?P<vertex>)")

    def asked(self, path: str, body: Body) -> Asked:
        """See `Endpoint`."""
        return Asked(str(body.get("model")), max_tokens=body.get("max_tokens_to_sample"))

    def bounded(self, body: Body, max_tokens: int) -> Body:
        """See `Endpoint`."""
        return {**body, "max_tokens_to_sample": max_tokens}


PROVIDER: Final = Provider(
    name="anthropic",
    endpoints=(_Messages(), _Complete()),
    free=re.compile(
        r"/messages/count_tokens$|count-tokens:rawPredict$|/v1/(files|skills)(/|$)|/batches/[^/]+/cancel$"
    ),
    hosts={"anthropic.com": "anthropic", "amazonaws.com": "aws", "googleapis.com": "anthropic"},
    lets_through=AnthropicError,
)
