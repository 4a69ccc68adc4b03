"""`guarded_step` on every kind of callable, and what it keeps of it."""

from __future__ import annotations

import abc
import asyncio
import copy
import functools
import inspect
import math
import operator
import pickle
import typing

import pytest

from agentguard import Guard, NoActiveRunError, Usage, current_run, current_step, guarded_step


@guarded_step
def plain(a: int, b: int = 2, *rest: int, key: str = "k", **more: int) -> list[int]:
    """Add up."""
    return [a, b, *rest]


@guarded_step
async def coroutine(a: int, b: int = 2) -> int:
    """Await and add."""
    await asyncio.sleep(0)
    return a + b


@guarded_step
def generator(n: int) -> typing.Iterator[int]:
    """Count."""
    yield from range(n)


@guarded_step
async def async_generator(n: int) -> typing.AsyncIterator[int]:
    """Count, awaiting."""
    for i in range(n):
        yield i


@guarded_step(name="renamed", kind="step", usage=Usage(usd=1))
def with_options(a: int) -> int:
    """Have options."""
    return a


class Base:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    @guarded_step
    def method(self, n: int) -> int:
        """Multiply."""
        return self.factor * n

    @guarded_step
    async def async_method(self, n: int) -> int:
        return self.factor * n

    @guarded_step
    def items(self, n: int) -> typing.Iterator[int]:
        yield from range(self.factor * n)

    @guarded_step
    async def async_items(self, n: int) -> typing.AsyncIterator[int]:
        for i in range(self.factor * n):
            yield i

    @classmethod
    @guarded_step
    def class_inside(cls, n: int) -> tuple[type, int]:
        return cls, n

    @guarded_step
    @classmethod
    def class_outside(cls, n: int) -> tuple[type, int]:
        return cls, n

    @classmethod
    @guarded_step
    async def async_class_inside(cls, n: int) -> tuple[type, int]:
        return cls, n

    @staticmethod
    @guarded_step
    def static_inside(n: int) -> int:
        return n

    @guarded_step
    @staticmethod
    def static_outside(n: int) -> int:
        return n

    @property
    @guarded_step
    def prop(self) -> int:
        return self.factor


class Derived(Base):
    @guarded_step
    def method(self, n: int) -> int:
        return super().method(n) + 1


class Callable:
    """A callable object."""

    def __init__(self) -> None:
        # Names that our own wrapper uses too.
        self._fn = self._spec = self._driver = "mine"

    def __call__(self, n: int) -> int:
        return n + 1


class AsyncCallable(Callable):
    async def __call__(self, n: int) -> int:
        return n + 1


class GeneratorCallable(Callable):
    def __call__(self, n: int) -> typing.Iterator[int]:
        yield from range(n)


class AsyncGeneratorCallable(Callable):
    async def __call__(self, n: int) -> typing.AsyncIterator[int]:
        for i in range(n):
            yield i


def finish(result):
    """What a call comes to, whatever kind of thing it gave."""
    if inspect.isawaitable(result):
        return asyncio.run(as_coroutine(result))
    if hasattr(result, "__anext__"):
        return asyncio.run(collect(result))
    if hasattr(result, "__next__"):
        return list(result)
    return result


async def as_coroutine(awaitable):
    return await awaitable


async def collect(items):
    return [item async for item in items]


base = Base(3)

