"""The resources that can be limited: their names, their units, and how amounts are read.

Inside, every amount is an integer: money in 1e-9 USD under the name `nano_usd`, tokens, steps
and counters as they are.  `Decimal`, `str`, `int` and `float` meet the integers only here.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from datetime import timedelta
from decimal import (
    MAX_EMAX,
    MAX_PREC,
    MIN_EMIN,
    ROUND_CEILING,
    ROUND_FLOOR,
    Context,
    Decimal,
    InvalidOperation,
)

NANO_USD = "nano_usd"
TOKENS = "tokens"
TOKEN_PARTS = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")
STEPS = "steps"
SECONDS = "seconds"

NANO = 1_000_000_000
#: The largest amount of any resource: a signed 64-bit integer (9.2e9 USD).
MAX_AMOUNT = 2**63 - 1
#: Arithmetic of our own: a program may set the precision of its decimal context as it likes.
_EXACT = Context(prec=MAX_PREC, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[InvalidOperation])

_FIELDS = (
    *("usd", TOKENS, *TOKEN_PARTS, STEPS, SECONDS, "calls", "repeats", "warn_at", "enforce"),
    *("on_limit", "ask_timeout"),
)
#: Fields of a Budget that a Usage must not name.
_GUARDED = (STEPS, SECONDS, "calls", "repeats", "warn_at", "enforce")
#: Counter names that look like another field, and the field they look like.
_SYNONYMS = {
    "step": STEPS,
    "second": SECONDS,
    "call": "calls",
    "repeat": "repeats",
    "sec": SECONDS,
    "secs": SECONDS,
    "time": SECONDS,
    "timeout": SECONDS,
    "duration": SECONDS,
    "deadline": SECONDS,
    "minutes": SECONDS,
    "hours": SECONDS,
    "cost": "usd",
    "costs": "usd",
    "price": "usd",
    "money": "usd",
    "dollar": "usd",
    "dollars": "usd",
    "cents": "usd",
    "spend": "usd",
    "prompt_tokens": "input_tokens",
    "completion_tokens": "output_tokens",
    NANO_USD: "usd",
    "warn": "warn_at",
    "enforced": "enforce",
}
_AFFIXES = ("max_", "min_", "limit_", "total_", "num_", "n_")
_SUFFIXES = ("_limit", "_max", "_budget", "_cap", "_count", "_total")


def check_counter_name(name: str, owner: str) -> None:
    """Refuse a counter that is most likely a misspelt field.

    Raises:
        TypeError: `name` looks like a field; the message suggests which.
    """
    if name in _GUARDED:
        raise TypeError(f"{owner}() takes no {name!r}: the guard itself counts those")
    if (likely := _likely_field(name)) is not None:
        raise TypeError(
            f"{owner}() got an unexpected field {name!r}; did you mean {likely!r}? "
            "(counters of your own take any name that does not look like a field)"
        )
    if not name.isidentifier():
        raise TypeError(f"{owner}() counter names must be identifiers, not {name!r}")


def _likely_field(name: str) -> str | None:
    if name in _SYNONYMS:
        return _SYNONYMS[name]
    core = name.lower()
    for affix in _AFFIXES:
        core = core.removeprefix(affix)
    for suffix in _SUFFIXES:
        core = core.removesuffix(suffix)
    if core in _SYNONYMS:
        return _SYNONYMS[core]
    if core in _FIELDS and core != name:
        return core
    if "usd" in core.split("_"):
        return "usd"
    if "token" in core:
        close = difflib.get_close_matches(core, (TOKENS, *TOKEN_PARTS), n=1, cutoff=0.0)
        return close[0]
    close = difflib.get_close_matches(core, _FIELDS, n=1, cutoff=0.86)
    if close or (close := [field for field in _FIELDS if _one_slip(core, field)]):
        return close[0]
    if name.startswith(("max_", "limit_")) or name.endswith(("_limit", "_max")):
        return core if core.isidentifier() else "usd"
    return None


def _one_slip(name: str, field: str) -> bool:
    """Whether one letter is missing, added or wrong in a field's name, or two are exchanged.

    Words differ from `steps` and `calls` by one letter, as `stops` and `cells`: those are counters.
    """
    same = next((i for i, (a, b) in enumerate(zip(name, field, strict=False)) if a != b), None)
    at = min(len(name), len(field)) if same is None else same
    rest, wanted = name[at:], field[at:]
    exchanged = rest[:2] == wanted[:2][::-1] and rest[2:] == wanted[2:]
    wrong = rest[1:] == wanted[1:] and field not in (STEPS, "calls")
    return rest[1:] == wanted or rest == wanted[1:] or exchanged or wrong


def nano_usd(value: object, field: str, *, up: bool = True) -> int:
    """Read an amount of money as whole 1e-9 USD, rounded up (or down, for a limit).

    Raises:
        TypeError: a bool, or nothing that is a number.
        ValueError: negative, NaN, infinite, not a number's text, or above 9.2e9 USD.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise TypeError(f"{field} must be a Decimal, str, int or float in USD, not {type(value).__name__}")
    return _nano(value, field, ROUND_CEILING if up else ROUND_FLOOR)


