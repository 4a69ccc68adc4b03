"""The Agents SDK's objects as agentguard's values, without a running agent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from agents import Agent, ModelResponse, ModelSettings, Usage, function_tool, handoff
from agents.testing import ScriptedModel, assistant_message, function_call
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseOutputItemDoneEvent,
    ResponseTextDeltaEvent,
)

import agentguard
from agentguard_openai_agents import _mapping as m


@function_tool
def lookup(city: str) -> str:
    """Look a city up, which takes a few words to explain."""
    return city


def test_a_request_is_plain_data() -> None:
    data = m.request_data(
        "be brief",
        [{"role": "user", "content": "hello"}],
        ModelSettings(max_tokens=5),
        tools=[lookup],
        handoffs=[handoff(Agent(name="other"))],
        previous_response_id=None,
        conversation_id="c1",
    )

    assert data == {
        "instructions": "be brief",
        "input": [{"role": "user", "content": "hello"}],
        "settings": {"max_tokens": 5},
        "tools": ["lookup"],
        "handoffs": ["transfer_to_other"],
        "conversation_id": "c1",
    }


def test_an_image_weighs_the_same_whatever_its_size() -> None:
    def weight(size: int) -> int:
        image = {"type": "input_image", "image_url": "data:image/png;base64," + "x" * size}
        items: Any = [{"role": "user", "content": [image]}]
        data = m.request_data(None, items, ModelSettings(), tools=[], handoffs=[])
        return m.input_tokens(data, [], [])

    assert weight(10) == weight(1_000_000)
    assert 1000 < weight(10) < 3000


def test_tool_definitions_weigh_too() -> None:
    data = m.request_data(None, "hello", ModelSettings(), tools=[lookup], handoffs=[])

    assert m.input_tokens(data, [lookup], []) > m.input_tokens(data | {"tools": []}, [], []) + 30


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        pytest.param(None, None, id="none"),
        pytest.param(Usage(requests=1), None, id="nothing-counted"),
        pytest.param(
            SimpleNamespace(
                input_tokens=9,
                output_tokens=7,
                input_tokens_details=SimpleNamespace(cached_tokens=4),
                output_tokens_details=SimpleNamespace(reasoning_tokens=None),
            ),
            agentguard.Usage(input_tokens=9, output_tokens=7, cached_tokens=4),
            id="of-the-api",
        ),
    ],
)
def test_usage(usage: Any, expected: agentguard.Usage | None) -> None:
    found = m.tokens_of(usage)

    assert (found and found.usage()) == expected


def test_an_answer_comes_back_as_it_was() -> None:
    answer = ModelResponse(
        output=[assistant_message("hi"), function_call("f", {"a": 1}, call_id="c")],
        usage=Usage(requests=1, input_tokens=1, output_tokens=2, total_tokens=3),
        response_id="r",
    )
    codec = m.ResponseCodec()
    back = codec.decode(codec.encode(answer))

    assert back == answer
    assert back.to_input_items() == answer.to_input_items()


def test_a_stream_is_kept_without_its_pieces() -> None:
    delta = ResponseTextDeltaEvent(
        content_index=0,
        delta="hi",
        item_id="1",
        logprobs=[],
        output_index=0,
        sequence_number=1,
        type="response.output_text.delta",
    )
    done = ResponseOutputItemDoneEvent(
        item=assistant_message("hi"), output_index=0, sequence_number=2, type="response.output_item.done"
    )
    last = ResponseCompletedEvent(
        response=Response(
            id="r",
            created_at=0,
            model="house",
            object="response",
            output=[assistant_message("hi")],
            parallel_tool_calls=False,
            tool_choice="auto",
            tools=[],
        ),
        sequence_number=3,
        type="response.completed",
    )
    codec = m.StreamCodec()

    assert codec.decode(codec.encode([delta, done, last])) == [done, last]
    assert m.answer_in(last) is last.response
    assert m.answer_in(delta) is None


def test_calls_are_found_in_answers_and_their_outputs_in_inputs() -> None:
    output = [
        assistant_message("hi"),
        function_call("f", {}, call_id="a"),
        function_call("f", {}, call_id="b"),
    ]
    items = [
        {"role": "user", "content": "go"},
        {"type": "function_call_output", "call_id": "old", "output": "0"},
        {"role": "user", "content": "and now"},
        {"type": "function_call_output", "call_id": "a", "output": "1"},
        {"type": "function_call_output", "call_id": "b", "output": "2"},
    ]

    assert m.call_ids(output) == ["a", "b"]
    assert m.answered_calls(items) == ["b", "a"]
    assert m.answered_calls("go") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [('{"a": 1}', {"a": 1}), ("", {}), ("[1]", {"input": [1]}), ("{broken", {"input": "{broken"})],
)
def test_arguments_of_a_tool_call(text: str, expected: dict[str, Any]) -> None:
    assert m.arguments_of(text) == expected


def test_a_model_is_called_what_its_class_keeps() -> None:
    assert m.model_name("gpt-5") == "gpt-5"
    assert m.model_name(ScriptedModel()) == "ScriptedModel"
    assert m.model_name(SimpleNamespace(model="house")) == "house"  # type: ignore[arg-type]
