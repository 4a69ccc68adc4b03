"""What is booked for a provider's answer is never below the provider's bill, and equal where that is known."""

from __future__ import annotations

import decimal
import sys
from datetime import datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard import Budget, BudgetExceededError, Guard, Usage, guarded_step
from agentguard._optional import MissingExtraError
from agentguard.cost import ModelCosts, ModelPrices, ModelUsage, model_usage, reserve_of, usage_of
from agentguard.protocols import ModelPrice
from tests.unit.provider_bills import BILLS, Bill, booked, chat, message, table

COSTS = ModelCosts(ModelPrices())
SHOWN = {bill.id: bill for bill in BILLS}


class PricesOf:
    """The prices of one moment, whenever they are asked for."""

    def __init__(self, at: datetime) -> None:
        self._at = at

    def price(self, model: str, usage: ModelUsage, *, provider: str | None = None) -> ModelPrice | None:
        return ModelPrices().price(model, msgspec.structs.replace(usage, at=self._at), provider=provider)


def as_objects(value: Any) -> Any:
    """The same answer as an SDK gives it: objects with attributes."""
    if isinstance(value, dict):
        return SimpleNamespace(**{name: as_objects(item) for name, item in value.items()})
    return [as_objects(item) for item in value] if isinstance(value, list) else value


def test_the_table_has_every_provider_and_40_objects() -> None:
    assert len(BILLS) >= 40
    assert len(SHOWN) == len(BILLS)
    assert {"openai", "anthropic", "google", "mistral", "groq", "deepseek", "bedrock", "openrouter"} <= {
        bill.provider for bill in BILLS
    }
    assert all(bill.source for bill in BILLS)


@pytest.mark.parametrize("bill", BILLS, ids=lambda bill: bill.id)
def test_what_is_booked_is_the_bill(bill: Bill) -> None:
    used = booked(bill)

    assert used.usd >= bill.amount
    if bill.exact:
        assert used.usd == bill.amount
    assert "nano_usd" in used.named()


@pytest.mark.parametrize("bill", BILLS, ids=lambda bill: bill.id)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_the_presets_charge_the_bill(guard: Guard, bill: Bill, streamed: bool) -> None:
    prices = PricesOf(bill.at)
    usage = usage_of(bill.provider, model=bill.model, prices=prices, terms=bill.terms)
    events = bill.answer if isinstance(bill.answer, list) else [{"type": "begun"}, bill.answer]

    @guarded_step(kind="llm", usage=usage, reserve=Usage(usd=0))
    def ask() -> Any:
        return iter(events) if streamed else bill.answer

    with guard.run("ask") as run:
        list(ask())

    assert run.spent.usd >= bill.amount
    if bill.exact:
        assert run.spent.usd == bill.amount


def test_the_table_names_no_bill_that_is_booked_below_what_is_right() -> None:
    printed = table().splitlines()[2:]

    assert len(printed) == len(BILLS)
    assert not [line for line in printed if "| BELOW |" in line]
    assert sum("| equal |" in line for line in printed) >= sum(bill.exact for bill in BILLS)


@pytest.mark.parametrize("bill", BILLS, ids=lambda bill: bill.id)
def test_an_sdks_objects_and_a_shape_without_a_name_are_booked_alike(bill: Bill) -> None:
    assert booked(bill, as_objects(bill.answer)) == booked(bill)
    assert booked(bill, provider=None).usd >= bill.amount


def test_the_sdks_own_types_are_booked_as_their_json() -> None:
    types = pytest.importorskip("openai.types.chat")
    answer = chat(
        "gpt-5", 100, 20, service_tier="flex", prompt_tokens_details={"cached_tokens": 60}, queue_time=0.5
    )
    completion = types.ChatCompletion.model_validate(answer | {"choices": [], "created": 1})

    assert model_usage(completion) == model_usage(answer)
    assert model_usage(completion.usage) == model_usage(answer["usage"])


# --- what tells nothing, or nonsense -------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({}, id="empty"),
        pytest.param({"model": "gpt-5", "usage": None}, id="none"),
        pytest.param({"model": "gpt-5", "usage": {}}, id="empty-usage"),
        pytest.param({"usage": {"prompt_tokens": None, "completion_tokens": None}}, id="only-none"),
        pytest.param("text", id="text"),
        pytest.param(None, id="nothing"),
        pytest.param([], id="no-events"),
        pytest.param(SimpleNamespace(choices=[]), id="no-usage"),
    ],
)
def test_an_answer_that_reports_no_usage_is_none(answer: Any) -> None:
    assert model_usage(answer) is None
    with pytest.raises(ValueError, match="reports no usage"):
        Usage.from_provider(answer)


