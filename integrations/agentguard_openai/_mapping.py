"""The requests of OpenAI's API: which call a model, what bounds them, where they tell their usage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from agentguard_clients import Asked, Endpoint, Provider

Body = dict[str, Any]

#: The API takes no smaller bound of a response.
_LEAST_RESPONSE: Final = 16
_ENDS_OF_RESPONSES: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})


class _Endpoint:
    """What the requests to models share."""

    name: str
    operation: str
    _path: re.Pattern[str]
    #: The fields that bound an answer, the one to be set first.
    _bounds: tuple[str, ...] = ()

    def matches(self, path: str) -> bool:
        """See `Endpoint`."""
        return self._path.search(path) is not None

    def asked(self, path: str, body: Body) -> Asked:
        """See `Endpoint`."""
        named = [body[field] for field in self._bounds if isinstance(body.get(field), int)]
        return Asked(
            _model(path, body),
            max_tokens=min(named) if named else None,
            answers=max(_count(body.get("n")), _count(body.get("best_of"))),
        )

    def bounded(self, body: Body, max_tokens: int) -> Body:
        """See `Endpoint`."""
        field = next((field for field in self._bounds if body.get(field) is not None), self._bounds[0])
        return {**body, field: max_tokens}

    def streaming(self, body: Body) -> Body:
        """See `Endpoint`."""
        options = body.get("stream_options") or {}
        if options.get("include_usage") is not None:
            return body
        return {**body, "stream_options": {**options, "include_usage": True}}

    def answer(self, seen: Body | None, event: Mapping[str, Any]) -> Body | None:
        """See `Endpoint`."""
        return dict(event) if event.get("usage") else seen

    def is_extra(self, event: Mapping[str, Any]) -> bool:
        """See `Endpoint`."""
        return bool(event.get("usage")) and not event.get("choices")

    def is_final(self, answer: Mapping[str, Any]) -> bool:
        """See `Endpoint`."""
        return True


class _Chat(_Endpoint):
    name = "chat.completions"
    operation = "chat"
    _path = re.compile(r"/chat/completions$")
    _bounds = ("max_completion_tokens", "max_tokens")


class _Completions(_Endpoint):
    name = "completions"
    operation = "text_completion"
    _path = re.compile(r"(?<!/chat)/completions$")
    _bounds = ("max_tokens",)

    def asked(self, path: str, body: Body) -> Asked:
        """See `Endpoint`; the API's own bound is 16."""
        asked = super().asked(path, body)
        prompts = body.get("prompt")
        several = len(prompts) if isinstance(prompts, list) and not _is_tokens(prompts) else 1
        return asked._replace(max_tokens=asked.max_tokens or 16, answers=asked.answers * several)


class _Responses(_Endpoint):
    name = "responses"
    operation = "chat"
    _path = re.compile(r"/responses(/compact)?$")
    _bounds = ("max_output_tokens",)

    def asked(self, path: str, body: Body) -> Asked:
        """See `Endpoint`."""
        return super().asked(path, body)._replace(least_tokens=_LEAST_RESPONSE, answers=1)

    def streaming(self, body: Body) -> Body:
        """See `Endpoint`; the last event tells it anyhow."""
        return body

    def answer(self, seen: Body | None, event: Mapping[str, Any]) -> Body | None:
        """See `Endpoint`."""
        return event["response"] if event.get("type") in _ENDS_OF_RESPONSES else seen

    def is_extra(self, event: Mapping[str, Any]) -> bool:
        """See `Endpoint`."""
        return False


class _Embeddings(_Endpoint):
    name = "embeddings"
    operation = "embeddings"
    _path = re.compile(r"/embeddings$")

    def asked(self, path: str, body: Body) -> Asked:
        """See `Endpoint`."""
        return Asked(_model(path, body), has_output=False)


def _model(path: str, body: Body) -> str:
    """Return the model; Azure has it in the path, as the name of a deployment."""
    deployment = re.search(r"/deployments/([^/]+)/", path)
    return str(body.get("model") or (deployment and deployment[1]) or "unknown")


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 1 else 1


def _is_tokens(prompt: list[Any]) -> bool:
    return all(isinstance(token, int) for token in prompt)


_ENDPOINTS: Final[tuple[Endpoint, ...]] = (_Chat(), _Responses(), _Embeddings(), _Completions())

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
    "perplexity.ai": "perplexity",
}

PROVIDER: Final = Provider(
    name="openai",
    endpoints=_ENDPOINTS,
    free=re.compile(
        r"/(moderations|files|conversations|responses/input_tokens|uploads)$"
        r"|/(uploads|conversations|vector_stores|files)/"
        r"|/(responses|batches|fine_tuning/jobs|videos)/[^/]+/cancel$"
        r"|/chat/completions/[^/]+$"
    ),
    hosts=HOSTS,
)