#: What is called, with which argument, what comes of it, and the step's name.
CALLS = {
    "function": (lambda: plain(1), [1, 2], "plain"),
    "coroutine": (lambda: coroutine(1), 3, "coroutine"),
    "generator": (lambda: generator(2), [0, 1], "generator"),
    "async generator": (lambda: async_generator(2), [0, 1], "async_generator"),
    "options": (lambda: with_options(5), 5, "renamed"),
    "method": (lambda: base.method(2), 6, "method"),
    "async method": (lambda: base.async_method(2), 6, "async_method"),
    "generator method": (lambda: base.items(1), [0, 1, 2], "items"),
    "async generator method": (lambda: base.async_items(1), [0, 1, 2], "async_items"),
    "method through the class": (lambda: Base.method(base, 2), 6, "method"),
    "async method through the class": (lambda: Base.async_method(base, 2), 6, "async_method"),
    "classmethod outside": (lambda: Derived.class_inside(1), (Derived, 1), "class_inside"),
    "classmethod inside": (lambda: Derived.class_outside(1), (Derived, 1), "class_outside"),
    "async classmethod": (lambda: Derived.async_class_inside(1), (Derived, 1), "async_class_inside"),
    "classmethod of an instance": (lambda: base.class_outside(1), (Base, 1), "class_outside"),
    "staticmethod outside": (lambda: Base.static_inside(1), 1, "static_inside"),
    "staticmethod inside": (lambda: base.static_outside(1), 1, "static_outside"),
    "property": (lambda: base.prop, 3, "prop"),
    "partial": (lambda: guarded_step(functools.partial(operator.add, 2))(3), 5, "add"),
    "partial of a coroutine": (
        lambda: guarded_step(functools.partial(coroutine.__wrapped__, b=5))(1),
        6,
        "coroutine",
    ),
    "partial of a partial": (
        lambda: guarded_step(functools.partial(functools.partial(math.pow, 2), 3))(),
        8.0,
        "pow",
    ),
    "partial of a generator": (
        lambda: guarded_step(functools.partial(generator.__wrapped__, 2))(),
        [0, 1],
        "generator",
    ),
    "callable object": (lambda: guarded_step(Callable())(1), 2, "Callable"),
    "async callable object": (lambda: guarded_step(AsyncCallable())(1), 2, "AsyncCallable"),
    "generator object": (lambda: guarded_step(GeneratorCallable())(2), [0, 1], "GeneratorCallable"),
    "async generator object": (
        lambda: guarded_step(AsyncGeneratorCallable())(2),
        [0, 1],
        "AsyncGeneratorCallable",
    ),
    "bound method": (lambda: guarded_step(Base.method.__wrapped__.__get__(base))(2), 6, "method"),
    "bound async method": (
        lambda: guarded_step(Base.async_method.__wrapped__.__get__(base))(2),
        6,
        "async_method",
    ),
    "builtin": (lambda: guarded_step(len)("four"), 4, "len"),
    "builtin method": (lambda: guarded_step("a-b".split)("-"), ["a", "b"], "split"),
    "lambda": (lambda: guarded_step(lambda: 1)(), 1, "<lambda>"),
    "run.call": (lambda: current_run().call("by name", plain.__wrapped__, 1, key="x"), None, None),
    "run.call of a coroutine": (lambda: current_run().call("c", coroutine.__wrapped__, 1, b=4), 5, "c"),
    "run.call of a generator": (lambda: current_run().call("g", generator.__wrapped__, 2), [0, 1], "g"),
    "run.call of an async generator": (
        lambda: current_run().call("ag", async_generator.__wrapped__, 2),
        [0, 1],
        "ag",
    ),
    "run.call of a partial": (
        lambda: current_run().call("p", functools.partial(coroutine.__wrapped__, 1)),
        3,
        "p",
    ),
}
del CALLS["run.call"]  # `key=` is an option there, and is looked at below


@pytest.mark.parametrize(("call", "result", "name"), CALLS.values(), ids=CALLS)
def test_every_kind_of_callable_is_one_step(guard, call, result, name):
    with guard.run("r") as run:
        assert finish(call()) == result
    events = [e for e in guard.history(run.id) if e.type.startswith("step_") and e.name == name]
    assert [e.type for e in events] == ["step_started", "step_completed"]
    assert run.spent.steps == 1


def test_super_is_a_step_of_its_own(guard):
    with guard.run("r") as run:
        assert Derived(3).method(2) == 7
    assert run.spent.steps == 2


def test_options_of_run_call_and_keywords_of_the_function(guard):
    with guard.run("r") as run:
        assert run.call("f", lambda *, to: to, to="ann", usage=Usage(emails=1)) == "ann"
        assert run.apply("g", lambda key: key, (), {"key": "mine"}, kind="step") == "mine"
    assert run.spent["emails"] == 1


def test_in_a_bound_class_body(guard):
    """An abstract method stays one."""

    class Tool(abc.ABC):
        @guarded_step
        @abc.abstractmethod
        def run(self) -> int: ...

    class Real(Tool):
        @guarded_step
        def run(self) -> int:
            return 1

    with pytest.raises(TypeError, match="abstract"):
        Tool()
    with guard.run("r"):
        assert Real().run() == 1