@pytest.mark.parametrize("field", ["output_tokens", "cache_creation_input_tokens"])
@pytest.mark.parametrize("count", ["many", "-5", "", [], {"n": 1}], ids=str)
def test_a_count_that_is_no_number_is_refused_and_named(field: str, count: Any) -> None:
    with pytest.raises(ValueError, match=field):
        model_usage(message("claude-sonnet-4-5", 100, 20, **{field: count}), provider="anthropic")


def test_a_count_in_a_string_is_a_number() -> None:
    told = message("claude-sonnet-4-5", 100, 20, output_tokens="30", cache_creation_input_tokens="50")
    assert told["usage"]["output_tokens"] == "30"
    counted = model_usage(told, provider="anthropic")
    assert counted is not None
    assert counted.counts == {"input_tokens": 150, "cache_write_tokens": 50, "output_tokens": 30}


@pytest.mark.parametrize("count", [-1, True, float("nan"), float("inf")], ids=str)
def test_a_count_that_cannot_be_one_is_refused_and_named(count: Any) -> None:
    with pytest.raises(ValueError, match="cannot be right.*input_tokens"):
        model_usage(chat("gpt-5", 10, 5) | {"usage": {"prompt_tokens": count, "completion_tokens": 5}})


@pytest.mark.parametrize("cost", [None, "free", -1, True, float("nan"), {"total_cost": None}], ids=str)
def test_a_cost_that_cannot_be_one_leaves_the_book_to_say(cost: Any) -> None:
    answer = chat("gpt-5", 1_000, 100, cost=cost)

    assert Usage.from_provider(answer, "openai").usd == Decimal("0.00225")


@pytest.mark.parametrize("model", ["gpt-unheard-of", "", "no/such:thing"])
def test_a_model_without_a_price_has_its_tokens_and_names_no_money(model: str) -> None:
    used = Usage.from_provider(chat(model, 10, 5), "nobody")

    assert used.tokens == 15
    assert "nano_usd" not in used.named()


@pytest.mark.parametrize(
    ("asked", "answered", "first"),
    [
        ("gpt-5", "gpt-5-2025-08-07", "gpt-5-2025-08-07"),
        ("gpt-5-mini", "gpt-5", "gpt-5"),
        ("openai/gpt-5-mini", "gpt-5", "gpt-5"),
        ("a deployment of ours", "gpt-5", "gpt-5"),
        ("global.anthropic.claude-x-v1:0", "claude-x", "global.anthropic.claude-x-v1:0"),
        ("gpt-5", "gpt-5", "gpt-5"),
        ("gpt-5", None, "gpt-5"),
    ],
)
def test_the_price_is_that_of_the_model_that_answered(asked: str, answered: str | None, first: str) -> None:
    assert ModelUsage(counts={}, model=answered).names(asked)[0] == first


def test_litellms_own_sum_is_not_the_providers_word() -> None:
    answer = SimpleNamespace(model="gpt-5", usage=as_objects(chat("gpt-5", 1_000, 100)["usage"]))
    answer._hidden_params = {"response_cost": 0.5}
    assert Usage.from_provider(answer).usd == Decimal("0.00225")


def test_tokens_that_have_no_price_are_not_free() -> None:
    """A model that is paid by the hour: tokens alone do not tell what it costs."""
    used = COSTS.priced("gpt-live-1", ModelUsage(counts={"input_tokens": 10}), provider="openai")

    assert "nano_usd" not in used.named()


# --- properties ----------------------------------------------------------------------------------

COUNT = st.integers(min_value=0, max_value=10**9)


@given(
    counts=st.dictionaries(
        st.sampled_from(
            [
                "input_tokens",
                "output_tokens",
                "cache_read_tokens",
                "cache_write_tokens",
                "cache_write_5m_tokens",
                "cache_write_1h_tokens",
                "input_audio_tokens",
                "input_image_tokens",
                "output_audio_tokens",
                "output_reasoning_tokens",
                "web_searches",
            ]
        ),
        COUNT,
    ),
    model=st.sampled_from(
        ["gpt-5", "gpt-realtime", "claude-sonnet-4-5", "gemini-2.5-flash", "gpt-6-sol", "mistral-large-2512"]
    ),
)
def test_any_usage_has_a_price_of_at_least_its_tokens_at_the_cheapest_rate(
    counts: dict[str, int], model: str
) -> None:
    used = COSTS.priced(model, ModelUsage(counts=counts))  # type: ignore[arg-type]

    cheapest = Decimal("0.01")  # of an input or output token of these models, USD a million
    assert used.usd >= used.tokens * cheapest / 1_000_000


