"""The program of `--module`, run as the module `__main__` that it may have been."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Annotated, Any

import typer

from agentguard.cli.exit_codes import UsageError
from agentguard.engine import Engine
from agentguard.errors import ProgramError
from agentguard.guard import Guard
from agentguard.program import Program
from agentguard.run import Run


def load_program(target: str) -> Program:
    """Return the program that `--module` names.

    Raises:
        UsageError: it names none.
    """
    try:
        return Program.load(target)
    except ProgramError as error:
        raise UsageError(f"--module: {error}") from error


def own_guard(program: Program, url: str) -> Guard | None:
    """Return the program's own guard over the store of that URL, whose runs can be children of the run."""
    own = [value for value in vars(program.module).values() if isinstance(value, Guard)]
    if program.decorated is not None:
        runtime = program.decorated.session.runtime
        own.insert(0, next((guard for guard in own if guard.runtime is runtime), Guard(Engine(runtime))))
    return next((guard for guard in own if guard.components.store.url == url), None)


def run_as_main(program: Program, run: Run) -> Any:
    """Run a program in a run, with its module as `__main__`.

    So exceptions of a script, on record as `__main__.Error`, are found in it.
    """
    with _as_main(program.module):
        return program.run_in(run)


@contextlib.contextmanager
def _as_main(module: ModuleType) -> Iterator[None]:
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
