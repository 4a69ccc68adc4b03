"""The user's program: found by `pkg.mod:fn` or `path/file.py:fn`, and called with what a run was given."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import msgspec
import typer

from agentguard.cli.exit_codes import UsageError
from agentguard.guard import Guard
from agentguard.run import DECORATED, Run


class Program:
    """A function of the user's, as the body of a run.

    One that `@guard.run(...)` made a run of is called with the arguments that were recorded.  A plain one
    is called as `fn()`, `fn(run)` or `fn(run, inputs)`, by how many arguments it takes.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        module, _, name = target.partition(":")
        if not module or not name:
            raise UsageError(f"--module {target!r} is not pkg.mod:fn, nor path/file.py:fn")
        self.module = _imported(module)
        found: Any = self.module
        for part in name.split("."):
            found = getattr(found, part, None)
        if not callable(found):
            raise UsageError(f"--module {target}: there is no function {name} in {module}")
        self._decorated: Run | None = getattr(found, "__dict__", {}).get(DECORATED)
        while DECORATED in getattr(found, "__dict__", {}):  # decorators around it have copied the mark
            found = found.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]
        self._fn: Callable[..., Any] = found

    def guard(self, url: str) -> Guard | None:
        """The program's own guard over the store of that URL, so that runs inside it can be its children."""
        own = [value for value in vars(self.module).values() if isinstance(value, Guard)]
        if self._decorated is not None:
            runtime = self._decorated.session.runtime
            own.insert(0, next((guard for guard in own if guard.runtime is runtime), Guard(runtime)))
        return next((guard for guard in own if guard.components.store.url == url), None)

    def run_in(self, run: Run) -> Any:
        """Enter a run, call the function, and give its result."""
        with _as_main(self.module):
            args, kwargs = self._arguments(run)
            if inspect.iscoroutinefunction(self._fn):
                return asyncio.run(_awaited(run, self._fn, args, kwargs))
            with run:
                return self._fn(*args, **kwargs)

    def _arguments(self, run: Run) -> tuple[list[Any], dict[str, Any]]:
        signature = inspect.signature(self._fn)
        if self._decorated is None:
            return _as_taken(self.target, signature, run), {}
        inputs = run.inputs
        if not isinstance(inputs, dict) or inputs.keys() != {"args", "kwargs"}:
            raise UsageError(
                f"the arguments of run {run.id} are not on record: they were not captured, were erased, "
                "or it was no call of a function that @guard.run made a run of"
            )
        try:
            bound = signature.bind(*inputs["args"], **inputs["kwargs"])
        except TypeError as error:
            raise UsageError(f"{self.target} does not take the recorded arguments: {error}") from error
        hints = _hints(self._fn)
        for name, value in bound.arguments.items():
            if name in hints and signature.parameters[name].kind not in _MANY:
                bound.arguments[name] = _rebuilt(value, hints[name])
        return list(bound.args), dict(bound.kwargs)


_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _as_taken(target: str, signature: inspect.Signature, run: Run) -> list[Any]:
    """`run` and its inputs, or as many of the two as a function takes."""
    parameters = signature.parameters.values()
    takes = sum(p.kind in _POSITIONAL for p in parameters)
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        takes = 2
    needs = sum(p.default is p.empty and p.kind not in _MANY for p in parameters)
    if needs > 2 or any(p.default is p.empty and p.kind is p.KEYWORD_ONLY for p in parameters):
        raise UsageError(f"{target} takes {signature}; it must take (), (run) or (run, inputs)")
    return [] if not takes else [run] if takes == 1 else [run, run.inputs]


async def _awaited(run: Run, fn: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    async with run:
        return await fn(*args, **kwargs)


def _hints(fn: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(fn)
    except Exception:  # noqa: BLE001 - annotations of strangers may name what is not there
        return {}


def _rebuilt(value: Any, hint: Any) -> Any:
    """A recorded argument as its annotation says it was; as it is on record where that cannot be."""
    validate = getattr(hint, "model_validate", None)
    try:
        return validate(value) if callable(validate) else msgspec.convert(value, hint, strict=True)
    except Exception:  # noqa: BLE001 - a stranger's types may raise anything
        return value


def _imported(name: str) -> ModuleType:
    """A module by its name, from the current directory too, or from a file."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        return _from_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(f"--module: cannot import {name}: {error}") from error


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UsageError(f"--module: there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent.absolute()))
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _as_main(module: ModuleType) -> Iterator[None]:
    """Let exceptions of a script, on record as `__main__.Error`, be found in it now."""
    before = sys.modules["__main__"]
    sys.modules["__main__"] = module
    try:
        yield
    finally:
        sys.modules["__main__"] = before


HOW = "pkg.mod:fn or file.py:fn; called as its run was: with its arguments if @guard.run made it a run, "
ModuleOption = Annotated[
    str | None, typer.Option("--module", "-m", metavar="MOD:FN", help=f"The program: {HOW}")
]
