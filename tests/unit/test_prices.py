"""Prices of models, what calls of them may cost, and the refusal of what nobody can price."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest

from agentguard import Budget, Guard, KillSwitchTriggeredError, RunState, UnknownCostError, Usage
from agentguard.cost import ModelUsage, genai
from agentguard.cost.prices import GenaiPrices, ModelPrices
from agentguard.cost.request import ModelRequest
from agentguard.cost.usage import LEAST_OUTPUT, USUAL_OUTPUT, ModelCosts, estimated_tokens
from agentguard.protocols import ModelPrice


def used(*, model: str | None = None, **counts: int) -> ModelUsage:
    return ModelUsage(counts=counts, model=model)  # type: ignore[arg-type]


HOUSE = ModelPrices({"house": {"input": "1", "output": "4", "cached": "0.25"}}, fallback=None)


# --- the book ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "nano_usd"),
    [
        pytest.param({}, 0, id="nothing"),
        pytest.param({"input_tokens": 1_000_000}, 1_000_000_000, id="input"),
        pytest.param({"output_tokens": 1_000_000}, 4_000_000_000, id="output"),
        pytest.param({"input_tokens": 10, "cache_read_tokens": 4}, 7_000, id="cached"),
        pytest.param({"input_tokens": 10, "cache_read_tokens": 99}, 24_750, id="more-cached-than-sent"),
        pytest.param({"input_tokens": 10, "cache_write_tokens": 10}, 12_500, id="written-to-a-cache"),
        pytest.param({"input_tokens": 10, "cache_write_1h_tokens": 10}, 20_000, id="written-for-an-hour"),
        pytest.param({"output_tokens": 10, "output_audio_tokens": 10}, 40_000, id="audio"),
    ],
)
def test_own_prices_are_usd_for_a_million_tokens(tokens: dict[str, int], nano_usd: int) -> None:
    assert HOUSE.price("house", used(**tokens)) == ModelPrice(nano_usd, "own")


def test_a_price_is_rounded_up() -> None:
    book = ModelPrices({"house": {"input": "0.0000001", "output": 0}}, fallback=None)

    price = book.price("house", used(input_tokens=1))

    assert price is not None
    assert price.nano_usd == 1


def test_without_a_price_for_cached_input_it_costs_what_input_costs() -> None:
    book = ModelPrices({"house": {"input": 1, "output": 4}}, fallback=None)

    assert book.price("house", used(input_tokens=10, cached_tokens=10)) == book.price(
        "house", used(input_tokens=10)
    )


@pytest.mark.parametrize(("fallback", "nano_usd"), [(..., 30_001_250), (None, 1_250)])
def test_searches_cost_what_the_fallback_says_beside_own_prices(fallback: Any, nano_usd: int) -> None:
    book = ModelPrices({"gpt-5": {"input": "1.25", "output": 10}}, fallback=fallback)
    price = book.price("gpt-5", ModelUsage(counts={"input_tokens": 1, "web_searches": 3}), provider="openai")
    assert price is not None
    assert (price.nano_usd, price.source) == (nano_usd, "own")


@pytest.mark.parametrize("price", [Decimal("0.5"), "0.5", 0.5], ids=lambda value: type(value).__name__)
def test_money_is_taken_as_everywhere(price: Any) -> None:
    book = ModelPrices({"house": {"input": price, "output": 1}}, fallback=None)

    assert book.price("house", used(input_tokens=2)) == ModelPrice(1_000, "own")


def test_a_price_may_be_of_one_provider() -> None:
    own = {"here:house": {"input": 2, "output": 2}, "house": {"input": 1, "output": 1}}
    book = ModelPrices(own, fallback=None)

    assert book.price(
        "house",
        used(input_tokens=1),
        provider="here",
    ) == ModelPrice(2_000, "own")
    assert book.price(
        "house",
        used(input_tokens=1),
        provider="there",
    ) == ModelPrice(1_000, "own")


@pytest.mark.parametrize(
    ("prices", "message"),
    [
        ({"input": 1}, "house: the price of output tokens is missing"),
        ({"output": 1}, "house: the price of input tokens is missing"),
        ({"input": 1, "output": 1, "cache": 1}, "house: unknown price 'cache'"),
        (3, "house: a price is a mapping"),
        ({"input": -1, "output": 1}, "house: input must not be negative"),
        ({"input": "free", "output": 1}, "house: input is not a"),
    ],
)
def test_a_wrong_price_is_refused_at_once(prices: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ModelPrices({"house": prices})


def test_own_prices_come_first_and_others_from_the_fallback() -> None:
    book = ModelPrices({"gpt-5": {"input": 1, "output": 1}}, fallback=HOUSE)

    assert book.price("gpt-5", used(input_tokens=1)) == ModelPrice(1_000, "own")
    assert book.price("house", used(output_tokens=1)) == ModelPrice(4_000, "own")
    assert book.price("unheard-of", used(input_tokens=1)) is None


# --- genai-prices --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("gpt-5", None),
        ("gpt-5", "openai"),
        ("openai:gpt-5", None),
        ("openai/gpt-5", None),
        ("gpt-5", "a proxy that nobody knows"),
    ],
)
def test_known_models_are_priced_by_genai_prices(model: str, provider: str | None) -> None:
    price = ModelPrices().price(model, used(input_tokens=1_000, output_tokens=1_000), provider=provider)

    assert price is not None
    assert price.source == "genai-prices"
    assert 1_000_000 < price.nano_usd < 1_000_000_000


@pytest.mark.parametrize(
    "model",
    [
        "text-embedding-3-small",
        "openai/text-embedding-3-large",
        "openai:text-embedding-ada-002",
        "ft:gpt-4o-mini-2024-07-18:acme::abc",
        "chatgpt-4o-latest",
        "computer-use-preview",
    ],
)
def test_openais_own_names_are_priced_behind_an_address_that_nobody_knows(model: str) -> None:
    alone, named = (ModelPrices().price(model, used(input_tokens=9), provider=by) for by in (None, "openai"))

    assert alone is not None
    assert alone == named


def test_cached_input_is_cheaper_and_all_of_it_is_paid() -> None:
    def nano(cached: int) -> int:
        price = ModelPrices().price("gpt-5", used(input_tokens=1_000, cache_read_tokens=cached))
        assert price is not None
        return price.nano_usd

    assert nano(1_000) < nano(0)
    assert nano(5_000) == 5 * nano(1_000)


@pytest.mark.parametrize("model", ["unheard-of", "no/such:thing", ""])
def test_an_unknown_model_has_no_price(model: str) -> None:
    assert ModelPrices().price(model, used(input_tokens=1), provider="nobody") is None


def test_genai_prices_is_imported_at_the_first_question_alone() -> None:
    program = (
        "import sys; from agentguard.cost import ModelPrices, ModelUsage, usage_of, reserve_of\n"
        "book = ModelPrices({'house': {'input': 1, 'output': 1}}); used = ModelUsage(counts={'input_tokens': 1})\n"
        "book.price('house', used); usage_of('openai'); reserve_of('openai')\n"
        "assert 'genai_prices' not in sys.modules\n"
        "book.price('gpt-5', used); assert 'genai_prices' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_genai_prices_no_other_model_has_a_price(monkeypatch: pytest.MonkeyPatch) -> None:
    # Other tests may have loaded it.
    monkeypatch.setattr(genai, "_module", genai._module.__wrapped__)
    for name in ("genai_prices", "genai_prices.data_snapshot"):
        monkeypatch.setitem(sys.modules, name, None)

    assert ModelPrices(fallback=GenaiPrices()).price("gpt-5", used(input_tokens=1)) is None


# --- what a call may cost, and has cost ------------------------------------------------------------


def test_tokens_are_estimated_on_the_high_side() -> None:
    assert estimated_tokens("") == 0
    assert estimated_tokens("four words of English") == 7
    assert estimated_tokens("漢字") == 2
    assert estimated_tokens(b"abcd") == 2


def test_a_call_is_priced_with_all_its_tokens() -> None:
    tokens = Usage(input_tokens=10, output_tokens=5, cached_tokens=4, reasoning_tokens=2)

    usage = ModelCosts(HOUSE).priced("house", tokens)

    assert usage.usd == Decimal("0.000027")
    assert (usage.tokens, usage.cached_tokens, usage.reasoning_tokens) == (15, 4, 2)


@pytest.mark.parametrize(
    ("model", "more", "usd"),
    [
        pytest.param("house", {}, "0.000004", id="asked-for"),
        pytest.param("alias", {"model": "house"}, "0.000004", id="answered"),
        pytest.param("alias", {"cost": Decimal("0.5")}, "0.5", id="provider-says"),
        pytest.param("house", {"cost": Decimal("0.5")}, "0.5", id="provider-goes-before-the-book"),
        pytest.param("house", {"cost": Decimal(0)}, "0", id="provider-says-it-was-free"),
        pytest.param("alias", {}, "0", id="nobody-knows"),
    ],
)
def test_the_price_is_the_providers_then_the_books(model: str, more: Any, usd: str) -> None:
    counted = ModelUsage(counts={"output_tokens": 1}, **more)

    assert ModelCosts(HOUSE).priced(model, counted).usd == Decimal(usd)


def test_money_is_named_where_it_is_known_and_only_there() -> None:
    counted = used(output_tokens=1)

    assert "nano_usd" not in ModelCosts(HOUSE).priced("alias", counted).named()
    assert ModelCosts(HOUSE, unpriced="allow").priced("alias", counted).named()["nano_usd"] == 0


@pytest.mark.parametrize(
    ("budget", "options", "asked", "reserved", "sent"),
    [
        pytest.param(Budget(), {}, None, USUAL_OUTPUT, None, id="nothing-bounds-it"),
        pytest.param(Budget(), {}, 50, 50, None, id="its-own"),
        pytest.param(Budget(), {"max_output_tokens": 70}, None, 70, 70, id="by-option"),
        pytest.param(Budget(), {"max_output_tokens": 70}, 50, 50, None, id="its-own-before-the-option"),
        pytest.param(Budget(output_tokens=60), {}, None, 60, 60, id="output-left"),
        pytest.param(Budget(tokens=160), {}, None, 60, 60, id="tokens-left"),
        pytest.param(Budget(usd="0.0003"), {}, None, 50, 50, id="money-left"),
        pytest.param(Budget(output_tokens=60), {}, 40, 40, None, id="enough-left"),
        pytest.param(Budget(output_tokens=60), {"clamp": False}, None, USUAL_OUTPUT, None, id="not-clamped"),
        pytest.param(Budget(output_tokens=LEAST_OUTPUT - 1), {}, 40, 40, None, id="too-little-left"),
        pytest.param(Budget(tokens=50), {}, 40, 40, None, id="not-even-the-prompt"),
    ],
)
def test_a_call_is_bounded_by_what_the_budget_leaves(
    guard: Guard, budget: Budget, options: Any, asked: int | None, reserved: int, sent: int | None
) -> None:
    costs = ModelCosts(HOUSE, **options)
    with guard.run("run", budget=budget) as run:
        bound = costs.bound(run, "house", input_tokens=100, max_tokens=asked)

    assert (bound.reserve.output_tokens, bound.max_tokens) == (reserved, sent)
    assert bound.reserve.usd == Decimal(100 + 4 * reserved) / 1_000_000


class CountingBook:
    """A book that counts its questions; it asks `HOUSE`."""

    def __init__(self) -> None:
        self.asked = 0

    def price(self, model: str, usage: ModelUsage, *, provider: str | None = None) -> ModelPrice | None:
        self.asked += 1
        return HOUSE.price(model, usage, provider=provider)


@pytest.mark.parametrize(
    ("limit", "questions"),
    [pytest.param("1", 1, id="it-fits"), pytest.param("0.0003", 3, id="it-is-lowered")],
)
def test_a_call_that_fits_is_priced_once_before_it_is_made(guard: Guard, limit: str, questions: int) -> None:
    book = CountingBook()
    with guard.run("run", budget=Budget(usd=limit)) as run:
        ModelCosts(book).bound(run, "house", input_tokens=100, max_tokens=USUAL_OUTPUT)

    assert book.asked == questions


@pytest.mark.parametrize(
    ("wrong", "error"),
    [({"unpriced": "maybe"}, ValueError), ({"max_output_tokens": 0}, ValueError)],
)
def test_wrong_options_are_refused_at_once(wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(wrong))):
        ModelCosts(HOUSE, **wrong)


# --- what nobody can price -----------------------------------------------------------------------


def test_where_usd_are_limited_an_unknown_model_is_refused_with_the_way_out(guard: Guard) -> None:
    with guard.run("run", budget=Budget(usd=1)) as run, pytest.raises(UnknownCostError) as refused:
        ModelCosts(HOUSE).bound(run, "cottage", input_tokens=1)

    assert (refused.value.name, refused.value.resources, refused.value.run_id) == (
        "cottage",
        ("usd",),
        run.id,
    )
    for way_out in ("ModelPrices({'cottage'", "agentguard[prices]", "unpriced='allow'"):
        assert way_out in str(refused.value)


@pytest.mark.parametrize("level", ["scope", "run around", "tenant"])
def test_a_limit_at_any_level_counts(guard: Guard, level: str) -> None:
    if level == "tenant":
        guard.set_tenant_budget("acme", Budget(usd=1))
    limit = Budget(usd=1)
    with (
        guard.run("outer", budget=limit if level == "run around" else None, tenant="acme"),
        guard.run("inner") as run,
        run.scope("part", limit if level == "scope" else None),
        pytest.raises(UnknownCostError),
    ):
        ModelCosts(HOUSE).bound(run, "cottage", input_tokens=1)


@pytest.mark.parametrize(
    ("budget", "unpriced"), [(Budget(tokens=100_000), "refuse"), (Budget(usd=1), "allow")], ids=str
)
def test_otherwise_an_unknown_model_is_bounded_by_its_tokens(
    guard: Guard, budget: Budget, unpriced: Any
) -> None:
    with guard.run("run", budget=budget) as run:
        bound = ModelCosts(HOUSE, unpriced=unpriced).bound(run, "cottage", input_tokens=1, max_tokens=9)

    assert bound.reserve == Usage(input_tokens=1, output_tokens=9)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_an_unknown_cost_raised_by_reserve_stops_the_run_before_the_body(
    guard: Guard, asynchronous: bool
) -> None:
    ran: list[int] = []
    costs = ModelCosts(HOUSE)

    async def ask() -> None:
        ran.append(1)

    def ask_sync() -> None:
        ran.append(1)

    def call() -> None:
        def reserve() -> Usage:
            return costs.bound(run, "cottage", input_tokens=1).reserve

        if asynchronous:
            asyncio.run(_awaited(run.call("ask", ask, kind="llm", reserve=reserve)))
        else:
            run.call("ask", ask_sync, kind="llm", reserve=reserve)

    with pytest.raises(UnknownCostError) as stopped, guard.run("run", budget=Budget(usd=1)) as run:
        call()

    assert ran == []
    assert stopped.value is run.stop
    assert run.state is RunState.FAILED
    assert run.summary().open_steps == ()
    assert [e.type for e in guard.history(run.id)][-2:] == ["step_refused", "run_failed"]
    assert guard.summary(run.id).termination["name"] == "cottage"
    assert guard.verify(run.id)


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def test_a_kill_goes_before_an_unknown_cost(guard: Guard) -> None:
    def reserve() -> Usage:
        run.kill("enough")
        raise UnknownCostError("cottage")

    with pytest.raises(KillSwitchTriggeredError), guard.run("run", budget=Budget(usd=1)) as run:
        run.call("ask", lambda: None, kind="llm", reserve=reserve)


def test_the_callers_bound_is_known_by_all_its_names() -> None:
    """One that was not seen would be raised, and the call could take more than it asked for."""
    names = (
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "max_tokens_to_sample",
        "maxOutputTokens",
    )
    assert {ModelRequest((), {name: 100}).max_tokens for name in names} == {100}


def test_every_answer_that_is_made_is_reserved() -> None:
    assert ModelRequest((), {"n": 2, "best_of": 5}).answers == 5
    assert ModelRequest((), {"n": 2}).answers == 2
    assert ModelRequest((), {}).answers == 1
