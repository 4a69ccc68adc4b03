"""What a model is asked, for the log and for the reservation: worked out once for each message.

An agent asks with the whole conversation every time, and only its end is new.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.messages.utils import count_tokens_approximately

from agentguard.cost.usage import estimated_tokens
from agentguard.fragments import JsonFragment, JsonFragments
from agentguard_langchain import _mapping as m

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage


class Prompt(NamedTuple):
    """A conversation."""

    #: As it goes on record: what `message_data` gives.
    fragments: JsonFragments
    #: About how many tokens it has.  An estimate: it may be too low by some.
    tokens: int


def prompt(messages: Iterable[BaseMessage]) -> Prompt:
    """A conversation, for the log and for the reservation.

    Example:
        >>> from langchain_core.messages import HumanMessage
        >>> found = prompt([HumanMessage("How many tokens is this?")])
        >>> found.tokens, found.fragments[0].json
        (10, b'{"type":"human","content":"How many tokens is this?"}')
    """
    numbers: dict[Any, int] = {}
    fragments = JsonFragments()
    tokens = 0
    for message in messages:
        known, fields = _known.get(id(message)), message.__dict__
        # All asked here, and no method called: histories are long.
        if (
            known is None
            or known.content is not fields["content"]
            or known.tool_calls is not fields.get("tool_calls")
            or known.name is not fields["name"]
            or known.status is not fields.get("status")
            or (known.blocks is not None and known.blocks != JsonFragment(known.content).json)
        ):
            known = _Known(message, numbers)
        elif known.numbered:
            given = {call: numbers.setdefault(call, len(numbers) + 1) for call in known.numbered}
            if given != known.numbered:
                known = _Known(message, numbers)  # not changed: another thread may be reading it
        tokens += known.tokens
        fragments.append(known.fragment)
    return Prompt(fragments, tokens)


class _Known:
    """A message that was asked with, for as long as it lives and says the same.

    The numbers of its tool calls follow from the conversation, and are given here to those that are new
    in it: a message is most often in one conversation only.
    """

    __slots__ = (
        "_of",
        "blocks",
        "content",
        "fragment",
        "name",
        "numbered",
        "status",
        "tokens",
        "tool_calls",
    )

    def __init__(self, message: BaseMessage, numbers: dict[Any, int]) -> None:
        fields = message.__dict__
        self.content = fields["content"]
        self.name = fields["name"]
        self.status = fields.get("status")
        self.tool_calls = fields.get("tool_calls")
        #: The parts of a content that has several, which may change in place.
        self.blocks = None if isinstance(self.content, str) else JsonFragment(self.content).json
        self.tokens = _tokens(message)
        #: The ids of the tool calls that it makes or answers, and the numbers that `piece` gives them.
        self.numbered = {call: numbers.setdefault(call, len(numbers) + 1) for call in m.call_ids(message)}
        self.fragment = JsonFragment(m.message_of(message, numbers))
        key = id(message)
        self._of = weakref.ref(message, lambda _: _known.pop(key, None))
        _known[key] = self


#: How long the roles of the usual messages are, as the estimate counts them.
_ROLES = {HumanMessage: len("user"), AIMessage: len("assistant"), ToolMessage: len("tool")}


def _tokens(message: BaseMessage) -> int:
    """What `count_tokens_approximately` gives, which takes longer than all the rest of a message."""
    fields = message.__dict__
    content = fields["content"]
    role = _ROLES.get(type(message))
    if role is None or type(content) is not str:
        return count_tokens_approximately([message])
    size = role + len(content) + len(fields["name"] or "") + len(fields.get("tool_call_id") or "")
    if calls := fields.get("tool_calls"):
        size += len(repr(calls))
    return -(-size // 4) + 3


_known: dict[int, _Known] = {}


class Tools:
    """The tools that a model is offered."""

    def __init__(self, offered: Sequence[Any]) -> None:
        self._offered = list(offered)
        # Dicts, as providers take them, may change in place.
        self._ids = None if dict in map(type, offered) else list(map(id, offered))
        #: Their names, for the log.
        self.names = JsonFragment(m.tool_names(offered))
        self.tokens = tool_tokens(offered)

    def are(self, offered: Sequence[Any]) -> bool:
        """Whether these are the same, and say the same."""
        return list(map(id, offered)) == self._ids


_counts: dict[int, tuple[weakref.ref[Any], int]] = {}


def tool_tokens(tools: Iterable[Any] | None) -> int:
    """About how many tokens the schemas of tools have."""
    return sum(map(_of_tool, tools or ()))


def _of_tool(tool: Any) -> int:
    if isinstance(tool, dict):
        return _of_schema(tool)
    key = id(tool)
    known = _counts.get(key)
    if known is not None and known[0]() is tool:
        return known[1]
    count = _of_schema(tool)
    _counts[key] = weakref.ref(tool, lambda _: _counts.pop(key, None)), count
    return count


def _of_schema(tool: Any) -> int:
    try:
        return count_tokens_approximately([], tools=[tool])
    except Exception:  # noqa: BLE001 - tools may be anything that a provider takes
        return estimated_tokens(repr(tool))
