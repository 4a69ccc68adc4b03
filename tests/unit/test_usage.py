"""`Usage`: what may be said, how it is read, added, compared, pickled and shown."""

from __future__ import annotations

import copy
import decimal
import operator
import pickle
from decimal import Decimal

import pytest

from agentguard import Usage

COUNTS = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "tokens", "emails")


class Numpyish(float):
    """A float as numpy 2 shows it."""

    def __repr__(self) -> str:
        return f"np.float64({float(self)})"


# --- money -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "usd"),
    [
        ("0.01", "0.01"),
        (" 1_000.5 ", "1000.5"),
        (Decimal("0.000000001"), "0.000000001"),
        (3, "3"),
        (0.1, "0.1"),
        (0.1 + 0.2, "0.300000001"),  # its shortest text is 0.30000000000000004, rounded up
        (1e-12, "0.000000001"),
        (Numpyish(0.25), "0.25"),
        ("1e-999999999", "0.000000001"),
        ("0." + "0" * 40 + "1", "0.000000001"),
        ("-0", "0"),
        (9_223_372_036, "9223372036"),
        ("9.2e9", "9200000000"),
    ],
)
def test_money_is_read_exactly_and_rounded_up(given, usd):
    assert Usage(usd=given).usd == Decimal(usd)


@pytest.mark.parametrize("precision", [1, 3, 28])
def test_money_does_not_depend_on_the_programs_decimal_context(precision):
    with decimal.localcontext() as context:
        context.prec = precision
        context.rounding = decimal.ROUND_DOWN
        usage = Usage(usd="123.456789123")
        read = usage.usd
    assert read == Decimal("123.456789123")


@pytest.mark.parametrize(
    "trap", [decimal.Inexact, decimal.Rounded, decimal.FloatOperation, decimal.Subnormal]
)
def test_money_does_not_trip_over_the_programs_traps(trap):
    with decimal.localcontext() as context:
        context.traps[trap] = True
        assert Usage(usd=0.1).amounts() == {"nano_usd": 100_000_000}
        assert Usage(usd="0.0000000001").usd == Decimal("0.000000001")


@pytest.mark.parametrize("bad", [True, False, None, [], {}, b"1", 1j, object(), (1, 2)])
def test_money_of_a_wrong_type(bad):
    with pytest.raises(TypeError, match="usd"):
        Usage(usd=bad)


@pytest.mark.parametrize(
    "bad",
    [
        -1,
        -0.01,
        "-0.000000001",
        Decimal(-3),
        float("nan"),
        float("inf"),
        float("-inf"),
        "NaN",
        "sNaN",
        "Infinity",
        Decimal("sNaN"),
        "",
        "one",
        "1,50",
        "$1",
        "0x10",
        "\ud800",
        "1\x00",
        10**10,
        "1e400000",
        10**5000,
        -(10**5000),
        "9" * 100_000,
    ],
    ids=lambda value: ascii(value)[:20] if not isinstance(value, int) else f"int{len(bin(value))}",
)
def test_money_of_a_wrong_value(bad):
    with pytest.raises(ValueError, match="usd"):
        Usage(usd=bad)


# --- counts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", COUNTS)
@pytest.mark.parametrize(
    "bad", [True, 1.0, "1", None, Decimal(1), [], 1j], ids=lambda value: repr(value).split(" at 0x")[0]
)
def test_counts_of_a_wrong_type(field, bad):
    if field == "tokens" and bad is None:
        assert Usage(tokens=None).tokens == 0
        return
    with pytest.raises(TypeError, match=field):
        Usage(**{field: bad})


@pytest.mark.parametrize("field", COUNTS)
@pytest.mark.parametrize(
    "bad",
    [-1, float("nan"), float("inf"), 2**63, -(2**63), 10**5000, -(10**5000)],
    ids=["-1", "nan", "inf", "2**63", "-2**63", "huge", "-huge"],
)
def test_counts_of_a_wrong_value(field, bad):
    with pytest.raises(ValueError, match=field):
        Usage(**{field: bad})


def test_the_largest_counts_are_taken():
    assert Usage(emails=2**63 - 1)["emails"] == 2**63 - 1
    with pytest.raises(ValueError, match="tokens"):
        Usage(input_tokens=2**63 - 1, output_tokens=1)


def test_tokens_are_input_and_output():
    usage = Usage(input_tokens=900, output_tokens=100, cached_tokens=500, reasoning_tokens=50)
    assert usage.tokens == 1000
    assert (usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens) == (
        900,
        100,
        500,
        50,
    )
    assert Usage(tokens=7).tokens == 7
    assert Usage(input_tokens=3, output_tokens=4, tokens=7) == Usage(input_tokens=3, output_tokens=4)
    with pytest.raises(ValueError, match="tokens=8"):
        Usage(input_tokens=3, output_tokens=4, tokens=8)


# --- names -----------------------------------------------------------------------------------------