# --- what is kept ----------------------------------------------------------------------------------

MODULE_LEVEL = [plain, coroutine, generator, async_generator, with_options]


@pytest.mark.parametrize("step", MODULE_LEVEL, ids=lambda step: step.__name__)
def test_name_doc_signature_and_annotations_are_kept(step):
    bare = step.__wrapped__
    assert not hasattr(bare, "__wrapped__")
    for attribute in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__"):
        assert getattr(step, attribute) == getattr(bare, attribute)
    assert inspect.signature(step) == inspect.signature(bare)
    assert typing.get_type_hints(step) == typing.get_type_hints(bare)
    assert inspect.getsource(step) == inspect.getsource(bare)
    assert inspect.getdoc(step) == inspect.getdoc(bare)
    assert inspect.isfunction(step)
    assert callable(step)


KINDS = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)


@pytest.mark.parametrize("of_kind", [*KINDS, asyncio.iscoroutinefunction], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "step",
    [
        *MODULE_LEVEL,
        Base.method,
        Base.async_method,
        Base.items,
        Base.async_items,
        base.method,
        base.async_method,
        base.items,
        base.async_items,
        Base.class_inside,
        Base.async_class_inside,
        Base.static_inside,
    ],
    ids=lambda step: step.__qualname__,
)
def test_the_kind_of_function_is_kept(step, of_kind):
    bare = step.__wrapped__
    assert of_kind(step) == of_kind(bare)


@pytest.mark.parametrize(
    ("step", "of_kind"),
    [
        (guarded_step(AsyncCallable()), inspect.iscoroutinefunction),
        (guarded_step(functools.partial(coroutine.__wrapped__, 1)), inspect.iscoroutinefunction),
        (guarded_step(GeneratorCallable()), inspect.isgeneratorfunction),
        (guarded_step(AsyncGeneratorCallable()), inspect.isasyncgenfunction),
    ],
)
def test_the_kind_of_what_a_callable_object_does(step, of_kind):
    assert of_kind(step)


@pytest.mark.parametrize("step", MODULE_LEVEL, ids=lambda step: step.__name__)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_module_level_functions_are_picklable(step, protocol):
    module = inspect.getmodule(step)
    if module is None or getattr(module, step.__name__, None) is not step:
        pytest.skip("imported by path, under a name that pickle cannot import")
    assert pickle.loads(pickle.dumps(step, protocol)) is step


@pytest.mark.parametrize("step", MODULE_LEVEL, ids=lambda step: step.__name__)
def test_copies_are_the_function_itself(step):
    assert copy.copy(step) is step
    assert copy.deepcopy({"tool": step})["tool"] is step
    assert {step: 1}[step] == 1
    assert step == step  # noqa: PLR0124


def test_attributes_of_the_function_are_kept():
    def tool() -> None: ...

    tool.tags = ["a"]
    assert guarded_step(tool).tags == ["a"]


def test_decorators_can_be_stacked(guard):
    def doubling(fn):
        @functools.wraps(fn)
        def wrapper(*args):
            return 2 * fn(*args)

        return wrapper

    with guard.run("r") as run:
        assert guarded_step(doubling(lambda n: n))(2) == 4
        assert doubling(guarded_step(lambda n: n))(2) == 4
        assert guarded_step(name="outer")(guarded_step(name="inner")(lambda: 5))() == 5
    assert run.spent.steps == 4


def test_a_guarded_function_with_defaults_can_be_inspected_as_a_function():
    assert coroutine.__code__.co_name == "coroutine"
    assert coroutine.__defaults__ == (2,)
    assert "coroutine" in repr(coroutine)


@pytest.mark.parametrize("step", [plain, coroutine, generator], ids=lambda step: step.__name__)
def test_what_is_taken_for_a_function_has_what_functions_have(step):
    assert inspect.isfunction(step)
    missing = [name for name in dir(step.__wrapped__) if name.startswith("__") and not hasattr(step, name)]
    assert missing == []


