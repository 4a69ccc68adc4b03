"""`usage=` and `reserve=` for steps that call a model, without a line of arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agentguard._optional import check
from agentguard.budget.model import Usage
from agentguard.budget.resources import NANO_USD
from agentguard.cost.prices import ModelPrices
from agentguard.cost.provider import model_usage
from agentguard.cost.request import ModelRequest
from agentguard.cost.usage import ModelCosts, Unpriced, no_price
from agentguard.errors import UnknownCostError
from agentguard.protocols import PriceBook
from agentguard.steps.current import CURRENT


def usage_of(
    provider: str | None = None,
    *,
    model: str | None = None,
    prices: PriceBook | None = None,
    unpriced: Unpriced = "refuse",
    terms: Mapping[str, str] | None = None,
) -> Callable[..., Usage]:
    """Return a `usage=` that reads a provider's answer: tokens, and USD by what the provider charges.

    Args:
        provider: who answers (`"openai"`, `"anthropic"`, `"google"`, `"bedrock"`, ...); by default it is
            told from the answer.
        model: the model, where neither the call nor the answer names it.
        prices: what models cost; by default genai-prices.
        unpriced: `"allow"` counts a model without a price as free.
        terms: what the answer does not say of the call, as `{"processing": "batch"}`.

    Raises:
        MissingExtraError: genai-prices is not installed.

    Example:
        >>> answer = {"model": "gpt-5", "usage": {"prompt_tokens": 900, "completion_tokens": 40}}
        >>> used = usage_of("openai")(answer)
        >>> used.tokens, used.usd
        (940, Decimal('0.001525'))
    """
    check("genai_prices", extra="prices", feature="usage_of")
    costs = ModelCosts(prices or ModelPrices(), unpriced=unpriced)

    def used(answer: object, *args: object, **kwargs: object) -> Usage:
        counted = model_usage(answer, provider=provider, terms=terms)
        if counted is None:
            raise ValueError(f"the answer, a {type(answer).__name__}, reports no usage")
        asked = ModelRequest(args, kwargs).model or model or counted.model
        return costs.priced(asked or "", counted, provider=provider)

    return used


def reserve_of(
    provider: str | None = None,
    *,
    model: str | None = None,
    max_output_tokens: int | None = None,
    prices: PriceBook | None = None,
    unpriced: Unpriced = "refuse",
) -> Callable[..., Usage]:
    """Return a `reserve=` for the same step: what its prompt and the bound of its answer may cost.

    The prompt is all text among the arguments, an image or a file in it `MEDIA_TOKENS`.  The bound is the
    one that the call names (`max_tokens`, `max_output_tokens`, ...), else `max_output_tokens`; without
    either, `USUAL_OUTPUT` is an estimate and no bound.

    Args:
        provider: who answers.
        model: the model, where the call does not name it.
        max_output_tokens: the bound of an answer, where the call names none.
        prices: what models cost; by default genai-prices.
        unpriced: `"allow"` counts a model without a price as free.

    Raises:
        MissingExtraError: genai-prices is not installed.

    Example:
        >>> reserve_of("openai", model="gpt-5", max_output_tokens=100)("How many tokens is this?").tokens
        109
    """
    check("genai_prices", extra="prices", feature="reserve_of")
    costs = ModelCosts(prices or ModelPrices(), unpriced=unpriced)

    def reserve(*args: object, **kwargs: object) -> Usage:
        request = ModelRequest(args, kwargs)
        asked = request.model or model
        if asked is None:
            raise TypeError("reserve_of: the call names no model; name one: reserve_of(..., model='...')")
        most = costs.priced(asked, request.usage(max_output_tokens), provider=provider)
        place = CURRENT.get()
        if NANO_USD not in most.named() and place is not None and place.run.limits("usd"):
            raise UnknownCostError(asked, ("usd",), place.run.id, no_price(asked))
        return most

    return reserve
