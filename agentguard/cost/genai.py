"""The prices that genai-prices ships, and the few published ones that it does not have."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Context, Decimal, localcontext
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec import structs

from agentguard._loading import LOADING, load
from agentguard.budget.model_usage import ModelUsage, Number
from agentguard.budget.resources import NANO
from agentguard.protocols import ModelPrice

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider
    from genai_prices.types import ModelPrice as Rates

#: What programs call a provider, where genai-prices does not know the name.
_ALIASES: Final = {"x_ai": "x-ai", "azure.ai.inference": "azure"}

#: How names begin that are OpenAI's alone, and that genai-prices finds with the provider only.
_OPENAIS: Final = (
    "text-embedding-3-",
    "text-embedding-ada-",
    "ft:gpt-",
    "chatgpt-",
    "codex-mini",
    "computer-use-",
    "davinci-002",
    "babbage-002",
)


class Premium(NamedTuple):
    """By how much a term of a call raises its price, where genai-prices has no rates for it.

    Where a provider charges models differently, `times` is the most that it publishes.
    """

    provider: str
    term: str
    value: str
    times: Decimal
    #: Models whose id fits are not charged it.
    spares: re.Pattern[str] | None = None

    def raises(self, provider: str, model: str, usage: ModelUsage) -> bool:
        """Whether a call of this model on these terms is charged it."""
        return (
            provider == self.provider
            and usage.terms.get(self.term) == self.value
            and not (self.spares and self.spares.search(model))
        )


_BEFORE_4_5: Final = re.compile(r"claude-(v|2|3)|-4-[01]$")
_BEFORE_4_6: Final = re.compile(rf"{_BEFORE_4_5.pattern}|-4-5")
_NO_CLAUDE_OF_4_5: Final = re.compile(rf"^(?!claude-)|{_BEFORE_4_5.pattern}|claude-4-")
_BEFORE_GPT_5_4: Final = re.compile(r"^(?!gpt-(5\.[4-9]|[6-9]))")
PREMIUMS: Final = (
    # https://developers.openai.com/api/docs/pricing: 1.67 to 2.5 times; Azure charges as OpenAI does.
    Premium("openai", "service_tier", "priority", Decimal("2.5")),
    Premium("openai", "service_tier", "fast", Decimal("2.5")),
    Premium("azure", "service_tier", "priority", Decimal("2.5")),
    # https://ai.google.dev/gemini-api/docs/pricing: 75 to 100 % above standard.
    Premium("google", "service_tier", "priority", Decimal(2)),
    # https://aws.amazon.com/bedrock/pricing/: 75 % above standard; optimized latency 25 %.
    Premium("aws", "service_tier", "priority", Decimal("1.75")),
    Premium("aws", "latency", "optimized", Decimal("1.25")),
    # https://platform.claude.com/docs/en/build-with-claude/fast-mode#pricing: 2 to 6 times.
    Premium("anthropic", "speed", "fast", Decimal(6)),
    # https://platform.claude.com/docs/en/about-claude/pricing#data-residency-pricing: from Claude 4.6 on.
    Premium("anthropic", "inference_geo", "us", Decimal("1.1"), _BEFORE_4_6),
    # https://platform.claude.com/docs/en/about-claude/pricing#third-party-platform-pricing: on Vertex, from
    # Claude 4.5 on; genai-prices has Bedrock's regions as models.
    Premium("anthropic", "endpoint", "regional", Decimal("1.1"), _BEFORE_4_5),
    Premium("google", "endpoint", "regional", Decimal("1.1"), _NO_CLAUDE_OF_4_5),
    # https://developers.openai.com/api/docs/pricing: data residency, from GPT-5.4 on.
    Premium("openai", "endpoint", "regional", Decimal("1.1"), _BEFORE_GPT_5_4),
)
#: OpenAI's tiers whose price is not published.
_UNPUBLISHED_TIERS: Final = frozenset({"ultrafast"})
#: https://platform.claude.com/docs/en/build-with-claude/prompt-caching#pricing: times the price of input.
CLAUDE_CACHE_WRITE: Final = {"cache_write_mtok": Decimal("1.25"), "cache_write_1h_mtok": Decimal(2)}
#: https://platform.claude.com/docs/en/about-claude/pricing#web-search-tool: USD for a thousand.
CLAUDE_SEARCHES: Final = Decimal(10)
#: https://developers.openai.com/api/docs/pricing: USD for a thousand, and for the web search of before with
#: models that do not reason.
OPENAI_SEARCHES: Final = {"web_searches_kcount": Decimal(10), "storage_searches_kcount": Decimal("2.5")}
PREVIEW_SEARCHES: Final = Decimal(25)
_PREVIEW_ALONE: Final = re.compile(r"-search-preview")
_NOT_REASONING: Final = re.compile(r"^(gpt-4|chatgpt-4)")
#: For these, each search of today is 8,000 tokens of input as well.
_BLOCK_OF_INPUT: Final = re.compile(r"^gpt-4(o|\.1)-mini")
_SEARCHES: Final = frozenset(("web_searches", "storage_searches"))
#: Where genai-prices has no rate for a model: the most of https://ai.google.dev/gemini-api/docs/pricing, and
#: https://docs.x.ai/developers/models.
OTHER_SEARCHES: Final = {"google": Decimal(35), "x-ai": Decimal(5)}
#: Names that genai-prices does not have, and those whose published prices are the same.
#: https://developers.openai.com/api/docs/models/gpt-image-2.6-sunburst
_PRICED_AS: Final = {"gpt-image-2.6-": "gpt-image-2.5-"}


class GenaiPrices:
    """The prices that genai-prices ships, loaded at the first question, which takes about a second.

    Where the package is not installed, no model has a price.  Prices are those in force at the time of the
    call (`usage.at`), with the tier, batch and long-context rates that apply to it.
    """

    def __init__(self) -> None:
        self._loaded: Any = None

    def __reduce__(self) -> Any:
        return GenaiPrices, ()  # a copy loads them by itself: modules cannot be pickled

    @property
    def installed(self) -> bool:
        """Whether there are prices at all."""
        return bool(self._package())

    def _package(self) -> Any:
        if self._loaded is None:
            try:  # takes 0.6 s, and is an extra
                self._loaded = _module("data_snapshot")
            except ImportError:
                self._loaded = False
        return self._loaded

    def price(self, model: str, usage: ModelUsage, *, provider: str | None = None) -> ModelPrice | None:
        """See `PriceBook`."""
        package = self._package()
        if not package:
            return None
        snapshot = package.get_snapshot()
        for name, by in _guesses(usage.names(model), provider):
            try:
                served, found = snapshot.find_provider_model(name, None, by, None)
            except LookupError:
                continue
            with localcontext(Context(prec=60)):  # a program may have set its own to anything
                total = _total(served, found, name, usage)
                if total is not None:
                    return ModelPrice(int((total * NANO).to_integral_value(ROUND_CEILING)), "genai-prices")
        return None


def provider_named(name: str) -> Provider | None:
    """Return genai-prices' provider of a name, be it that of an SDK or of OpenTelemetry."""
    data = _module("data_snapshot")
    found: Provider | None = data.find_provider_by_id(data.get_snapshot().providers, _ALIASES.get(name, name))
    return found


