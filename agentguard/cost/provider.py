"""From a provider's answer to `ModelUsage`, by the extractors of genai-prices.

The answer may be an object of an SDK, the decoded JSON, the usage alone, or an event of a stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from msgspec import structs

from agentguard._optional import require
from agentguard.budget.model_usage import ModelUsage, Number
from agentguard.cost.genai import provider_named
from agentguard.cost.hosted import as_list as _list
from agentguard.cost.hosted import by_iteration, containers, images, search_terms, tool_calls
from agentguard.cost.hosted import get as _get

if TYPE_CHECKING:
    from genai_prices.types import Provider

#: What the SDKs' helpers of streams hold of the answer so far.
_SNAPSHOTS: Final = ("current_message_snapshot", "current_completion_snapshot")
#: Where an answer, or an event of a stream, may hold what tells of its usage.
_HOLDERS: Final = ((), ("response",), ("message",), ("chunk",), ("x_groq",), ("metadata",))
_USAGES: Final = ("usage", "usage_metadata", "usageMetadata")
#: Whose extractors are tried where the provider is not known, or has none.
_SHAPES: Final = ("openai", "anthropic", "google", "aws")
#: Counts that come in pairs, of which an event of a stream may have one alone.
_PAIRS: Final = (
    ("prompt_tokens", "completion_tokens"),
    ("input_tokens", "output_tokens"),
    ("inputTokens", "outputTokens"),
)
#: What a count is called.
_COUNT: Final = re.compile(r"(_tokens|Tokens|TokenCount|_token_count)$")
_TOTALS: Final = ("total_tokens", "totalTokens", "totalTokenCount")
#: xAI's unit of money.
_TICKS: Final = Decimal(10) ** 10


def model_usage(
    answer: object,
    *,
    provider: str | None = None,
    terms: Mapping[str, str] | None = None,
    at: datetime | None = None,
) -> ModelUsage | None:
    """Return what a provider's answer says of its usage, or None where it says nothing.

    Args:
        answer: the answer as the provider's SDK returns it, its JSON, the usage alone, an event of a
            stream, or a list of those events.
        provider: who gave it; by default it is told from the shape.
        terms: what the answer does not say of the call, as `{"processing": "batch"}`.
        at: when the call was made; by default now.

    Raises:
        MissingExtraError: genai-prices is not installed.
        TypeError, ValueError: the answer reports a count that cannot be one.

    Example:
        >>> answer = {"model": "gpt-5", "usage": {"prompt_tokens": 9, "completion_tokens": 2}}
        >>> model_usage(answer, provider="openai").counts
        {'input_tokens': 9, 'output_tokens': 2}
    """
    if isinstance(answer, list | tuple):
        return _of_stream(answer, provider=provider, terms=terms, at=at)
    holder, found = _find(answer)
    usage = _plain(found)
    if not isinstance(usage, dict) or not usage:
        return None
    counts = _counts(_prepared(usage), provider)
    if counts is None:
        return None
    model = _get(holder, "model", "model_version", "modelVersion")
    model = model if isinstance(model, str) else None
    said = _terms(holder, usage) | dict(terms or {})
    whole = ModelUsage(
        counts=_with_total(_billed_beside(usage) | counts, usage) | tool_calls(holder, model),
        terms=said,
        model=model,
        cost=_cost(holder, usage),
        at=at,
    )
    count = partial(_counts_of, provider=provider)
    told = by_iteration(whole, usage, count)
    hosted = (*images(holder, count, _plain), *containers(holder))
    return structs.replace(told, beside=(*told.beside, *hosted)) if hosted else told


def _counts_of(usage: dict[str, Any], provider: str | None) -> dict[str, Number] | None:
    return _counts(_prepared(usage), provider) if usage else None


def whole_answer(stream: object) -> object:
    """Return the answer that an SDK's helper of streams has put together, or None while it is not whole."""
    name = next((name for name in _SNAPSHOTS if hasattr(type(stream), name)), None)
    if name is None:
        return stream
    try:
        answer = getattr(stream, name)
    except AssertionError:  # of the SDK: nothing has come yet
        return None
    ends = [answer, *_list(_get(answer, "choices"))]
    return answer if any(_get(end, "stop_reason", "finish_reason") for end in ends) else None


