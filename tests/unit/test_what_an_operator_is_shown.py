"""What an operator approves is shown to him: the values of arguments, also of those that the log only digests."""

from __future__ import annotations

import array
import ctypes
import enum
import io
import json
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from agentguard import Guard, guarded_step
from agentguard._encoding import decode
from agentguard.audit.reading import asked_arguments
from agentguard.cli import main
from tests.kit import wait_until


class Scalar:
    """Stands for a scalar of a foreign library, such as numpy.int64."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __str__(self) -> str:
        return str(self.value)


class Money(Decimal):
    pass


class Moment(datetime):
    pass


class Identifier(uuid.UUID):
    pass


class Share(Fraction):
    pass


class Text(str):
    __slots__ = ()


class Level(enum.IntEnum):
    HIGH = 3


class Order:
    def __init__(self, amount: Any, to: str) -> None:
        self.amount = amount
        self.to = to


class Slotted:
    __slots__ = ("amount",)

    def __init__(self, amount: int) -> None:
        self.amount = amount


class Locked:
    """An object whose state cannot be told: it has a lock."""

    def __init__(self, amount: int) -> None:
        self.amount = amount
        self.lock = threading.Lock()


class Mute:
    def __str__(self) -> str:
        raise RuntimeError("not told")


def circular() -> list[Any]:
    value: list[Any] = [4321]
    value.append(value)
    return value


def deep() -> Any:
    value: Any = Order(4321, "ann")
    for _ in range(1_000):
        value = Order(value, "ann")
    return value


#: Values, and what an operator must find in what he is shown.
SHOWN: dict[str, tuple[Callable[[], Any], str]] = {
    "a foreign scalar": (lambda: Scalar(4321), "4321"),
    "a child of Decimal": (lambda: Money("43.21"), "43.21"),
    "a child of Fraction": (lambda: Share(43, 21), "43/21"),
    "a child of datetime": (lambda: Moment(2026, 4, 3, 21, tzinfo=UTC), "2026-04-03 21:00"),
    "a child of UUID": (lambda: Identifier(int=0x4321), "000000004321"),
    "a child of str": (lambda: Text("4321"), "4321"),
    "an IntEnum": (lambda: Level.HIGH, "HIGH"),
    "an array": (lambda: array.array("i", [43, 21]), "[43, 21]"),
    "a number of C": (lambda: ctypes.c_int64(4321), "4321"),
    "a plain object": (lambda: Order(4321, "ann"), "4321"),
    "a plain object inside another": (lambda: Order(Order(4321, "bob"), "ann"), "4321"),
    "a foreign scalar in a plain object": (lambda: [{"order": Order(Scalar(4321), "ann")}], "4321"),
    "an object with slots": (lambda: Slotted(4321), "4321"),
    "an object that cannot be copied": (lambda: Locked(4321), "4321"),
    "an open file": (lambda: io.TextIOWrapper(io.BytesIO(), encoding="cp437"), "cp437"),
    "a list that holds itself": (circular, "4321"),
    "a function without a name": (lambda: lambda: None, "<lambda>>"),
    "an object nested deeply": (deep, "ann"),
}


def asked(guard: Guard, value: Any, **options: Any) -> Any:
    """What is shown of a call that must be approved; it is approved then."""

    @guarded_step(approval=True, effect="read", **options)
    def pay(what: Any) -> str:
        return "paid"

    found: list[Any] = []

    def operate() -> None:
        wait_until(guard.approvals)
        [waiting] = guard.approvals()
        found.append(asked_arguments(guard.components.store, waiting.run_id, waiting.key))
        guard.approve(waiting.run_id, waiting.key, actor="ann")

    with guard.run("pay") as run:
        operator = threading.Thread(target=operate)
        operator.start()
        assert pay(value) == "paid"
        operator.join()
    assert guard.verify(), guard.verify()
    if "capture" not in options:
        with guard.replay(run.id):
            assert pay(value) == "paid"
    return None if found[0] is None else decode(found[0])


@pytest.mark.parametrize(("make", "seen"), SHOWN.values(), ids=SHOWN)
def test_an_operator_sees_the_value(guard: Guard, make: Callable[[], Any], seen: str) -> None:
    assert seen in json.dumps(asked(guard, make()), ensure_ascii=False)


@pytest.mark.parametrize(
    "value", [4321, "4321", Path("4321"), {"a": [Decimal("43.21")]}, Level.HIGH, Text("4321")], ids=type
)
def test_of_what_the_log_holds_nothing_more_is_stored(guard: Guard, value: Any) -> None:
    asked(guard, value)
    [event] = [event for event in guard.history(guard.runs()[0].run_id) if event.type == "approval_requested"]
    assert "shown" not in event.data


def test_what_a_step_is_bound_by_stays_as_it_was(guard: Guard) -> None:
    asked(guard, Scalar(4321))
    log = list(guard.components.store.read(guard.runs()[0].run_id))
    [started] = [stored for stored in log if b'"type":"step_started"' in stored.body[:64]]
    [[argument], _] = decode(started.payload or b"")
    assert set(argument) == {"agentguard:unencodable", "state"}
    named = {event.type: event.data.get("args") for event in guard.history(guard.runs()[0].run_id)}
    assert named["step_started"] == named["approval_requested"] == named["approval_granted"]


def test_secrets_are_not_shown(guard: Guard) -> None:
    class Login:
        def __init__(self) -> None:
            self.user, self.password = "ann", "hunter2"

    class Told:
        def __str__(self) -> str:
            return "postgres://ann:hunter2@db/app"

    for value in (Login(), Told(), [Order(Told(), "ann")]):
        told = json.dumps(asked(guard, value))
        assert "hunter2" not in told
        assert "ann" in told


def test_arguments_that_are_left_out_are_not_shown(guard: Guard) -> None:
    assert asked(guard, Scalar(4321), ignore=("what",)) == [[None], {}]
    assert asked(guard, Scalar(4321), capture="digest") is None


@pytest.mark.parametrize("value", [Mute(), object()], ids=["its text raises", "it says nothing"])
def test_what_says_nothing_of_itself_is_named(guard: Guard, value: Any) -> None:
    [[argument], _] = asked(guard, value)
    assert argument["agentguard:unencodable"].endswith(type(value).__name__)
    assert "shown" not in argument


def test_a_long_text_is_cut(guard: Guard) -> None:
    class Long:
        def __str__(self) -> str:
            return "4321" + "x" * 1_000_000

    [[argument], _] = asked(guard, Long())
    assert argument["shown"].startswith("4321")
    assert len(argument["shown"]) < 2_000


def test_the_command_line_lists_the_value(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @guarded_step(approval=True)
    def pay(what: Any) -> None: ...

    with Guard.open(telemetry=False) as guard, guard.run("pay") as run:
        paying = threading.Thread(target=run.bind(pay), args=(Scalar(4321),))
        paying.start()
        wait_until(guard.approvals)
        assert main(["approvals", "--json"]) == 0
        [waiting] = json.loads(capsys.readouterr().out)
        assert waiting["arguments"][0][0]["shown"] == "4321"
        assert main(["show", run.id, "--payloads"]) == 0
        assert '"shown": "4321"' in capsys.readouterr().out
        guard.approve(run.id, waiting["key"])
        paying.join()
