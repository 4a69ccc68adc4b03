"""A value that a log hands out has its own type and value, also in what equality overlooks, or is refused."""

from __future__ import annotations

import enum
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar, cast
from zoneinfo import ZoneInfo

import attrs
import httpx
import httpx2
import msgspec
import pydantic
import pytest

from agentguard import Budget, Guard, ReplayDivergenceError, RunState, guarded_step

OSLO = ZoneInfo("Europe/Oslo")
NOON = datetime(2026, 10, 23, 12, tzinfo=OSLO)  # the clocks go back two days later
T = TypeVar("T")


@dataclass
class Visit:
    at: datetime
    seen: int = field(default=0, compare=False)
    where: PurePosixPath | None = None


@dataclass(frozen=True, slots=True)
class Fixed:
    at: datetime
    note: str = field(default="", compare=False)


class House(Visit):
    """A child of what is annotated."""


@attrs.define
class Talk:
    at: datetime
    length: int = attrs.field(default=0, eq=False)


class Letter(msgspec.Struct):
    at: datetime


class Pair(NamedTuple):
    left: Any
    right: Any = None


class Options(TypedDict):
    at: datetime


class Change(pydantic.BaseModel):
    name: str | None = None
    phone: str | None = None
    tags: list[str] = pydantic.Field(default_factory=list)
    _seen: int = pydantic.PrivateAttr(0)


class Open(pydantic.BaseModel, extra="allow"):
    name: str = "x"


class Box(pydantic.BaseModel, Generic[T]):
    inside: T


class Level(enum.IntFlag):
    LOW = 1
    HIGH = 2


class Text(str):
    """A child of a built-in type."""

    __slots__ = ()


def seen_private() -> Change:
    change = Change(name="Ann")
    change._seen = 3
    return change


VALUES: list[tuple[Any, Any]] = [
    (Visit, Visit(NOON, seen=3, where=PurePosixPath("a/b"))),
    (Visit | None, Visit(NOON, seen=3)),
    (list[Visit], [Visit(NOON, 1), Visit(NOON, 2)]),
    (dict[str, Visit], {"a": Visit(NOON, 1)}),
    (Fixed, Fixed(NOON, "n")),
    (Visit, House(NOON, 4)),
    (Talk, Talk(NOON, 5)),
    (Letter, Letter(NOON)),
    (Pair, Pair(NOON, (1, {2}))),
    (Options, {"at": NOON}),
    (Change, Change(name="Ann")),
    (Change, Change(name="Ann", phone=None)),
    (Change, Change(tags=["a"])),
    (list[Change], [Change(name="Ann")]),
    (Change, seen_private()),
    (Open, Open(age=3)),
    (Box[int], Box[int](inside=3)),
    (datetime, datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1), "CET"))),
    (datetime, datetime(2026, 10, 25, 2, 30, tzinfo=OSLO, fold=1)),
    (dict[str, int], defaultdict(int, a=1)),
    (dict[str, int], OrderedDict(b=1, a=2)),
    (dict, Counter("aab")),
    (list[int], deque([1, 2], 2)),
    (Level, Level.LOW | Level.HIGH),
    (int, Level.LOW),
    (float, float("-inf")),
    (float, -0.0),
    (list[float], [1, 1.0, True, -0.0]),
    (Decimal, Decimal("1.10")),
    (Any, {1: "a", (2, 3): b"\xff"}),
    (set[int], {3, 11}),
]


def shown(value: Any) -> Any:
    """Return what a program can tell two values apart by."""
    facts: list[Any] = [type(value), repr(value)]
    if isinstance(value, pydantic.BaseModel):
        facts += [value.model_fields_set, value.__pydantic_private__, value.__pydantic_extra__]
    for name in ("seen", "note", "length", "default_factory", "maxlen"):
        facts.append(getattr(value, name, None))
    if isinstance(value, list):
        facts += [shown(item) for item in value]
    return facts


def giving(value: Any, returns: Any) -> Callable[[], Any]:
    def step() -> Any:
        return value

    step.__annotations__["return"] = returns
    return guarded_step(step)


