"""Values of the standard library, however nested: stored, read by a new process, and the same there."""

from __future__ import annotations

import base64
import enum
import http
import json
import os
import re
import subprocess
import sys
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from datetime import timedelta, timezone
from pathlib import PosixPath, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentguard import Guard, guarded_step
from agentguard._encoding import encode_call
from agentguard.steps import values
from tests.property.values_elsewhere import description
from tests.scale import scaled

SETTINGS = settings(deadline=None, max_examples=scaled(60))

zones = (
    st.none()
    | st.sampled_from([zoneinfo.ZoneInfo(name) for name in ("Europe/Oslo", "America/New_York", "UTC")])
    | st.builds(lambda minutes: timezone(timedelta(minutes=minutes)), st.integers(-1439, 1439))
    | st.builds(lambda n, name: timezone(timedelta(minutes=n), name), st.integers(-1439, 1439), st.text())
)
any_text = st.text(st.characters(codec=None), max_size=12)
path_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
singles = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(1, 99).map(lambda number: number << 20_000)
    | st.floats()
    | any_text
    | st.binary(max_size=12)
    | st.builds(bytearray, st.binary(max_size=12))
    | st.complex_numbers()
    | st.decimals()
    | st.fractions()
    | st.uuids()
    | st.dates()
    | st.timedeltas()
    | st.datetimes(timezones=zones, allow_imaginary=True)
    | st.builds(lambda at, fold: at.replace(fold=fold), st.times(timezones=zones), st.integers(0, 1))
    | zones
    | st.ip_addresses()
    | st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 4))
    | st.builds(slice, st.integers(-9, 9), st.none() | st.integers(-9, 9))
    | st.builds(PosixPath, path_text)
    | st.builds(PurePosixPath, path_text)
    | st.builds(PureWindowsPath, path_text)
    | st.sampled_from(
        [*http.HTTPStatus, re.IGNORECASE, re.IGNORECASE | re.MULTILINE, Ellipsis, NotImplemented]
    )
)
keys = any_text | st.integers() | st.booleans() | st.uuids() | st.tuples(st.integers(), any_text)
anything = st.recursive(
    singles,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(st.sampled_from(["agentguard:exact", "agentguard:dict", "a"]), inner)
        | st.sets(keys, max_size=6)
        | st.frozensets(keys, max_size=6)
        | st.builds(
            lambda items, most: deque(items, most), st.lists(inner, max_size=4), st.none() | st.just(9)
        )
        | st.dictionaries(any_text, inner, max_size=4).map(OrderedDict)
        | st.builds(Counter, st.dictionaries(keys, st.integers(), max_size=4))
        | st.builds(
            lambda make, items: defaultdict(make, items),
            st.sampled_from([None, list, int, set]),
            st.dictionaries(keys, inner, max_size=4),
        )
        | st.dictionaries(st.sampled_from("abc"), inner).map(lambda fields: SimpleNamespace(**fields))
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Callable[[bytes], list[str]]]:
    """Ask a process with another hash seed what it makes of a payload."""
    seed = str((int(os.environ.get("PYTHONHASHSEED", "0").replace("random", "0")) + 1) % 1000)
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.property.values_elsewhere"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONHASHSEED": seed},
    )
    assert child.stdin is not None
    assert child.stdout is not None

    def ask(payload: bytes) -> list[str]:
        child.stdin.write(base64.b64encode(payload) + b"\n")
        child.stdin.flush()
        return json.loads(child.stdout.readline())

    yield ask
    child.stdin.close()
    child.wait(60)
    child.stdout.close()


@SETTINGS
@given(anything)
def test_a_value_of_the_standard_library_is_the_same_in_a_new_process(elsewhere, value):
    payload, plain, reason = values.capture(value)
    assert (plain, reason) == (False, None)
    restored, call = elsewhere(payload)
    assert restored == description(value)
    assert call == encode_call((value,), {}).decode()


@SETTINGS
@given(anything)
def test_a_value_comes_back_through_any_annotation(value):
    """What an annotation would make something else of comes back without it."""
    for returns in (Any, object, list, dict[str, float], float | None, tuple[int, ...]):
        payload, plain, reason = values.capture(value, returns)
        assert reason is None
        assert description(values.restore(payload, None if plain else returns)) == description(value)


@SETTINGS
@given(anything, anything)
def test_two_values_have_one_digest_only_if_they_are_equal(one, other):
    if encode_call((one,), {}) == encode_call((other,), {}):
        assert description(one) == description(other)


@settings(SETTINGS, max_examples=scaled(25))
@given(st.lists(anything, min_size=1, max_size=3))
def test_a_value_is_the_same_wherever_a_run_hands_it_out(items):
    """As a result, as an item, as inputs, and by `record`."""

    @guarded_step
    def result(at):
        return items[at]

    @guarded_step
    def generator():
        yield from items

    def program(run):
        told = [description(result(at)) for at in range(len(items))]
        told += [description(item) for item in generator()]
        return [*told, description(run.record("value", lambda: items)), description(run.inputs)]

    with Guard.in_memory(redact=False, telemetry=False) as guard:
        with guard.run("r", inputs=items) as run:
            live = program(run)
        with guard.replay(run.id) as again:
            assert program(again) == live


class Level(enum.IntEnum):
    """An enum whose members are numbers too."""

    LOW = 1


@given(st.sampled_from([Level.LOW, {Level.LOW: 1}, [Level.LOW, 1], (True, 1, 1.0), {1: 1}, {True: 1}]))
def test_what_is_equal_and_of_another_type_is_told_apart(value):
    payload, _, reason = values.capture(value)
    assert reason is None
    assert description(values.restore(payload)) == description(value)
