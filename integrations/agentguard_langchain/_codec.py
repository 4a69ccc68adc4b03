"""What model and tool calls give back, as JSON and back again, so that a replay can hand it out."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import msgspec
from langchain.agents.middleware import ModelResponse
from langchain_core.messages import BaseMessage, messages_from_dict
from langgraph.errors import GraphBubbleUp, GraphInterrupt
from langgraph.types import Command, Interrupt, Send

from agentguard import ReplayDivergenceError
from agentguard.values import NotExactError, from_json, to_json

#: Marks an object that is no plain JSON; a dict of the user's own that has it is wrapped too.
_KEY = "$langchain"
#: How ids begin that LangChain made up, anew for each run: two runs do not differ by them.
_MADE_UP = "lc_"
_NONE_LOST = frozenset((str, int, float, bool, type(None)))


#: What fields of messages are where nobody says otherwise: they come back by themselves.
_USUAL: dict[str, Any] = {
    "additional_kwargs": {},
    "artifact": None,
    "id": None,
    "invalid_tool_calls": [],
    "name": None,
    "response_metadata": {},
    "status": "success",
    "tool_calls": [],
    "usage_metadata": None,
}
_OTHER = object()
_encode = msgspec.json.Encoder().encode


class Paused:
    """A call that ended in `interrupt()`: no result and no error, to be raised again outside its step."""

    def __init__(self, signal: GraphBubbleUp) -> None:
        self.signal = signal


class LangChainCodec:
    """Messages, commands, sends and plain data; whatever else marks a result as not replayable.

    Example:
        >>> from langchain_core.messages import ToolMessage
        >>> message = ToolMessage("4", tool_call_id="c1", name="add")
        >>> CODEC.decode(CODEC.encode(message)) == message
        True
    """

    def encode(self, value: Any) -> bytes:
        """Return the value as JSON.

        Raises:
            NotExactError: it would not come back; the step is marked with the reason.
        """
        return _encode(_packed(value))

    def decode(self, data: bytes) -> Any:
        """The value of `encode`.

        Raises:
            ReplayDivergenceError: it was not kept.
        """
        return _unpacked(msgspec.json.decode(data))


CODEC = LangChainCodec()


def _packed(value: Any) -> Any:
    cls = type(value)
    if cls in _NONE_LOST and not (cls is float and not math.isfinite(value)):
        return value
    if cls is list:
        return [_packed(item) for item in value]
    if cls is dict:
        return _packed_dict(value)
    if isinstance(value, BaseMessage):
        return {_KEY: "message", "type": value.type, "data": _fields(value)}
    pack = _PACKERS.get(cls)
    if pack is not None:
        return pack(value)
    return {_KEY: "value", "data": to_json(value)}


def _packed_dict(value: dict[Any, Any]) -> Any:
    if not all(type(key) is str for key in value):
        return {_KEY: "value", "data": to_json(value)}
    packed = {key: _packed(item) for key, item in value.items()}
    return {_KEY: "dict", "data": packed} if _KEY in packed else packed


def _fields(message: BaseMessage) -> dict[str, Any]:
    # By its type first, so that a stranger's artifact is not asked.
    fields = {
        name: value
        for name, value in message.__dict__.items()
        if type(value) is not type(usual := _USUAL.get(name, _OTHER)) or value != usual
    }
    del fields["type"]
    if (message.id or "").startswith(_MADE_UP):
        del fields["id"]
    packed: dict[str, Any] = to_json(fields)
    return packed


def _response(value: ModelResponse[Any]) -> dict[str, Any]:
    return {
        _KEY: "response",
        "result": _packed(value.result),
        "structured": _packed(value.structured_response),
    }


def _command(value: Command[Any]) -> dict[str, Any]:
    data = {name: _packed(getattr(value, name)) for name in ("graph", "update", "resume", "goto")}
    return {_KEY: "command", "data": data}


def _paused(value: Paused) -> dict[str, Any]:
    if not isinstance(value.signal, GraphInterrupt):
        raise NotExactError(f"a {type(value.signal).__qualname__} cannot be kept")
    found = [{"value": _packed(i.value), "id": i.id} for i in value.signal.args[0]]
    return {_KEY: "interrupt", "interrupts": found}


_PACKERS: dict[type, Callable[[Any], dict[str, Any]]] = {
    ModelResponse: _response,
    Command: _command,
    Send: lambda value: {_KEY: "send", "node": value.node, "arg": _packed(value.arg)},
    tuple: lambda value: {_KEY: "tuple", "items": [_packed(item) for item in value]},
    Paused: _paused,
}


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_KEY)
    if kind is None:
        return {key: _unpacked(item) for key, item in value.items()}
    return _UNPACKERS[kind](value)


def _lost(value: dict[str, Any]) -> Any:
    raise ReplayDivergenceError("not_replayable", None, expected=value["why"])


def _model(value: dict[str, Any]) -> Any:
    module, name = value["of"]
    cls: Any = sys.modules.get(module)
    for part in name.split("."):
        cls = getattr(cls, part, None)
    if cls is None:
        raise ReplayDivergenceError(
            "not_replayable", None, expected=f"{module}.{name}, which is not imported"
        )
    return cls.model_validate(value["data"])


def _interrupt(value: dict[str, Any]) -> Paused:
    found = [Interrupt(value=_unpacked(i["value"]), id=i["id"]) for i in value["interrupts"]]
    return Paused(GraphInterrupt(found))


def _message(value: dict[str, Any]) -> BaseMessage:
    fields = {name: from_json(part) for name, part in value["data"].items()}
    return messages_from_dict([{"type": value["type"], "data": fields}])[0]


_UNPACKERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "lost": _lost,
    "dict": lambda value: {key: _unpacked(item) for key, item in value["data"].items()},
    "message": _message,
    "value": lambda value: from_json(value["data"]),
    "model": _model,
    "response": lambda value: ModelResponse(_unpacked(value["result"]), _unpacked(value["structured"])),
    "command": lambda value: Command(**_unpacked(value["data"])),
    "send": lambda value: Send(value["node"], _unpacked(value["arg"])),
    "tuple": lambda value: tuple(_unpacked(item) for item in value["items"]),
    "interrupt": _interrupt,
}
