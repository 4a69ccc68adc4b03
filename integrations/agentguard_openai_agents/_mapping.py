"""The Agents SDK's objects as agentguard's values, and back.  Pure: nothing is called, nothing awaited."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from agents import Model, ModelResponse, ModelSettings, TResponseInputItem
from agents.items import TResponseStreamEvent
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFailedEvent,
    ResponseIncompleteEvent,
    ResponseOutputItemDoneEvent,
)
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json, to_jsonable_python

from agentguard.cost import ModelRequest, ModelUsage, terms_and_cost, tool_calls
from agentguard.cost.usage import estimated_tokens, request_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: The events that end a stream; they carry the whole answer and its usage.
_LAST: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
#: The events that a runner needs of a stream, besides the last.
_ITEM_DONE: Final = "response.output_item.done"
#: Those of a stream that are kept, by their type.
_KEPT: Final[dict[str, Any]] = {
    "response.completed": ResponseCompletedEvent,
    "response.incomplete": ResponseIncompleteEvent,
    "response.failed": ResponseFailedEvent,
    _ITEM_DONE: ResponseOutputItemDoneEvent,
}
#: Marks an event that came as a dict, as those of some models do.
_DICT: Final = "$dict"
_MEDIA: Final = frozenset({"input_image", "input_file", "input_audio", "computer_screenshot"})


# --- requests ------------------------------------------------------------------------------------


def model_name(model: Model | str) -> str:
    """What a model is called: the name that its class keeps, else the class's own."""
    name = model if isinstance(model, str) else getattr(model, "model", None)
    return name if isinstance(name, str) and name else type(model).__name__


def request_data(
    instructions: str | None,
    input_items: str | list[TResponseInputItem],
    settings: ModelSettings,
    *,
    tools: Sequence[Any],
    handoffs: Sequence[Any],
    **conversation: Any,
) -> dict[str, Any]:
    """What a model is asked, as plain data."""
    data = {
        "instructions": instructions,
        "input": _plain(input_items),
        "settings": {name: value for name, value in _plain(settings).items() if value is not None},
        "tools": [getattr(tool, "name", type(tool).__name__) for tool in tools],
        "handoffs": [handoff.tool_name for handoff in handoffs],
    }
    return data | {name: _plain(value) for name, value in conversation.items() if value is not None}


def asked_of(model: str, settings: ModelSettings, tools: Sequence[Any] = ()) -> ModelRequest:
    """Return what a call asks for in the API's own words: its tier, and the hosted tools that it offers."""
    offered = [
        getattr(tool, "tool_config", None) or {"type": getattr(tool, "name", None)}
        for tool in tools
        if not hasattr(tool, "params_json_schema")
    ]
    asked = {**_mapping_of(settings.extra_body), **(settings.extra_args or {})}
    return ModelRequest((), {"model": model, "tools": offered, **asked})


