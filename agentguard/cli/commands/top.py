"""`agentguard top`: the live runs, again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from agentguard._clock import SYSTEM_CLOCK
from agentguard.cli import exit_codes, lookup, output, selection, tables
from agentguard.cli.app import app
from agentguard.cli.options import (
    ColumnsOption,
    HomeOption,
    JsonOption,
    NameOption,
    SinceOption,
    StateOption,
    StoreOption,
    TenantOption,
    UtcOption,
)
from agentguard.monitoring import LiveRuns, RunStatus
from agentguard.protocols import EventStore


@app.command(epilog="--json: an array of runs, once: the summary, with rate, limit, last step and owner.")
def top(
    *,
    tenant: TenantOption = None,
    name: NameOption = None,
    state: StateOption = None,
    since: SinceOption = None,
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
    if state is not None and state.final:
        said = f"--state {state}: top shows live runs; see `agentguard runs --state {state.lower()}`"
        raise exit_codes.UsageError(said)
    wanted = selection.columns(columns)
    begin = selection.since_ns(since, SYSTEM_CLOCK.wall())
    with ExitStack() as stack:
        opened: list[tuple[EventStore, LiveRuns]] = []

        def look() -> list[RunStatus]:
            if not opened and lookup.store_is_there():  # the first run may begin while this one looks
                components = stack.enter_context(lookup.looking()).components
                opened.append((components.store, LiveRuns(components.store, components.clock)))
            found = [
                run
                for _, live in opened
                for run in live.read(tenant)
                if selection.named(run.summary.name, name)
                and state in (None, run.summary.state)
                and selection.started_since(run, begin)
            ]
            return selection.in_order(found, sort)[:limit]

        def screen() -> Group | Text:
            runs = look()
            if not runs:
                return Text("no run is live")
            table = tables.runs_table(runs, output.console(), opened[0][0], wanted)
            return Group(table, *tables.advice(runs))

        if as_json:
            output.print_json([run.to_data() for run in look()])
        else:
            _show(screen, interval, once=once)


def _show(screen: Callable[[], Group | Text], interval: float, *, once: bool) -> None:
    console = output.console()
    if once or not console.is_terminal:
        console.print(screen(), soft_wrap=not console.is_terminal)
        return
    try:
        with Live(console=console, auto_refresh=False, screen=True) as shown:
            while True:
                shown.update(screen(), refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:
        raise typer.Exit(exit_codes.OK) from None