@pytest.mark.parametrize(("returns", "value"), VALUES, ids=[f"{v!r}-{r}" for r, v in VALUES])
def test_a_value_comes_back_with_what_equality_overlooks(guard: Guard, returns: Any, value: Any) -> None:
    step = giving(value, returns)
    with guard.run("r") as run:
        step()
    with guard.replay(run.id):
        again = step()
    assert again is not value or isinstance(value, enum.Enum)
    assert shown(again) == shown(value)


class Local:
    """No class with fields: nobody but its own code knows what it holds."""


REFUSED: list[tuple[Any, Any, str]] = [
    (None, Visit(NOON), "annotate the result"),
    (str, Text("a"), "Text does not come back"),
    (dict, defaultdict(lambda: 1), "default factory"),
    (Any, memoryview(b"a"), r"return bytes\(view\)"),
    (Any, [Local()], "Local does not come back"),
    (Visit, Change(name="Ann"), "Change does not come back"),
    (Any, lambda: 1, "code is not recorded"),
]


@pytest.mark.parametrize(("returns", "value", "why"), REFUSED, ids=[why for *_, why in REFUSED])
def test_what_does_not_come_back_says_what_to_do_instead(
    guard: Guard, returns: Any, value: Any, why: str
) -> None:
    step = giving(value, returns)
    with guard.run("r") as run:
        step()
    with pytest.raises(ReplayDivergenceError, match=why) as caught, guard.replay(run.id):
        step()
    assert caught.value.kind == "not_replayable"
    assert "a result that cannot be handed out again" in str(caught.value.expected)


def test_items_that_need_the_annotation_and_items_that_do_not_may_be_mixed(guard: Guard) -> None:
    items = [Visit(NOON, 1), {"plain": 1}, 2, {3}, Visit(NOON.astimezone(UTC))]

    @guarded_step
    def several() -> Iterator[Visit]:
        yield from items  # type: ignore[misc]

    with guard.run("r") as run:
        list(several())
    with guard.replay(run.id):
        assert [shown(item) for item in several()] == [shown(item) for item in items]


# --- inputs, values, what somebody supplies ------------------------------------------------------


def crashed(guard: Guard, program: Callable[[], Any], **options: Any) -> str:
    """Return the id of a run whose process is gone in the middle of `program`."""
    run = guard.run("r", **options)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: (run.__enter__(), program())).result()
    guard.runtime.live.pop(run.id, None)
    return run.id


def test_inputs_of_a_recovered_run_are_what_it_was_given(guard: Guard) -> None:
    given = {"at": NOON, "change": Change(name="Ann"), "ids": (1, 2), "visit": Visit(NOON, 2)}
    run_id = crashed(guard, lambda: None, inputs=given)
    with guard.recover(run_id, take_over=True) as run:
        assert {name: shown(item) for name, item in run.inputs.items()} == {
            name: shown(item) for name, item in given.items()
        }


def test_an_input_with_a_secret_is_not_handed_out_masked(guard: Guard) -> None:
    run_id = crashed(guard, lambda: None, inputs={"api_key": "hunter2", "question": "why?"})
    with guard.recover(run_id, take_over=True) as run:
        assert run.inputs["question"] == "why?"
        with pytest.raises(ReplayDivergenceError, match="a secret in it is not on record"):
            run.inputs["api_key"].encode()


def test_a_fork_hands_on_the_inputs_of_its_origin(guard: Guard) -> None:
    with guard.run("r", inputs={"at": NOON, "client": object()}) as run:
        pass
    with guard.fork(run.id, at=2) as fork:
        assert shown(fork.inputs["at"]) == shown(NOON)
        with pytest.raises(ReplayDivergenceError, match="object does not come back"):
            bool(fork.inputs["client"])


def test_a_recorded_value_may_be_of_any_class_that_is_imported(guard: Guard) -> None:
    def program() -> list[Any]:
        return [shown(run.record("v", lambda: Visit(NOON, 2))), shown(run.record("w", lambda: {3, 11}))]

    with guard.run("r") as run:
        live = program()
    with guard.replay(run.id) as run:
        assert program() == live


