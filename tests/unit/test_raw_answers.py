"""What an answer does not tell of its price is taken at the most that the request allows."""

import pytest

from agentguard.cost import ModelRequest, ModelUsage, RawAnswers

WRITES = {"input_tokens": 150, "cache_write_tokens": 100}


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ({}, "cache_write_1h_tokens"),
        ({"system": [{"cache_control": {"type": "ephemeral"}}]}, "cache_write_5m_tokens"),
        ({"system": [{"cache_control": {"ttl": "1h"}}, {"cache_control": {}}]}, "cache_write_1h_tokens"),
    ],
)
def test_a_cache_is_written_for_the_longest_time_asked_for(asked: dict[str, object], kept: str) -> None:
    counted = ModelUsage(counts=WRITES, model="claude-sonnet-4-5")
    assert ModelRequest((), asked).completed(counted)[kept] == 100


def test_what_an_answer_tells_is_left_alone() -> None:
    told = ModelUsage(
        counts={**WRITES, "cache_write_5m_tokens": 100},
        terms={"service_tier": "standard", "inference_geo": "global"},
        model="claude-sonnet-4-5",
    )
    request = ModelRequest((), {"service_tier": "priority"})
    assert request.completed(told, place_told=False) == told


def test_caches_without_ages_stay_without() -> None:
    counted = ModelUsage(counts=WRITES, model="gpt-5")
    assert ModelRequest((), {"model": "gpt-5"}).completed(counted) == counted


@pytest.mark.parametrize(("tier", "booked"), [("priority", "priority"), ("flex", None), ("auto", None)])
def test_only_a_dearer_tier_is_taken_from_the_request(tier: str, booked: str | None) -> None:
    counted = ModelUsage(counts={"input_tokens": 1})
    found = ModelRequest((), {"service_tier": tier}).completed(counted)
    assert found.terms.get("service_tier") == booked


def test_of_several_answers_nobody_knows_which_was_counted() -> None:
    raw, counted = RawAnswers(), ModelUsage(counts={"input_tokens": 5})
    for prompt in (5, 7):
        raw.answer("openai").saw(_Answer(prompt))
        assert raw.told is (prompt == 5)
    assert raw.completed(counted) == counted


class _Answer:
    def __init__(self, prompt: int) -> None:
        self.usage = {"prompt_tokens": prompt, "completion_tokens": 0}
