"""LangChain's objects as agentguard's values.  Pure: no run, no context, no framework at work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from hashlib import sha256
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from pydantic import BaseModel

from agentguard.cost import ModelRequest, ModelUsage, model_usage, terms_and_cost

#: What a call may name its output limit, the most usual first.
LIMIT_NAMES = ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict")
#: LangChain's providers by the names of the OpenTelemetry conventions, where those differ.
_PROVIDERS = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "amazon_bedrock": "aws.bedrock",
    "bedrock": "aws.bedrock",
    "google_genai": "gcp.gemini",
    "google_vertexai": "gcp.vertex_ai",
    "mistral": "mistral_ai",
    "mistralai": "mistral_ai",
    "xai": "x_ai",
}
_GRAPH_STEP = "graph:step:"
_MAP_KEY = "map:key:"
_PUSH = "__pregel_push"


def step_name(text: Any) -> str:
    r"""A name that may be a step's, whatever a model makes up: printable, and not too long.

    Example:
        >>> step_name("search"), step_name("a\nb"), step_name("")
        ('search', 'a?b', 'unnamed')
    """
    name = str(text)[:150]
    if name and name.isprintable():
        return name
    return "".join(c if c.isprintable() else "?" for c in name) or "unnamed"


# --- models --------------------------------------------------------------------------------------


def model_name(params: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """The name of the model that a call asks for; its kind, where it has no name.

    Example:
        >>> model_name({"model": "gpt-4o", "_type": "openai-chat"}, {})
        'gpt-4o'
    """
    names = [metadata.get("ls_model_name")]
    names += [params.get(key) for key in ("model", "model_name", "model_id", "deployment_name", "_type")]
    return step_name(next((name for name in names if isinstance(name, str) and name), "unknown"))


def provider_name(metadata: Mapping[str, Any]) -> str | None:
    """The provider, by its name in the OpenTelemetry conventions."""
    provider = metadata.get("ls_provider")
    return _PROVIDERS.get(provider, provider) if isinstance(provider, str) and provider else None


def output_bound(
    params: Mapping[str, Any], metadata: Mapping[str, Any], profile: Mapping[str, Any] | None = None
) -> int | None:
    """How many tokens the call may produce at most, if anything says so.

    Example:
        >>> output_bound({"max_tokens": 50}, {"ls_max_tokens": 99}), output_bound({}, {"ls_max_tokens": 99})
        (50, 99)
    """
    stated = [params.get(name) for name in LIMIT_NAMES]
    stated += [metadata.get("ls_max_tokens"), (profile or {}).get("max_output_tokens")]
    return next((n for n in stated if isinstance(n, int) and not isinstance(n, bool) and n > 0), None)


def thinking_tokens(settings: Mapping[str, Any], model: Any = None) -> int:
    """Return how many tokens of the answer are set aside to think, by the call's settings or its model's.

    Example:
        >>> thinking_tokens({"thinking": {"type": "enabled", "budget_tokens": 10_000}})
        10000
    """
    for name in ("thinking", "thinking_budget", "additional_model_request_fields"):
        found = settings.get(name, getattr(model, name, None))
        if isinstance(found, Mapping):
            found = found.get("budget_tokens") or thinking_tokens(found)
        if isinstance(found, int) and not isinstance(found, bool) and found > 0:
            return found
    return 0


def limit_name(settings: Mapping[str, Any], fields: Iterable[str]) -> str:
    """What this model calls its output limit: as the settings do, else as its own fields do."""
    for names in (settings, frozenset(fields)):
        for name in LIMIT_NAMES:
            if name in names:
                return name
    return LIMIT_NAMES[0]


def model_attributes(operation: str, name: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the span of a model call says of it."""
    found: dict[str, Any] = {"gen_ai.operation.name": operation, "gen_ai.request.model": name}
    provider = provider_name(metadata)
    if provider is not None:
        found["gen_ai.provider.name"] = provider
    return found


def tool_attributes(name: str, call_id: str | None) -> dict[str, Any]:
    """What the span of a tool call says of it."""
    found = {"gen_ai.tool.name": name}
    if call_id:
        found["gen_ai.tool.call.id"] = call_id
    return found


