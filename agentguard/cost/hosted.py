"""What a provider bills for a call beside its answer: searches, images, containers, other models.

The shapes are those of the providers' SDKs; each count is in the names of genai-prices.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

from msgspec import structs

from agentguard.budget.model_usage import ModelUsage, Number

#: How a usage in the provider's words becomes counts; None where it says nothing.
Counting = Callable[[dict[str, Any]], dict[str, Number] | None]

#: Calls of tools that OpenAI bills, among the items of a response.
_TOOL_CALLS: Final = {"web_search_call": "web_searches", "file_search_call": "storage_searches"}
_FREE_ACTIONS: Final = frozenset({"open_page", "find", "find_in_page"})
#: Models of Chat Completions that search the web for each answer.
_SEARCHING: Final = re.compile(r"-search-(preview|api)")
#: https://developers.openai.com/api/docs/guides/tools-image-generation
_DRAWS: Final = "gpt-image-2.6-sunburst"
#: The most tokens of an image of the largest usual size, where nothing tells how many it has.
_IMAGE_TOKENS: Final = 6240
#: https://developers.openai.com/api/docs/pricing: USD for 20 minutes of a container, by its memory.
CONTAINERS: Final = {"1g": "0.03", "4g": "0.12", "16g": "0.48", "64g": "1.92"}
#: The items of a response that run code, and the tools that make a container for them.
_RUN_IN: Final = {"code_interpreter_call": "code_interpreter", "shell_call": "shell"}
#: What Claude's own answers are called among the iterations of a call.
_ANSWERS: Final = frozenset({"message", "fallback_message"})


def get(holder: object, *names: str) -> Any:
    """Return the first of these fields that is there, of a mapping or an object."""
    for name in names:
        value = holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
        if value is not None and not callable(value):
            return value
    return None


def as_list(value: object) -> list[Any]:
    """Return the items of a list, or none."""
    return list(value) if isinstance(value, list | tuple) else []


def tool_calls(answer: object, model: str | None = None) -> dict[str, Number]:
    """Return the calls of tools that a provider bills and does not count in the usage."""
    calls: dict[str, Number] = {}
    for item in as_list(get(answer, "output")):
        name = _TOOL_CALLS.get(str(get(item, "type")))
        if name and str(get(get(item, "action"), "type")) not in _FREE_ACTIONS:
            calls[name] = calls.get(name, 0) + 1
    told = get(get(get(answer, "tool_usage"), "web_search"), "num_requests")
    if isinstance(told, int) and told > calls.get("web_searches", 0):
        calls["web_searches"] = told
    by_xai = get(get(answer, "usage"), "server_side_tool_usage_details")
    made = [get(by_xai, f"{tool}_calls") for tool in ("web_search", "x_search", "code_interpreter")]
    if any(made):  # all at one price
        calls["web_searches"] = sum(n for n in made if isinstance(n, int))
    if _SEARCHING.search(model or "") and get(answer, "choices") is not None:
        calls["web_searches"] = 1
    queries = 0
    for candidate in as_list(get(answer, "candidates")):
        grounding = get(candidate, "grounding_metadata", "groundingMetadata")
        found = as_list(get(grounding, "grounding_chunks", "groundingChunks"))
        asked_maps = any(get(chunk, "maps") is not None for chunk in found)
        queries += len(as_list(get(grounding, "web_search_queries", "webSearchQueries"))) or asked_maps
    if queries:  # https://ai.google.dev/gemini-api/docs/pricing: up to Gemini 2.5 for each prompt
        calls["web_searches"] = 1 if (model or "").startswith(("gemini-1", "gemini-2")) else queries
    return calls


def search_terms(call: object) -> dict[str, str]:
    """Return which web search OpenAI's request or answer names: that of before has another price."""
    tools = [str(get(tool, "type")) for tool in as_list(get(call, "tools"))]
    return {"web_search": "preview"} if any(tool.startswith("web_search_preview") for tool in tools) else {}


