"""Only type-checked, by mypy and pyright, never run: what `guarded_step` keeps of a function's types."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar, assert_type

from agentguard import Usage, current_step, guarded_step

T = TypeVar("T")


@guarded_step
def plain(a: int, b: str = "", *, c: bool = False) -> float:
    return float(a)


@guarded_step(usage=Usage(usd="0.01"), effect="idempotent", free_on=(OSError,), timeout=None)
def with_options(a: int) -> float:
    return float(a)


@guarded_step()
def with_no_options(a: int) -> float:
    return float(a)


@guarded_step
async def coroutine(a: int) -> str:
    return str(a)


@guarded_step(kind="llm", reserve=lambda a: Usage(tokens=a), usage=lambda result: Usage(tokens=len(result)))
async def coroutine_with_options(a: int) -> str:
    return str(a)


@guarded_step
def generator(n: int) -> Iterator[int]:
    yield n


@guarded_step(max_items_bytes=10)
def generator_with_options(n: int) -> Iterator[int]:
    yield n


@guarded_step
async def async_generator(n: int) -> AsyncIterator[int]:
    yield n


@guarded_step
def generic(x: T) -> list[T]:
    return [x]


class Tools:
    @guarded_step
    def method(self, a: int, *, b: str = "") -> float:
        return float(a)

    @guarded_step(kind="llm")
    def method_with_options(self, a: int) -> float:
        return float(a)

    @guarded_step
    async def async_method(self, a: int) -> str:
        return str(a)

    @guarded_step
    def generator_method(self, n: int) -> Iterator[int]:
        yield n

    @guarded_step
    async def async_generator_method(self, n: int) -> AsyncIterator[int]:
        yield n

    @classmethod
    @guarded_step
    def class_method(cls, a: int) -> float:
        return float(a)

    @guarded_step
    @classmethod
    def class_method_inside(cls, a: int) -> float:
        return float(a)

    @staticmethod
    @guarded_step
    def static_method(a: int) -> float:
        return float(a)

    @guarded_step
    @staticmethod
    def static_method_inside(a: int) -> float:
        return float(a)

    @staticmethod
    @guarded_step
    def static_method_of_anything(a: Any, b: int = 0) -> float:
        return float(b)

    @property
    @guarded_step
    def prop(self) -> float:
        return 1.0


def calls(tools: Tools) -> None:
    assert_type(plain(1, b="x", c=True), float)
    assert_type(with_options(1), float)
    assert_type(with_no_options(1), float)
    assert_type(list(generator(1)), list[int])
    assert_type(next(generator_with_options(1)), int)
    assert_type(generic(1), list[int])
    assert_type(generic("x"), list[str])
    assert_type(tools.method(1, b="x"), float)
    assert_type(tools.method_with_options(1), float)
    assert_type(Tools.method(tools, 1), float)
    assert_type(next(tools.generator_method(1)), int)
    assert_type(Tools.class_method(1), float)
    assert_type(tools.class_method(1), float)
    assert_type(Tools.class_method_inside(1), float)
    assert_type(Tools.static_method(1), float)
    assert_type(Tools.static_method_inside(1), float)
    assert_type(Tools.static_method_of_anything("x", 1), float)
    assert_type(tools.prop, float)


async def awaits(tools: Tools) -> None:
    assert_type(await coroutine(1), str)
    assert_type(await coroutine_with_options(1), str)
    assert_type(await tools.async_method(1), str)
    async for item in async_generator(1):
        assert_type(item, int)
    async for item in tools.async_generator_method(1):
        assert_type(item, int)


def what_is_kept() -> None:
    assert_type(plain.__name__, str)
    assert_type(plain.__wrapped__(1), float)
    as_callable: Callable[[int], float] = with_options
    assert_type(as_callable(1), float)
    step = current_step()
    if step is not None:
        assert_type(step.idempotency_key, str)
        assert_type(step.attempt, int)


def what_is_refused_of_methods(tools: Tools) -> None:
    tools.method("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tools.method_with_options()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def what_is_refused() -> None:
    plain("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    plain()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    plain(1, d=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with_options("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    generator("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    guarded_step(efect="once")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    guarded_step(effect="never")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    guarded_step(usage=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


async def what_is_refused_of_coroutines() -> None:
    await coroutine("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await coroutine_with_options()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