@given(more=st.integers(min_value=1, max_value=10**6), which=st.sampled_from(sorted(SHOWN)))
def test_more_tokens_never_cost_less(more: int, which: str) -> None:
    bill = SHOWN[which]
    counted = model_usage(bill.answer, provider=bill.provider, terms=bill.terms, at=bill.at)
    assert counted is not None
    grown = msgspec.structs.replace(
        counted, counts=counted.counts | {"output_tokens": counted["output_tokens"] + more}
    )

    before = COSTS.priced(bill.model, counted, provider=bill.provider)
    after = COSTS.priced(bill.model, grown, provider=bill.provider)

    assert after.usd >= before.usd or "nano_usd" not in after.named()  # an embedding that answers with text


def test_a_program_may_set_the_precision_of_its_decimals() -> None:
    with decimal.localcontext(decimal.Context(prec=2)):
        used = booked(SHOWN["anthropic-cache-1-hour"])

    assert used.usd == Decimal("0.60165")


# --- the presets ---------------------------------------------------------------------------------


def test_a_step_decorated_by_hand_is_charged_what_the_provider_charges(guard: Guard) -> None:
    def create(**request: Any) -> Any:
        return chat("gpt-5-2025-08-07", 1_000, 200, prompt_tokens_details={"cached_tokens": 600})

    ask = guarded_step(kind="llm", reserve=reserve_of("openai"), usage=usage_of("openai"))(create)
    with guard.run("ask", budget=Budget(usd=1)) as run:
        ask(model="gpt-5", messages=[{"role": "user", "content": "How many?"}], max_completion_tokens=500)

    assert (run.spent.usd, run.spent.tokens, run.spent.cached_tokens) == (Decimal("0.002575"), 1_200, 600)


def test_a_bill_of_cache_writes_stops_the_run_that_cannot_pay_it(guard: Guard) -> None:
    bill = SHOWN["anthropic-cache-1-hour"]
    ask = guarded_step(
        kind="llm", reserve=reserve_of("anthropic", model=bill.model), usage=usage_of("anthropic")
    )(lambda prompt: bill.answer)

    with pytest.raises(BudgetExceededError), guard.run("ask", budget=Budget(usd="0.35")) as run:
        ask("hi")

    assert run.spent.usd == Decimal("0.60165")


def test_a_misspelt_model_is_refused_before_the_call_and_named(guard: Guard) -> None:
    ask = guarded_step(kind="llm", reserve=reserve_of("openai"), usage=usage_of("openai"))(
        lambda **request: pytest.fail("asked")
    )
    with (
        pytest.raises(Exception, match="gtp-5: the run limits usd, and no price is known"),
        guard.run("ask", budget=Budget(usd=1)),
    ):
        ask(model="gtp-5", input="hi")


@pytest.mark.parametrize(
    ("request_", "usd"),
    [
        pytest.param({"max_tokens": 100}, "0.0015", id="bound"),
        pytest.param({"max_tokens": 100, "n": 3}, "0.0045", id="answers"),
        pytest.param({"inferenceConfig": {"maxTokens": 100}}, "0.0015", id="bedrock"),
        pytest.param({}, "0.003", id="by-option"),
    ],
)
def test_the_bound_is_the_calls_own(request_: dict[str, Any], usd: str) -> None:
    reserve = reserve_of("anthropic", model="claude-sonnet-4-5", max_output_tokens=200)

    most = reserve(**request_)

    assert Decimal(usd) <= most.usd < Decimal(usd) + Decimal("0.0002")


def test_a_prompt_that_asks_for_a_cache_is_reserved_at_the_price_of_writing_it() -> None:
    text = "word " * 1_000
    block: dict[str, Any] = {
        "type": "text",
        "text": text,
        "cache_control": {"type": "ephemeral", "ttl": "1h"},
    }
    reserve = reserve_of("anthropic", model="claude-sonnet-4-5", max_output_tokens=1)

    plain = reserve(messages=[{"role": "user", "content": [{"type": "text", "text": text}]}])
    cached = reserve(messages=[{"role": "user", "content": [block]}])

    assert cached.usd > plain.usd * Decimal("1.9")


def test_a_reservation_without_a_model_says_how_to_name_it() -> None:
    with pytest.raises(TypeError, match="names no model.*model='"):
        reserve_of("openai")("hi")


@pytest.mark.parametrize("preset", [usage_of, reserve_of])
def test_without_genai_prices_a_preset_says_which_extra_brings_it(
    preset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'agentguard\[prices\]'"):
        preset("openai")


def test_a_stream_is_the_larger_of_what_its_events_count() -> None:
    start, end = message("m", 500, 1)["usage"], {"output_tokens": 80}
    first, last = model_usage({"usage": start}), model_usage({"usage": end})
    assert first is not None
    assert last is not None

    assert first.larger(last).counts == {"input_tokens": 500, "output_tokens": 80}
