"""`usage=` and `reserve=` for steps that call a model, without a line of arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agentguard._optional import check
from agentguard.budget.model import Usage
from agentguard.budget.model_usage import ModelUsage
from agentguard.budget.resources import NANO_USD
from agentguard.cost.prices import ModelPrices
from agentguard.cost.provider import model_usage, reports_usage, whole_answer
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
) -> UsageOf:
    """Return a `usage=` that reads a provider's answer: tokens, and USD by what the provider charges.

    Of a step that yields a stream's events, or returns an SDK's stream (`stream=True`), it reads the events.
    One that ends early, or whose events tell no usage, is charged at least what was reserved.

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
    return UsageOf(provider, model, ModelCosts(prices or ModelPrices(), unpriced=unpriced), dict(terms or {}))


class UsageOf:
    """What `usage_of` gives: it reads an answer, or the events of one that is streamed."""

    def __init__(
        self, provider: str | None, model: str | None, costs: ModelCosts, terms: dict[str, str]
    ) -> None:
        self._provider = provider
        self._model = model
        self._costs = costs
        self._terms = terms

    def counter(self) -> UsageCounter:
        """Return what takes in the events of a stream, to be given in place of an answer."""
        return UsageCounter(self._provider, self._terms)

    def __call__(self, answer: object, *args: object, **kwargs: object) -> Usage:
        """Return what an answer says that it used; of a stream that says nothing, no amount is named.

        Raises:
            ValueError: an answer reports no usage, or one that cannot be right.
        """
        if isinstance(answer, UsageCounter):
            counted = answer.counted
            if counted is None:
                return Usage()
        else:
            counted = model_usage(answer, provider=self._provider, terms=self._terms)
        if counted is None:
            raise ValueError(f"the answer, a {type(answer).__name__}, reports no usage")
        asked = ModelRequest(args, kwargs).model or self._model or counted.model
        return self._costs.priced(asked or "", counted, provider=self._provider)


class UsageCounter:
    """What the events of one stream say that was used so far."""

    def __init__(self, provider: str | None, terms: dict[str, str]) -> None:
        self._provider = provider
        self._terms = terms
        self._found: ModelUsage | None = None
        self._problem: ValueError | None = None

    def add(self, event: object) -> None:
        """Take in an event, or the object that a block handed out for a whole stream."""
        event = whole_answer(event)
        if not reports_usage(event):
            return
        try:
            found = model_usage(event, provider=self._provider, terms=self._terms)
        except ValueError as error:  # told at the end: the stream goes on
            self._problem = error
            return
        if found is not None:
            self._found = found if self._found is None else self._found.larger(found)

    @property
    def counted(self) -> ModelUsage | None:
        """What was used by the last event, or None where none said so.

        Raises:
            ValueError: an event reported a count that cannot be one.
        """
        if self._problem is not None:
            raise self._problem
        return self._found


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
        most = costs.priced(asked, request.usage(max_output_tokens, model), provider=provider)
        place = CURRENT.get()
        if NANO_USD not in most.named() and place is not None and place.run.limits("usd"):
            raise UnknownCostError(asked, ("usd",), place.run.id, no_price(asked))
        return most

    return reserve
