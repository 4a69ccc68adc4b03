"""The requests of OpenAI's API: which call a model, what bounds them, where they tell their usage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from agentguard_clients import Endpoint, Provider

Body = dict[str, Any]

_ENDS_OF_RESPONSES: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})


class _Chat(Endpoint):
    name = "chat.completions"
    path = re.compile(r"(?:/deployments/([^/]+))?/chat/completions$")
    bounds: tuple[str, ...] = ("max_completion_tokens", "max_tokens")

    def streaming(self, body: Body) -> Body:
        """See `Endpoint`; unless the caller has said otherwise."""
        options = body.get("stream_options") or {}
        if options.get("include_usage") is not None:
            return body
        return {**body, "stream_options": {**options, "include_usage": True}}

    def is_extra(self, event: Mapping[str, Any]) -> bool:
        """See `Endpoint`."""
        return not event.get("choices")

    def is_final(self, event: Mapping[str, Any], answers: int) -> bool:
        """See `Endpoint`: the event without choices, or the one that ends the only answer."""
        choices = event.get("choices") or []
        return not choices or (answers == 1 and bool(choices[0].get("finish_reason")))


class _Completions(_Chat):
    name = "completions"
    operation = "text_completion"
    path = re.compile(r"(?:/deployments/([^/]+))?(?<!/chat)/completions$")
    bounds = ("max_tokens",)


class _Responses(Endpoint):
    name = "responses"
    path = re.compile(r"/responses(?:/compact)?$")
    bounds = ("max_output_tokens",)

    def tells_later(self, body: Body) -> bool:
        """See `Endpoint`: it goes on in the background, whoever reads it."""
        return body.get("background") is True

    def is_final(self, event: Mapping[str, Any], answers: int) -> bool:
        """See `Endpoint`."""
        return event.get("type") in _ENDS_OF_RESPONSES


class _Embeddings(Endpoint):
    name = operation = "embeddings"
    path = re.compile(r"(?:/deployments/([^/]+))?/embeddings$")


_ENDPOINTS: Final = (_Chat(), _Responses(), _Embeddings(), _Completions())

#: Who serves an address; others are asked for by the model's name alone.
HOSTS: Final = {
    "openai.com": "openai",
    "azure.com": "azure",
    "groq.com": "groq",
    "deepseek.com": "deepseek",
    "openrouter.ai": "openrouter",
    "mistral.ai": "mistral",
    "googleapis.com": "google",
    "x.ai": "x-ai",
    "fireworks.ai": "fireworks",
    "together.xyz": "together",
    "together.ai": "together",
    "perplexity.ai": "perplexity",
    "cerebras.ai": "cerebras",
    "cohere.ai": "cohere",
    "cohere.com": "cohere",
    "moonshot.ai": "moonshotai",
    "moonshot.cn": "moonshotai",
    "minimax.io": "minimax",
    "novita.ai": "novita",
    "baseten.co": "baseten",
    "z.ai": "zai",
    "bedrock-runtime.*.amazonaws.com": "aws",
    "bedrock-mantle.*.api.aws": "aws",
}

PROVIDER: Final = Provider(
    name="openai",
    endpoints=_ENDPOINTS,
    free=re.compile(
        r"/(moderations|files|conversations|responses/input_tokens|uploads)$"
        r"|/(uploads|conversations|vector_stores|files)/(?!.*/(completions|responses|embeddings)$)"
        r"|/(responses|batches|fine_tuning/jobs|videos)/[^/]+/cancel$"
        r"|/chat/completions/[^/]+$"
    ),
    hosts=HOSTS,
    regional=re.compile(r"^[a-z]+\.api\.openai\.com$"),
)
