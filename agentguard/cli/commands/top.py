"""`agentguard top`: the live runs, again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from agentguard.cli import exit_codes, lookup, output, selection, tables
from agentguard.cli.app import app
from agentguard.cli.options import (
    ColumnsOption,
    HomeOption,
    JsonOption,
    NameOption,
    StoreOption,
    TenantOption,
    UtcOption,
)
from agentguard.guard import Guard
from agentguard.monitoring import LiveRuns, RunStatus


@app.command(epilog="--json: an array of runs, once: the summary, with rate, limit, last step and owner.")
def top(
    *,
    tenant: TenantOption = None,
    name: NameOption = None,
    sort: Annotated[
        selection.Sort, typer.Option("--sort", help="What the largest of is shown first.")
    ] = selection.Sort.SPEND,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="How many at most.")] = 20,
    columns: ColumnsOption = None,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, max=3600, help="Seconds between two looks.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    utc: UtcOption = False,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Watch all live runs, those that have spent most first; ^C ends it."""
    lookup.use(store, home)
    if tenant is not None:
        lookup.checked_id(tenant, "--tenant")
    wanted = selection.columns(columns)
    with lookup.looking() if lookup.store_is_there() else Guard.in_memory(telemetry=False) as guard:
        live = LiveRuns(guard.components.store, guard.components.clock)

        def look() -> list[RunStatus]:
            found = [run for run in live.read(tenant) if selection.named(run.summary.name, name)]
            return selection.in_order(found, sort)[:limit]

        if as_json:
            output.print_json([run.to_data() for run in look()])
        else:
            _show(look, wanted, interval, once=once)


def _show(
    look: Callable[[], list[RunStatus]], columns: list[str] | None, interval: float, *, once: bool
) -> None:
    console = output.console()
    if once or not console.is_terminal:
        console.print(_screen(look(), columns), soft_wrap=not console.is_terminal)
        return
    try:
        with Live(console=console, auto_refresh=False, screen=True) as screen:
            while True:
                screen.update(_screen(look(), columns), refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:
        raise typer.Exit(exit_codes.OK) from None


def _screen(runs: list[RunStatus], columns: list[str] | None) -> Group | Text:
    if not runs:
        return Text("no run is live")
    return Group(tables.runs_table(runs, output.console(), columns), *tables.advice(runs))
