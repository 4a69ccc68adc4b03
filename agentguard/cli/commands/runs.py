"""`agentguard runs`: the newest runs as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import islice
from typing import Annotated

import typer

from agentguard.cli import exit_codes, lookup, output, selection, tables
from agentguard.cli.app import app
from agentguard.cli.options import (
    MOST,
    ColumnsOption,
    HomeOption,
    JsonOption,
    NameOption,
    SinceOption,
    StoreOption,
    TenantOption,
    UtcOption,
)
from agentguard.errors import LogIntegrityError
from agentguard.guard import Guard
from agentguard.monitoring import RunStatus, status_of
from agentguard.protocols import RunRow

#: How many rows are read first; the newest are asked for most.
_FIRST_PIECE = 256


class State(StrEnum):
    """The states to choose from, in small letters for the keyboard."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    KILLED = "killed"
    FAILED = "failed"


@app.command(epilog="--json: an array of runs, the newest first: the summary, with rate, limit and owner.")
def runs(
    *,
    tenant: TenantOption = None,
    state: Annotated[
        State | None, typer.Option("--state", case_sensitive=False, help="Runs in this state alone.")
    ] = None,
    name: NameOption = None,
    since: SinceOption = None,
    sort: Annotated[
        selection.Sort | None, typer.Option("--sort", help="The largest first; by default the newest.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=MOST, help="How many at most.")] = 50,
    columns: ColumnsOption = None,
    utc: UtcOption = False,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List runs, the newest first, or ordered by what they spend."""
    lookup.use(store, home)
    if tenant is not None:
        lookup.checked_id(tenant, "--tenant")
    wanted = selection.columns(columns)
    found: list[RunStatus] = []
    damaged: list[str] = []
    if lookup.store_is_there():
        with lookup.looking() as guard:
            rows = _rows(guard, tenant, state.name if state else None, name, since)
            found, damaged = _statuses(guard, rows if sort else islice(rows, limit))
    else:
        selection.since_ns(since, 0)
    if sort:
        found = selection.in_order(found, sort)[:limit]
    if as_json:
        output.print_json([run.to_data() for run in found])
    else:
        _print_runs(found, wanted, filtered=any((tenant, state, name, since)))
    for problem in damaged:
        output.complain(f"{problem}; shown as of its last change of state, `agentguard verify` says more")
    if damaged:
        raise typer.Exit(exit_codes.FAULT)


def _rows(
    guard: Guard, tenant: str | None, state: str | None, name: str | None, since: str | None
) -> Iterator[RunRow]:
    """Return the rows that are asked for, the newest first, read in larger and larger pieces."""
    store = guard.components.store
    begin = selection.since_ns(since, guard.components.clock.wall())
    seen, limit = 0, _FIRST_PIECE
    while True:
        rows = store.rows(tenant=tenant, state=state, limit=limit)
        for row in rows[seen:]:
            if row.created_ns < begin:
                return
            if selection.named(row.name, name):
                yield row
        if len(rows) < limit:
            return
        seen, limit = limit, limit * 8


def _statuses(guard: Guard, rows: Iterable[RunRow]) -> tuple[list[RunStatus], list[str]]:
    """Return how the runs stand; one whose log is damaged must not hide the others."""
    found, damaged = [], []
    for row in rows:
        try:
            status = status_of(guard.components.store, row, guard.components.clock)
        except LogIntegrityError as error:
            damaged.append(str(error))
            continue
        found.append(status)
        if status.summary.damaged:
            damaged.append(status.summary.damaged)
    return found, damaged


def _print_runs(found: list[RunStatus], columns: list[str] | None, *, filtered: bool) -> None:
    console = output.console()
    if not found:
        console.print(f"no runs{' like this' if filtered else ''} in {lookup.store_url()}")
        return
    console.print(tables.runs_table(found, console, columns))
    output.print_lines(*tables.advice(found))
