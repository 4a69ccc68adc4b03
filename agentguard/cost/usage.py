"""From tokens to `Usage`: what a model call may use, what it has used, and what nobody can price.

Every integration goes through `ModelCosts`, so that the rule for models without a price is here alone.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from agentguard.budget.model import Usage
from agentguard.budget.resources import NANO, NANO_USD
from agentguard.errors import UnknownCostError

if TYPE_CHECKING:
    from agentguard.protocols import PriceBook

Unpriced = Literal["refuse", "allow"]

#: What an answer is taken to need where nothing bounds it: an estimate, and no bound.
USUAL_OUTPUT = 4096
#: The smallest `max_tokens` worth asking for; providers refuse smaller ones.
LEAST_OUTPUT = 16
#: What an image, a sound or a file in a prompt is taken for: no size says it.
MEDIA_TOKENS = 1600


class Limited(Protocol):
    """What is asked of a run."""

    @property
    def id(self) -> str:
        """The run's id."""
        ...

    @property
    def remaining(self) -> Any:
        """What its budget leaves."""
        ...

    def limits(self, resource: str) -> bool:
        """Whether anything limits a resource here."""
        ...


class Bound(NamedTuple):
    """What a model call may use, and the `max_tokens` that makes it so; None leaves it as it was."""

    reserve: Usage
    max_tokens: int | None = None


def estimated_tokens(text: str | bytes) -> int:
    """About how many tokens a text is: one for three bytes, which is on the high side.

    Example:
        >>> estimated_tokens("How many tokens is this?")
        8
    """
    return -(-len(text.encode() if isinstance(text, str) else text) // 3)


class ModelCosts:
    """What calls of models may cost and have cost, by one price book.

    Args:
        prices: the book; None knows no price.
        unpriced: what becomes of a call of a model without a price where USD are limited: `"refuse"`
            stops the run with `UnknownCostError` before the call, `"allow"` counts its tokens alone.
        max_output_tokens: sent as `max_tokens` with calls that name none, so that they are bounded.
        clamp: lower `max_tokens` to what the run's budget leaves, rather than refuse the call.
    """

    def __init__(
        self,
        prices: PriceBook | None,
        *,
        unpriced: Unpriced = "refuse",
        max_output_tokens: int | None = None,
        clamp: bool = True,
    ) -> None:
        if unpriced not in {"refuse", "allow"}:
            raise ValueError(f"unpriced must be 'refuse' or 'allow', not {unpriced!r}")
        if max_output_tokens is not None and max_output_tokens < 1:
            raise ValueError(f"max_output_tokens must be at least 1, not {max_output_tokens!r}")
        self.prices = prices
        self.unpriced = unpriced
        self.max_output_tokens = max_output_tokens
        self.clamp = clamp

    def bound(
        self,
        run: Limited,
        model: str,
        *,
        input_tokens: int,
        max_tokens: int | None = None,
        provider: str | None = None,
    ) -> Bound:
        """What a call may use, for its reservation.

        Args:
            run: where it is made.
            model: the model asked for.
            input_tokens: an estimate of the prompt.
            max_tokens: the bound that the call names itself.
            provider: who serves the model.

        Raises:
            UnknownCostError: the run limits USD and nobody knows what the model costs.
        """
        self._check_price(run, model, provider)
        asked = max_tokens or self.max_output_tokens
        output = asked or USUAL_OUTPUT
        if self.clamp:
            output = self._clamped(run, model, provider, input_tokens, output)
        reserve = self.priced(
            model, Usage(input_tokens=input_tokens, output_tokens=output), provider=provider
        )
        lowered = output < (asked or USUAL_OUTPUT)
        return Bound(reserve, output if lowered or (asked and max_tokens is None) else None)

    def priced(
        self,
        model: str,
        tokens: Usage,
        *,
        provider: str | None = None,
        answered: str | None = None,
        cost: Decimal | None = None,
    ) -> Usage:
        """The tokens of a call with what they cost; without, for a model that has no price.

        Args:
            model: the model asked for.
            tokens: what the provider counted.
            provider: who served it.
            answered: the model that the provider says it was, tried where `model` has no price.
            cost: what the provider says it cost, taken where the book has no price.
        """
        for name in (model, answered):
            if name and (nano := self._nano(name, provider, tokens)) is not None:
                return tokens + Usage.from_amounts({NANO_USD: nano})
        if cost is not None and cost.is_finite() and cost > 0:
            nano = int((cost * NANO).to_integral_value(rounding=ROUND_CEILING))
            return tokens + Usage.from_amounts({NANO_USD: nano})
        return tokens

    def _nano(self, model: str, provider: str | None, tokens: Usage) -> int | None:
        if self.prices is None:
            return None
        price = self.prices.price(
            model,
            provider=provider,
            input_tokens=tokens.input_tokens,
            output_tokens=tokens.output_tokens,
            cached_tokens=min(tokens.cached_tokens, tokens.input_tokens),
        )
        return None if price is None else price.nano_usd

    def _check_price(self, run: Limited, model: str, provider: str | None) -> None:
        if self.unpriced == "allow" or not run.limits("usd"):
            return
        if self._nano(model, provider, Usage(input_tokens=1)) is None:
            detail = (
                f"no price is known for it: pass prices=ModelPrices({{{model!r}: {{'input': ..., 'output': "
                "...}}}) in USD per million tokens, install 'agentguard[prices]' if that is missing, or "
                "pass unpriced='allow' to count its tokens alone"
            )
            raise UnknownCostError(model, ("usd",), run.id, detail)

    def _clamped(self, run: Limited, model: str, provider: str | None, input_tokens: int, output: int) -> int:
        """`output`, or what the run's own budget leaves for it if that is less and worth a call."""
        left = run.remaining
        room = [output]
        if left.output_tokens is not None:
            room.append(left.output_tokens)
        if left.tokens is not None:
            room.append(left.tokens - input_tokens)
        if left.usd is not None:
            room.append(self._affordable(model, provider, input_tokens, output, int(left.usd * NANO)))
        least = min(room)
        return least if least >= min(LEAST_OUTPUT, output) else output

    def _affordable(self, model: str, provider: str | None, input_tokens: int, output: int, nano: int) -> int:
        """How many tokens of output the money buys, at most `output`."""
        prompt = self._nano(model, provider, Usage(input_tokens=input_tokens))
        whole = self._nano(model, provider, Usage(input_tokens=input_tokens, output_tokens=output))
        if prompt is None or whole is None or whole <= nano or whole <= prompt:
            return output
        return max(0, (nano - prompt) * output // (whole - prompt))
