"""`agentguard runs`: the newest runs as a table."""

from __future__ import annotations

import contextlib
from enum import StrEnum
from typing import Annotated

import typer

from agentguard.cli import exit_codes, lookup, output, tables
from agentguard.cli.app import app
from agentguard.cli.options import (
    MOST,
    HomeOption,
    JsonOption,
    StoreOption,
    TenantOption,
)
from agentguard.errors import LogIntegrityError
from agentguard.guard import Guard
from agentguard.runs.summary import RunSummary, from_row


class State(StrEnum):
    """The states to choose from, in small letters for the keyboard."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    KILLED = "killed"
    FAILED = "failed"


@app.command(epilog="--json: an array of run summaries, the newest first.")
def runs(
    *,
    tenant: TenantOption = None,
    state: Annotated[
        State | None, typer.Option("--state", case_sensitive=False, help="Runs in this state alone.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=MOST, help="How many at most.")] = 50,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the newest runs."""
    lookup.use(store, home)
    _list_runs(tenant, state.name if state else None, limit, as_json=as_json)


def _list_runs(tenant: str | None, state: str | None, limit: int, *, as_json: bool) -> None:
    """List the newest runs."""
    if tenant is not None:
        lookup.checked_id(tenant, "--tenant")
    found: list[RunSummary] = []
    damaged: list[LogIntegrityError] = []
    if lookup.store_is_there():
        with lookup.looking() as guard:
            found, damaged = _summaries(guard, tenant, state, limit)
    if as_json:
        output.print_json([run.to_data() for run in found])
    else:
        _print_runs(found, filtered=bool(tenant or state))
    for error in damaged:
        output.complain(f"{error}; shown as of its last change of state, `agentguard verify` says more")
    if damaged:
        raise typer.Exit(exit_codes.FAULT)


def _summaries(
    guard: Guard, tenant: str | None, state: str | None, limit: int
) -> tuple[list[RunSummary], list[LogIntegrityError]]:
    """The runs; one whose log is damaged must not hide the others."""
    found, damaged = [], []
    for row in guard.parts.store.rows(tenant=tenant, state=state, limit=limit):
        try:
            found.append(guard.summary(row.run_id))
        except LogIntegrityError as error:
            damaged.append(error)
            with contextlib.suppress(LogIntegrityError):
                found.append(from_row(row))
    return found, damaged


def _print_runs(found: list[RunSummary], *, filtered: bool) -> None:
    console = output.console()
    if found:
        console.print(tables.runs_table(found, console))
    else:
        console.print(f"no runs{' like this' if filtered else ''} in {lookup.store_url()}")
