"""What a model is asked, for the log and for the reservation: worked out once for each message.

An agent asks with the whole conversation every time, and only its end is new.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any, NamedTuple

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.tools import BaseTool

from agentguard.cost.usage import estimated_tokens
from agentguard.fragments import JsonFragment, JsonFragments
from agentguard_langchain import _mapping as m

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage


class Inside:
    """What the lists and dicts inside messages hold, to see whether one was changed in place.

    That is by the identity of what they hold, which takes no time for a line of each: histories are long.
    """

    __slots__ = ("dicts", "fixed", "held", "lists")

    def __init__(self) -> None:
        self.dicts: list[dict[Any, Any]] = []
        self.lists: list[list[Any]] = []
        #: The keys and the values of the dicts, and the items of the lists.
        self.held: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
        #: Whether all else in there never changes.
        self.fixed = True

    def take_in(self, value: Any, depth: int = 0) -> None:
        """Note what is in a value."""
        self.fixed = self.fixed and depth < _DEEPEST
        if not self.fixed:
            return
        keys, values, items = self.held
        if type(value) is dict:
            self.dicts.append(value)
            keys += value
            values += value.values()
            found = list(value.values())
        elif type(value) is list:
            self.lists.append(value)
            items += value
            found = value
        else:
            self.fixed = type(value) in _FIXED
            return
        for each in found:
            self.take_in(each, depth + 1)

    def add(self, other: Inside) -> None:
        """Note what another knows."""
        self.dicts += other.dicts
        self.lists += other.lists
        (keys, values, items), (more_keys, more_values, more_items) = self.held, other.held
        keys += more_keys
        values += more_values
        items += more_items
        self.fixed = self.fixed and other.fixed

    def is_unchanged(self) -> bool:
        """Whether all is there that was, and nothing else; False where nobody can tell."""
        keys, values, items = self.held
        return (
            self.fixed
            and sum(map(len, self.lists)) == len(items)
            and list(chain.from_iterable(self.dicts)) == keys
            and all(map(is_, chain.from_iterable(map(dict.values, self.dicts)), values))
            and all(map(is_, chain.from_iterable(self.lists), items))
        )


_DEEPEST = 20
_FIXED = frozenset((str, int, float, bool, type(None), bytes))


class Prompt(NamedTuple):
    """A conversation."""

    #: As it goes on record: what `message_data` gives.
    fragments: JsonFragments
    #: About how many tokens it has.  An estimate: it may be too low by some.
    tokens: int
    #: The contents that are more than a text.
    blocks: list[Any]
    #: What is known of each message.
    known: list[_Known]
    #: The numbers of the tool calls.
    numbers: dict[Any, int]
    #: What the messages have inside.
    inside: Inside


def prompt(messages: Iterable[BaseMessage]) -> Prompt:
    """A conversation, for the log and for the reservation.

    Example:
        >>> from langchain_core.messages import HumanMessage
        >>> found = prompt([HumanMessage("How many tokens is this?")])
        >>> found.tokens, found.fragments[0].json
        (10, b'{"type":"human","content":"How many tokens is this?"}')
    """
    messages = list(messages)
    known = list(map(_known.get, map(id, messages)))
    # The first may be the system message, which conversations share.
    first = known[:2][-1] if known else None
    before = first.asked if first is not None else None
    if before is None or known[: len(before.known)] != before.known or not _unchanged(before, messages):
        before = Prompt(JsonFragments(), 0, [], [], {}, Inside())
    prompt = _continued(before, messages)
    if prompt.known:
        prompt.known[:2][-1].asked = prompt
    return prompt


def _unchanged(before: Prompt, messages: list[BaseMessage]) -> bool:
    """Whether the messages of a prompt say what they said.  Histories are long: no line is run for each."""
    fields = chain.from_iterable(map(dict.values, map(vars, messages)))
    return (
        all(map(is_, chain.from_iterable(map(_fields, before.known)), fields))
        and not any(map(_no_calls, before.known))
        and before.inside.is_unchanged()
    )


def _continued(before: Prompt, messages: list[BaseMessage]) -> Prompt:
    """Return a prompt with the messages that come after those of another."""
    fragments, tokens, blocks = JsonFragments(before.fragments), before.tokens, before.blocks.copy()
    known_of, numbers, inside = before.known.copy(), before.numbers.copy(), Inside()
    inside.add(before.inside)
    for message in messages[len(known_of) :]:
        known = _known.get(id(message))
        if known is None or not known.fits(message, numbers):
            known = _Known(message, numbers)  # not changed: another thread may be reading it
        if not isinstance(message.content, str):
            blocks.append(message.content)
        known_of.append(known)
        tokens += known.tokens
        fragments.append(known.fragment)
        if known.inside is not None:
            inside.add(known.inside)
    return Prompt(fragments, tokens, blocks, known_of, numbers, inside)


class _Known:
    """A message that was asked with, for as long as it lives and says the same.

    The numbers of its tool calls follow from the conversation, and are given here to those that are new
    in it: a message is most often in one conversation only.
    """

    __slots__ = (
        "_of",
        "asked",
        "fields",
        "fragment",
        "inside",
        "no_calls",
        "numbered",
        "tokens",
    )

    def __init__(self, message: BaseMessage, numbers: dict[Any, int]) -> None:
        #: Held, so that none of another identity takes its place unseen.
        self.fields = list(message.__dict__.values())
        #: Of what goes on record, that which may change in place: its content and its tool calls, or the list
        #: of these where there are none.
        self.inside: Inside | None = None
        self.no_calls: list[Any] | None = None
        content, calls = message.__dict__["content"], message.__dict__.get("tool_calls")
        if type(content) is str and calls == []:
            self.no_calls = calls
        elif type(content) is not str or calls is not None:
            self.inside = Inside()
            self.inside.take_in(content)
            self.inside.take_in(calls)
        self.tokens = _tokens(message)
        #: The ids of the tool calls that it makes or answers, and the numbers that `piece` gives them.
        self.numbered = {call: numbers.setdefault(call, len(numbers) + 1) for call in m.call_ids(message)}
        self.fragment = JsonFragment(m.message_of(message, numbers))
        #: The last conversation that begins with it, or with it after another.
        self.asked: Prompt | None = None
        key = id(message)
        self._of = weakref.ref(message, lambda _: _forget(key))
        _known[key] = self

    def _are_numbered_in(self, numbers: dict[Any, int]) -> bool:
        return all(
            numbers.setdefault(call, len(numbers) + 1) == number for call, number in self.numbered.items()
        )

    def fits(self, message: BaseMessage, numbers: dict[Any, int]) -> bool:
        """Whether the message says what it said, and its tool calls have the same numbers after others."""
        return (
            all(map(is_, self.fields, message.__dict__.values()))
            and not self.no_calls
            and (self.inside is None or self.inside.is_unchanged())
            and (not self.numbered or self._are_numbered_in(numbers))
        )


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


def _forget(key: int) -> None:
    if (known := _known.pop(key, None)) is not None:
        known.asked = None  # which holds it, too


_known: dict[int, _Known] = {}
_fields: Callable[[_Known], list[Any]] = attrgetter("fields")
_no_calls: Callable[[_Known], list[Any] | None] = attrgetter("no_calls")


class Tools:
    """The tools that a model is offered."""

    def __init__(self, offered: Sequence[Any]) -> None:
        self._offered = list(offered)
        # Dicts, as providers take them, may change in place.
        self._ids = None if dict in map(type, offered) else list(map(id, offered))
        #: Their names, for the log.
        self.names = JsonFragment(m.tool_names(offered))
        self.tokens = tool_tokens(offered)
        #: Those that are no tools of LangChain's: the provider's own.
        self.hosted = [tool for tool in offered if not isinstance(tool, BaseTool)]

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