def _total(provider: Provider, model: ModelInfo, name: str, usage: ModelUsage) -> Decimal | None:
    at = usage.at or datetime.now(UTC)
    own = any(model is known for known in provider.models)  # another provider's has no rates for terms here
    shipped = model.get_prices(at, usage.terms if own else None)
    rates = _published(provider.id, model.id, name, usage, shipped)
    if provider.id == "openai" and usage.terms.get("service_tier") in _UNPUBLISHED_TIERS:
        return None
    if not _covers(rates, usage):
        return None
    priced = dataclasses.replace(model, prices=rates, price_variants=None)

    def price(counts: dict[str, Number]) -> Decimal:
        used = _module("types").Usage(**counts)
        return priced.calc_price(used, provider, genai_request_timestamp=at).total_price

    total = _calculated(price, rates, usage)
    times = Decimal(1)
    for premium in PREMIUMS:
        if premium.raises(provider.id, model.id, usage) and not (own and _has_rates(model, premium, at)):
            times *= premium.times
    return total if times == 1 else total + (times - 1) * _calculated(price, rates, _of_tokens(usage))


def _of_tokens(usage: ModelUsage) -> ModelUsage:
    """Return the tokens alone: premiums raise their price, and not that of a web search."""
    units = _units()
    counts = {
        name: n
        for name, n in usage.counts.items()
        if name in units and units[name]["dimensions"]["family"] == "tokens"
    }
    return structs.replace(usage, counts=counts)


def _has_rates(model: ModelInfo, premium: Premium, at: datetime) -> bool:
    """Whether the model has rates of its own for the term, at that time."""
    return any(
        variant.when.get(premium.term) == premium.value
        and (variant.constraint is None or variant.constraint.active(at))
        for variant in model.price_variants or ()
    )


