"""From tokens to `Usage`: what a model call may use, what it has used, and what nobody can price.

Every integration goes through `ModelCosts`, so that the rule for models without a price is here alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

from msgspec import structs

from agentguard.budget.model import Usage
from agentguard.budget.model_usage import ModelUsage, Number
from agentguard.budget.resources import NANO, NANO_USD, nano_usd
from agentguard.cost.hosted import offered
from agentguard.errors import UnknownCostError

if TYPE_CHECKING:
    from agentguard.protocols import PriceBook

Unpriced = Literal["refuse", "allow"]
CacheTtl = Literal["5m", "1h"]

#: What an answer is taken to need where nothing bounds it: an estimate, and no bound.
USUAL_OUTPUT = 4096
#: The smallest `max_tokens` worth asking for; providers refuse smaller ones.
LEAST_OUTPUT = 16
#: What an image, a sound or a file in a prompt is taken for: no size says it.
MEDIA_TOKENS = 1600
#: OpenAI's models whose prompts are written to a cache, at a price, unasked.
#: https://developers.openai.com/api/docs/guides/prompt-caching
_WRITTEN_UNASKED: Final = re.compile(r"(^|[/.:])gpt-(5\.[6-9]|[6-9])")


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

    def limits(self, resource: str, /) -> bool:
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


def request_tokens(request: Any, is_media: Callable[[dict[str, Any]], bool]) -> int:
    """About how many tokens a request is: its texts, and `MEDIA_TOKENS` for each part that is no text.

    Args:
        request: plain data; the names in it do not count.
        is_media: whether a part is an image or another file.

    Example:
        >>> request = {"role": "user", "content": ["look", {"url": "a.png"}]}
        >>> request_tokens(request, lambda part: "url" in part)
        1603
    """
    text, media = _weighed(request, is_media)
    return estimated_tokens(text) + media * MEDIA_TOKENS


def _weighed(value: Any, is_media: Callable[[dict[str, Any]], bool]) -> tuple[str, int]:
    if isinstance(value, str):
        return value, 0
    if isinstance(value, dict):
        if is_media(value):
            return "", 1
        value = list(value.values())
    if not isinstance(value, list):
        return "", 0
    parts = [_weighed(item, is_media) for item in value]
    return " ".join(text for text, _ in parts if text), sum(media for _, media in parts)


def at_least(used: Usage, least: Usage) -> Usage:
    """Return the larger of each amount: for an answer that ended before all of it was counted.

    Example:
        >>> at_least(Usage(input_tokens=9, output_tokens=2), Usage(usd=1, output_tokens=100)).output_tokens
        100
    """
    found = dict(least.named())
    found |= {name: max(n, found.get(name, 0)) for name, n in used.named().items()}
    return Usage.from_amounts(found)


def written_unasked(model: str) -> CacheTtl | None:
    """Return for how long a model's prompts are written to a cache that is paid for, if unasked."""
    return "5m" if _WRITTEN_UNASKED.search(model) else None


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
        terms: Mapping[str, str] | None = None,
        cache_writes: CacheTtl | None = None,
        spoken: bool = False,
        hosted: ModelUsage | None = None,
        least_output: int = LEAST_OUTPUT,
    ) -> Bound:
        """Return what a call may use, for its reservation.

        Args:
            run: where it is made.
            model: the model asked for.
            input_tokens: an estimate of the prompt.
            max_tokens: the bound that the call names itself; 0 for a model that gives no text.
            provider: who serves the model.
            terms: what selects another price, as `{"service_tier": "priority"}`.
            cache_writes: for how long the call may write its prompt to a cache, if that is billed.
            spoken: whether the answer may be sound, which costs more than text.
            hosted: what the provider's own tools may cost that the call offers.
            least_output: the smallest `max_tokens` worth asking for: above a thinking budget, which
                providers want to be less.

        Raises:
            UnknownCostError: the run limits USD and nobody knows what the model costs.
        """
        asked = self.max_output_tokens if max_tokens is None else max_tokens
        wanted = USUAL_OUTPUT if asked is None else asked
        price = partial(self._nano, model, provider)
        kept = cache_writes or written_unasked(model)
        hosted = offered({}, model) if hosted is None else hosted
        ask = _Asked(input_tokens, dict(terms or {}), kept, price, spoken=spoken, hosted=hosted)
        if ask.nano(wanted) is None and self.unpriced == "refuse" and run.limits("usd"):
            beside = (each for each in hosted.beside if each.model)
            priceless = (each.model for each in beside if self._nano(str(each.model), provider, each) is None)
            name = next(priceless, None) or model
            raise UnknownCostError(name, ("usd",), run.id, no_price(name))
        output = _clamped(run.remaining, ask, wanted, least_output) if self.clamp else wanted
        reserve = self._with_cost(ask.using(output).usage(), ask.nano(output))
        chosen = asked is not None and max_tokens is None
        return Bound(reserve, output if output < wanted or chosen else None)

    def priced(self, model: str, used: ModelUsage | Usage, *, provider: str | None = None) -> Usage:
        """Return the tokens of a call with what they cost.

        What the provider itself says goes before the book.  Where neither knows, no money is named, which
        stops a run that limits it; with `unpriced="allow"` the call counts as free.

        Args:
            model: the model asked for.
            used: what the provider counted.
            provider: who served it.
        """
        tokens = used if isinstance(used, Usage) else used.usage()
        return self._with_cost(tokens, self._nano(model, provider, used))

    def _with_cost(self, tokens: Usage, nano: int | None) -> Usage:
        if nano is None and self.unpriced == "allow":
            nano = 0
        return tokens if nano is None else tokens + Usage.from_amounts({NANO_USD: nano})

    def _nano(self, model: str, provider: str | None, used: ModelUsage | Usage) -> int | None:
        if isinstance(used, ModelUsage) and used.cost is not None:
            return nano_usd(used.cost, "cost")
        if isinstance(used, ModelUsage) and used.beside:
            beside = [
                self._nano(each.model or used.model or model, provider, structs.replace(each, at=used.at))
                for each in used.beside
            ]
            prices = [self._nano(model, provider, structs.replace(used, beside=())), *beside]
            known = [price for price in prices if price is not None]
            return sum(known) if len(known) == len(prices) or self.unpriced == "allow" else None
        if self.prices is None:
            return None
        usage = used if isinstance(used, ModelUsage) else ModelUsage.of(used)
        price = self.prices.price(model, usage, provider=provider)
        return None if price is None else price.nano_usd