@pytest.mark.parametrize("returns", [Visit, None])
def test_what_an_operator_supplies_comes_back_as_given(guard: Guard, returns: Any) -> None:
    step = giving(Local(), returns)
    run_id = crashed(guard, step)
    with pytest.raises(ReplayDivergenceError), guard.recover(run_id, take_over=True):
        step()
    guard.resolve(run_id, "main/step#1", "completed", result=Visit(NOON, 3))
    with guard.recover(run_id, take_over=True):
        assert shown(step()) == shown(Visit(NOON, 3))


def test_what_a_probe_supplies_comes_back_as_given(guard: Guard) -> None:
    entered = threading.Event()
    leave = threading.Event()

    @guarded_step(probe=lambda key: ("completed", Visit(NOON, 3)))
    def visit() -> Visit:
        entered.set()
        leave.wait(60)
        return Visit(NOON)

    run = guard.run("r")
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(lambda: (run.__enter__(), visit()))
        assert entered.wait(60)
        guard.runtime.live.pop(run.id, None)
        with guard.recover(run.id, take_over=True):
            assert shown(visit()) == shown(Visit(NOON, 3))
        leave.set()
        pending.exception(60)
    with guard.replay(run.id):
        assert shown(visit()) == shown(Visit(NOON, 3))


# --- exceptions ----------------------------------------------------------------------------------


class QuotaError(Exception):
    def __init__(self, info: Any) -> None:
        super().__init__("quota")
        self.info = info


def http_error(http: Any = httpx, **body: Any) -> Exception:
    headers = [("retry-after", "3"), ("via", "a"), ("via", "b")]
    request = http.Request("POST", "http://h/?q=1", headers={"authorization": "Bearer k"}, content=b"asked")
    response = http.Response(429, headers=headers, request=request, **(body or {"json": {"error": "slow"}}))
    return cast("Exception", http.HTTPStatusError("429", request=request, response=response))


LOSSY: dict[str, Callable[[], BaseException]] = {
    "a response that was not read": lambda: http_error(stream=httpx.ByteStream(b"later")),
    "an object": lambda: QuotaError(Local()),
    "an argument": lambda: ValueError(Local()),
    "in a group": lambda: ExceptionGroup("g", [ValueError(1), QuotaError(Local())]),
    "a secret": lambda: QuotaError({"password": "hunter2"}),
    "too long": lambda: QuotaError("x" * 100_000),
}


@pytest.mark.parametrize("make", LOSSY.values(), ids=LOSSY)
def test_an_exception_that_lost_something_is_marked_and_pauses_a_recovery(
    guard: Guard, make: Callable[[], BaseException]
) -> None:
    @guarded_step
    def fails() -> None:
        raise make()

    def program() -> None:
        with pytest.raises((httpx.HTTPStatusError, QuotaError, ValueError, ExceptionGroup)):
            fails()

    run_id = crashed(guard, program)
    (failed,) = [event for event in guard.history(run_id) if event.type == "step_failed"]
    assert failed.data["unreplayable"]
    with pytest.raises(ReplayDivergenceError, match="an exception that cannot be handed out again"):
        with guard.recover(run_id, take_over=True):
            fails()
    assert guard.summary(run_id).state is RunState.PAUSED
    guard.resolve(run_id, "main/fails#1", "failed", result="quota")
    with guard.recover(run_id, take_over=True), pytest.raises(Exception, match="quota"):
        fails()


KEPT: dict[str, Callable[[], BaseException]] = {
    "standard values": lambda: QuotaError({"after": timedelta(seconds=3), "at": NOON}),
    "an object of a class with fields": lambda: QuotaError(Visit(NOON, 2)),
    "nan": lambda: ValueError(float("nan")),
    "a set": lambda: KeyError(frozenset({1})),
    "a response": http_error,
    "a response in bytes": lambda: http_error(content=b"\xff\x00"),
    "a response without a body": lambda: http_error(content=b""),
    "a response of httpx2": lambda: http_error(httpx2),
}