# --- usage ---------------------------------------------------------------------------------------


#: LangChain's details of the input and of the output, by the names of `ModelUsage`.
_INPUT_DETAILS = {
    "cache_read": "cache_read_tokens",
    "cache_creation": "cache_write_tokens",
    "ephemeral_5m_input_tokens": "cache_write_5m_tokens",
    "ephemeral_1h_input_tokens": "cache_write_1h_tokens",
    "audio": "input_audio_tokens",
    "image": "input_image_tokens",
}
_OUTPUT_DETAILS = {
    "reasoning": "output_reasoning_tokens",
    "audio": "output_audio_tokens",
    "image": "output_image_tokens",
}
#: What LangChain puts before the details of OpenAI's tiers, and names beside them.
_TIERS = ("flex", "priority")


def tokens_used(message: Any) -> ModelUsage | None:
    """Return what an answer reports of its usage; None if it does not say.

    An answer from LangChain's own cache carries the usage of the call that filled it, and
    `total_cost: 0`: it used nothing.

    Example:
        >>> usage = {"input_tokens": 9, "output_tokens": 2, "total_tokens": 11}
        >>> tokens_used(AIMessage("hi", usage_metadata=usage)).counts
        {'input_tokens': 9, 'output_tokens': 2}
    """
    usage = getattr(message, "usage_metadata", None)
    if not usage:
        return None
    if usage.get("total_cost") == 0 and "total_cost" in usage:
        return ModelUsage(counts={}, cost=Decimal(0))
    given, made = usage.get("input_token_details") or {}, usage.get("output_token_details") or {}
    counts = {"input_tokens": usage.get("input_tokens"), "output_tokens": usage.get("output_tokens")}
    tier = None
    if given or made:
        tier = next((tier for tier in _TIERS if tier in given or tier in made), None)
        for details, names in ((given, _INPUT_DETAILS), (made, _OUTPUT_DETAILS)):
            for name, count in names.items():
                counts[count] = details.get(name) or details.get(f"{tier}_{name}")
    return _reported(counts, {"service_tier": tier} if tier else {}, message)


def tokens_reported(output: Mapping[str, Any] | None) -> ModelUsage | None:
    """Return the same from an LLM's `llm_output`, for text completion, whose answers are no messages."""
    usage = (output or {}).get("token_usage") or {}
    if not usage:
        return None
    counts = {"input_tokens": usage.get("prompt_tokens"), "output_tokens": usage.get("completion_tokens")}
    return _reported(counts, {}, None)


def _reported(counts: Mapping[str, Any], terms: dict[str, str], message: Any) -> ModelUsage | None:
    """Return the usage, with what the provider's own part of the answer tells of its price."""
    if counts["input_tokens"] is counts["output_tokens"] is None:
        return None
    told = getattr(message, "response_metadata", None) or {}
    raw = told.get("usage") or told.get("token_usage") or {}
    cost = {"cost": told["cost"]} if "cost" in told else {}
    more, said = terms_and_cost({**told, "usage": {**raw, **cost}}) if told else ({}, None)
    searches = (raw.get("server_tool_use") or {}).get("web_search_requests") or _searches(message)
    known = {name: n for name, n in {**counts, "web_searches": searches}.items() if n is not None}
    try:
        if raw.get("iterations"):  # of Claude, each at its price
            whole = {"model": _answered(told), "usage": raw}
            return model_usage(whole, provider="anthropic", terms={**more, **terms})
        return ModelUsage(counts=known, terms={**more, **terms}, model=_answered(told), cost=said)
    except (TypeError, ValueError):
        return None  # a count that cannot be one: as if it had said nothing


_SEARCH = ("server_tool_use", "web_search")


def _searches(message: Any) -> int | None:
    """Return how often Claude searched the web: streams have the searches, and not their number."""
    content = getattr(message, "content", None)
    if not isinstance(content, list):
        return None
    uses = [
        block for block in content if isinstance(block, Mapping) and block.get("type") == "server_tool_use"
    ]
    return sum(block.get("name") == "web_search" for block in uses) or None


def place_told(message: Any) -> bool:
    """Return whether an answer says where Claude was run, which Anthropic's streams lose here."""
    told = getattr(message, "response_metadata", None) or {}
    return told.get("model_provider") != "anthropic" or "usage" in told


