"""Equal arguments have one digest in every process; arguments that nobody can compare are never one call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from agentguard import Budget, BudgetExceededError, Guard, ReplayDivergenceError, RunStopped, guarded_step
from agentguard._encoding import encode_call
from agentguard.events.codec import payload_digest


@dataclass
class Delete:
    path: str


@dataclass
class Create:
    path: str


class Change(BaseModel):
    name: str | None = None
    phone: str | None = None


class Plain:
    """No fields, no equality; what it holds tells one from another."""

    def __init__(self, held: Any) -> None:
        self.held = held


class Closed:
    """What it holds cannot be looked at."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("closed")


class Reticent:
    """A copy of it leaves out what it holds."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _holding_itself(*items: Any) -> list[Any]:
    found = list(items)
    found.append(found)
    return found


class Text(str):
    """A child of a built-in type."""

    __slots__ = ()


@guarded_step(effect="read")
def use(value: Any) -> int:
    return 1


@guarded_step
def price(token: str) -> int:
    return 1


@guarded_step(ignore=("body",))
def send(to: str, body: str) -> int:
    return 1


def allowed(step: Callable[..., Any], calls: list[tuple[Any, ...]]) -> int:
    """Return how many of these calls are made where none may be repeated."""
    with Guard.in_memory(telemetry=False) as guard:
        run = guard.run("r", budget=Budget(repeats=2))
        try:
            with run:
                for call in calls:
                    step(*call)
        except BudgetExceededError as stop:
            assert stop.resource == "repeats"
        return run.spent.steps


DIFFERENT: dict[str, list[Any]] = {
    "paths": [Path("a"), Path("b"), PurePosixPath("a"), "a"],
    "paths inside": [{"file": Path("a")}, {"file": Path("b")}, [Path("a")], (Path("a"),)],
    "classes of equal fields": [Delete("a"), Create("a"), {"path": "a"}],
    "which fields were set": [Change(name="a"), Change(name="a", phone=None), Change()],
    "numbers": [
        1,
        1.5,
        Decimal(1),
        Fraction(1),
        1j,
        2**64,
        2**64 + 1,
        float("nan"),
        float("inf"),
        -float("inf"),
    ],
    "bytes and their base64": [b"a", "YQ==", bytearray(b"a")],
    "dates and their text": [date(2026, 1, 2), "2026-01-02", datetime(2026, 1, 2, tzinfo=UTC)],
    "sequences": [[1], (1,), {1}, frozenset({1}), range(1, 2)],
    "mappings": [{"a": 1}, OrderedDict(a=1), Counter(a=1), defaultdict(int, a=1), {1: 1}, {(1, 2): 1}],
    "views": [{"a": 1}.keys(), {"b": 1}.keys(), {"a": 1}.values(), {"a": 1}.items()],
    "text": [Text("a"), "b", "\ud800a", "\ud800b", "\\ud800a"],
    "what objects hold": [Plain(1), Plain(2), Plain({"a": Path("b")}), Plain(Plain(1))],
    "objects that say nothing": [object(), object(), Closed(), Closed(), threading.Lock(), threading.Lock()],
    "code": [len, print, Path, json, lambda: 1, lambda: 2],
    "secrets": [SecretStr("a"), SecretStr("b"), {"password": "a"}, {"password": "b"}],
    "secrets in texts": ["https://x/?api_key=a1", "https://x/?api_key=b2"],
    "our own tags": [{"agentguard:PosixPath": "a"}, Path("a"), {"agentguard:dict": {}}, {}],
}


@pytest.mark.parametrize(
    "values", [[Reticent(1), Reticent(2)], [_holding_itself(1), _holding_itself(2)]], ids=["copies", "rings"]
)
def test_what_the_log_cannot_tell_apart_is_no_repeat(values: list[Any]) -> None:
    assert allowed(use, [(value,) for value in values]) == len(values)


@pytest.mark.parametrize("values", DIFFERENT.values(), ids=DIFFERENT)
def test_different_calls_are_never_repeats(values: list[Any]) -> None:
    assert allowed(use, [(value,) for value in values]) == len(values)


def test_calls_differ_by_what_is_masked_or_left_out() -> None:
    assert allowed(price, [("ETH",), ("BTC",), ("tok3n-one",), ("tok3n-two",)]) == 4
    assert allowed(send, [("ann", "one"), ("ann", "two")]) == 2


SHARED = threading.Lock()
EQUAL: dict[str, list[Any]] = {
    "sets built in another order": [{8, 16}, {16, 8}],
    "a set and its copy": [{"red", "green", "blue"}, set(["blue", "red", "green"])],  # noqa: C405
    "paths": [Path("a/b"), Path("a") / "b"],
    "objects of equal fields": [Delete("a"), Delete("a")],
    "what objects hold": [Plain([1]), Plain([1])],
    "secrets": [SecretStr("a"), SecretStr("a")],
    "one object that says nothing": [SHARED, SHARED],
    "texts": ["a", "a"],
}


@pytest.mark.parametrize("values", EQUAL.values(), ids=EQUAL)
def test_equal_calls_are_repeats(values: list[Any]) -> None:
    assert allowed(use, [(value,) for value in values]) == 1


def test_what_is_left_out_or_masked_leaves_nothing_behind_that_could_be_guessed() -> None:
    with Guard.in_memory(telemetry=False) as guard:
        with guard.run("r", budget=Budget(repeats=9)) as run:
            send("ann", "1234")
        (started,) = [event for event in guard.history(run.id) if event.type == "step_started"]
        salt = guard.components.store.row(run.id).salt
        guesses = {payload_digest(salt, encode_call(("ann", f"{n:04}"), {})) for n in range(1200, 1300)}
    assert started.data["repeat"] not in guesses


PROGRAM = """
import sys
from collections import Counter
from agentguard._encoding import encode_call
from agentguard.events.codec import payload_digest
tags = {"red", "green", "blue", "gold", "grey"}
values = (tags, frozenset(tags), [tags], {"tags": tags}, Counter(sorted(tags)), dict.fromkeys(sorted(tags)).keys())
sys.stdout.write(encode_call(values, {}).decode())
"""


def test_the_order_of_a_set_is_that_of_no_process() -> None:
    told = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(told) == 1


# --- replay and approvals ------------------------------------------------------------------------

TOLD_APART = {
    name: values for name, values in DIFFERENT.items() if name not in ("objects that say nothing", "code")
}
TOLD_APART = {name: values for name, values in TOLD_APART.items() if "secret" not in name}


@pytest.mark.parametrize("values", TOLD_APART.values(), ids=TOLD_APART)
def test_a_replay_finds_that_another_value_was_given(guard: Guard, values: list[Any]) -> None:
    with guard.run("r") as run:
        use(values[0])
    with guard.replay(run.id):
        use(values[0])
    for other in values[1:]:
        with pytest.raises(ReplayDivergenceError) as caught, guard.replay(run.id):
            use(other)
        assert caught.value.kind == "arguments"


APPROVED: dict[str, tuple[Any, Any]] = {
    "a path": (Path("/tmp/scratch"), Path("/etc")),
    "a path inside": ({"file": Path("/tmp/scratch")}, {"file": Path("/etc")}),
    "an object of a class with fields": (Delete("/tmp/scratch"), Delete("/etc")),
    "what an object holds": (Plain("/tmp/scratch"), Plain("/etc")),
    "objects that say nothing": (Closed(), Closed()),
}


@pytest.mark.parametrize(("granted", "asked"), APPROVED.values(), ids=APPROVED)
def test_a_grant_holds_for_the_arguments_that_it_was_given_for(
    guard: Guard, granted: Any, asked: Any, eventually: Callable[[Callable[[], object]], None]
) -> None:
    """The process dies once the operator has decided; the one that recovers asks for something else."""
    done: list[Any] = []

    @guarded_step(approval=True, effect="read")
    def delete(what: Any) -> None:
        done.append(what)

    def asks(what: Any) -> None:
        with suppress(RunStopped), guard.recover("tidy", take_over=True):
            delete(what)

    run = guard.run("tidy", run_id="tidy")
    with ThreadPoolExecutor(3) as pool:
        pool.submit(lambda: (run.__enter__(), delete(granted)))
        eventually(guard.approvals)
        guard.runtime.live.pop("tidy", None)
        recovered = pool.submit(asks, asked)  # the old process is fenced from here on
        eventually(lambda: len(requests(guard)) == 2)
        guard.approve("tidy", "main/delete#1", actor="ann")
        recovered.result(60)
        guard.kill(reason="the end", run="tidy")
    assert done == [asked]


def requests(guard: Guard) -> list[Any]:
    return [event for event in guard.history("tidy") if event.type == "approval_requested"]