def images(answer: object, count: Counting, plain: Callable[[Any], Any]) -> Iterator[ModelUsage]:
    """Yield what OpenAI's image models used for a response: they are billed beside its own usage."""
    drawn = [item for item in as_list(get(answer, "output")) if get(item, "type") == "image_generation_call"]
    model = get(_tool(answer, "image_generation"), "model") or _DRAWS
    told = count(plain(get(get(answer, "tool_usage"), "image_gen")) or {}) or {}
    made = sum(get(item, "status") == "completed" for item in drawn)
    if told.get("output_tokens"):
        yield ModelUsage(counts=told, model=model)
    elif made:
        yield ModelUsage(counts={"output_image_tokens": made * _IMAGE_TOKENS}, model=model)
    for holder in (answer, *drawn):
        authored = plain(get(holder, "svg_usage")) or {}
        if counts := count(authored):
            yield ModelUsage(counts=counts, model=authored.get("model"))


def containers(answer: object) -> Iterator[ModelUsage]:
    """Yield the containers that OpenAI made for a response: 20 minutes each, which is a bound."""
    ran: dict[str, str] = {}
    for item in as_list(get(answer, "output")):
        tool = _RUN_IN.get(str(get(item, "type")))
        made_in = get(item, "container_id") or get(get(item, "environment"), "container_id")
        if tool and isinstance(made_in, str):
            ran[made_in] = tool
    for tool in ran.values():
        yield from _container(_tool(answer, tool))


def _container(tool: object) -> Iterator[ModelUsage]:
    asked = get(tool, "container", "environment")
    if str(get(asked, "type")) in {"auto", "container_auto"}:  # another is billed to whom made it
        price = CONTAINERS.get(str(get(asked, "memory_limit") or "1g"), CONTAINERS["64g"])
        yield ModelUsage(counts={}, model="container", cost=Decimal(price))


def offered(request: Mapping[str, Any], model: str) -> ModelUsage:
    """Return what the hosted tools of a request may cost: each once, where nothing says how often."""
    searches = 1 if _SEARCHING.search(model) else 0
    beside: list[ModelUsage] = []
    for tool in as_list(get(request, "tools")):
        kind = str(get(tool, "type"))
        if kind.startswith("web_search"):
            most = get(tool, "max_uses") or get(request, "max_tool_calls")
            searches += most if isinstance(most, int) and most > 0 else 1
        elif kind == "image_generation":
            drawn: dict[str, Number] = {"output_image_tokens": _IMAGE_TOKENS}
            beside.append(ModelUsage(counts=drawn, model=get(tool, "model") or _DRAWS))
        elif kind in _RUN_IN.values():
            beside += _container(tool)
    return ModelUsage(counts={"web_searches": searches}, beside=tuple(beside))


def _tool(answer: object, kind: str) -> Any:
    return next((tool for tool in as_list(get(answer, "tools")) if get(tool, "type") == kind), None)


def by_iteration(whole: ModelUsage, usage: Mapping[str, Any], count: Counting) -> ModelUsage:
    """Return the usage of a call of Claude that sampled several times: each has its own price.

    What sums up a context, gives advice, or answers in place of a model that declined is not in the
    usage of the whole.  Each of the model's own turns is priced by its own length.
    """
    turns = [turn for turn in as_list(usage.get("iterations")) if isinstance(turn, dict)]
    if not turns:
        return whole
    answers = [turn.get("model") for turn in turns if turn.get("type") in _ANSWERS]
    serving = whole.model or next((model for model in reversed(answers) if model), None)
    own: list[ModelUsage] = []
    beside: list[ModelUsage] = []
    for turn in turns:
        model = turn.get("model") or serving
        used = ModelUsage(counts=count(turn) or {}, terms=whole.terms, model=model)
        if turn.get("type") in _ANSWERS and model == serving:
            own.append(used)
        elif turn.get("type") not in _ANSWERS or used["output_tokens"]:  # one that declined at once is free
            beside.append(used)
    if not own:
        return structs.replace(whole, beside=tuple(beside))
    first, *rest = own
    left = {name: n - sum(turn.counts.get(name, 0) for turn in own) for name, n in whole.counts.items()}
    counts = {name: first.counts.get(name, 0) + max(left.get(name, 0), 0) for name in {*first.counts, *left}}
    return structs.replace(whole, counts=counts, beside=(*rest, *beside))