def test_what_a_guarded_coroutine_function_names_is_that_of_the_function():
    assert inspect.getclosurevars(coroutine) == inspect.getclosurevars(coroutine.__wrapped__)
    assert coroutine.__globals__ is globals()


def test_the_bare_function_is_not_guarded():
    assert plain.__wrapped__(1) == [1, 2]
    assert asyncio.run(coroutine.__wrapped__(1)) == 3


# --- where it cannot be used -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [5, "tool", None, Base, int, [plain], property(lambda self: 1)],
    ids=lambda value: repr(value).split(" at 0x")[0],
)
def test_only_functions_can_be_guarded(bad):
    if bad is None:
        assert callable(guarded_step(bad))  # `guarded_step()`: the form with options
        return
    with pytest.raises(TypeError, match="guards functions"):
        guarded_step(bad)


def test_function_and_options_at_once():
    with pytest.raises(TypeError, match="alone"):
        guarded_step(plain.__wrapped__, kind="llm")


@pytest.mark.parametrize(
    "call", [CALLS[kind][0] for kind in ("function", "coroutine", "generator", "method")]
)
def test_outside_a_run_it_is_refused(call):
    with pytest.raises(NoActiveRunError) as raised:
        finish(call())
    for way_out in ("guard.run(...)", "run.bind(fn)", "guard.attach(run_id)", "allow_outside"):
        assert way_out in str(raised.value)


def test_outside_a_run_where_that_is_allowed():
    sync = guarded_step(outside="allow")(lambda: "bare")

    @guarded_step(outside="allow")
    async def asynchronous():
        return "bare"

    @guarded_step(outside="allow")
    def items():
        yield "bare"

    assert sync() == "bare"
    assert asyncio.run(asynchronous()) == "bare"
    assert list(items()) == ["bare"]
    assert current_step() is None


@pytest.mark.parametrize("name", ["AGENTGUARD_OUTSIDE", "AGENTGUARD_ALLOW_OUTSIDE"])
def test_no_environment_variable_allows_it(monkeypatch, name):
    monkeypatch.setenv(name, "allow")
    with pytest.raises(NoActiveRunError):
        plain(1)


# --- inside the body -------------------------------------------------------------------------------


def test_current_step_and_current_run(guard):
    @guarded_step(kind="step")
    def outer():
        step = current_step()
        inner = guarded_step(lambda: current_step())()
        assert inner.parent is step
        assert current_step() is step
        return step

    assert current_run() is None
    assert current_step() is None
    with guard.run("r") as run:
        assert current_run() is run
        step = outer()
        assert (step.name, step.kind, step.key, step.attempt) == ("outer", "step", "main/outer#1", 1)
        assert step.run is run
        assert step.key in repr(step)
        assert current_step() is None


def test_arguments_and_results_pass_unchanged(guard):
    """The very objects, whatever was recorded of them."""
    passed = object()
    with guard.run("r"):
        assert guarded_step(lambda *args, **kwargs: (args, kwargs))(passed, k=passed) == (
            (passed,),
            {"k": passed},
        )
        assert guarded_step(lambda x: x)(passed) is passed


def test_an_error_of_the_body_passes_unchanged(guard):
    error = ZeroDivisionError("mine")

    def fail():
        raise error

    with guard.run("r") as run:
        with pytest.raises(ZeroDivisionError) as raised:
            guarded_step(fail)()
        assert raised.value is error
    failed = [e for e in guard.history(run.id) if e.type == "step_failed"][0]
    assert failed.data["error"]["type"] == "ZeroDivisionError"
    assert failed.data["error"]["message"] == "mine"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_the_process_is_recorded_too(guard, error):
    def fail():
        raise error

    with pytest.raises(error), guard.run("r") as run:
        guarded_step(fail)()
    assert [e.type for e in guard.history(run.id)][-2:] == ["step_failed", "run_failed"]


def test_wrong_arguments_are_the_functions_own_type_error(guard):
    with guard.run("r") as run, pytest.raises(TypeError, match="missing 1 required"):
        with_options()
    assert run.spent.steps == 1
    with Guard.in_memory(telemetry=False) as other, other.run("r"), pytest.raises(TypeError):
        asyncio.run(as_coroutine(coroutine()))