_ASKED = ("service_tier", "speed", "inference_geo", "cache_control", "tools", "extra_body", "model_kwargs")

_NOTHING_ASKED = ModelRequest((), {})


def asked_of(
    settings: Mapping[str, Any],
    model: Any = None,
    *,
    tools: Sequence[Any] = (),
    blocks: Sequence[Any] = (),
) -> ModelRequest:
    """Return what a call asks for in the API's own words: tier, place, cache, hosted tools.

    Args:
        settings: those of the call.
        model: it has settings of its own.
        tools: those of the provider.
        blocks: the contents of messages that are more than a text.

    Example:
        >>> asked_of({"model_kwargs": {"service_tier": "priority"}}).terms
        {'service_tier': 'priority'}
    """
    of: type = type(model)
    fields = () if model is None else _fields_asked(of)
    if not (settings or fields or tools or blocks):
        return _NOTHING_ASKED
    found = {name: getattr(model, name, None) for name in fields}
    found |= {name: settings[name] for name in _ASKED if name in settings}
    flat: dict[str, Any] = {}
    for name in ("extra_body", "model_kwargs"):
        nested = found.pop(name, None)
        flat |= nested if isinstance(nested, Mapping) else {}
    flat |= {name: value for name, value in found.items() if value is not None}
    flat |= {name: given for name, given in (("tools", tools), ("content", blocks)) if given}
    return ModelRequest((), flat)


@lru_cache(maxsize=64)
def _fields_asked(cls: type) -> tuple[str, ...]:
    """Return which of them a model may have: pydantic takes long to say that it has none of a name."""
    if not issubclass(cls, BaseModel) or cls.model_config.get("extra") == "allow":
        return _ASKED
    own = cls.__getattr__ is not BaseModel.__getattr__  # type: ignore[attr-defined]
    return tuple(name for name in _ASKED if own or name in cls.model_fields or hasattr(cls, name))


def _answered(told: Mapping[str, Any]) -> str | None:
    names = (told.get(name) for name in ("model_name", "model", "model_id"))
    return next((name for name in names if isinstance(name, str) and name), None)


# --- what goes on record -------------------------------------------------------------------------


