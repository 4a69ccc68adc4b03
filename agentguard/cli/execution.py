"""A user's program run as the body of a run, and what is said of how it ended."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from agentguard.cli import exit_codes, output, progress
from agentguard.cli.differences import print_divergence
from agentguard.cli.program import run_as_main
from agentguard.errors import (
    AgentGuardError,
    LogIntegrityError,
    ProgramError,
    ReplayDivergenceError,
    StepOutcomeUnknownError,
)
from agentguard.guard import Guard
from agentguard.program import Program
from agentguard.run import Run
from agentguard.runs.state import RunState


@dataclass
class Ending:
    """How a program left its run's block."""

    result: Any = None
    error: Exception | None = None

    @property
    def of_ours(self) -> AgentGuardError | None:
        """An error that says that it could not be run at all, or no further."""
        ours = (ReplayDivergenceError, LogIntegrityError, StepOutcomeUnknownError, ProgramError)
        return self.error if isinstance(self.error, ours) else None


def execute(guard: Guard, program: Program, run: Run, *, as_json: bool) -> Ending:
    """Run a program, what it prints kept out of the JSON."""
    last = guard.components.store.last(run.id)
    with _printing_aside() if as_json else progress.of_run(run, 0 if last is None else last.seq):
        try:
            return Ending(run_as_main(program, run))
        except Exception as error:  # noqa: BLE001 - a program may raise anything
            return Ending(error=error)


@contextlib.contextmanager
def _printing_aside() -> Iterator[None]:
    with contextlib.redirect_stdout(sys.stderr):
        yield


def because(ending: Ending) -> str:
    """Return the error or the result that a program ended with, in words."""
    if ending.error is not None:
        return output.one_line(f", {type(ending.error).__name__}: {ending.error}")
    return "" if ending.result is None else output.one_line(f", gave {ending.result!r}")[:2000]


def plain(result: Any) -> Any:
    """A result as JSON, or as its repr."""
    try:
        json.dumps(result)
    except (TypeError, ValueError):
        return repr(result)
    return result


def say_carried_on(did: str, guard: Guard, run: Run, ending: Ending, before: int, *, as_json: bool) -> int:
    """Print how a recovered or forked run ended, and return the exit code."""
    error = ending.error
    if as_json:
        print_carried_on(guard, run.id, ending)
    elif isinstance(error, ReplayDivergenceError):
        print_divergence(guard, run.id, error)
    if isinstance(error, StepOutcomeUnknownError):
        output.complain(
            f"step {error.key} of run {error.run_id} had started and has no outcome on record; say"
        )
        output.complain(f"  agentguard resolve {error.run_id} '{error.key}' retry|completed|failed")
        return exit_codes.WAITING
    if ending.of_ours is not None or (error is not None and run.state is RunState.CREATED):
        if isinstance(error, AgentGuardError) and not isinstance(error, ReplayDivergenceError):
            raise error
        return exit_codes.FAULT
    if not as_json:
        summary = guard.summary(run.id)
        said = f"{did} run {run.id}: {summary.state}{because(ending)}"
        output.print_lines(Text(output.one_line(said), style="green" if error is None else "red"))
        output.print_lines(Text(f"  {summary.steps - before:,} of its {summary.steps:,} steps ran now"))
    return exit_codes.OK if error is None else exit_codes.FAULT


def print_carried_on(guard: Guard, run_id: str, ending: Ending) -> None:
    """Print the same as JSON."""
    error = ending.error
    data = {
        "run": guard.summary(run_id).to_data() if guard.components.store.row(run_id) is not None else None,
        "result": plain(ending.result),
        "error": None if error is None else {"type": type(error).__name__, "message": str(error)},
        "divergence": error.facts() if isinstance(error, ReplayDivergenceError) else None,
    }
    output.print_json(data)
