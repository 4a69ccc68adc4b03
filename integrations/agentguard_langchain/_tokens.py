"""About how many tokens a prompt has: LangChain's own estimate, kept by message, since agents repeat them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages.utils import count_tokens_approximately

from agentguard.cost.usage import estimated_tokens

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage


def prompt_tokens(messages: Sequence[BaseMessage], tools: Any = None) -> int:
    """About how many tokens a prompt has.  An estimate: it may be too low by some.

    Example:
        >>> from langchain_core.messages import HumanMessage
        >>> prompt_tokens([HumanMessage("How many tokens is this?")])
        10
    """
    return sum(map(_of_message, messages)) + sum(map(_of_tool, tools or ()))


class _Kept:
    """Counts by object, for as long as it lives and `mark` is the same one."""

    def __init__(self) -> None:
        self._counts: dict[int, tuple[weakref.ref[Any], Any, int]] = {}

    def get(self, thing: Any, mark: Any) -> int | None:
        found = self._counts.get(id(thing))
        if found is not None and found[1] is mark and found[0]() is thing:
            return found[2]
        return None

    def keep(self, thing: Any, mark: Any, count: int) -> int:
        key, counts = id(thing), self._counts
        counts[key] = weakref.ref(thing, lambda _: counts.pop(key, None)), mark, count
        return count


_messages = _Kept()
_tools = _Kept()


def _of_message(message: BaseMessage) -> int:
    content = message.content
    known = _messages.get(message, content)
    if known is not None:
        return known
    count = count_tokens_approximately([message])
    # A list may grow in place.
    return _messages.keep(message, content, count) if isinstance(content, str) else count


def _of_tool(tool: Any) -> int:
    if isinstance(tool, dict):
        return _of_schema(tool)
    known = _tools.get(tool, None)
    return known if known is not None else _tools.keep(tool, None, _of_schema(tool))


def _of_schema(tool: Any) -> int:
    try:
        return count_tokens_approximately([], tools=[tool])
    except Exception:  # noqa: BLE001 - tools may be anything that a provider takes
        return estimated_tokens(repr(tool))
