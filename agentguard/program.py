"""The user's program: a function that is found by its name, and called with what a run was given."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from agentguard import _typed
from agentguard.errors import ProgramError
from agentguard.run import DECORATED, Run

_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Program:
    """A function of the user's, as the body of a run.

    One that `@guard.run(...)` made a run of is called with the arguments that were recorded.  A plain one
    is called as `fn()`, `fn(run)`, `fn(inputs)` or `fn(run, inputs)`, by the parameters it takes: a single
    one is given the inputs, unless it is called `run`, is annotated as a `Run`, or there are no inputs.
    """

    def __init__(self, target: str, found: Callable[..., Any], module: ModuleType) -> None:
        self.target = target
        self.module = module
        #: The run that the function was decorated with, if it was.
        self.decorated: Run | None = getattr(found, "__dict__", {}).get(DECORATED)
        fn: Any = found
        while DECORATED in getattr(fn, "__dict__", {}):  # decorators around it have copied the mark
            fn = fn.__wrapped__
        self.fn: Callable[..., Any] = fn

    @classmethod
    def load(cls, target: str) -> Program:
        """Return the function of `pkg.mod:fn` or `path/file.py:fn`.

        Raises:
            ProgramError: there is none.
        """
        found, module = load(target)
        if not callable(found):
            raise ProgramError(target, f"it is no function but a {type(found).__name__}")
        return cls(target, found, module)

    def run_in(self, run: Run) -> Any:
        """Enter a run, call the function, and return its result; a coroutine function gets a loop of its own.

        Raises:
            ProgramError: it does not take what is on record.
        """
        args, kwargs = self._arguments(run)
        if inspect.iscoroutinefunction(self.fn):
            return asyncio.run(_awaited(run, self.fn, args, kwargs))
        with run:
            return self.fn(*args, **kwargs)

    def inputs_of(self, inputs: object) -> object:
        """Return the inputs of a run whose body this function is to be, from what a caller gives.

        For a decorated function a mapping is its keywords, a list or tuple its arguments.

        Raises:
            TypeError: the function does not take them.
        """
        signature = inspect.signature(self.fn)
        if self.decorated is None:
            takes_as_plain(self.target, signature)
            return inputs
        args, kwargs = _spread(self.target, inputs)
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.target}{signature} does not take these inputs: {error}") from None
        return {"args": list(args), "kwargs": dict(kwargs)}

    def _arguments(self, run: Run) -> tuple[list[Any], dict[str, Any]]:
        signature = inspect.signature(self.fn)
        if self.decorated is None:
            return _as_taken(self.target, signature, run), {}
        inputs = run.inputs
        if not isinstance(inputs, dict) or inputs.keys() != {"args", "kwargs"}:
            raise ProgramError(
                self.target,
                f"the arguments of run {run.id} are not on record: they were not captured, were erased, "
                "or it was no call of a function that @guard.run made a run of",
            )
        try:
            bound = signature.bind(*inputs["args"], **inputs["kwargs"])
        except TypeError as error:
            raise ProgramError(self.target, f"it does not take the recorded arguments: {error}") from error
        hints = _hints(self.fn)
        for name, value in bound.arguments.items():
            if name in hints and signature.parameters[name].kind not in _MANY:
                bound.arguments[name] = _rebuilt(value, hints[name])
        return list(bound.args), dict(bound.kwargs)


# --- finding -------------------------------------------------------------------------------------


def load(target: str) -> tuple[Any, ModuleType]:
    """Return what `pkg.mod:name` or `path/file.py:name` names, and its module.

    Raises:
        ProgramError: it names nothing.
    """
    name, _, path = target.partition(":")
    if not name or not path:
        raise ProgramError(target, "this is not pkg.mod:fn, nor path/file.py:fn")
    module = _imported(name)
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise ProgramError(target, f"there is no function {path} in {name}")
    return found, module


def name_of(fn: Callable[..., Any]) -> str:
    """Return the name by which another process finds a function: `pkg.mod:fn`.

    Raises:
        ProgramError: it has none, and the message says why.
    """
    name, path = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if not callable(fn) or not isinstance(name, str) or not isinstance(path, str):
        raise ProgramError(repr(fn), "it is no function; workers need one at the top level of a module")
    if "<" in path:  # <lambda>, <locals>
        raise ProgramError(
            path, "it is made inside a function; workers need one at the top level of a module"
        )
    module = sys.modules.get(name)
    if name == "__main__":
        spec = getattr(module, "__spec__", None)
        if spec is None:
            raise ProgramError(
                path,
                "it is defined in the program that runs (__main__), which workers cannot import; move it "
                "into a module",
            )
        name = spec.name.removesuffix(".__main__")
    check_own(f"{name}:{path}")
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None)
    if found is not fn:
        raise ProgramError(
            f"{name}:{path}",
            "this name has something else; workers need a function that is found by its name",
        )
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise ProgramError(
            f"{name}:{path}", "a generator function cannot be a run; loop over it in a function"
        )
    return f"{name}:{path}"


def check_own(target: str) -> None:
    """Refuse to call what is no program: whoever reaches the queue could name anything.

    Raises:
        ProgramError: it is in Python's own library.
    """
    if target.partition(":")[0].partition(".")[0] in sys.stdlib_module_names:
        raise ProgramError(target, "this is in Python's own library, and no function of yours")


def _imported(name: str) -> ModuleType:
    """Return a module by its name, from the current directory too, or from a file."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        return _from_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ProgramError(name, f"cannot import {name}: {error}") from error


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ProgramError(str(path), f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent.absolute()))
    spec.loader.exec_module(module)
    return module


# --- calling -------------------------------------------------------------------------------------


def takes_as_plain(target: str, signature: inspect.Signature) -> int:
    """Return how many of a run and its inputs a function takes.

    Raises:
        ProgramError: it needs more, or others.
    """
    parameters = signature.parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 2
    needs = sum(p.default is p.empty and p.kind not in _MANY for p in parameters)
    if needs > 2 or any(p.default is p.empty and p.kind is p.KEYWORD_ONLY for p in parameters):
        raise ProgramError(target, f"it takes {signature}; it must take (), (run), (inputs) or (run, inputs)")
    return min(2, sum(p.kind in _POSITIONAL for p in parameters))


def _as_taken(target: str, signature: inspect.Signature, run: Run) -> list[Any]:
    takes = takes_as_plain(target, signature)
    if takes != 1:
        return [run, run.inputs][:takes]
    only = next(iter(signature.parameters.values()))
    if only.name == "run" or only.annotation in (Run, "Run"):
        return [run]
    inputs = run.inputs
    return [run if inputs is None else inputs]


def _spread(target: str, inputs: object) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if inputs is None:
        return (), {}
    if isinstance(inputs, Mapping):
        return (), inputs
    if isinstance(inputs, list | tuple):
        return inputs, {}
    raise TypeError(
        f"{target} is called with its arguments, so inputs must be a dict of keywords or a list of "
        f"arguments, not {type(inputs).__name__}"
    )


async def _awaited(run: Run, fn: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    async with run:
        return await fn(*args, **kwargs)


def _hints(fn: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(fn)
    except Exception:  # noqa: BLE001 - annotations of strangers may name what is not there
        return {}


def _rebuilt(value: Any, hint: Any) -> Any:
    """Return a recorded argument as its annotation says it was; as it is on record where that cannot be."""
    validate = getattr(hint, "model_validate", None)
    try:
        return validate(value) if callable(validate) else _typed.convert(value, hint)
    except Exception:  # noqa: BLE001 - a user's types may raise anything
        return value