def _mapping_of(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def input_tokens(data: dict[str, Any], tools: Sequence[Any], handoffs: Sequence[Any]) -> int:
    """About how many tokens a request is, its tool definitions included."""
    shown: list[Any] = [
        (getattr(tool, "description", ""), getattr(tool, "params_json_schema", None)) for tool in tools
    ]
    shown += [(handoff.tool_description, handoff.input_json_schema) for handoff in handoffs]
    return request_tokens(
        [data["instructions"], data["input"], data["tools"], data["handoffs"]], _is_media
    ) + estimated_tokens(to_json(shown, fallback=repr))


def _plain(value: Any) -> Any:
    return to_jsonable_python(
        value, bytes_mode="base64", fallback=lambda other: f"<{type(other).__qualname__}>"
    )


def _is_media(part: dict[str, Any]) -> bool:
    return str(part.get("type")) in _MEDIA  # a schema of a field of that name is no text


# --- answers -------------------------------------------------------------------------------------


def tokens_of(usage: Any, answer: Any = None) -> ModelUsage | None:
    """Return what the provider counted (the SDK's usage or the API's), or None where it counted nothing.

    `answer` tells more where it is the API's: who answered, in which tier, with which tools.
    """
    if not (field(usage, "input_tokens") or field(usage, "output_tokens")):
        return None
    given, made = field(usage, "input_tokens_details"), field(usage, "output_tokens_details")
    counts = {
        "input_tokens": field(usage, "input_tokens") or 0,
        "output_tokens": field(usage, "output_tokens") or 0,
        "cache_read_tokens": field(given, "cached_tokens"),
        "cache_write_tokens": field(given, "cache_write_tokens"),
        "output_reasoning_tokens": field(made, "reasoning_tokens"),
    }
    terms, cost = terms_and_cost(answer)
    model = field(answer, "model")
    return ModelUsage(
        counts={name: n for name, n in counts.items() if n is not None} | tool_calls(answer),
        terms=terms,
        model=model if isinstance(model, str) else None,
        cost=cost,
    )


def answer_in(event: TResponseStreamEvent) -> Any:
    """The whole answer, if the event is the last of a stream."""
    return field(event, "response") if field(event, "type") in _LAST else None


def finished_item(event: TResponseStreamEvent) -> Any:
    """The item of an answer that the event finishes, if it does."""
    return field(event, "item") if field(event, "type") == _ITEM_DONE else None


def call_ids(output: Iterable[Any]) -> list[str]:
    """The ids of the tool calls of an answer, in order."""
    ids = (field(item, "call_id") for item in output if str(field(item, "type")).endswith("_call"))
    return [call_id for call_id in ids if call_id]


def answered_calls(input_items: Any) -> list[str]:
    """The ids of the tool calls whose outputs an input ends with."""
    ids: list[str] = []
    for item in reversed(input_items if isinstance(input_items, list) else []):
        if not str(field(item, "type")).endswith("_output"):
            break
        ids.append(field(item, "call_id"))
    return ids


def field(item: Any, name: str) -> Any:
    """A field of an object of the SDK, which may come as a dict."""
    return item.get(name) if isinstance(item, dict) else getattr(item, name, None)


@cache
def _responses() -> TypeAdapter[ModelResponse]:
    return TypeAdapter(ModelResponse)


@cache
def _event() -> TypeAdapter[TResponseStreamEvent]:
    return TypeAdapter(TResponseStreamEvent)


class ResponseCodec:
    """A model's answer as bytes, so that a replay can hand it out again."""

    def encode(self, value: ModelResponse) -> bytes:
        """The answer as JSON; what was not set stays unset, since the SDK sends back what is set."""
        return _responses().dump_json(value, exclude_unset=True)

    def decode(self, data: bytes) -> ModelResponse:
        """The answer again."""
        try:
            return _responses().validate_json(data)
        except ValidationError:  # of a server that leaves fields out, which the SDK puts up with
            told = from_json(data)
            answer = _responses().validate_python({**told, "output": []})
            answer.output = Response.construct(output=told["output"]).output
            return answer


class StreamCodec:
    """A streamed answer as bytes: the finished items and the last event, without the pieces."""

    def encode(self, value: list[TResponseStreamEvent]) -> bytes:
        """The events that a runner needs, as JSON; one that came as a dict is marked."""
        kept = [event for event in value if field(event, "type") in _KEPT]
        return to_json([{_DICT: event} if isinstance(event, dict) else _dumped(event) for event in kept])

    def decode(self, data: bytes) -> list[TResponseStreamEvent]:
        """Those events again."""
        return [event[_DICT] if _DICT in event else _made(event) for event in from_json(data)]


def _dumped(event: TResponseStreamEvent) -> Any:
    return event.model_dump(mode="json", exclude_unset=True, warnings=False)


def _made(event: dict[str, Any]) -> TResponseStreamEvent:
    try:
        return _event().validate_python(event)
    except ValidationError:  # as above
        made: TResponseStreamEvent = _KEPT[event["type"]].construct(**event)
        return made


# --- tool calls ----------------------------------------------------------------------------------


def arguments_of(text: str) -> dict[str, Any]:
    """The arguments of a tool call by name; text that is no JSON object comes as `input`."""
    try:
        parsed = json.loads(text or "{}")
    except ValueError:
        return {"input": text}
    return parsed if isinstance(parsed, dict) else {"input": parsed}
