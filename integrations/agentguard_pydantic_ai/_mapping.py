"""Pydantic AI's objects as agentguard's values, and back.  Pure: nothing is called, nothing awaited."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter
from pydantic_ai.exceptions import ApprovalRequired, CallDeferred, SkipToolExecution
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.settings import ModelSettings
from pydantic_core import to_json, to_jsonable_python

from agentguard.cost import ModelRequest, ModelUsage, terms_and_cost
from agentguard.cost.usage import estimated_tokens, request_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.usage import RequestUsage

#: What selects another price, as settings end that ask for it.
_TERMS: Final = ("service_tier", "speed", "inference_geo")
#: Differ from run to run although the request is the same.
_VOLATILE: Final = frozenset({"timestamp", "run_id", "conversation_id"})
#: How a tool says that it was not carried out here and now; nothing was used.
DEFERRALS: Final = (ApprovalRequired, CallDeferred, SkipToolExecution)


# --- requests ------------------------------------------------------------------------------------


def request_data(
    messages: Sequence[ModelMessage],
    settings: ModelSettings | None,
    parameters: ModelRequestParameters,
) -> dict[str, Any]:
    """What a model is asked, as plain data that is the same whenever the same is asked."""
    return {
        "messages": _stable(_plain(list(messages))),
        "settings": _plain(dict(settings or {})),
        "tools": [tool.name for tool in parameters.function_tools],
    }


def input_tokens(data: dict[str, Any], parameters: ModelRequestParameters) -> int:
    """About how many tokens a request is, its tool definitions included."""
    tools = [
        (tool.name, tool.description, tool.parameters_json_schema)
        for tool in (*parameters.function_tools, *parameters.output_tools)
    ]
    return request_tokens(data["messages"], _is_media) + estimated_tokens(to_json(tools, fallback=repr))


def max_tokens(*layers: ModelSettings | None) -> int | None:
    """The bound on the answer that the first of some settings names."""
    return next((bound for layer in layers if layer and (bound := layer.get("max_tokens"))), None)


def thinking_tokens(*layers: ModelSettings | None) -> int:
    """Return how many tokens of the answer the first of some settings sets aside to think.

    Example:
        >>> thinking_tokens({"anthropic_thinking": {"type": "enabled", "budget_tokens": 10_000}})
        10000
    """
    for layer in layers:
        for name, setting in (layer or {}).items():
            whole = setting if isinstance(setting, Mapping) else {}
            part = whole.get("thinking") if name == "bedrock_additional_model_requests_fields" else whole
            part = part if isinstance(part, Mapping) else {}
            found = part.get("budget_tokens") or part.get("thinking_budget")
            if isinstance(found, int) and not isinstance(found, bool) and found > 0:
                return found
    return 0


def hosted_tools(system: str, parameters: ModelRequestParameters) -> list[dict[str, Any]]:
    """Return the provider's own tools that a request offers, in the API's words."""
    by_openai: dict[str, dict[str, Any]] = {
        "image_generation": {"type": "image_generation"},
        "code_execution": {"type": "code_interpreter", "container": {"type": "auto"}},
    }
    known = by_openai if system in {"openai", "azure"} else {}
    offered: list[dict[str, Any]] = []
    for tool in parameters.native_tools:
        if tool.kind == "web_search":
            offered.append({"type": "web_search", "max_uses": getattr(tool, "max_uses", None)})
        elif tool.kind in known:
            offered.append(known[tool.kind])
    return offered


def asked_of(data: Mapping[str, Any], *layers: ModelSettings | None) -> ModelRequest:
    """Return what a request asks for in the API's own words: tier, place, cache.

    Example:
        >>> asked_of({}, {"openai_service_tier": "priority", "anthropic_cache": "1h"}).terms
        {'service_tier': 'priority'}
    """
    found: dict[str, Any] = {"content": [_marked(data.get("messages"))]}
    for layer in reversed(layers):
        settings: dict[str, Any] = dict(layer or {})
        body = settings.pop("extra_body", None)
        found |= body if isinstance(body, Mapping) else {}
        # A provider's own setting goes before the one of all providers.
        for name in sorted(settings, key=lambda name: name not in _TERMS):
            value = settings[name]
            if (term := next((term for term in _TERMS if name.endswith(term)), None)) is not None:
                found[term] = value
            elif "cache" in name and (value is True or value in {"5m", "1h"}):
                found[name] = {"cache_control": {"ttl": value}}
    return ModelRequest((), found)


def _marked(messages: Any) -> list[Any]:
    """Return the marks in messages that ask to keep what is before them in a cache."""
    if isinstance(messages, Mapping):
        if messages.get("kind") == "cache-point":
            return [{"cache_control": {"ttl": messages.get("ttl")}}]
        messages = list(messages.values())
    if not isinstance(messages, list):
        return []
    return [mark for item in messages for mark in _marked(item)]


def with_max_tokens(settings: ModelSettings | None, limit: int) -> ModelSettings:
    """The settings with another bound."""
    bounded = ModelSettings(**(settings or {}))
    bounded["max_tokens"] = limit
    return bounded


def _plain(value: Any) -> Any:
    return to_jsonable_python(
        value, bytes_mode="base64", fallback=lambda other: f"<{type(other).__qualname__}>"
    )


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stable(item) for key, item in value.items() if key not in _VOLATILE}
    if isinstance(value, list):
        return [_stable(item) for item in value]
    return value


def _is_media(part: dict[str, Any]) -> bool:
    return part.get("kind") == "binary" or str(part.get("kind", "")).endswith("-url")


# --- answers -------------------------------------------------------------------------------------


def tokens_of(usage: RequestUsage, response: ModelResponse | None = None) -> ModelUsage | None:
    """Return what the provider counted, or None where it counted nothing.

    `usage` has the counts of genai-prices by name; what the provider says of the price lies beside it.
    """
    if getattr(usage, "unmeasured_requests", 0) or not (usage.input_tokens or usage.output_tokens):
        return None
    details = {"output_reasoning_tokens": usage.details.get("reasoning_tokens", 0)}
    known = {name: n for name, n in vars(usage).items() if name.endswith("_tokens") and type(n) is int}
    told = dict(response.provider_details or {}) if response is not None else {}
    terms, cost = terms_and_cost({**told, "usage": told})
    return ModelUsage(
        counts={**details, **known},
        terms=terms,
        model=None if response is None else response.model_name,
        cost=cost if cost is None else cost + _upstream(told),
    )


def _upstream(told: dict[str, Any]) -> Decimal:
    """Return what OpenRouter says that the owner of the key is charged beside its own fee."""
    paid = told.get("upstream_inference_cost") if told.get("is_byok") else None
    return Decimal(0) if paid is None else Decimal(str(paid))


@cache
def _adapter() -> TypeAdapter[ModelResponse]:
    return TypeAdapter(ModelResponse)


class ResponseCodec:
    """A model's answer as bytes, so that a replay can hand it out again."""

    def encode(self, value: ModelResponse) -> bytes:
        """The answer as JSON."""
        return _adapter().dump_json(value)

    def decode(self, data: bytes) -> ModelResponse:
        """The answer again."""
        return _adapter().validate_json(data)


# --- tool calls ----------------------------------------------------------------------------------


def place_of(messages: Sequence[ModelMessage], call: ToolCallPart) -> int:
    """The index of a tool call among those of its answer."""
    for message in reversed(messages):
        if isinstance(message, ModelResponse):
            ids = [part.tool_call_id for part in message.parts if isinstance(part, ToolCallPart)]
            if call.tool_call_id in ids:
                return ids.index(call.tool_call_id)
    return 0
