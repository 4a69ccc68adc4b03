"""`agentguard verify`: whether logs are what was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from agentguard.audit import verify as audit
from agentguard.cli import exit_codes, lookup, output, tables
from agentguard.cli.app import app
from agentguard.cli.options import (
    HomeOption,
    JsonOption,
    StoreOption,
)
from agentguard.errors import RunNotFoundError
from agentguard.events.model import CONTROL_RUN_ID, Head
from agentguard.guard import Guard


@app.command(
    epilog="--json: {intact, anchored, runs, evicted, pruned, events, left_out, "
    "faults: [{run_id, seq, problem}]}."
)
def verify(
    run_id: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="The run; by default all, and the control log.",
            show_default=False,
            autocompletion=lookup.complete_run,
        ),
    ] = None,
    anchor: Annotated[
        list[str] | None,
        typer.Option(
            "--anchor", metavar="RUN=SEQ:HASH", help="The head of a run, kept elsewhere; may be repeated."
        ),
    ] = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that logs are what was written; ends with 1 if one is not.

    An edit, a deletion, an insertion and a reordering are found.  That the end was cut off, that
    all was rewritten, or that a run is gone is found against an anchor: the `head` of a summary.
    """
    lookup.use(store, home)
    raise typer.Exit(_verify(run_id, anchor or [], as_json=as_json))


def _verify(typed: str | None, anchors: Sequence[str], *, as_json: bool) -> int:
    """Verify a run, or everything, and give the exit code."""
    heads = dict(_anchor(text) for text in anchors)
    with _logs(typed) as guard:
        report = _report(guard, typed, {_whole_id(guard, run): head for run, head in heads.items()})
    if as_json:
        output.print_json(tables.report_data(report))
    else:
        console = output.console()
        for line in tables.report_lines(report):
            console.print(line, soft_wrap=True)
    return exit_codes.OK if report else exit_codes.FAULT


def _anchor(text: str) -> tuple[str, Head]:
    try:
        run, head = audit.parse_anchor(text)
    except ValueError as error:
        raise exit_codes.UsageError(f"--anchor {error}") from error
    if run is None:
        raise exit_codes.UsageError(f"--anchor {text!r} names no run: RUN={text.strip()}")
    return run, head


@contextmanager
def _logs(typed: str | None) -> Iterator[Guard]:
    """The store; an empty one where nothing has run yet and no run is named."""
    if typed in (None, CONTROL_RUN_ID) and not lookup.store_is_there():
        with Guard.in_memory(telemetry=False) as guard:
            yield guard
        return
    with lookup.reading() as guard:
        yield guard


def _report(guard: Guard, typed: str | None, heads: Mapping[str, Head]) -> audit.VerifyReport:
    store = guard.components.store
    # From the file, since neither a damaged page nor a damaged log may keep us from saying so.
    log = lookup.control_log(guard)
    if typed is None:
        return audit.verify_all(store, heads, log.read, log.announced)
    run_id = lookup.find_log(guard, typed)
    if others := heads.keys() - {run_id}:
        raise exit_codes.UsageError(f"--anchor names {', '.join(others)}, and only {run_id} is verified")
    if run_id == CONTROL_RUN_ID:
        return audit.verify(store, [], heads, log.read, log.announced)
    row = store.row(run_id)
    return audit.verify(store, [], heads) if row is None else audit.verify_one(store, row, heads)


def _whole_id(guard: Guard, typed: str) -> str:
    """The anchored run's id; one that is gone stays as typed, since just that is to be found."""
    try:
        return lookup.find_log(guard, typed)
    except RunNotFoundError:
        return typed
