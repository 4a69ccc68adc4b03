"""`agentguard top`: the live runs, again and again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live
from rich.text import Text

from agentguard.audit.verify import take
from agentguard.cli import exit_codes, lookup, output, tables
from agentguard.cli.app import app
from agentguard.cli.options import (
    HomeOption,
    JsonOption,
    StoreOption,
    TenantOption,
)
from agentguard.guard import Guard
from agentguard.ownership import bury_all
from agentguard.runs.fold import RunFold
from agentguard.runs.state import RunState
from agentguard.runs.summary import RunSummary, summarize

if TYPE_CHECKING:
    from rich.table import Table

_LIVE = (RunState.RUNNING, RunState.PAUSED)


@app.command(epilog="--json: an array of run summaries, once.")
def top(
    *,
    tenant: TenantOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="How many at most.")] = 20,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, max=3600, help="Seconds between two looks.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Watch the runs that are live, those that have spent most first; ^C ends it."""
    lookup.use(store, home)
    _watch(tenant, limit, interval, once=once, as_json=as_json)


class Folds:
    """The live runs of a store, each log read on from where it was read before."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._store = guard.parts.store
        self._folds: dict[str, RunFold] = {}

    def summaries(self, tenant: str | None, limit: int) -> list[RunSummary]:
        """The live runs that have spent most first."""
        bury_all(self._guard)
        rows = [row for state in _LIVE for row in self._store.rows(tenant=tenant, state=state, limit=limit)]
        self._folds = {row.run_id: self._folds.get(row.run_id, RunFold(row.run_id)) for row in rows}
        found = []
        for fold in self._folds.values():
            for stored in self._store.read(fold.run_id, fold.seq):
                take(fold, stored)
            if not fold.state.final:
                found.append(summarize(fold, fold.running_until_last_event()))
        found.sort(key=lambda run: (run.usage.usd, run.usage.tokens, run.steps), reverse=True)
        return found[:limit]


def _watch(tenant: str | None, limit: int, interval: float, *, once: bool, as_json: bool) -> None:
    """Show the live runs, once or again and again."""
    if tenant is not None:
        lookup.checked_id(tenant, "--tenant")
    with lookup.looking() if lookup.store_is_there() else Guard.in_memory(telemetry=False) as guard:
        folds = Folds(guard)
        if as_json:
            output.print_json([run.to_data() for run in folds.summaries(tenant, limit)])
            return
        console = output.console()
        if once or not console.is_terminal:
            console.print(_top_table(folds.summaries(tenant, limit)))
            return
        try:
            with Live(console=console, auto_refresh=False, screen=True) as screen:
                while True:
                    screen.update(_top_table(folds.summaries(tenant, limit)), refresh=True)
                    time.sleep(interval)
        except KeyboardInterrupt:
            raise typer.Exit(exit_codes.OK) from None


def _top_table(runs: list[RunSummary]) -> Table | Text:
    if not runs:
        return Text("no run is live")
    return tables.runs_table(runs, output.console())
