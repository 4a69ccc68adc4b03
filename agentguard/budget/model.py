"""Usage and Budget: what was used, and what may be.  Values, without behaviour over time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any, Literal, Self

from agentguard._loading import load
from agentguard.budget import resources as r

OnLimit = Literal["stop", "ask"]
#: How long, in seconds, a limit that asks waits for an answer where the budget does not say.
ASK_TIMEOUT = 3600.0
Money = Decimal | str | int | float
#: Told by identity from a 0 that was given.
_NO_MONEY: Money = Decimal(0)
#: Resources of which a `Usage` may say that none was used.
_TELLING = frozenset((r.NANO_USD, r.TOKENS))
_NOTHING: frozenset[str] = frozenset()


class Usage:
    """What a step used: money, tokens, and counters of your own.

    `tokens` is `input_tokens + output_tokens`; cached and reasoning tokens are parts of those and
    are not added again.  Give `tokens` alone where the split is not known.  Usages add and
    compare resource by resource (`a <= b`: a is within b everywhere), and read back as `Decimal`
    (usd) and `int`.

    Args:
        usd: money in USD.  A float is taken by its shortest decimal text.  An llm step that reserves
            `usd=0` says that it is free, which one that leaves it out does not.
        input_tokens: tokens sent, the cached ones included.
        output_tokens: tokens produced, the reasoning ones included.
        cached_tokens: the part of `input_tokens` that was read from a cache.
        reasoning_tokens: the part of `output_tokens` that was reasoning.
        tokens: the total, where the two parts are not known; an llm step that uses none says 0.
        counters: things of your own, as whole numbers: `emails=1`.

    Raises:
        TypeError: a bool, a non-number, or a counter that looks like a misspelt field.
        ValueError: a negative, infinite or NaN amount, or a `tokens` that is not the sum.

    Example:
        >>> call = Usage(usd="0.002", input_tokens=900, output_tokens=100)
        >>> total = call + Usage(usd="0.01", emails=1)
        >>> total.usd, total.tokens, total["emails"]
        (Decimal('0.012'), 1000, 1)
    """

    __slots__ = ("_amounts", "_none")
    _amounts: dict[str, int]
    #: Of which of money and tokens it was said that none is used; no difference between two usages.
    _none: frozenset[str]

    def __init__(
        self,
        usd: Money = _NO_MONEY,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cached_tokens: int = 0,
        reasoning_tokens: int = 0,
        tokens: int | None = None,
        **counters: int,
    ) -> None:
        amounts = {r.NANO_USD: r.nano_usd(usd, "usd")}
        parts = (input_tokens, output_tokens, cached_tokens, reasoning_tokens)
        for field, value in zip(r.TOKEN_PARTS, parts, strict=True):
            amounts[field] = r.count(value, field)
        total = amounts["input_tokens"] + amounts["output_tokens"]
        if tokens is not None:
            given = r.count(tokens, "tokens")
            if total and given != total:
                raise ValueError(
                    f"tokens={given} is not input_tokens + output_tokens = {total}; leave it out"
                )
            total = given
        amounts[r.TOKENS] = r.count(total, "tokens")
        for name, value in counters.items():
            r.check_counter_name(name, "Usage")
            amounts[name] = r.count(value, name)
        said = {r.NANO_USD: usd is not _NO_MONEY, r.TOKENS: tokens is not None}
        self._none = frozenset(name for name, given in said.items() if given and not amounts[name])
        self._amounts = {name: n for name, n in amounts.items() if n}

    @classmethod
    def from_amounts(cls, amounts: Mapping[str, int]) -> Self:
        """A usage from internal amounts (money in 1e-9 USD), as events carry them."""
        usage = cls.__new__(cls)
        usage._amounts = used = {name: n for name, n in amounts.items() if n}
        all_used = len(used) == len(amounts)
        usage._none = _NOTHING if all_used else _TELLING.intersection(amounts.keys() - used.keys())
        return usage

    @classmethod
    def from_provider(
        cls,
        answer: object,
        provider: str | None = None,
        *,
        model: str | None = None,
        prices: object = None,
    ) -> Usage:
        """Return what a provider's answer says that it used: its tokens, and USD by what is charged.

        Where no price is known, no money is named.

        Args:
            answer: the answer as the provider's SDK returns it, its JSON, or the usage alone.
            provider: who gave it (`"openai"`, `"bedrock"`, ...); by default it is told from the shape.
            model: the model, where the answer does not name it.
            prices: what models cost, a `PriceBook`; by default genai-prices.

        Raises:
            MissingExtraError: genai-prices is not installed.
            ValueError: the answer reports no usage, or one that cannot be right.

        Example:
            >>> answer = {"model": "gpt-5", "usage": {"prompt_tokens": 900, "completion_tokens": 40}}
            >>> Usage.from_provider(answer, "openai").usd
            Decimal('0.001525')
        """
        # By dotted path: prices lie above budgets, and most programs never ask.
        usage_of = load("agentguard.cost.presets").usage_of
        used: Usage = usage_of(provider, model=model, prices=prices)(answer)
        return used

    def amounts(self) -> dict[str, int]:
        """The internal amounts by resource, money in 1e-9 USD; zero entries are absent."""
        return dict(self._amounts)

    def named(self) -> dict[str, int]:
        """The same, and money and tokens of 0 where that was said."""
        return {**dict.fromkeys(sorted(self._none), 0), **self._amounts} if self._none else self.amounts()

    @property
    def usd(self) -> Decimal:
        """Money in USD."""
        return r.usd(self._amounts.get(r.NANO_USD, 0))

    @property
    def tokens(self) -> int:
        """Tokens in and out."""
        return self._amounts.get(r.TOKENS, 0)

    @property
    def input_tokens(self) -> int:
        """Tokens sent, the cached ones included."""
        return self._amounts.get("input_tokens", 0)

    @property
    def output_tokens(self) -> int:
        """Tokens produced, the reasoning ones included."""
        return self._amounts.get("output_tokens", 0)

    @property
    def cached_tokens(self) -> int:
        """The part of the input that came from a cache."""
        return self._amounts.get("cached_tokens", 0)

    @property
    def reasoning_tokens(self) -> int:
        """The part of the output that was reasoning."""
        return self._amounts.get("reasoning_tokens", 0)

    @property
    def steps(self) -> int:
        """Guarded steps; counted by the guard, never given."""
        return self._amounts.get(r.STEPS, 0)

    @property
    def counters(self) -> dict[str, int]:
        """Your own counters by name."""
        known = (r.NANO_USD, r.TOKENS, r.STEPS, *r.TOKEN_PARTS)
        return {name: n for name, n in self._amounts.items() if name not in known}

    def __getitem__(self, resource: str) -> Any:
        name = r.NANO_USD if resource == "usd" else resource
        return r.public_amount(name, self._amounts.get(name, 0))

    def __iter__(self) -> Iterator[str]:
        return (r.public_name(name) for name in self._amounts)

    def __bool__(self) -> bool:
        return bool(self._amounts)

    def __add__(self, other: object) -> Usage:
        if not isinstance(other, Usage):
            return NotImplemented
        amounts = self.named()
        for name, n in other.named().items():
            amounts[name] = amounts.get(name, 0) + n
        return Usage.from_amounts(amounts)

    def __radd__(self, other: object) -> Usage:
        return self if other == 0 else NotImplemented  # sum() starts from 0

    def __eq__(self, other: object) -> bool:
        return self._amounts == other._amounts if isinstance(other, Usage) else NotImplemented

    def __hash__(self) -> int:
        return hash(frozenset(self._amounts.items()))

    def __le__(self, other: object) -> bool:
        if not isinstance(other, Usage):
            return NotImplemented
        return all(n <= other._amounts.get(name, 0) for name, n in self._amounts.items())

    def __ge__(self, other: object) -> bool:
        return other <= self if isinstance(other, Usage) else NotImplemented

    def __lt__(self, other: object) -> bool:
        return self <= other and self != other if isinstance(other, Usage) else NotImplemented

    def __gt__(self, other: object) -> bool:
        return other < self if isinstance(other, Usage) else NotImplemented

    def __repr__(self) -> str:
        return f"Usage({r.describe(self._amounts.items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Usage.from_amounts, (self.named(),))


class Budget:
    """Limits on what a run, a scope or a tenant may use.  What is not named is not limited.

    A limit of 0 stops at once whatever would use it.  Amounts are as in `Usage`; in addition:

    Args:
        usd: money in USD.
        input_tokens, output_tokens, cached_tokens, reasoning_tokens, tokens: as in `Usage`.
        steps: guarded steps.
        seconds: running time as a number or a timedelta; pauses do not count.
        calls: how often a step of a name, or of a kind, may run: `{"web_fetch": 3, "kind:llm": 20}`.
        repeats: the n-th call of the same name with the same arguments is refused.
        warn_at: the part of a limit, above 0 and at most 1, at which a `budget_warning` is given.
        enforce: False observes only: events say `would_stop`, nothing is refused.
        on_limit: `"stop"` (default), or `"ask"`: a run pauses at its limit until an operator raises it with
            `set_budget`, and the step goes on, or denies.  `seconds` stop all the same.  Of a run's own
            budget alone, not a scope's or a tenant's.
        ask_timeout: seconds, or a timedelta, after which a question that nobody answered counts as denied.
        counters: limits on counters of your own: `emails=3`.

    Raises:
        TypeError: a bool, a non-number, or a name that looks like a misspelt field.
        ValueError: a negative, infinite or NaN limit.

    Example:
        >>> budget = Budget(usd="1.00", steps=200, seconds=600, calls={"web_fetch": 3}, emails=2)
        >>> budget.usd, budget.steps, budget["emails"], budget.tokens
        (Decimal('1'), 200, 2, None)
    """

    __slots__ = ("ask_timeout", "calls", "enforce", "limits", "on_limit", "repeats", "warn_at")
    #: Limits by internal resource name; `seconds` in nanoseconds, money in 1e-9 USD.
    limits: dict[str, int]
    calls: dict[str, int]
    repeats: int | None
    warn_at: float
    enforce: bool
    on_limit: OnLimit
    #: In seconds.
    ask_timeout: float

    def __init__(
        self,
        usd: Money | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cached_tokens: int | None = None,
        reasoning_tokens: int | None = None,
        tokens: int | None = None,
        *,
        steps: int | None = None,
        seconds: float | timedelta | None = None,
        calls: Mapping[str, int] | None = None,
        repeats: int | None = None,
        warn_at: float = 0.8,
        enforce: bool = True,
        on_limit: OnLimit = "stop",
        ask_timeout: float | timedelta = ASK_TIMEOUT,
        **counters: int | None,
    ) -> None:
        limits: dict[str, int] = {}
        if usd is not None:
            limits[r.NANO_USD] = r.nano_usd(usd, "usd", up=False)
        counted: dict[str, object] = {
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "cached_tokens": cached_tokens,
            "reasoning_tokens": reasoning_tokens,
            r.TOKENS: tokens,
            r.STEPS: steps,
        }
        for name in counters:
            r.check_counter_name(name, "Budget")
        for field, value in (counted | counters).items():
            if value is not None:
                limits[field] = r.count(value, field)
        if seconds is not None:
            limits[r.SECONDS] = r.nanoseconds(seconds, "seconds")
        self.limits = limits
        self.calls = _calls(calls)
        self.repeats = None if repeats is None else r.count(repeats, "repeats")
        self.warn_at = _share(warn_at)
        if not isinstance(enforce, bool):
            raise TypeError(f"enforce must be a bool, not {type(enforce).__name__}")
        self.enforce = enforce
        if on_limit not in ("stop", "ask"):
            raise ValueError(f"on_limit must be 'stop' or 'ask', not {on_limit!r}")
        self.on_limit = on_limit
        self.ask_timeout = r.seconds_to_answer(ask_timeout, "ask_timeout")

    def __getattr__(self, name: str) -> Any:
        if name == "usd" or name in _READABLE or name in self.limits:
            return self[name]
        raise AttributeError(f"Budget has no limit {name!r}")

    def __getitem__(self, resource: str) -> Any:
        """The limit of `resource` in its own unit, or None without one."""
        name = r.NANO_USD if resource == "usd" else resource
        limit = self.limits.get(name)
        return None if limit is None else r.public_amount(name, limit)

    @property
    def unlimited(self) -> bool:
        """Whether nothing at all is limited."""
        return not (self.limits or self.calls or self.repeats is not None)

    def to_fields(self) -> dict[str, Any]:
        """The budget as plain data that `from_fields` takes back; money as text."""
        fields: dict[str, Any] = {}
        for name in self.limits:
            value = self[name]
            fields[r.public_name(name)] = str(value) if name == r.NANO_USD else value
        if self.calls:
            fields["calls"] = dict(self.calls)
        if self.repeats is not None:
            fields["repeats"] = self.repeats
        if self.warn_at != 0.8:
            fields["warn_at"] = self.warn_at
        if not self.enforce:
            fields["enforce"] = False
        if self.on_limit != "stop":
            fields["on_limit"] = self.on_limit
        if self.ask_timeout != ASK_TIMEOUT:
            fields["ask_timeout"] = self.ask_timeout
        return fields

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """A budget from what `to_fields` gave."""
        return cls(**fields)

    def replace(self, **changes: Any) -> Budget:
        """Return the same budget with other limits; those that are not named stay as they are.

        Args:
            changes: limits by the names that `Budget` takes; None lifts one.  Of `calls`, those that are
                named change.

        Raises:
            TypeError, ValueError: a limit that `Budget` would not take.

        Example:
            >>> Budget(usd=1, steps=20).replace(usd=5, steps=None, emails=3)
            Budget(usd='5', emails=3)
        """
        fields = self.to_fields() | changes
        if isinstance(calls := changes.get("calls"), Mapping):
            merged = {**self.calls, **calls}
            fields["calls"] = {name: limit for name, limit in merged.items() if limit is not None}
        return Budget(**{name: value for name, value in fields.items() if value is not None})

    def __eq__(self, other: object) -> bool:
        return self.to_fields() == other.to_fields() if isinstance(other, Budget) else NotImplemented

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return f"Budget({', '.join(f'{k}={v!r}' for k, v in self.to_fields().items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Budget.from_fields, (self.to_fields(),))


#: Another budget, or changes of some limits by their names, as `Budget.replace` takes them.
BudgetChange = Budget | Mapping[str, Any]


def check_budget(value: object, field: str = "budget") -> None:
    """Raise `TypeError` unless a value is a `Budget`."""
    if not isinstance(value, Budget):
        raise TypeError(f"{field} must be a Budget, not {type(value).__name__}")


def check_stops(budget: Budget, field: str) -> None:
    """Raise `ValueError` for a budget that asks at its limit where nobody could raise it."""
    if budget.on_limit == "ask":
        raise ValueError(f"{field} cannot have on_limit='ask'; that is for the budget of a run")


_READABLE = frozenset((r.TOKENS, *r.TOKEN_PARTS, r.STEPS, r.SECONDS))


def _calls(calls: Mapping[str, int] | None) -> dict[str, int]:
    if calls is None:
        return {}
    if not isinstance(calls, Mapping):
        raise TypeError(f"calls must map step names to counts, not {type(calls).__name__}")
    for name in calls:
        if not isinstance(name, str) or not name or name == "kind:":
            raise TypeError(f"calls: a step name or 'kind:<kind>' is needed, not {name!r}")
    return {name: r.count(limit, f"calls[{name!r}]") for name, limit in calls.items()}


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise TypeError(f"warn_at must be a number, not {type(value).__name__}")
    if (isinstance(value, Decimal) and value.is_nan()) or not 0 < value <= 1:
        raise ValueError("warn_at must be above 0 and at most 1")
    return float(value)


class Remaining:
    """What a budget leaves, by resource; None where nothing is limited.

    Example:
        >>> left = Remaining({"nano_usd": 250_000_000, "emails": 0})
        >>> left.usd, left["emails"], left.tokens
        (Decimal('0.25'), 0, None)
    """

    __slots__ = ("_amounts",)

    def __init__(self, amounts: Mapping[str, int]) -> None:
        self._amounts = amounts

    def __getitem__(self, resource: str) -> Any:
        name = r.NANO_USD if resource == "usd" else resource
        amount = self._amounts.get(name)
        return None if amount is None else r.public_amount(name, max(amount, 0))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def __repr__(self) -> str:
        return f"Remaining({r.describe(self._amounts.items())})"
