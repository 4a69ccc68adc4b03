"""`Budget`: what may be limited, how it is read, and what is refused at once."""

from __future__ import annotations

import copy
import pickle
from datetime import timedelta
from decimal import Decimal

import pytest

from agentguard import Budget, Usage
from agentguard.budget.model import Remaining

FIELDS = (
    "usd",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "tokens",
    "steps",
    "emails",
)


def test_every_limit_reads_back():
    budget = Budget(
        usd="1.50",
        input_tokens=1,
        output_tokens=2,
        cached_tokens=3,
        reasoning_tokens=4,
        tokens=5,
        steps=6,
        emails=7,
    )
    assert [budget[field] for field in FIELDS] == [Decimal("1.5"), 1, 2, 3, 4, 5, 6, 7]
    assert [getattr(budget, field) for field in FIELDS] == [Decimal("1.5"), 1, 2, 3, 4, 5, 6, 7]


def test_without_a_limit_it_is_none():
    budget = Budget()
    assert [budget[field] for field in FIELDS] == [None] * len(FIELDS)
    assert budget.usd is budget.tokens is budget.steps is budget.seconds is None
    assert budget.unlimited
    with pytest.raises(AttributeError):
        budget.emails  # noqa: B018


@pytest.mark.parametrize(
    "limit", [{"usd": 0}, {"steps": 0}, {"calls": {"f": 0}}, {"repeats": 0}, {"seconds": 0}]
)
def test_a_limit_of_zero_is_a_limit(limit):
    assert not Budget(**limit).unlimited


def test_money_limits_are_rounded_down():
    assert Budget(usd="0.0000000019").usd == Decimal("0.000000001")
    assert Budget(usd=0.1).usd == Decimal("0.1")


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (5, 5.0),
        (0.5, 0.5),
        (timedelta(minutes=2), 120.0),
        (timedelta(microseconds=1), 1e-06),
        (Decimal("1.25"), 1.25),
        (1.1, 1.1),
    ],
)
def test_seconds(given, seconds):
    assert Budget(seconds=given).seconds == seconds


HOSTILE = [True, False, -1, float("nan"), float("inf"), "garbage", [], object(), b"5", -(10**5000), 10**5000]
NAMES = ["True", "False", "-1", "nan", "inf", "garbage", "list", "object", "bytes", "-huge", "huge"]


@pytest.mark.parametrize("field", [*FIELDS, "seconds", "repeats", "warn_at"])
@pytest.mark.parametrize("bad", HOSTILE, ids=NAMES)
def test_hostile_limits_are_refused_at_once_naming_the_field(field, bad):
    with pytest.raises((TypeError, ValueError), match=field):
        Budget(**{field: bad})


@pytest.mark.parametrize("bad", HOSTILE, ids=NAMES)
def test_hostile_call_limits(bad):
    with pytest.raises((TypeError, ValueError), match="fetch"):
        Budget(calls={"fetch": bad})


@pytest.mark.parametrize(
    "bad",
    [5, "fetch", ["fetch"], {"": 1}, {5: 1}, {"kind:": 1}, {None: 1}],
    ids=lambda value: repr(value).split(" at 0x")[0],
)
def test_call_limits_of_a_wrong_form(bad):
    with pytest.raises(TypeError, match="calls"):
        Budget(calls=bad)


@pytest.mark.parametrize(
    "bad",
    [0, 1.0001, -0.5, 2, Decimal("NaN"), Decimal("sNaN"), "0.8", None],
    ids=lambda value: repr(value).split(" at 0x")[0],
)
def test_warn_at(bad):
    with pytest.raises((TypeError, ValueError), match="warn_at"):
        Budget(warn_at=bad)


@pytest.mark.parametrize("bad", [0, 1, None, "no"])
def test_enforce_is_a_bool(bad):
    with pytest.raises(TypeError, match="enforce"):
        Budget(enforce=bad)


@pytest.mark.parametrize("bad", ["9", Decimal("sNaN"), timedelta(-1), Decimal(-1), 10**11, timedelta.max])
def test_seconds_of_a_wrong_kind(bad):
    with pytest.raises((TypeError, ValueError), match="seconds"):
        Budget(seconds=bad)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("max_usd", "usd"),
        ("usd_limit", "usd"),
        ("cost_usd", "usd"),
        ("token", "tokens"),
        ("max_tokens", "tokens"),
        ("step", "steps"),
        ("max_steps", "steps"),
        ("timeout", "seconds"),
        ("second", "seconds"),
        ("call", "calls"),
        ("repeat", "repeats"),
        ("warn_a", "warn_at"),
        ("enforced", "enforce"),
        ("emails_limit", "emails"),
        ("uds", "usd"),
        ("usdd", "usd"),
        ("tokesn", "tokens"),
        ("stpes", "steps"),
        ("secodns", "seconds"),
        ("warn_ta", "warn_at"),
        ("ask_timeuot", "ask_timeout"),
        ("enfroce", "enforce"),
    ],
)
def test_a_misspelt_limit_is_refused_with_a_suggestion(given, meant):
    with pytest.raises(TypeError, match=f"{given!r}.*did you mean {meant!r}"):
        Budget(**{given: 1})


FULL = Budget(
    usd="1.5",
    tokens=5,
    steps=6,
    seconds=timedelta(seconds=1.5),
    calls={"f": 1, "kind:llm": 2},
    repeats=5,
    warn_at=0.5,
    enforce=False,
    emails=7,
)


@pytest.mark.parametrize(
    "again",
    [
        copy.copy,
        copy.deepcopy,
        lambda b: pickle.loads(pickle.dumps(b)),
        lambda b: Budget.from_fields(b.to_fields()),
    ],
    ids=["copy", "deepcopy", "pickle", "fields"],
)
@pytest.mark.parametrize(
    "budget",
    [FULL, Budget(), Budget(seconds=1.000000001), Budget(seconds=1 / 3)],
    ids=lambda value: repr(value).split(" at 0x")[0],
)
def test_copying(budget, again):
    copied = again(budget)
    assert copied == budget
    assert copied.limits == budget.limits
    assert hash(copied) == hash(budget)


def test_equality():
    assert Budget(usd="1.0") == Budget(usd=1)
    assert Budget(usd=1) != Budget(usd=1, steps=1)
    assert Budget(usd=1) != Budget(usd=1, enforce=False)
    assert Budget() != Usage()


def test_repr_shows_what_was_said():
    assert repr(Budget(usd="1.50", steps=2)) == "Budget(usd='1.5', steps=2)"
    assert eval(repr(FULL)) == FULL


def test_remaining():
    left = Remaining({"nano_usd": 250_000_000, "emails": 0, "steps": -3, "seconds": 1_500_000_000})
    assert (left.usd, left.emails, left["emails"], left.seconds) == (Decimal("0.25"), 0, 0, 1.5)
    assert left.steps == 0
    assert left.tokens is None
    assert left["nothing"] is None
    assert "usd=0.25" in repr(left)
    with pytest.raises(AttributeError):
        left._private  # noqa: B018
    assert copy.copy(left).usd == Decimal("0.25")
