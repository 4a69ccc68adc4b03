"""Prices of models: your own first, then those of genai-prices (extra `prices`)."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal
from types import EllipsisType
from typing import Any, Final, NamedTuple

from agentguard.budget.resources import NANO, nano_usd
from agentguard.protocols import ModelPrice, PriceBook

_MILLION: Final = 1_000_000
_FIELDS: Final = ("input", "output", "cached")
Price = Decimal | str | int | float


class Rate(NamedTuple):
    """A model's price in 1e-9 USD for a million tokens."""

    input: int
    output: int
    cached: int


class GenaiPrices:
    """The prices that genai-prices ships, loaded at the first question, which takes about a second.

    Where the package is not installed, no model has a price.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: Any = None

    def _package(self) -> Any:
        if self._loaded is None:
            with self._lock:
                try:
                    import genai_prices  # noqa: PLC0415 - takes 0.6 s, and is an extra
                except ImportError:
                    self._loaded = False
                else:
                    self._loaded = genai_prices
        return self._loaded

    def price(
        self,
        model: str,
        *,
        provider: str | None = None,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cached_tokens: int = 0,
    ) -> ModelPrice | None:
        """See `PriceBook`."""
        package = self._package()
        if not package:
            return None
        usage = package.Usage(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cache_read_tokens=min(cached_tokens, input_tokens),
        )
        for name, by in _guesses(model, provider):
            try:
                total = package.calc_price(usage, name, provider_id=by).total_price
            except LookupError:
                continue
            return ModelPrice(_ceiling(total * NANO), "genai-prices")
        return None


class ModelPrices:
    """A price book: your own prices by model, and for the others what `fallback` knows.

    Own prices are USD for a million tokens, as `Decimal`, `str` or number; `cached` is for input read
    from a cache, by default as dear as other input.  A model is named as in the call, or with its
    provider in front: `"openai:gpt-5"`.

    Args:
        own: your prices by model.
        fallback: asked for every other model; by default genai-prices, None for nothing.

    Raises:
        TypeError, ValueError: a price is wrong; the message names it.

    Example:
        >>> from agentguard.cost.prices import ModelPrices
        >>> book = ModelPrices({"house-7b": {"input": "0.20", "output": "0.60"}}, fallback=None)
        >>> book.price("house-7b", input_tokens=1_000, output_tokens=500).nano_usd
        500000
        >>> book.price("gpt-unheard-of") is None
        True
    """

    def __init__(
        self,
        own: Mapping[str, Mapping[str, Price]] | None = None,
        *,
        fallback: PriceBook | EllipsisType | None = ...,
    ) -> None:
        self._own = {model: _rate(model, prices) for model, prices in (own or {}).items()}
        self._fallback: PriceBook | None = GENAI_PRICES if isinstance(fallback, EllipsisType) else fallback

    def price(
        self,
        model: str,
        *,
        provider: str | None = None,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cached_tokens: int = 0,
    ) -> ModelPrice | None:
        """What a call costs, rounded up to 1e-9 USD, or None for a model without a price."""
        rate = self._own.get(f"{provider}:{model}") or self._own.get(model)
        if rate is not None:
            cached = min(cached_tokens, input_tokens)
            total = (input_tokens - cached) * rate.input + cached * rate.cached + output_tokens * rate.output
            return ModelPrice(-(-total // _MILLION), "own")
        if self._fallback is None:
            return None
        return self._fallback.price(
            model,
            provider=provider,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cached_tokens=cached_tokens,
        )


def _rate(model: str, prices: Mapping[str, Price]) -> Rate:
    if not isinstance(prices, Mapping):
        raise TypeError(f"{model}: a price is a mapping of {', '.join(_FIELDS)}, not {type(prices).__name__}")
    unknown = sorted(set(prices) - set(_FIELDS))
    if unknown:
        raise TypeError(f"{model}: unknown price {unknown[0]!r}; known are {', '.join(_FIELDS)}")
    missing = [field for field in ("input", "output") if field not in prices]
    if missing:
        raise TypeError(f"{model}: the price of {missing[0]} tokens is missing, in USD for a million")
    amounts = {field: nano_usd(value, f"{model}: {field}") for field, value in prices.items()}
    return Rate(amounts["input"], amounts["output"], amounts.get("cached", amounts["input"]))


def _guesses(model: str, provider: str | None) -> list[tuple[str, str | None]]:
    """How genai-prices may know a model: with its provider, with the one in its name, by name alone."""
    guesses: list[tuple[str, str | None]] = []
    for sign in (":", "/"):
        named, found, name = model.partition(sign)
        if found and named and name:
            guesses += [(name, named)]
    if provider:
        guesses.insert(0, (model, provider))
    return [*guesses, (model, None), *((name, None) for name, by in guesses if name != model and by)]


def _ceiling(amount: Decimal) -> int:
    return int(amount.to_integral_value(rounding=ROUND_CEILING))


GENAI_PRICES: Final = GenaiPrices()
