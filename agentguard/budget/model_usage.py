"""What a provider counted of one call of a model, in the names of genai-prices."""

from __future__ import annotations

import math
import re
from datetime import datetime
from decimal import Decimal
from typing import Final, Self

import msgspec

from agentguard.budget.model import Usage

Number = int | Decimal

#: What Bedrock puts after the name of a model.
_VERSION: Final = re.compile(r"(-v\d+)?(:\d+)?")

#: genai-prices' names of what `Usage` has a field for.
_OF_USAGE: Final = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cached_tokens": "cache_read_tokens",
    "reasoning_tokens": "output_reasoning_tokens",
}
#: Totals, and the groups of disjoint parts that each must hold. Later totals hold earlier ones.
_PARTS: Final = (
    ("cache_write_tokens", ("cache_write_5m_tokens", "cache_write_1h_tokens")),
    ("input_tokens", ("cache_read_tokens", "cache_write_tokens")),
    ("input_tokens", tuple(f"input_{kind}_tokens" for kind in ("text", "audio", "image", "video"))),
    ("output_tokens", ("output_reasoning_tokens", "output_citation_tokens")),
    ("output_tokens", tuple(f"output_{kind}_tokens" for kind in ("text", "audio", "image", "video"))),
)
#: What is no part of another count.
_WHOLE: Final = frozenset(("input_tokens", "output_tokens"))


class ModelUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider counted of one call, and the terms it was made on.

    Args:
        counts: amounts by genai-prices' names: `input_tokens` and `output_tokens` are totals; the others
            are parts of them (`cache_read_tokens`, `cache_write_1h_tokens`, `input_audio_tokens`, ...)
            or are counted beside tokens (`web_searches`).  A total that is less than its parts is
            raised to their sum.
        terms: what selects another price: `service_tier` (`"flex"`, `"priority"`), `processing`
            (`"batch"`), `speed` (`"fast"`), `inference_geo` (`"us"`).
        model: the model that answered, by the provider's word.
        cost: what the provider itself says the call costs, in USD.
        at: when the call was made, for prices that change; now, where nothing is given.
        beside: what the provider bills for the same call on its own: a model that was asked for advice or
            drew an image, a container that ran code.  Where one names no model, it is that of the call.

    Raises:
        TypeError, ValueError: a count is no number, negative or not finite; the message names it.

    Example:
        >>> ModelUsage(counts={"input_tokens": 50, "cache_write_tokens": 100}).counts["input_tokens"]
        100
    """

    counts: dict[str, Number]
    terms: dict[str, str] = {}
    model: str | None = None
    cost: Decimal | None = None
    at: datetime | None = None
    beside: tuple[ModelUsage, ...] = ()

    def __post_init__(self) -> None:
        for name, value in self.counts.items():
            if type(value) is not int or value < 0:
                _check(name, value)
        counts = {name: n for name, n in self.counts.items() if n}
        if not counts.keys() <= _WHOLE:
            for total, parts in _PARTS:
                if not counts.keys().isdisjoint(parts):
                    counts[total] = max(counts.get(total, 0), sum(counts.get(part, 0) for part in parts))
        msgspec.structs.force_setattr(self, "counts", counts)

    def __getitem__(self, name: str) -> Number:
        """Return a count by its name here or in `Usage`; 0 for one that was not reported."""
        return self.counts.get(_OF_USAGE.get(name, name), 0)

    @classmethod
    def of(cls, usage: Usage) -> Self:
        """Return the tokens of a `Usage`, without its money and counters."""
        counts: dict[str, Number] = {name: usage[field] for field, name in _OF_USAGE.items()}
        if not usage.input_tokens and not usage.output_tokens:
            counts["output_tokens"] = usage.tokens  # the split is not known: the dearer of the two
        return cls(counts=counts)

    def usage(self) -> Usage:
        """Return the tokens in the words of `Usage`, all models' together; money is not among them."""
        amounts = {field: math.ceil(self.counts.get(name, 0)) for field, name in _OF_USAGE.items()}
        amounts["tokens"] = amounts["input_tokens"] + amounts["output_tokens"]
        return sum((other.usage() for other in self.beside), Usage.from_amounts(amounts))

    def names(self, asked: str) -> list[str]:
        """Return the names to look a price up by, the best first.

        The model that answered says more than an alias that was asked for, but for names that hold it whole
        with the place in front, as those of Bedrock do.
        """
        if not self.model or self.model == asked:
            return [asked]
        place, _, version = asked.rpartition(self.model)
        if place.endswith((".", "/", ":")) and _VERSION.fullmatch(version):
            return [asked, self.model]
        return [self.model, asked]

    def larger(self, other: ModelUsage) -> ModelUsage:
        """Return the larger of each count: for streams that report their usage more than once."""
        names = self.counts.keys() | other.counts.keys()
        counts = {name: max(self.counts.get(name, 0), other.counts.get(name, 0)) for name in names}
        return ModelUsage(
            counts=counts,
            terms=self.terms | other.terms,
            model=other.model or self.model,
            cost=other.cost if other.cost is not None else self.cost,
            at=self.at or other.at,
            beside=other.beside if len(other.beside) >= len(self.beside) else self.beside,
        )


def _check(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise TypeError(f"{name} must be an int or a Decimal, not {type(value).__name__}")
    if (isinstance(value, Decimal) and not value.is_finite()) or value < 0:
        raise ValueError(f"{name} must be finite and not negative, not {value!r}")