def reports_usage(event: object) -> bool:
    """Return whether an event of a stream has a place for usage that is filled."""
    return _find(event)[1] not in (None, event)


def _of_stream(events: Any, **options: Any) -> ModelUsage | None:
    total: ModelUsage | None = None
    for event in events:
        found = model_usage(event, **options)
        if found is not None:
            total = found if total is None else total.larger(found)
    return total


# --- finding it ----------------------------------------------------------------------------------


def _find(answer: object) -> tuple[object, object]:
    """Return what holds the usage, and the usage; the answer itself where it holds none."""
    for path in _HOLDERS:
        holder = answer
        for name in path:
            holder = _get(holder, name)
        usage = _get(holder, *_USAGES)
        if usage is not None:
            return holder, usage
    return answer, None if any(_has(answer, name) for name in _USAGES) else answer


def _has(holder: object, name: str) -> bool:
    return name in holder if isinstance(holder, Mapping) else hasattr(holder, name)


def _plain(value: Any, depth: int = 4) -> Any:
    """Return a usage as plain data, whatever its SDK makes of it, without what is None."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, str | int | float | Decimal):
        return value
    if depth == 0:
        return None
    if isinstance(value, list | tuple):
        return [_plain(item, depth - 1) for item in value]
    fields = {str(name): _plain(item, depth - 1) for name, item in _fields(value)}
    return {name: item for name, item in fields.items() if item is not None}


def _fields(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
        return
    names = [*getattr(value, "__dict__", ()), *(getattr(value, "__pydantic_extra__", None) or ())]
    for name in dict.fromkeys(names or dir(value)):
        item = getattr(value, name, None) if not name.startswith("_") else None
        if item is not None and not callable(item):
            yield name, item


def _prepared(usage: dict[str, Any]) -> dict[str, Any]:
    """Return a usage in the spelling of the JSON, its counts as numbers, with both counts of a pair.

    Raises:
        ValueError: a count is no number.
    """
    usage = _numbered(usage)
    if any(name.endswith("_token_count") for name in usage):
        usage = _camel(usage)
    given = dict(usage)
    for pair in _PAIRS:
        if any(name in given for name in pair):
            given = dict.fromkeys(pair, 0) | given
    return given


def _numbered(value: Any, name: str = "") -> Any:
    if isinstance(value, dict | list | str) and _COUNT.search(name):
        if not (isinstance(value, str) and value.isdecimal()):
            raise ValueError(f"the provider's usage cannot be right: {name} is {value!r}")
        return int(value)
    if isinstance(value, list):
        return [_numbered(item) for item in value]
    return {key: _numbered(item, key) for key, item in value.items()} if isinstance(value, dict) else value


def _camel(value: Any) -> Any:
    if isinstance(value, list):
        return [_camel(item) for item in value]
    if not isinstance(value, dict):
        return value
    named = {}
    for name, item in value.items():
        first, *rest = name.split("_")
        named[first + "".join(part.capitalize() for part in rest)] = _camel(item)
    return named


# --- counts --------------------------------------------------------------------------------------


def _counts(usage: dict[str, Any], provider: str | None) -> dict[str, Number] | None:
    """Return the counts by the extractor that finds most of them."""
    require("genai_prices", extra="prices", feature="reading a provider's usage")
    data = {"usage": usage, "usageMetadata": usage, "response": {"usage": usage}, "result": {"usage": usage}}
    data["meta"] = usage
    served = provider_named(provider) if provider else None
    found = _extracted([served] if served else [], data)
    if not found:
        found = _extracted([known for name in _SHAPES if (known := provider_named(name))], data)
    if found:
        return max(found, key=len)
    total = next((usage[name] for name in _TOTALS if isinstance(usage.get(name), int)), None)
    return None if total is None else {"input_tokens": total}


def _billed_beside(usage: dict[str, Any]) -> dict[str, Number]:
    """Return what others add to OpenAI's language: LiteLLM for Claude, DeepSeek and Moonshot for caches."""
    details = _get(usage, "prompt_tokens_details") or {}
    by_age = _get(details, "cache_creation_token_details") or _get(usage, "cache_creation")
    found = {
        "cache_read_tokens": _get(usage, "prompt_cache_hit_tokens", "cached_tokens"),
        "cache_write_tokens": _get(details, "cache_creation_tokens")
        or _get(usage, "cache_creation_input_tokens"),
        "cache_write_5m_tokens": _get(by_age, "ephemeral_5m_input_tokens"),
        "cache_write_1h_tokens": _get(by_age, "ephemeral_1h_input_tokens"),
        "web_searches": _get(_get(usage, "server_tool_use"), "web_search_requests"),
    }
    return {name: n for name, n in found.items() if isinstance(n, int) and n}