MISSPELT = {
    "max_usd": "usd",
    "usd_limit": "usd",
    "cost_usd": "usd",
    "cost": "usd",
    "price": "usd",
    "dollars": "usd",
    "nano_usd": "usd",
    "USD": "usd",
    "token": "tokens",
    "Tokens": "tokens",
    "total_tokens": "tokens",
    "max_tokens": "tokens",
    "token_count": "tokens",
    "prompt_tokens": "input_tokens",
    "completion_tokens": "output_tokens",
    "input_token": "input_tokens",
    "max_output_tokens": "output_tokens",
    "reasoning_token": "reasoning_tokens",
    "step": "steps",
    "max_steps": "steps",
    "step_limit": "steps",
    "second": "seconds",
    "timeout": "seconds",
    "max_seconds": "seconds",
    "max_calls": "calls",
    "repeat": "repeats",
    "warn": "warn_at",
    "emails_limit": "emails",
    "max_emails": "emails",
    "uds": "usd",
    "usdd": "usd",
    "us": "usd",
    "udsd": "usd",
    "isd": "usd",
    "tokesn": "tokens",
    "takens": "tokens",
    "stpes": "steps",
    "setps": "steps",
    "stteps": "steps",
    "Stpes": "steps",
    "secodns": "seconds",
    "clals": "calls",
    "reepats": "repeats",
    "max_stpes": "steps",
}


@pytest.mark.parametrize(("given", "meant"), MISSPELT.items())
def test_a_misspelt_name_is_refused_with_a_suggestion(given, meant):
    with pytest.raises(TypeError, match=f"{given!r}.*did you mean {meant!r}"):
        Usage(**{given: 1})


@pytest.mark.parametrize("name", ["steps", "seconds", "calls", "repeats", "warn_at", "enforce"])
def test_what_the_guard_counts_itself_cannot_be_given(name):
    with pytest.raises(TypeError, match=name):
        Usage(**{name: 1})


@pytest.mark.parametrize(
    "name", ["emails", "refunds", "pages", "web_fetches", "α", "limits", "amounts", "stops", "cells", "sends"]
)
def test_counters_of_your_own(name):
    usage = Usage(**{name: 3})
    assert usage[name] == 3
    assert usage.counters == {name: 3}
    assert list(usage) == [name]


@pytest.mark.parametrize("name", ["two words", "", "1st", "a-b", "line\nbreak", "\ud800", "a" * 10 + "\x00"])
def test_counters_are_identifiers(name):
    with pytest.raises(TypeError):
        Usage(**{name: 1})


# --- as a value ------------------------------------------------------------------------------------


def test_what_is_not_there_is_zero():
    usage = Usage()
    assert (usage.usd, usage.tokens, usage.steps, usage["emails"], usage["usd"]) == (0, 0, 0, 0, 0)
    assert not usage
    assert Usage(emails=0) == usage
    assert isinstance(usage.usd, Decimal)


def test_addition():
    total = Usage(usd="0.1", emails=1) + Usage(usd="0.2", input_tokens=5) + Usage()
    assert total == Usage(usd="0.3", emails=1, input_tokens=5)
    assert sum([Usage(emails=1)] * 3) == Usage(emails=3)
    with pytest.raises(TypeError):
        Usage() + 1
    with pytest.raises(TypeError):
        1 + Usage()


def test_addition_leaves_its_parts_alone():
    first = Usage(emails=1)
    assert first + Usage(emails=2) == Usage(emails=3)
    assert first == Usage(emails=1)


def test_comparison_is_resource_by_resource():
    small, large = Usage(usd=1, emails=1), Usage(usd=2, emails=1, pages=1)
    assert small <= large
    assert small < large
    assert large > small
    assert large >= small
    assert not small < small  # noqa: PLR0124
    sideways = Usage(usd=3)
    assert not small <= sideways
    assert not sideways <= small
    assert small != sideways
    assert small != "small"
    with pytest.raises(TypeError):
        assert small < 5


def test_equal_usages_hash_alike():
    assert len({Usage(usd="0.10", emails=1), Usage(emails=1, usd=Decimal("0.1"))}) == 1


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda u: pickle.loads(pickle.dumps(u))])
def test_copying(again):
    usage = Usage(usd="0.1", input_tokens=5, emails=2)
    assert again(usage) == usage


def test_repr():
    assert (
        repr(Usage(usd="0.10", input_tokens=5, emails=2))
        == "Usage(usd=0.1, input_tokens=5, tokens=5, emails=2)"
    )
    assert repr(Usage()) == "Usage()"


def test_fields_cannot_be_set():
    with pytest.raises(AttributeError):
        Usage().usd = 5


def test_a_usage_of_no_money_is_no_other_usage_and_still_says_so():
    """`usd=0` is remembered, for llm steps that are free; nothing else tells it from leaving it out."""
    free, unsaid = Usage(usd=0, images=1), Usage(images=1)
    assert free == unsaid
    assert hash(free) == hash(unsaid)
    assert repr(free) == repr(unsaid)
    assert free.amounts() == unsaid.amounts() == {"images": 1}
    assert unsaid.named() == {"images": 1}
    for again in (free, free + unsaid, unsaid + free, sum([free, free]), pickle.loads(pickle.dumps(free))):
        assert again.named()["nano_usd"] == 0
    assert (free + Usage(usd=1)).named() == {"nano_usd": 10**9, "images": 1}
    assert not Usage(usd=0)
    assert Usage.from_amounts({"nano_usd": 0}).named() == {"nano_usd": 0}
    of_all = Usage.from_amounts({"nano_usd": 0, "tokens": 0, "input_tokens": 0, "images": 0, "steps": 1})
    assert of_all.named() == {"nano_usd": 0, "tokens": 0, "steps": 1}


def test_usage_is_compared_with_usage_alone():
    for compare in (operator.le, operator.ge, operator.lt, operator.gt):
        with pytest.raises(TypeError):
            compare(Usage(tokens=1), 1)
    assert Usage(tokens=1) != 1
