"""MCP's messages as agentguard's values, and back.  Pure: nothing is called, nothing awaited."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from agentguard import AgentGuardError, BudgetExceededError, KillSwitchTriggeredError, UnknownCostError

Effect = Literal["read", "idempotent", "once"]

_NAMED = (BudgetExceededError, KillSwitchTriggeredError, UnknownCostError)
_LONGEST_NAME = 128
_PROTOCOL = (
    "io.modelcontextprotocol/protocolVersion",
    "io.modelcontextprotocol/clientInfo",
    "io.modelcontextprotocol/clientCapabilities",
)


class ToolCall(NamedTuple):
    """What a `tools/call` request asks for."""

    name: str
    arguments: dict[str, Any]


def tool_call(params: Mapping[str, Any] | None) -> ToolCall | None:
    """The call in a request's raw parameters, or None where they are malformed."""
    name = (params or {}).get("name")
    arguments = (params or {}).get("arguments") or {}
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        return None
    return ToolCall(name, dict(arguments))


def step_name(tool: str) -> str:
    """A tool's name as a step's: the client chooses it, so it may be anything."""
    if tool and tool.isprintable() and len(tool) <= _LONGEST_NAME:
        return tool
    return quote(tool, safe="")[:_LONGEST_NAME] or "tool"


def branch_name(request_id: Any) -> str:
    """The branch of a request, by the id that the client gave it."""
    return f"request-{quote(str(request_id), safe='')[:_LONGEST_NAME]}"


def listing_params(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the parameters of a `tools/list` request of our own, sent while another is served.

    Of the other's `_meta` it takes what the protocol wants in each request, and nothing that is the caller's:
    no progress token, no trace, no data of an application.
    """
    meta = (params or {}).get("_meta")
    kept = {name: meta[name] for name in _PROTOCOL if name in meta} if isinstance(meta, Mapping) else {}
    return {"_meta": kept} if kept else {}


def effects(tools: Iterable[Any]) -> dict[str, Effect]:
    """What a repeat of each tool would do, by the hints in a `tools/list` result."""
    found: dict[str, Effect] = {}
    for tool in tools:
        if isinstance(tool, Mapping) and isinstance(tool.get("name"), str):
            found[tool["name"]] = _effect(tool.get("annotations"))
    return found


def _effect(hints: Any) -> Effect:
    if not isinstance(hints, Mapping):
        return "once"
    if hints.get("readOnlyHint") is True:
        return "read"
    return "idempotent" if hints.get("idempotentHint") is True else "once"


def error_data(error: AgentGuardError) -> dict[str, Any]:
    """An error's type and facts as JSON."""
    kind = next((cls for cls in _NAMED if isinstance(error, cls)), type(error))
    facts = {name: _json(value) for name, value in error.facts().items()}
    return {"type": kind.__name__, **facts}


def _json(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return [_json(item) for item in value] if isinstance(value, tuple | list) else str(value)