def _extracted(providers: list[Provider], data: dict[str, Any]) -> list[dict[str, Number]]:
    found: list[dict[str, Number]] = []
    problem: ValueError | None = None
    for provider in providers:
        for extractor in provider.extractors or ():
            try:
                _, usage = extractor.extract(data)
            except ValueError as error:
                problem = error if "Invalid usage value" in str(error) else problem
                continue
            found.append({name: _number(value) for name, value in vars(usage).items()})
    if problem is not None:
        raise ValueError(f"the provider's usage cannot be right: {problem}")
    return [counts for counts in found if counts]


def _number(value: float | Decimal) -> Number:
    return Decimal(repr(value)) if isinstance(value, float) else value


def _with_total(counts: dict[str, Number], usage: dict[str, Any]) -> dict[str, Number]:
    """Return the counts; what a total has beyond them is output that was not told apart.

    So it is with reasoning behind some gateways that speak OpenAI's language.
    """
    total = next((usage[name] for name in _TOTALS if isinstance(usage.get(name), int)), 0)
    more = total - counts.get("input_tokens", 0) - counts.get("output_tokens", 0)
    return counts | {"output_tokens": counts.get("output_tokens", 0) + more} if more > 0 else counts


# --- terms and cost ------------------------------------------------------------------------------


def terms_and_cost(answer: object) -> tuple[dict[str, str], Decimal | None]:
    """Return what an answer says of its price: what selects another one, and its cost in USD.

    For integrations whose framework counts the tokens itself.
    """
    holder, found = _find(answer)
    usage = _plain(found)
    usage = usage if isinstance(usage, dict) else {}
    return _terms(holder, usage), _cost(holder, usage)


def _terms(holder: object, usage: dict[str, Any]) -> dict[str, str]:
    """Return what selects another price: tier, batch, speed, place and latency."""
    tier = _get(holder, "service_tier", "serviceTier") or _get(usage, "service_tier", "serviceTier")
    tier = _get(tier, "type") or tier  # Bedrock's is an object
    traffic = str(_get(usage, "traffic_type", "trafficType") or "").lower()  # Vertex
    tier = tier or traffic.removeprefix("on_demand").strip("_")
    found = {
        "service_tier": tier,
        "speed": usage.get("speed"),
        "inference_geo": usage.get("inference_geo"),
        "latency": _get(_get(holder, "performanceConfig"), "latency"),
    }
    terms = {name: str(getattr(value, "value", value)).lower() for name, value in found.items() if value}
    if terms.get("service_tier") == "batch":
        del terms["service_tier"]
        terms["processing"] = "batch"
    return terms | search_terms(holder)


def _cost(holder: object, usage: dict[str, Any]) -> Decimal | None:
    """Return what the provider says that the call costs, in USD."""
    ticks = _money(usage.get("cost_in_usd_ticks"))  # xAI
    if ticks is not None:
        return ticks / _TICKS
    cost = usage.get("cost")
    said = _money(cost.get("total_cost") if isinstance(cost, dict) else cost)  # Perplexity; OpenRouter
    if said is None:
        return None
    if usage.get("is_byok"):  # OpenRouter's fee, beside the bill of whom the key is for
        said += _money(_get(usage.get("cost_details"), "upstream_inference_cost")) or 0
    return said


def _money(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    try:
        amount = Decimal(repr(value) if isinstance(value, float) else value)
    except InvalidOperation:
        return None
    return amount if amount.is_finite() and amount >= 0 else None
