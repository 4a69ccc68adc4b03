"""`@guarded_step`: a function as a guarded step.  It decides nothing; it hands the call to the engine."""

from __future__ import annotations

import functools
import importlib
import pickle
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from agentguard._loading import load
from agentguard.errors import NoActiveRunError
from agentguard.steps.current import current_position, here, outside_allowed
from agentguard.steps.functions import bare_function, kind_of_function
from agentguard.steps.options import StepOptions, step_spec
from agentguard.steps.spec import StepSpec

if TYPE_CHECKING:
    from agentguard.run import Run
    from agentguard.steps.model import Step

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
#: An instance, and what a method takes besides it.
S = TypeVar("S")
Q = ParamSpec("Q")


class GuardedStep(Protocol[P, R_co]):
    """A guarded function: called like the bare one, which is `__wrapped__`."""

    __name__: str
    __qualname__: str

    @property
    def __wrapped__(self) -> Callable[P, R_co]:
        """The bare function."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run one guarded step."""
        ...

    # The method of an instance is checked.  What a class gives may be a method, a classmethod or a
    # staticmethod, which no type checker tells apart here: it takes any arguments.
    @overload
    def __get__(self, instance: None, owner: Any = None, /) -> Callable[..., R_co]: ...
    @overload
    def __get__(
        self: GuardedStep[Concatenate[S, Q], R], instance: S, owner: Any = None, /
    ) -> GuardedStep[Q, R]: ...
    @overload
    def __get__(self, instance: Any, owner: Any = None, /) -> Callable[..., R_co]: ...
    def __get__(self, instance: Any, owner: Any = None, /) -> Any:
        """Bind to an instance, like any function."""
        ...


class GuardedOptions(StepOptions, total=False):
    """The options of `guarded_step`: those of a step, and its name."""

    name: str


@overload
def guarded_step(fn: Callable[P, R], /) -> GuardedStep[P, R]: ...
@overload
def guarded_step(
    **options: Unpack[GuardedOptions],
) -> Callable[[Callable[P, R]], GuardedStep[P, R]]: ...
def guarded_step(fn: Any = None, /, **options: Any) -> Any:
    """Make a function a guarded step of whatever run is active when it is called.

    Works on functions, coroutines, generators, async generators, methods, classmethods, staticmethods,
    partials and callable objects; name, docstring, signature and types stay, plain functions stay
    picklable, and `fn.__wrapped__` is the bare function.

    Args:
        fn: the function, when used without parentheses.
        options: `name` (the function's own), `key` (unique in the run; a str or a callable of the
            arguments), `kind` ("tool"; "llm" and "step" have a meaning too), `reserve` (a `Usage`, or a
            callable of the arguments: what the call may use at most), `usage` (a `Usage`: known in
            advance; or a callable of the result, or of the result and the arguments; needs `reserve`),
            `free_on` (exceptions that prove that nothing was used), `capture` ("full", "digest",
            "none"), `redact`, `ignore` (parameters left out of the log), `codec`, `effect` (what a
            repeat would do: "read", "idempotent" or "once", the default; "read" for llm), `probe`,
            `durability`, `approval` (True, or a callable of the arguments: wait for an operator),
            `approval_timeout` (seconds until that counts as denied), `timeout` (seconds, async functions),
            `outside` ("refuse" or "allow" calls outside a run).

    Raises:
        TypeError, ValueError: an option is wrong; the message names it.

    Example:
        >>> from agentguard import Budget, Guard, Usage, guarded_step
        >>> @guarded_step(usage=Usage(usd="0.01", emails=1))
        ... def send_email(to: str) -> str:
        ...     return f"sent to {to}"
        >>> with Guard.in_memory() as guard, guard.run("mail", budget=Budget(emails=2)) as run:
        ...     done = send_email("ann@example.org")
        >>> done, run.spent.usd, run.spent["emails"]
        ('sent to ann@example.org', Decimal('0.01'), 1)
    """
    if fn is None:
        return lambda function: _guard(function, options)
    if options:
        raise TypeError("guarded_step takes the function alone, or options alone")
    return _guard(fn, options)


def _guard(fn: Any, options: dict[str, Any]) -> Any:
    if isinstance(fn, classmethod | staticmethod):
        return type(fn)(_guard(fn.__func__, options))
    if isinstance(fn, type):
        raise TypeError(f"guarded_step guards functions; {fn.__name__} is a class")
    if not callable(fn):
        raise TypeError(f"guarded_step guards functions, not {type(fn).__name__}")
    step_options = dict(options)
    given = step_options.pop("name", None)
    name = _name(fn) if given is None else given
    spec = step_spec(name, fn, cast("StepOptions", step_options))
    return _plain(fn, spec, name) if kind_of_function(fn) == "plain" else _FunctionLike(fn, spec, name)