def _nano(value: float | str | Decimal, field: str, rounding: str) -> int:
    if isinstance(value, int):
        _in_range(value, field, MAX_AMOUNT // NANO)
        return int(value) * NANO
    try:
        # A float is taken by its shortest decimal text: 0.1 means 0.1, not its binary neighbour.
        amount = Decimal(float.__repr__(value) if isinstance(value, float) else value, _EXACT)
    except InvalidOperation:
        raise ValueError(f"{field} is not a number: {value!r}") from None
    if not amount.is_finite():
        raise ValueError(f"{field} must be finite, not {value!r}")
    _in_range(amount, field, MAX_AMOUNT // NANO)
    return int(_EXACT.multiply(amount, NANO).to_integral_value(rounding, _EXACT))


def _in_range(value: int | Decimal, field: str, largest: int) -> None:
    if value < 0:
        shown = value if value > -largest else "a huge amount"  # the text of a huge int is refused by Python
        raise ValueError(f"{field} must not be negative: {shown}")
    if value > largest:
        raise ValueError(f"{field} must be at most {largest}")


def count(value: object, field: str) -> int:
    """Read a number of tokens, steps, calls or things of one's own.

    Raises:
        TypeError: not an int, or a bool.
        ValueError: negative, or above 2**63 - 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field} must be finite, not {value!r}")
        raise TypeError(f"{field} must be an int, not {type(value).__name__}")
    _in_range(value, field, MAX_AMOUNT)
    return int(value)


def nanoseconds(value: object, field: str) -> int:
    """Read a time span (a number of seconds or a timedelta) as whole nanoseconds.

    Raises:
        TypeError: a bool, or no number and no timedelta.
        ValueError: negative, NaN or infinite.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise TypeError(f"{field} must be a number of seconds or a timedelta, not {type(value).__name__}")
    return _nano(value, field, ROUND_FLOOR)


def seconds_to_answer(value: object, field: str) -> float:
    """Read how long an answer is waited for (a number of seconds or a timedelta), in seconds.

    Raises:
        TypeError: a bool, or no number and no timedelta.
        ValueError: not above 0, NaN or infinite.
    """
    found = nanoseconds(value, field)
    if not found:
        raise ValueError(f"{field} must be above 0: within no time nobody can answer")
    return found / 1e9


def public_name(resource: str) -> str:
    """The name a user knows: `usd` for `nano_usd`, else the same."""
    return "usd" if resource == NANO_USD else resource


def public_amount(resource: str, amount: int) -> int | float | Decimal:
    """The amount in the unit a user knows: USD as Decimal, seconds as float, else the count."""
    if resource == NANO_USD:
        return usd(amount)
    if resource == SECONDS:
        return amount / NANO
    return amount


def usd(amount: int) -> Decimal:
    """1e-9 USD as a Decimal without trailing zeros."""
    value = _EXACT.scaleb(Decimal(amount), -9)
    whole = value.to_integral_value(context=_EXACT)
    return whole if value == whole else value.normalize(_EXACT)


def describe(amounts: Iterable[tuple[str, int]]) -> str:
    """`usd=0.01, tokens=12` for messages and reprs."""
    return ", ".join(f"{public_name(r)}={public_amount(r, n)}" for r, n in amounts)