def _published(provider: str, model: str, name: str, usage: ModelUsage, rates: Rates) -> Rates:
    """Return the rates, with published ones that genai-prices does not have."""
    claude = "claude" in model
    if rates.input_mtok is None or not (claude or _SEARCHES & usage.counts.keys()):
        return rates
    known = {key: price for key, price in rates.__dict__.items() if price is not None}
    if claude:  # the same for every Claude
        shared = {key: _times(rates.input_mtok, by) for key, by in CLAUDE_CACHE_WRITE.items()}
        return type(rates)(**(shared | {"web_searches_kcount": CLAUDE_SEARCHES} | known))
    if provider in OTHER_SEARCHES:
        return type(rates)(**({"web_searches_kcount": OTHER_SEARCHES[provider]} | known))
    if provider not in {"openai", "azure"}:
        return rates
    preview = usage.terms.get("web_search") == "preview" and _NOT_REASONING.search(model)
    if preview or _PREVIEW_ALONE.search(name):
        return type(rates)(**(known | {"web_searches_kcount": PREVIEW_SEARCHES}))
    if _BLOCK_OF_INPUT.search(model) and isinstance(rates.input_mtok, Decimal):
        each = OPENAI_SEARCHES["web_searches_kcount"] + 8 * rates.input_mtok
        return type(rates)(**(OPENAI_SEARCHES | known | {"web_searches_kcount": each}))
    return type(rates)(**(OPENAI_SEARCHES | known))


def _times(price: Any, by: Decimal) -> Any:
    if isinstance(price, Decimal):
        return price * by
    tiers = [dataclasses.replace(tier, price=tier.price * by) for tier in price.tiers]
    return dataclasses.replace(price, base=price.base * by, tiers=tiers)


def _token_rates(rates: Rates, direction: str) -> list[Any]:
    return [price for key in _token_keys(direction) if (price := rates.__dict__.get(key)) is not None]


@functools.cache
def _token_keys(direction: str) -> tuple[str, ...]:
    return tuple(
        unit["price_key"]
        for unit in _units().values()
        if unit["dimensions"]["family"] == "tokens" and unit["dimensions"]["direction"] == direction
    )


def _covers(rates: Rates, usage: ModelUsage) -> bool:
    """Whether tokens that were counted have a price; a model without any price at all is free."""
    if all(value is None for value in rates.__dict__.values()):
        return True
    return all(
        not usage.counts.get(f"{direction}_tokens") or _token_rates(rates, direction)
        for direction in ("input", "output")
    )


def _calculated(price: Callable[[dict[str, Number]], Decimal], rates: Rates, usage: ModelUsage) -> Decimal:
    """Return the price; where a part that matters was not reported, the most that it can be."""
    counts = {name: value for name, value in usage.counts.items() if name in _units()}
    try:
        return price(counts)
    except ValueError:
        found = []
        for guess in _completed(counts):
            with contextlib.suppress(ValueError):
                found.append(price(guess))
        return max(found, default=_dearest(rates, counts))


def _completed(counts: dict[str, Number]) -> Iterator[dict[str, Number]]:
    """Yield the counts with how much of each kind of input came from the cache, at its least and its most."""
    read, given = counts.get("cache_read_tokens", 0), counts.get("input_tokens", 0)
    choices: list[list[tuple[str, Number]]] = []
    for kind in ("text", "audio", "image", "video"):
        name, part = f"cache_{kind}_read_tokens", counts.get(f"input_{kind}_tokens", 0)
        if part and name not in counts:
            choices.append([(name, max(0, read + part - given)), (name, min(read, part))])
    for guess in itertools.product(*choices):
        yield counts | dict(guess)


def _dearest(rates: Rates, counts: dict[str, Number]) -> Decimal:
    """Return the price of all tokens at the dearest rate of their direction."""
    total = Decimal(0)
    for direction in ("input", "output"):
        most = [
            max([price.base, *(tier.price for tier in price.tiers)]) if hasattr(price, "tiers") else price
            for price in _token_rates(rates, direction)
        ]
        total += Decimal(counts.get(f"{direction}_tokens", 0)) * max(most, default=Decimal(0)) / 1_000_000
    return total


def _units() -> dict[str, Any]:
    units: dict[str, Any] = _module("data_units").unit_data
    return units


@functools.cache
def _module(name: str) -> Any:
    """Return a module of genai-prices, which is an extra."""
    with LOADING:
        found = load(f"genai_prices.{name}")
        if name == "data_snapshot":
            found.get_snapshot()  # loads the prices
            for later in ("decompose", "validation"):  # what it loads at its first price, where it has them
                with contextlib.suppress(ImportError):
                    load(f"genai_prices.{later}")
    return found


def _guesses(models: list[str], provider: str | None) -> list[tuple[str, str | None]]:
    """Return how genai-prices may know them: with their provider, the one in their name, by name alone."""
    return list(dict.fromkeys(guess for model in models for guess in _names(model, provider)))


def _names(model: str, provider: str | None) -> list[tuple[str, str | None]]:
    for name, same in _PRICED_AS.items():
        model = model.replace(name, same)
    named = []
    for sign in (":", "/"):
        by, sep, name = model.partition(sign)
        if sep and by and name:
            named.append((name, by))
    guesses: list[tuple[str, str | None]] = [(model, _ALIASES.get(provider, provider))] if provider else []
    bare = [model, *(name for name, _ in named)]
    owned = [(name, "openai") for name in bare if name.startswith(_OPENAIS)]
    return [*guesses, *named, *((name, None) for name in bare), *owned]


GENAI_PRICES: Final = GenaiPrices()
