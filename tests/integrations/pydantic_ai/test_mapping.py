"""Pydantic AI's objects as agentguard's values, without a running agent."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic_ai.messages import (
    BinaryContent,
    ModelRequest,
    ModelResponse,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import RequestUsage

from agentguard import Usage
from agentguard_pydantic_ai import _mapping as m

NO_TOOLS = ModelRequestParameters()


def request(*parts: Any, at: datetime | None = None) -> ModelRequest:
    return ModelRequest(parts=list(parts), timestamp=at)


def test_the_same_request_is_the_same_data_at_another_time() -> None:
    asked = [
        m.request_data(
            [request(UserPromptPart("hello", timestamp=datetime(2026, 1, day, tzinfo=UTC)))],
            {"max_tokens": 5},
            NO_TOOLS,
        )
        for day in (1, 2)
    ]

    assert asked[0] == asked[1]
    assert asked[0]["settings"] == {"max_tokens": 5}


def test_what_is_no_json_is_named_by_its_type() -> None:
    data = m.request_data([request(ToolReturnPart("f", object(), tool_call_id="1"))], None, NO_TOOLS)

    assert data["messages"][0]["parts"][0]["content"] == "<object>"


def test_an_image_weighs_the_same_whatever_its_size() -> None:
    small, large = (
        m.input_tokens(
            m.request_data(
                [request(UserPromptPart(["look", BinaryContent(b"x" * size, media_type="image/png")]))],
                None,
                NO_TOOLS,
            ),
            NO_TOOLS,
        )
        for size in (10, 1_000_000)
    )

    assert small == large
    assert 1000 < small < 3000


def test_tool_definitions_weigh_too() -> None:
    tool = ToolDefinition(name="f", description="word " * 100, parameters_json_schema={"type": "object"})
    parameters = ModelRequestParameters(function_tools=[tool])
    data = m.request_data([request(UserPromptPart("hello"))], None, parameters)

    assert data["tools"] == ["f"]
    assert m.input_tokens(data, parameters) > 150


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        pytest.param(RequestUsage(), None, id="nothing"),
        pytest.param(RequestUsage(unmeasured_requests=1), None, id="unmeasured"),
        pytest.param(
            RequestUsage(
                input_tokens=9, cache_read_tokens=4, output_tokens=7, details={"reasoning_tokens": 3}
            ),
            Usage(input_tokens=9, output_tokens=7, cached_tokens=4, reasoning_tokens=3),
            id="reasoning-in-the-details",
        ),
        pytest.param(
            RequestUsage(input_tokens=9, output_tokens=7, output_reasoning_tokens=3),
            Usage(input_tokens=9, output_tokens=7, reasoning_tokens=3),
            id="reasoning",
        ),
    ],
)
def test_usage(usage: RequestUsage, expected: Usage | None) -> None:
    found = m.tokens_of(usage)

    assert (found and found.usage()) == expected


def test_an_answer_comes_back_as_it_was() -> None:
    response = ModelResponse(
        parts=[
            ThinkingPart("hm", signature="s"),
            TextPart("hello"),
            ToolCallPart("f", {"a": 1}, tool_call_id="c"),
        ],
        usage=RequestUsage(input_tokens=1, output_tokens=2),
        model_name="house",
        provider_details={"a": [1]},
        finish_reason="stop",
    )
    codec = m.ResponseCodec()

    assert codec.decode(codec.encode(response)) == response


def test_a_call_has_its_place_in_the_last_answer_that_holds_it() -> None:
    calls = [ToolCallPart("f", {}, tool_call_id=str(index)) for index in range(3)]
    history = [ModelResponse(parts=[TextPart("first"), *calls]), request(UserPromptPart("hello"))]

    assert [m.place_of(history, call) for call in calls] == [0, 1, 2]
    assert m.place_of([], calls[1]) == 0


def test_max_tokens_come_from_the_first_settings_that_name_them() -> None:
    assert m.max_tokens({"temperature": 1}, {"max_tokens": 7}) == 7
    assert m.max_tokens(None, None) is None
    assert m.with_max_tokens({"temperature": 1, "max_tokens": 9}, 7) == {"temperature": 1, "max_tokens": 7}