@pytest.mark.parametrize("make", KEPT.values(), ids=KEPT)
def test_an_exception_comes_back_with_what_it_carries(
    guard: Guard, make: Callable[[], BaseException]
) -> None:
    @guarded_step
    def fails() -> None:
        raise make()

    def program() -> Any:
        try:
            fails()
        except Exception as error:
            return type(error), repr(error.args), {n: shown(v) for n, v in vars(error).items()}

    with guard.run("r") as run:
        live = program()
    with guard.replay(run.id):
        assert program() == live


@pytest.mark.parametrize("http", [httpx, httpx2])
def test_an_http_error_comes_back_with_its_answer_and_without_keys(guard: Guard, http: Any) -> None:
    @guarded_step
    def fails() -> None:
        raise http_error(http)

    def program() -> list[Any]:
        with pytest.raises(http.HTTPStatusError) as caught:
            fails()
        answer, asked = caught.value.response, caught.value.request
        found = [
            answer.status_code,
            answer.json(),
            sorted(answer.headers.multi_items()),
            answer.headers["Via"],
        ]
        return [*found, asked.method, str(asked.url), answer.request is not None]

    with guard.run("r") as run:
        live = program()
    with guard.replay(run.id):
        assert program() == live
    (failed,) = [event for event in guard.history(run.id) if event.type == "step_failed"]
    assert "Bearer" not in str(failed.data)


@pytest.mark.parametrize("value", [httpx.URL("http://h/a?b=c"), httpx.Headers([("a", "1"), ("a", "2")])])
def test_a_value_of_an_http_library_comes_back(guard: Guard, value: Any) -> None:
    @guarded_step
    def look() -> Any:
        return [value]

    with guard.run("r") as run:
        look()
    with guard.replay(run.id):
        (back,) = look()
    assert (type(back), back) == (type(value), value)
    assert back is not value


@pytest.mark.parametrize("differs", [{"content": b"b"}, {"headers": {"x": "2"}}])
def test_requests_as_arguments_are_told_apart_by_all_that_they_hold(guard: Guard, differs: Any) -> None:
    @guarded_step
    def send(request: httpx.Request) -> str:
        return "sent"

    with guard.run("r", budget=Budget(repeats=2)):
        send(httpx.Request("POST", "http://h/", content=b"a", headers={"x": "1"}))
        send(httpx.Request("POST", "http://h/", **{"content": b"a", "headers": {"x": "1"}, **differs}))


def test_a_cause_that_lost_something_is_not_taken_for_itself(guard: Guard) -> None:
    """The error that a program catches is whole; what caused it says that it is only on record."""

    @guarded_step
    def fails() -> None:
        raise RuntimeError("wrapped") from QuotaError(Local())

    with guard.run("r") as run, pytest.raises(RuntimeError):
        fails()
    assert run.state is RunState.COMPLETED
    with guard.replay(run.id), pytest.raises(RuntimeError, match="wrapped") as caught:
        fails()
    assert type(caught.value.__cause__).__name__ == "RecordedError"


# --- capturing itself fails ----------------------------------------------------------------------


class Meta(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__module__", "__qualname__", "__mro__", "__dict__"):
            raise RuntimeError("not configured")
        return type.__getattribute__(cls, name)


class Proxy(metaclass=Meta):
    """Its class raises at every look."""


class Greedy:
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise MemoryError


@pytest.mark.parametrize("result", [Proxy(), Greedy(), [Proxy()]], ids=["metaclass", "memory", "inside"])
def test_a_step_whose_result_cannot_be_looked_at_is_settled_and_says_so(guard: Guard, result: Any) -> None:
    step = giving(result, None)
    with guard.run("r") as run:
        assert step() is result
    (completed,) = [event for event in guard.history(run.id) if event.type == "step_completed"]
    assert completed.data["unreplayable"]


def test_a_rule_that_ends_the_program_leaves_no_step_open() -> None:
    def rule(name: str, value: Any) -> Any:
        if value == "result":
            raise SystemExit(1)
        return value

    with Guard.in_memory(redact=rule, telemetry=False) as guard:
        with pytest.raises(SystemExit), guard.run("r") as run:
            run.call("pay", lambda: "result")
        (completed,) = [event for event in guard.history(run.id) if event.type == "step_completed"]
    assert completed.data["unreplayable"] == "capturing it raised SystemExit"
