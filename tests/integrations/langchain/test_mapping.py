"""LangChain's objects as values, by themselves: no run, no framework at work."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

pytest.importorskip("langchain")

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from pydantic import BaseModel, ConfigDict

from agentguard_langchain import _mapping as m


def call(name: str, call_id: str) -> dict[str, Any]:
    return {"name": name, "args": {}, "id": call_id, "type": "tool_call"}


@pytest.mark.parametrize(
    ("path", "part"),
    [
        (("__pregel_pull", "node"), "node@2"),
        (("__pregel_push", 3, False), "node@2.3"),
        (("__pregel_push", ("__pregel_pull", "entry"), 1), "node@2.1"),
        ((), "node@2"),
    ],
)
def test_a_task_of_a_graph_has_its_node_its_step_and_its_index(path: Any, part: str) -> None:
    metadata = {"langgraph_node": "node", "langgraph_step": 2, "langgraph_path": path}
    assert m.graph_part(metadata) == part
    assert m.place_part(["graph:step:2"], metadata) == part
    assert m.place_part(["seq:step:1"], metadata) == ""


def test_names_cannot_be_taken_for_paths() -> None:
    assert m.escaped("a/b#1%") == "a%2Fb%231%25"
    assert m.place_part(["map:key:a/b"], {}) == "a%2Fb"


def test_a_tool_call_is_found_in_the_last_message_that_asks() -> None:
    old = AIMessage("", tool_calls=[call("f", "x")])
    new = AIMessage("", tool_calls=[call("f", "a"), call("f", "b")])
    assert m.call_index([old, new, ToolMessage("", tool_call_id="a")], "b") == 1
    assert m.call_index([old, new], "x") is None
    assert m.call_index(None, "x") is None


def test_messages_are_compared_without_the_ids_of_this_run() -> None:
    def conversation(prefix: str) -> list[Any]:
        return [
            HumanMessage("hi", id=f"{prefix}1", name="ann"),
            AIMessage("", id=f"{prefix}2", tool_calls=[call("f", f"{prefix}x"), call("g", f"{prefix}y")]),
            ToolMessage("2", tool_call_id=f"{prefix}y", status="error"),
        ]

    found = m.message_data(conversation("a"))
    assert found == m.message_data(conversation("b"))
    assert found[2] == {"type": "tool", "content": "2", "call": 2, "status": "error"}


def test_a_fingerprint_is_of_what_was_asked() -> None:
    asked: list[Callable[[], Any]] = [
        lambda: "hi",
        lambda: [HumanMessage("hi", id="1")],
        lambda: {"messages": [HumanMessage("hi", id="2")], "n": 1},
        lambda: object(),
        lambda: "\ud800",
    ]
    prints = [m.fingerprint(make()) for make in asked]
    assert prints == [m.fingerprint(make()) for make in asked]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ({"ls_provider": "openai"}, "openai"),
        ({"ls_provider": "google_genai"}, "gcp.gemini"),
        ({"ls_provider": "amazon_bedrock"}, "aws.bedrock"),
        ({}, None),
    ],
)
def test_providers_have_the_names_of_the_conventions(metadata: dict[str, Any], name: str | None) -> None:
    assert m.provider_name(metadata) == name


@pytest.mark.parametrize("tier", ["", "flex", "priority"])
def test_usage_is_taken_with_all_its_parts_and_its_tier(tier: str) -> None:
    before = f"{tier}_" if tier else ""
    usage = {
        "input_tokens": 200,
        "output_tokens": 50,
        "total_tokens": 250,
        "input_token_details": {f"{before}cache_read": 80, "audio": 10} | ({tier: 120} if tier else {}),
        "output_token_details": {f"{before}reasoning": 30} | ({tier: 20} if tier else {}),
    }
    found = m.tokens_used(AIMessage("hi", usage_metadata=usage))

    assert found is not None
    assert found.counts == {
        "input_tokens": 200,
        "output_tokens": 50,
        "cache_read_tokens": 80,
        "input_audio_tokens": 10,
        "output_reasoning_tokens": 30,
    }
    assert found.terms == ({"service_tier": tier} if tier else {})


def test_usage_of_a_cache_is_told_apart_by_how_long_it_keeps() -> None:
    usage = {
        "input_tokens": 150,
        "output_tokens": 5,
        "total_tokens": 155,
        "input_token_details": {"cache_creation": 0, "ephemeral_1h_input_tokens": 90},
    }
    found = m.tokens_used(AIMessage("hi", usage_metadata=usage))

    assert found is not None
    assert (found["cache_write_tokens"], found["cache_write_1h_tokens"]) == (90, 90)


def test_what_the_provider_tells_of_the_price_is_taken_too() -> None:
    usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    told = {
        "model_name": "claude-opus-4-8",
        "usage": {"speed": "fast", "inference_geo": "us", "server_tool_use": {"web_search_requests": 2}},
        "cost": 0.25,
    }
    found = m.tokens_used(AIMessage("hi", usage_metadata=usage, response_metadata=told))

    assert found is not None
    assert found["web_searches"] == 2
    assert found.terms == {"speed": "fast", "inference_geo": "us"}
    assert (found.model, found.cost) == ("claude-opus-4-8", Decimal("0.25"))


def test_usage_that_is_not_told_is_none() -> None:
    assert m.tokens_used(AIMessage("hi")) is None
    reported = m.tokens_reported({"token_usage": {"prompt_tokens": 3, "completion_tokens": 4}})
    assert reported is not None
    assert reported.counts == {"input_tokens": 3, "output_tokens": 4}
    assert m.tokens_reported({"token_usage": {}}) is None
    assert m.tokens_reported(None) is None


@pytest.mark.parametrize(
    ("params", "metadata", "name"),
    [
        ({"model": "a"}, {"ls_model_name": "b"}, "b"),
        ({"model_name": "a", "_type": "t"}, {}, "a"),
        ({"model": None, "_type": "t"}, {"ls_model_name": None}, "t"),
        ({"model": "two\nlines"}, {}, "two?lines"),
        ({}, {}, "unknown"),
    ],
)
def test_a_model_has_the_best_name_there_is(params: Any, metadata: Any, name: str) -> None:
    assert m.model_name(params, metadata) == name


@pytest.mark.parametrize(
    ("params", "metadata", "profile", "bound"),
    [
        ({"max_tokens": 5, "max_completion_tokens": 6}, {"ls_max_tokens": 7}, {"max_output_tokens": 8}, 5),
        ({"max_completion_tokens": 6}, {}, None, 6),
        ({"max_tokens": None}, {"ls_max_tokens": 7}, {"max_output_tokens": 8}, 7),
        ({"max_tokens": -1}, {}, {"max_output_tokens": 8}, 8),
        ({"max_tokens": True}, {}, {}, None),
        ({}, {}, None, None),
    ],
)
def test_the_bound_of_an_answer_is_the_first_that_is_stated(
    params: Any, metadata: Any, profile: Any, bound: int | None
) -> None:
    assert m.output_bound(params, metadata, profile) == bound


def test_the_limit_has_the_name_that_the_settings_or_the_model_give_it() -> None:
    assert m.limit_name({"num_predict": 1}, ["max_tokens"]) == "num_predict"
    assert m.limit_name({}, ["temperature", "max_output_tokens"]) == "max_output_tokens"
    assert m.limit_name({}, []) == "max_tokens"


def test_tools_have_their_names() -> None:
    assert m.tool_names([{"name": "a"}, {"type": "web_search"}]) == ["a", "web_search"]


class WithField(BaseModel):
    service_tier: str | None = None
    model_kwargs: dict[str, Any] = {}


class WithMore(BaseModel):
    model_config = ConfigDict(extra="allow")


class Delegating(BaseModel):
    def __getattr__(self, name: str) -> Any:
        if name == "service_tier":
            return "flex"
        raise AttributeError(name)


class WithProperty(BaseModel):
    @property
    def service_tier(self) -> str:
        return "flex"


class Plain:
    service_tier = "flex"


@pytest.mark.parametrize(
    "model",
    [
        WithField(service_tier="flex"),
        WithField(model_kwargs={"service_tier": "flex"}),
        WithMore.model_validate({"service_tier": "flex"}),
        Delegating(),
        WithProperty(),
        Plain(),
    ],
)
def test_what_a_model_is_set_to_is_found_wherever_it_keeps_it(model: Any) -> None:
    assert m.asked_of({}, model).terms == {"service_tier": "flex"}
    assert m.asked_of({"service_tier": "priority"}, model).terms == {"service_tier": "priority"}


def test_what_a_model_is_set_to_later_counts_from_then_on() -> None:
    model = WithField()
    assert m.asked_of({}, model).terms == {}
    model.model_kwargs["service_tier"] = "flex"
    assert m.asked_of({}, model).terms == {"service_tier": "flex"}
    model.service_tier = "priority"
    assert m.asked_of({}, model).terms == {"service_tier": "priority"}


def test_a_call_asks_for_its_tools_and_for_what_its_messages_say() -> None:
    blocks = [[{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]]
    asked = m.asked_of({"tools": ["of the settings"]}, tools=[{"type": "web_search_preview"}], blocks=blocks)
    assert asked.terms == {"web_search": "preview"}
    assert asked.cache_writes == "1h"