class _Asked:
    """What is known of a call before it is made.  The book is asked once for each amount of output."""

    def __init__(
        self,
        input_tokens: int,
        terms: dict[str, str],
        cache_writes: CacheTtl | None,
        price: Callable[[ModelUsage], int | None],
        *,
        spoken: bool,
        hosted: ModelUsage,
    ) -> None:
        self.input_tokens = input_tokens
        self._terms = terms
        self._cache_writes = cache_writes
        self._spoken = spoken
        self._hosted = hosted
        self._price = price
        self._priced: dict[int, int | None] = {}

    def using(self, output: int) -> ModelUsage:
        """Return the most that it can use, with so much output."""
        counts: dict[str, Number] = {"input_tokens": self.input_tokens, "output_tokens": output}
        if self._cache_writes is not None:
            counts[f"cache_write_{self._cache_writes}_tokens"] = self.input_tokens
        if self._spoken:
            counts["output_audio_tokens"] = output
        counts = {**self._hosted.counts, **counts}
        return ModelUsage(counts=counts, terms=self._terms, beside=self._hosted.beside)

    def nano(self, output: int) -> int | None:
        """Return what that costs, in 1e-9 USD; None where nobody knows."""
        if output not in self._priced:
            self._priced[output] = self._price(self.using(output))
        return self._priced[output]


def _clamped(left: Any, ask: _Asked, output: int, least_output: int) -> int:
    """Return `output`, or what the budget leaves for it if that is less and worth a call."""
    room = [output]
    fixed = ask.using(0).usage() if left.output_tokens is not None or left.tokens is not None else Usage()
    if left.output_tokens is not None:
        room.append(left.output_tokens - fixed.output_tokens)
    if left.tokens is not None:
        room.append(left.tokens - fixed.tokens)
    if left.usd is not None:
        room.append(_affordable(ask, output, int(left.usd * NANO)))
    least = min(room)
    return least if least >= min(least_output, output) else output


def _affordable(ask: _Asked, output: int, nano: int) -> int:
    """Return how many tokens of output the money buys, at most `output`."""
    whole = ask.nano(output)
    if whole is None or whole <= nano:
        return output
    prompt = ask.nano(0)
    if prompt is None or whole <= prompt:
        return output
    return max(0, (nano - prompt) * output // (whole - prompt))


def no_price(model: str) -> str:
    """Return what to tell of a model without a price: the ways out."""
    return (
        f"no price is known for it: pass prices=ModelPrices({{{model!r}: {{'input': ..., 'output': ...}}}}) "
        "in USD per million tokens, install 'agentguard[prices]' if that is missing, or pass "
        "unpriced='allow' to count its tokens alone"
    )
