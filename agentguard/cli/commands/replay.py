"""`agentguard replay`: an agent run again on its log, or the log checked and shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from agentguard.audit.export import family
from agentguard.cli import execution, exit_codes, lookup, output, tables, timeline
from agentguard.cli.app import app
from agentguard.cli.differences import print_divergence
from agentguard.cli.options import (
    HomeOption,
    JsonOption,
    StoreOption,
)
from agentguard.cli.program import ModuleOption, load_program
from agentguard.errors import (
    ReplayDivergenceError,
)
from agentguard.guard import Guard
from agentguard.run import Run
from agentguard.runs.state import RunState


@app.command(
    epilog="--json: {run_id, intact, faults, state, replayed, steps, result, error, divergence: null or "
    "{kind, key, expected, found}}; what the program prints goes to standard error then."
)
def replay(
    *,
    run_id: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="The run; not needed for an export of one.",
            show_default=False,
            autocompletion=lookup.complete_run,
        ),
    ] = None,
    module: ModuleOption = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Read an export instead of the store.",
        ),
    ] = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run an agent again on its log, with no side effects; ends with 1 at the first difference.

    No step body runs: what is on record comes back.  Without --module, the log is checked, added up and
    shown.  With --export, this works on another machine, without keys or network.
    """
    lookup.use(store, home)
    raise typer.Exit(_replay(run_id, module, export, as_json=as_json))


def _replay(typed: str | None, target: str | None, export: Path | None, *, as_json: bool) -> int:
    """Replay a run, or without a program check its log and show it; gives the exit code."""
    if export is not None:
        lookup.use(f"file://{export.absolute()}", None)
    program = None if target is None else load_program(target)
    with lookup.reading() as guard:
        run_id = _only_run(guard) if typed is None else lookup.find_run(guard, typed)
        if program is None:
            return _check(guard, run_id, as_json=as_json)
        run = guard.replay(run_id)
        ending = execution.execute(guard, program, run, as_json=as_json)
        return _say_replayed(guard, run, ending, as_json=as_json)


def _only_run(guard: Guard) -> str:
    """The run that an export was made of: the first in it, where all others belong to it."""
    store = guard.components.store
    ids = [row.run_id for row in store.rows(limit=2**62)]
    if not ids or not store.url.startswith("file:") or {*family(store, ids[-1])} != {*ids}:
        raise exit_codes.UsageError(f"name a RUN; there are {len(ids)}")
    return ids[-1]


def _check(guard: Guard, run_id: str, *, as_json: bool) -> int:
    """Fold the log, hold it against its chain, and show it."""
    report = guard.verify(run_id)
    if as_json:
        _print_replayed(guard, run_id, report=tables.report_data(report))
        return exit_codes.OK if report else exit_codes.FAULT
    if report:
        log = timeline.entries(run_id, guard.components.store.read(run_id))
        output.print_lines(Text(f"run {run_id}", style="bold"))
        output.print_lines(*timeline.Timeline().lines(log))
        summary = guard.reconstruct(run_id)
        used = output.amounts(summary.usage, steps=True) or "nothing"
        output.print_lines(Text(f"adds up to {summary.state}, used {used}"))
    output.print_lines(*tables.report_lines(report))
    return exit_codes.OK if report else exit_codes.FAULT


def _say_replayed(guard: Guard, run: Run, ending: execution.Ending, *, as_json: bool) -> int:
    error = ending.of_ours
    if error is not None and not isinstance(error, ReplayDivergenceError):
        raise error
    ended = RunState(guard.reconstruct(run.id).state)
    if as_json:
        _print_replayed(guard, run.id, run=run, ending=ending)
    elif isinstance(error, ReplayDivergenceError):
        print_divergence(guard, run.id, error)
    else:
        steps = run.summary().steps
        said = (
            f"replayed run {run.id}: {steps:,} {'step' if steps == 1 else 'steps'} from the log, no body ran"
        )
        output.print_lines(
            Text(said, style="green"), Text(f"  ended as recorded: {ended}{execution.because(ending)}")
        )
    if error is None and not ended.final:  # the log of a crashed run, or of one that is live
        output.complain("the log has no end: the run is live, or has crashed (agentguard recover)")
        return exit_codes.FAULT if ending.error is not None else exit_codes.OK
    return exit_codes.OK if error is None else exit_codes.FAULT


def _print_replayed(
    guard: Guard,
    run_id: str,
    *,
    run: Run | None = None,
    ending: execution.Ending | None = None,
    report: dict[str, Any] | None = None,
) -> None:
    error = None if ending is None else ending.error
    intact = report is None or report["intact"]
    data = {
        "run_id": run_id,
        "intact": intact,
        "faults": [] if report is None else report["faults"],
        "state": str(guard.reconstruct(run_id).state) if intact else None,
        "replayed": run is not None,
        "steps": None if run is None else run.summary().steps,
        "result": None if ending is None else execution.plain(ending.result),
        "error": None if error is None else {"type": type(error).__name__, "message": str(error)},
        "divergence": error.facts() if isinstance(error, ReplayDivergenceError) else None,
    }
    output.print_json(data)