def message_data(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Messages as data to compare calls by: what they say, without the ids that differ in every run.

    Ids of tool calls become the number of the call in the conversation.

    Example:
        >>> message_data([ToolMessage("4", tool_call_id="call_x7")])
        [{'type': 'tool', 'content': '4', 'call': 1}]
    """
    numbers: dict[Any, int] = {}
    return [message_of(message, numbers) for message in messages]


def message_of(message: BaseMessage, numbers: dict[Any, int]) -> dict[str, Any]:
    """One of them; `numbers` are those of the calls before it, and take its own in."""
    fields = message.__dict__  # asking an abstract class what is its instance takes longer than all of this
    data: dict[str, Any] = {"type": fields["type"], "content": fields["content"]}
    if fields["name"]:
        data["name"] = fields["name"]
    if "tool_call_id" in fields:
        data["call"] = _number(fields["tool_call_id"], numbers)
        if fields["status"] != "success":
            data["status"] = fields["status"]
    elif calls := fields.get("tool_calls"):
        data["tool_calls"] = [
            {"name": call["name"], "args": call["args"], "call": _number(call["id"], numbers)}
            for call in calls
        ]
    return data


def call_ids(message: BaseMessage) -> list[Any]:
    """The ids of the tool calls that a message makes or answers.

    Example:
        >>> call_ids(ToolMessage("4", tool_call_id="call_x7"))
        ['call_x7']
    """
    fields = message.__dict__
    if "tool_call_id" in fields:
        return [fields["tool_call_id"]]
    return [call["id"] for call in fields.get("tool_calls") or ()]


def _number(call_id: Any, numbers: dict[Any, int]) -> int:
    return numbers.setdefault(call_id, len(numbers) + 1)


def answer_data(answer: Any) -> Any:
    """What a model or tool gave back, as data for the log: with the ids, which tell calls apart."""
    if isinstance(answer, AIMessage):
        calls = [{"name": c["name"], "args": c["args"], "id": c["id"]} for c in answer.tool_calls]
        return {"content": answer.content, **({"tool_calls": calls} if calls else {})}
    if isinstance(answer, ToolMessage):
        found = {"content": answer.content, "tool_call_id": answer.tool_call_id}
        return found if answer.status == "success" else found | {"status": answer.status}
    return answer


def tool_names(tools: Iterable[Any]) -> list[str]:
    """The names of tools: LangChain's own, and those of a provider, which are dicts."""
    return [
        str(tool.get("name") or tool.get("type")) if isinstance(tool, Mapping) else str(tool.name)
        for tool in tools
    ]


# --- places in the tree --------------------------------------------------------------------------


def escaped(name: str) -> str:
    """A name as part of a branch path, whose separators it must not contain."""
    return name.replace("%", "%25").replace("/", "%2F").replace("#", "%23")


def place_part(tags: Sequence[str] | None, metadata: Mapping[str, Any] | None) -> str:
    """What LangChain's tags say of a run's place below its parent; empty if they say nothing.

    The task of a graph is `node@step`, with `.index` where one node runs several times in a step; a branch
    of a RunnableParallel is its key.

    Example:
        >>> pushed = {"langgraph_node": "tools", "langgraph_step": 2, "langgraph_path": ("__pregel_push", 1)}
        >>> place_part(["graph:step:2"], pushed), place_part(["map:key:joke"], {})
        ('tools@2.1', 'joke')
    """
    for tag in tags or ():
        if tag.startswith(_GRAPH_STEP):
            return graph_part(metadata or {})
        if tag.startswith(_MAP_KEY):
            return escaped(tag.removeprefix(_MAP_KEY))
    return ""


def graph_part(metadata: Mapping[str, Any]) -> str:
    """The task of a graph, from the metadata that everything inside it inherits."""
    node = metadata.get("langgraph_node")
    if node is None:
        return ""
    part = _task_part(str(node), metadata.get("langgraph_step"))
    path = metadata.get("langgraph_path") or ()
    if path and path[0] == _PUSH:
        index = next((n for n in path[1:] if isinstance(n, int) and not isinstance(n, bool)), 0)
        part += f".{index}"
    return part


@lru_cache(maxsize=1024)
def _task_part(node: str, step: Any) -> str:
    return f"{escaped(node)}@{step}"


def is_before(path: str, around: str, step: int) -> bool:
    """Return whether a branch is of a graph's task before a step, or inside one; `around` is the graph's.

    Example:
        >>> is_before("tools@4.1/ask#1", "", 5), is_before("model@5", "", 5), is_before("x/a@1", "", 5)
        (True, False, False)
    """
    below = path.removeprefix(f"{around}/") if around else path
    if around and below == path:
        return False
    number = below.partition("/")[0].rpartition("@")[2].partition(".")[0].partition("#")[0]
    return "@" in below.partition("/")[0] and number.isdigit() and int(number) < step


def numbered(path: str, index: int) -> str:
    """The place of a tool call inside a task: the task's own, if it has a number, else with the call's.

    Example:
        >>> numbered("tools@2", 1), numbered("tools@2.1", 1)
        ('tools@2.1', 'tools@2.1')
    """
    last = path.rpartition("/")[2]
    if not last:
        return f"call.{index}"
    return path if last.rpartition(".")[2].isdigit() and "@" in last else f"{path}.{index}"


def call_index(messages: Sequence[Any] | None, call_id: str | None) -> int | None:
    """The index of a tool call in the message that asks for it."""
    for message in reversed(messages or ()):
        if isinstance(message, AIMessage):
            ids = [call["id"] for call in message.tool_calls]
            return ids.index(call_id) if call_id in ids else None
    return None


def fingerprint(value: Any) -> str:
    """A few characters that stand for what a call was given: its place, where the tree gives none."""
    return sha256(repr(_plain(value)).encode("utf-8", "backslashreplace")).hexdigest()[:8]


def _plain(value: Any) -> Any:
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, BaseMessage):
        return value.type, _plain(value.content)
    if isinstance(value, Mapping):
        return [(str(key), _plain(item)) for key, item in value.items()]
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return type(value).__qualname__
