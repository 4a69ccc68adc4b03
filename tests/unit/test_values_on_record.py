"""Values: a recorded value comes back with its own type and value, or is refused with the reason."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, NamedTuple, NoReturn, TypedDict
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from agentguard import Guard, ReplayDivergenceError, RunState, guarded_step
from agentguard.errors import RecordedError
from agentguard.values import from_json, to_json

RAN: list[Any] = []


@dataclass
class Point:
    x: int
    y: float = 0.5
    tags: list[str] = field(default_factory=list)


@attrs.define
class Size:
    width: int


class Letter(msgspec.Struct):
    to: str


class Options(TypedDict):
    retries: int


class Pair(NamedTuple):
    left: int
    right: str


class Colour(enum.Enum):
    RED = "red"


class Order(pydantic.BaseModel):
    number: int
    at: datetime


AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ORDER = Order(number=4, at=AT)
VALUES: list[tuple[Any, Any]] = [
    (Point, Point(1, 2.5, ["a"])),
    (Size, Size(3)),
    (Letter, Letter("ann")),
    (Options, {"retries": 3}),
    (Pair, Pair(1, "x")),
    (Colour, Colour.RED),
    (Order, ORDER),
    (list[Order], [ORDER]),
    (Order | None, ORDER),
    (Order | None, None),
    (dict[str, Point], {"a": Point(1)}),
    (tuple[int, str], (1, "x")),
    (set[int], {1, 2}),
    (bytes, b"\x00\xff"),
    (Decimal, Decimal("0.10")),
    (datetime, AT),
    (UUID, UUID(int=7)),
    (Any, {"plain": [1, 2.5, None, True, "é\u2028"]}),
    (list[Point], [Point(1), Point(2)]),
]


def recorded(guard: Guard, program: Callable[[], Any]) -> str:
    with guard.run("program") as run:
        program()
    RAN.clear()
    return run.id


def replayed(guard: Guard, run_id: str, program: Callable[[], Any]) -> Any:
    with guard.replay(run_id):
        result = program()
    assert RAN == []
    return result


def giving(value: Any, returns: Any = None, **options: Any) -> Callable[[], Any]:
    def step() -> Any:
        RAN.append(value)
        return value

    if returns is not None:
        step.__annotations__["return"] = returns
    return guarded_step(name="step", **options)(step)


@pytest.mark.parametrize(("returns", "value"), VALUES, ids=[str(i) for i, _ in enumerate(VALUES)])
def test_a_result_is_rebuilt_through_its_annotation(guard: Guard, returns: Any, value: Any) -> None:
    step = giving(value, returns)
    again = replayed(guard, recorded(guard, step), step)
    assert again == value
    assert type(again) is type(value)
    assert again is not value or value is None or isinstance(value, enum.Enum)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Point(1), "does not come back as it was; annotate the result, with the types that its fields have"),
        (memoryview(b"x"), "return bytes(view)"),
        ({}.keys(), "return a list of it"),
        ([Point(1)], "does not come back as it was; annotate the result"),
        (object(), "object"),
        (lambda: 1, "function"),
    ],
    ids=["dataclass", "view", "keys", "dataclass inside", "object", "function"],
)
def test_what_would_not_come_back_says_so_when_recorded_and_is_never_substituted(
    guard: Guard, value: Any, reason: str
) -> None:
    step = giving(value)
    run_id = recorded(guard, step)
    (completed,) = [event for event in guard.history(run_id) if event.type == "step_completed"]
    assert reason in completed.data["unreplayable"]
    with pytest.raises(ReplayDivergenceError) as caught, guard.replay(run_id):
        step()
    assert (caught.value.kind, caught.value.key) == ("not_replayable", "main/step#1")
    assert reason in str(caught.value)
    assert RAN == []


class Weight(msgspec.Struct):
    grams: float


@attrs.define
class Price:
    usd: float


class Loose(pydantic.BaseModel):
    ratio: float


@pytest.mark.parametrize(
    ("value", "returns"),
    [
        (Point(1, 2), Point),
        (Point(1, 2.0), Point),
        ([Point(1, 2)], list[Point]),
        (Weight(3), Weight),
        (Price(3), Price),
        (Loose(ratio=3), Loose),
        (Loose.model_construct(ratio=3), Loose),
    ],
    ids=repr,
)
def test_a_field_of_another_type_than_its_annotation_says_comes_back_as_it_was(
    guard: Guard, value: Any, returns: Any
) -> None:
    """1 == 1.0, and yet a step called with the one has other arguments than with the other."""
    step = giving(value, returns)
    assert repr(replayed(guard, recorded(guard, step), step)) == repr(value)


def test_a_codec_brings_back_what_no_annotation_could(guard: Guard) -> None:
    class Codec:
        def encode(self, value: complex) -> bytes:
            return repr(value).encode()

        def decode(self, data: bytes) -> complex:
            return complex(data.decode())

    step = giving(3 + 4j, codec=Codec())
    assert replayed(guard, recorded(guard, step), step) == 3 + 4j


def test_items_of_a_generator_are_rebuilt_through_theirs(guard: Guard) -> None:
    @guarded_step
    def points() -> Iterator[Point]:
        RAN.append("points")
        yield Point(1)
        yield Point(2)

    run_id = recorded(guard, lambda: list(points()))
    assert replayed(guard, run_id, lambda: list(points())) == [Point(1), Point(2)]


# --- arguments -----------------------------------------------------------------------------------


class Agent:
    """Stands for an agent with tools for methods, and things that no log can hold."""

    def __init__(self, secret: str) -> None:
        self.secret = secret

    @guarded_step
    def ask(self, question: str) -> str:
        RAN.append(question)
        return question.upper()

    @classmethod
    @guarded_step
    def make(cls, name: str) -> str:
        RAN.append(name)
        return name


def test_self_and_cls_are_never_captured(guard: Guard) -> None:
    run_id = recorded(guard, lambda: (Agent("hidden one").ask("why?"), Agent.make("x")))
    payloads = [stored.payload or b"" for stored in guard.components.store.read(run_id)]
    assert not any(b"hidden" in payload or b"Agent" in payload for payload in payloads)
    assert b'[["why?"],{}]' in payloads
    assert replayed(guard, run_id, lambda: Agent("another").ask("why?") + Agent.make("x")) == "WHY?x"


def test_an_argument_that_cannot_be_encoded_is_recorded_by_type_and_not_compared(
    guard: Guard,
) -> None:
    @guarded_step
    def query(connection: object, sql: str) -> int:
        RAN.append(sql)
        return 1

    run_id = recorded(guard, lambda: query(object(), "select 1"))
    assert replayed(guard, run_id, lambda: query(object(), "select 1")) == 1
    with pytest.raises(ReplayDivergenceError, match="arguments"):
        replayed(guard, run_id, lambda: query(object(), "select 2"))


def test_ignored_arguments_are_neither_kept_nor_compared(guard: Guard) -> None:
    @guarded_step(ignore=("session",))
    def call(question: str, session: str) -> str:
        RAN.append(question)
        return question

    run_id = recorded(guard, lambda: call("q", session="first session"))
    assert not any(
        b"first session" in (stored.payload or b"") for stored in guard.components.store.read(run_id)
    )
    assert replayed(guard, run_id, lambda: call("q", session="another")) == "q"
    with pytest.raises(ReplayDivergenceError, match="arguments"):
        replayed(guard, run_id, lambda: call("p", session="first session"))


def test_arguments_are_those_from_before_the_body(guard: Guard) -> None:
    """A body that changes what it was given does not change what was called."""

    @guarded_step
    def drain(items: list[int]) -> int:
        RAN.append("drain")
        total = sum(items)
        items.clear()
        return total

    run_id = recorded(guard, lambda: drain([1, 2]))
    assert replayed(guard, run_id, lambda: drain([1, 2])) == 3


def test_what_was_not_captured_is_not_replayable(guard: Guard) -> None:
    step = giving({"a": 1}, capture="digest")
    run_id = recorded(guard, step)
    with pytest.raises(ReplayDivergenceError) as caught:
        replayed(guard, run_id, step)
    assert caught.value.kind == "not_replayable"


# --- exceptions ----------------------------------------------------------------------------------


class OwnError(Exception):
    made = 0

    def __init__(self, code: int, *, hint: str) -> None:
        OwnError.made += 1
        super().__init__(f"code {code}")
        self.code = code
        self.hint = hint


def test_an_exception_comes_back_as_its_own_type_without_its_init(guard: Guard) -> None:
    @guarded_step
    def fail() -> None:
        RAN.append("fail")
        raise OwnError(4, hint="later")

    def program() -> tuple[Any, ...]:
        try:
            fail()
        except OwnError as error:
            return type(error), error.args, str(error), error.code, error.hint
        raise AssertionError

    run_id = recorded(guard, program)
    made = OwnError.made
    assert replayed(guard, run_id, program) == (OwnError, ("code 4",), "code 4", 4, "later")
    assert OwnError.made == made


def test_an_exception_of_a_module_that_is_not_imported_is_a_recorded_error(guard: Guard) -> None:
    gone = type("GoneError", (Exception,), {"__module__": "a_module_that_is_gone"})

    @guarded_step
    def fail() -> None:
        error = gone("no", 4)
        error.status = 503
        raise error

    def program() -> None:
        with pytest.raises(Exception, match="no"):
            fail()

    run_id = recorded(guard, program)
    with guard.replay(run_id), pytest.raises(RecordedError) as caught:
        fail()
    assert caught.value.facts() == {
        "type_name": "a_module_that_is_gone.GoneError",
        "message": "('no', 4)",
        "recorded": {"status": 503},
    }


# --- what an operator can supply -----------------------------------------------------------------


def test_a_recovery_waits_for_an_operator_to_supply_what_would_not_come_back(guard: Guard) -> None:
    step = giving(Point(1))  # without an annotation
    run = guard.run("program")
    with ThreadPoolExecutor(1) as pool:  # a process that is gone leaves no exit behind
        pool.submit(lambda: (run.__enter__(), step())).result()
    guard.runtime.live.pop(run.id, None)
    RAN.clear()
    with pytest.raises(ReplayDivergenceError) as caught, guard.recover(run.id, take_over=True):
        step()
    assert (caught.value.kind, caught.value.key) == ("not_replayable", "main/step#1")
    assert guard.summary(run.id).state is RunState.PAUSED
    guard.resolve(run.id, "main/step#1", "completed", result={"x": 1})
    with guard.recover(run.id, take_over=True):
        assert step() == {"x": 1}
    assert RAN == []
    assert guard.summary(run.id).state is RunState.COMPLETED


ODD_SCALARS: list[tuple[Any, Any]] = [
    (float, 3),
    (float, True),
    (float, 10**20),
    (float | str, 2),
    (int | float, 2.0),
    (str, None),
    (int, "1"),
    (int, True),
    (bool, 1),
    (int, 1.5),
    (NoReturn, 5),
    (Colour, "red"),
    (Colour, Colour.RED),
    (Decimal, "0.10"),
    (Decimal | str, "0.10"),
    (Annotated[int, msgspec.Meta(gt=9), []], 3),
    (float, -0.0),
    (float | None, 2.5),
]


@pytest.mark.parametrize(("returns", "value"), ODD_SCALARS, ids=[f"{v!r}-{r}" for r, v in ODD_SCALARS])
def test_a_scalar_comes_back_as_it_was_whatever_the_annotation_makes_of_it(
    guard: Guard, returns: Any, value: Any
) -> None:
    step = giving(value, returns)
    again = replayed(guard, recorded(guard, step), step)
    assert (type(again), repr(again)) == (type(value), repr(value))


def test_a_result_that_the_program_no_longer_decodes_is_a_difference(guard: Guard) -> None:
    run_id = recorded(guard, giving(Point(1), Point))
    with pytest.raises(ReplayDivergenceError) as caught, guard.replay(run_id):
        giving(Point(1), Size)()
    assert (caught.value.kind, caught.value.key) == ("not_replayable", "main/step#1")
    assert "does not decode as" in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        {"text": "é", "list": [1, 2.5, None, True, {"deep": []}]},
        "\ud800",
        {"\ud800": ["\udc00"]},
        {"agentguard:date": "2026-01-02"},
        {"inside": [{"agentguard:exact": 1}]},
        {1: "one"},
        float("inf"),
        -0.0,
        (1, 2),
    ],
)
def test_a_value_given_to_a_codec_comes_back(value: Any) -> None:
    packed = to_json(value)
    text = msgspec.json.encode(packed)
    assert repr(from_json(msgspec.json.decode(text))) == repr(value)


def test_a_number_too_long_for_text_comes_back() -> None:
    assert from_json(msgspec.json.decode(msgspec.json.encode(to_json([1 << 20_000])))) == [1 << 20_000]


def test_what_is_json_already_is_not_copied() -> None:
    value = {"a": [1, {"b": "c"}]}
    assert to_json(value) is value