def _driver_of(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return what drives calls of `fn`: the guard whose run the call is in has loaded it."""
    # Loaded here, so that an import of guarded_step is light.
    driver: Callable[..., Any] = load("agentguard.steps.drivers").driver_of(fn)
    return driver


def _plain(fn: Callable[..., Any], spec: StepSpec, name: str) -> Callable[..., Any]:
    """A closure: the fastest wrapper there is, bound as a method and pickled like any function.

    One that is pickled by value takes along what it names (cloudpickle), or all that this module names
    (dill): so this module names functions and classes of ours, never a ContextVar nor a module of ours.
    """
    driver: Callable[..., Any] | None = None

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal driver
        position = here()
        if position is None:
            return _outside(spec, fn)(*args, **kwargs)
        if driver is None:
            driver = _driver_of(fn)
        return driver(spec, position, fn, args, kwargs)

    _dressed(wrapper, fn, name)
    return wrapper


#: What `inspect` and its like look up on a function, beside what `functools.wraps` copies.
_OF_FUNCTIONS = ("__code__", "__defaults__", "__kwdefaults__", "__globals__", "__closure__", "__builtins__")


class _FunctionLike:
    """A coroutine or generator function whose key is fixed when it is called, not when it is awaited.

    An `async def` wrapper could not do that: its body runs only when awaited.  This one shows itself
    to `inspect` as the function it wraps, binds like one, and is pickled by name like one.
    """

    def __init__(self, fn: Callable[..., Any], spec: StepSpec, name: str) -> None:
        _dressed(self, fn, name)  # first: it copies the attributes of a callable object, whatever they are
        self._fn = fn
        self._spec = spec
        self._driver: Callable[..., Any] | None = None
        self._name = name
        bare = bare_function(fn)
        vars(self).update({name: getattr(bare, name) for name in _OF_FUNCTIONS if hasattr(bare, name)})

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        # cloudpickle takes functions apart, and would lose the guard: it is to ask `__reduce__`.
        asking = sys._getframe(1).f_globals.get("__name__", "")
        return _FunctionLike if "cloudpickle" in asking else types.FunctionType

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        position = here()
        if position is None:
            return _outside(self._spec, self._fn)(*args, **kwargs)
        if self._driver is None:
            self._driver = _driver_of(self._fn)
        return self._driver(self._spec, position, self._fn, args, kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> Any:
        return _pickled(self, (self._fn, self._spec, self._name))

    def __repr__(self) -> str:
        return f"<guarded step {self._spec.name}>"


def _restored(module: str, qualname: str, library: str, by_value: bytes | None) -> Any:
    """Return a guarded function that was pickled: the one of that name here, else the one that came along."""
    found: Any = sys.modules.get(module) if by_value is not None else importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if type(found) is _FunctionLike or by_value is None:
        return found
    return _FunctionLike(*load(library).loads(by_value))


#: Libraries that pickle the functions of `__main__`, of notebooks and of closures by value.
_BY_VALUE = ("cloudpickle", "dill")


def _pickled(guarded: _FunctionLike, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return how a guarded function is pickled: by name, and by value where that may not be known."""
    module, qualname = guarded.__module__, str(guarded.__qualname__)  # type: ignore[attr-defined]
    local = module == "__main__" or "<locals>" in qualname
    library = next((name for name in _BY_VALUE if name in sys.modules), "") if local else ""
    if local and not library and "<locals>" in qualname:
        raise pickle.PicklingError(f"{qualname} is defined inside a function: pickle it with cloudpickle")
    by_value = sys.modules[library].dumps(parts) if library else None
    return _restored, (module, qualname, library, by_value)


def _name(fn: Any) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return getattr(fn, "__name__", None) or type(fn).__name__


def _dressed(wrapper: Any, fn: Any, name: str) -> None:
    functools.update_wrapper(wrapper, fn)
    if not hasattr(fn, "__name__"):
        wrapper.__name__ = wrapper.__qualname__ = name
        wrapper.__doc__ = getattr(fn, "__doc__", None)
    wrapper.__wrapped__ = fn


def _outside(spec: StepSpec, fn: Callable[..., Any]) -> Callable[..., Any]:
    """The bare function, where a call outside a run is allowed."""
    if spec.outside == "allow" or outside_allowed():
        return fn
    raise NoActiveRunError(
        f"{spec.name}() is a guarded step and no run is active here: call it inside "
        "`with guard.run(...)`; hand it to a thread as `run.bind(fn)`; in another process use "
        "`guard.attach(run_id)`; in unit tests use agentguard.testing.allow_outside()"
    )


def current_run() -> Run | None:
    """Return the run that is active here, or None.

    Example:
        >>> from agentguard import current_run
        >>> current_run() is None
        True
    """
    position = current_position()
    return None if position is None else cast("Run", position.run)  # which is what opens runs


def current_step() -> Step | None:
    """The step whose body runs here, or None; gives `.idempotency_key` and `.settle(usage)`."""
    position = current_position()
    return None if position is None else position.step
