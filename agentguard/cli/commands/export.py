"""`agentguard export`: logs as JSON Lines that a stranger can verify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from agentguard.audit import export as exporting
from agentguard.cli import exit_codes, lookup, output
from agentguard.cli.app import app
from agentguard.cli.options import (
    HomeOption,
    JsonOption,
    StoreOption,
)
from agentguard.errors import LogIntegrityError


@app.command(epilog="--json: {path, runs, events}; without --output, the export itself is what is printed.")
def export(
    *,
    run_id: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="The run, or `control`.",
            show_default=False,
            autocompletion=lookup.complete_run,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All runs and the control log.")] = False,
    to: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to; by default standard output."),
    ] = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a log as JSON Lines that a stranger can verify, as docs/export-format.md says."""
    lookup.use(store, home)
    _export(run_id, to, everything=everything, as_json=as_json)


def _export(typed: str | None, path: Path | None, *, everything: bool, as_json: bool) -> None:
    """Write one log or all to a file or to standard output."""
    if (typed is None) != everything:
        raise exit_codes.UsageError("name a RUN or `control`, or say --all")
    with lookup.reading() as guard:
        run_id = None if typed is None else lookup.find_log(guard, typed)
        store, now = guard.components.store, guard.components.clock.wall()
        control = lookup.control_log(guard).read
        altered: list[LogIntegrityError] = []
        if path is None:
            exporting.export(store, control, run_id, sys.stdout.buffer, now, say=altered.append)
            sys.stdout.buffer.flush()
            output.fail_if_altered(altered)
            return
        runs, events = exporting.export(store, control, run_id, path, now, say=altered.append)
    if as_json:
        output.print_json({"path": str(path), "runs": runs, "events": events})
    else:
        logs = "log" if runs == 1 else "logs"
        print(output.one_line(f"wrote {events:,} events of {runs:,} {logs} to {path}"))
    output.fail_if_altered(altered)
