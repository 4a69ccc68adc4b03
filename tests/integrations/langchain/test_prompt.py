"""What is worked out once for each message is what would be worked out anew."""

from __future__ import annotations

import gc
from typing import Any

import msgspec
import pytest

pytest.importorskip("langchain")

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.tools import tool

from agentguard_langchain import _mapping as m
from agentguard_langchain import _prompt
from agentguard_langchain._prompt import Tools, prompt


def call(call_id: str) -> dict[str, Any]:
    return {"name": "search", "args": {"query": "x"}, "id": call_id, "type": "tool_call"}


def conversation() -> list[BaseMessage]:
    return [
        SystemMessage("Be brief."),
        HumanMessage("Hi", name="ann"),
        AIMessage([{"type": "text", "text": "Let me see."}], tool_calls=[call("c7"), call("c8")]),
        ToolMessage("found", tool_call_id="c8"),
        ToolMessage("not found", tool_call_id="c7", status="error"),
        AIMessage("", tool_calls=[call("c9")]),
        ToolMessage("found", tool_call_id="c9"),
    ]


def rename(data: dict[str, Any], key: str, other: str) -> None:
    data[other] = data.pop(key)


def check(messages: list[BaseMessage]) -> None:
    found = prompt(messages)
    assert [msgspec.json.decode(piece.json) for piece in found.fragments] == m.message_data(messages)
    assert found.tokens == count_tokens_approximately(messages)


def test_a_growing_conversation_is_told_as_a_whole_one() -> None:
    messages = conversation()
    for end in range(len(messages) + 1):
        check(messages[:end])
    again = prompt(messages)
    assert all(one is other for one, other in zip(again.fragments, prompt(messages).fragments, strict=True))


def test_the_numbers_of_calls_are_those_of_the_conversation_at_hand() -> None:
    messages = conversation()
    check(messages)
    check(messages[5:])  # as after a summary: its first call is another one
    check(messages)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: setattr(found[1], "content", "Good morning"),
        lambda found: setattr(found[1], "name", "bob"),
        lambda found: found[2].content.append({"type": "text", "text": "And more."}),
        lambda found: found[2].content[0].update(text="Wait."),
        lambda found: setattr(found[2], "tool_calls", [call("c7")]),
        lambda found: setattr(found[4], "status", "success"),
        lambda found: found[5].tool_calls.append(call("c1")),
        lambda found: found[5].tool_calls.clear(),
        lambda found: found[2].tool_calls.reverse(),
        lambda found: found[5].tool_calls[0].update(name="find"),
        lambda found: found[5].tool_calls[0].update(id="c0"),
        lambda found: found[5].tool_calls[0]["args"].update(query="y"),
        lambda found: found[5].tool_calls[0]["args"].update(limit=True),
        lambda found: found[5].tool_calls[0]["args"].clear(),
        lambda found: found[5].tool_calls[0].update(args={"query": "y"}),
        lambda found: found[5].tool_calls[0]["args"]["filters"].append(2),
        lambda found: found[5].tool_calls[0]["args"]["filters"][0].update(day=True),
        lambda found: rename(found[5].tool_calls[0]["args"]["filters"][0], "day", "night"),
        lambda found: found[7].tool_calls.append(call("c1")),
    ],
)
def test_a_message_that_was_changed_is_told_as_it_is_now(change: Any) -> None:
    messages = [*conversation(), AIMessage("Done.")]
    messages[5].tool_calls[0]["args"]["filters"] = [{"day": 1}]  # type: ignore[attr-defined]
    check(messages)
    change(messages)
    check(messages)
    check([*messages, HumanMessage("Thanks.")])


def test_what_may_change_unseen_is_looked_at_each_time() -> None:
    data: list[Any] = [bytearray(b"a")]
    messages = [HumanMessage("Hi"), AIMessage("", tool_calls=[call("c1")])]
    messages[1].tool_calls[0]["args"]["data"] = data  # type: ignore[attr-defined]
    told = [prompt(messages).fragments[1].json for _ in range(2)]
    data[0][:] = b"b"
    assert told[0] == told[1] != prompt(messages).fragments[1].json
    data += [data, data]  # which has no end
    assert b"unencodable" in prompt(messages).fragments[1].json


def test_what_is_known_of_a_message_goes_with_it() -> None:
    gc.collect()
    before = len(_prompt._known)
    messages = conversation()
    check(messages)
    assert len(_prompt._known) == before + len(messages)
    del messages
    gc.collect()
    assert len(_prompt._known) == before


def test_tools_are_known_again_unless_they_may_have_changed() -> None:
    @tool
    def search(query: str) -> str:
        """Search."""
        return query

    native = {"type": "web_search"}
    known = Tools([search])
    assert known.are([search])
    assert not known.are([])
    assert not known.are([search, native])
    assert not Tools([native]).are([native])
    assert known.names.json == b'["search"]'
    assert known.tokens == count_tokens_approximately([], tools=[search])


def written() -> list[BaseMessage]:
    """A conversation of texts alone, as most are."""
    return [
        SystemMessage("Be brief."),
        HumanMessage("Hi"),
        AIMessage("Let me see.", tool_calls=[call("d7"), call("d8")]),
        ToolMessage("found", tool_call_id="d8"),
        ToolMessage("not found", tool_call_id="d7"),
        AIMessage("Well.", tool_calls=[call("d9")]),
        ToolMessage("found", tool_call_id="d9"),
        AIMessage("Here it is."),
    ]


@pytest.mark.parametrize("at", range(8))
@pytest.mark.parametrize(
    "change",
    [
        lambda found, at: setattr(found[at], "content", "Wait."),
        lambda found, at: setattr(found[at], "content", [{"type": "text", "text": "Wait."}]),
        lambda found, at: setattr(found[at], "name", "bob"),
        lambda found, at: found.__setitem__(at, HumanMessage("Wait.")),
        lambda found, at: found.insert(at, HumanMessage("Wait.")),
        lambda found, at: found.insert(at, AIMessage("", tool_calls=[call("d1")])),
        lambda found, at: found.__delitem__(at),
        lambda found, at: found.__delitem__(slice(at, None)),
        lambda found, at: found.reverse(),
    ],
)
def test_what_follows_on_a_conversation_is_told_as_anew(change: Any, at: int) -> None:
    messages = written()
    for end in range(len(messages) + 1):
        check(messages[:end])
    change(messages, at)
    check(messages)
    check([*messages, HumanMessage("Thanks.")])


def test_conversations_that_share_a_beginning_are_kept_apart() -> None:
    one, other = written(), written()
    other[0] = one[0]
    fork = [*one[:5], AIMessage("No.", tool_calls=[call("e1")]), ToolMessage("found", tool_call_id="e1")]
    for end in range(9):
        for messages in (one, other, fork):
            check(messages[:end])


def test_what_was_asked_with_a_message_goes_with_it() -> None:
    messages = written()
    prompt(messages)
    known = _prompt._known[id(messages[1])]
    assert known.asked is not None
    del messages
    gc.collect()
    assert known.asked is None


def test_the_provider_s_own_tools_are_told_from_langchain_s() -> None:
    @tool
    def search(query: str) -> str:
        """Search."""
        return query

    native = {"type": "web_search"}
    assert Tools([search, native]).hosted == [native]
