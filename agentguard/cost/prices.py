"""Prices of models: your own first, then those of genai-prices (extra `prices`)."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, Context, Decimal, localcontext
from types import EllipsisType
from typing import Final

from msgspec import structs

from agentguard.budget.model_usage import ModelUsage
from agentguard.budget.resources import nano_usd
from agentguard.cost.genai import GENAI_PRICES, GenaiPrices
from agentguard.protocols import ModelPrice, PriceBook

__all__ = ["GENAI_PRICES", "GenaiPrices", "ModelPrices", "Price"]

Price = Decimal | str | int | float
_MILLION: Final = 1_000_000
_EXACT: Final = Context(prec=60)
#: What a price may be given for, and what it is the price of.
_COUNTS: Final = {
    "input": "input_tokens",
    "output": "output_tokens",
    "cached": "cache_read_tokens",
    "cache_write": "cache_write_tokens",
    "cache_write_1h": "cache_write_1h_tokens",
    "input_audio": "input_audio_tokens",
    "input_image": "input_image_tokens",
    "output_audio": "output_audio_tokens",
    "output_image": "output_image_tokens",
}
_OF_INPUT: Final = ("cached", "cache_write", "cache_write_1h", "input_audio", "input_image")
#: Where a price is left out: of what it is a multiple. Who charges for writing to a cache asks for 1.25
#: times the price of input, and 2 times for an hour.
_STAND_INS: Final = {
    "cached": ("input", Decimal(1)),
    "cache_write": ("input", Decimal("1.25")),
    "cache_write_1h": ("input", Decimal(2)),
    "input_audio": ("input", Decimal(1)),
    "input_image": ("input", Decimal(1)),
    "output_audio": ("output", Decimal(1)),
    "output_image": ("output", Decimal(1)),
}


class ModelPrices:
    """A price book: your own prices by model, and for the others what `fallback` knows.

    Own prices are USD for a million tokens, as `Decimal`, `str` or number: `input` and `output`, and where
    they differ `cached` (read from a cache), `cache_write`, `cache_write_1h`, `input_audio`, `input_image`,
    `output_audio` and `output_image`.  What is left out costs what input or output costs; writing to a
    cache 1.25 times as much as input, 2 times for one hour.  Own prices hold for every tier; web searches
    cost what `fallback` says.  A model is named as in the call, or with its provider in front:
    `"openai:gpt-5"`.

    Args:
        own: your prices by model.
        fallback: asked for every other model; by default genai-prices, None for nothing.

    Raises:
        TypeError, ValueError: a price is wrong; the message names it.

    Example:
        >>> from agentguard.cost import ModelPrices, ModelUsage
        >>> book = ModelPrices({"house-7b": {"input": "0.20", "output": "0.60"}}, fallback=None)
        >>> used = ModelUsage(counts={"input_tokens": 1_000, "output_tokens": 500})
        >>> book.price("house-7b", used).nano_usd
        500000
        >>> book.price("gpt-unheard-of", used) is None
        True
    """

    def __init__(
        self,
        own: Mapping[str, Mapping[str, Price]] | None = None,
        *,
        fallback: PriceBook | EllipsisType | None = ...,
    ) -> None:
        self._own = {model: _rates(model, prices) for model, prices in (own or {}).items()}
        self._fallback: PriceBook | None = GENAI_PRICES if isinstance(fallback, EllipsisType) else fallback

    def price(self, model: str, usage: ModelUsage, *, provider: str | None = None) -> ModelPrice | None:
        """See `PriceBook`."""
        for name in usage.names(model):
            rates = self._own.get(f"{provider}:{name}") or self._own.get(name)
            if rates is not None:
                return ModelPrice(_total(rates, usage) + self._calls(model, usage, provider), "own")
        return None if self._fallback is None else self._fallback.price(model, usage, provider=provider)

    def _calls(self, model: str, usage: ModelUsage, provider: str | None) -> int:
        """Return what is charged beside tokens, as for web searches: own prices do not say it."""
        calls = {name: n for name, n in usage.counts.items() if not name.endswith("_tokens")}
        if not calls or self._fallback is None:
            return 0
        price = self._fallback.price(model, structs.replace(usage, counts=calls), provider=provider)
        return 0 if price is None else price.nano_usd


def _rates(model: str, prices: Mapping[str, Price]) -> dict[str, Decimal]:
    """Return the price of each kind of token, in 1e-9 USD for a million."""
    if not isinstance(prices, Mapping):
        raise TypeError(f"{model}: a price is a mapping of {', '.join(_COUNTS)}, not {type(prices).__name__}")
    unknown = sorted(set(prices) - set(_COUNTS))
    if unknown:
        raise TypeError(f"{model}: unknown price {unknown[0]!r}; known are {', '.join(_COUNTS)}")
    missing = [field for field in ("input", "output") if field not in prices]
    if missing:
        raise TypeError(f"{model}: the price of {missing[0]} tokens is missing, in USD for a million")
    with localcontext(_EXACT):
        given = {field: Decimal(nano_usd(value, f"{model}: {field}")) for field, value in prices.items()}
        stand_ins = {field: given[base] * by for field, (base, by) in _STAND_INS.items()}
    return stand_ins | given


def _total(rates: Mapping[str, Decimal], usage: ModelUsage) -> int:
    parts = {field: Decimal(usage.counts.get(name, 0)) for field, name in _COUNTS.items()}
    with localcontext(_EXACT):
        parts["cache_write"] -= parts["cache_write_1h"]
        parts["input"] = max(parts["input"] - sum(parts[field] for field in _OF_INPUT), Decimal(0))
        parts["output"] = max(parts["output"] - parts["output_audio"] - parts["output_image"], Decimal(0))
        total = sum(n * rates[field] for field, n in parts.items()) / _MILLION
        return int(Decimal(total).to_integral_value(ROUND_CEILING))
