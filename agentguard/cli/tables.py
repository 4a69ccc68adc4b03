"""Runs, tenants and reports as tables and summaries."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from agentguard.cli import lookup, output
from agentguard.monitoring import RunStatus
from agentguard.runs.state import RunState
from agentguard.runs.summary import RunSummary

if TYPE_CHECKING:
    from rich.console import Console

    from agentguard.audit.verify import VerifyReport
    from agentguard.protocols import EventStore

_STYLES = {
    RunState.CREATED: "dim",
    RunState.RUNNING: "cyan",
    RunState.PAUSED: "yellow",
    RunState.COMPLETED: "green",
    RunState.KILLED: "bold red",
    RunState.FAILED: "red",
}


#: The columns, and how wide a terminal has to be for them.
_COLUMNS = {
    "run": 0,
    "name": 36,
    "tenant": 110,
    "state": 0,
    "steps": 80,
    "usd": 30,
    "$/min": 90,
    "limit": 100,
    "tokens": 140,
    "last step": 130,
    "owner": 150,
    "started": 175,
    "duration": 100,
    "ended by": 60,
}
COLUMNS = tuple(_COLUMNS)
_NUMBERS = ("steps", "usd", "$/min", "limit", "tokens", "duration")
#: These may be cut where room is short; the others are of use only if they are whole.
_LONG = ("name", "tenant", "last step", "owner", "ended by")


def runs_table(
    runs: Sequence[RunStatus], console: Console, store: EventStore, columns: Sequence[str] | None = None
) -> Table:
    """Return the runs, one a line; on a terminal, ids are shortened and columns left out to make it fit.

    What an id is shortened to begins no other one of the store.  `columns` names those to show, whatever
    the width.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = columns or [name for name, width in _COLUMNS.items() if width <= console.width]
    ids = [run.summary.run_id for run in runs]
    shown = lookup.short_ids(ids, store) if console.is_terminal else dict(zip(ids, ids, strict=True))
    rows = [_cells(run, shown[run.summary.run_id]) for run in runs]
    for name in columns:
        table.add_column(
            name,
            justify="right" if name in _NUMBERS else "left",
            no_wrap=True,
            min_width=None if name in _LONG else max([len(name), *(row[name].cell_len for row in rows)]),
            max_width=max(10, console.width // 3) if name in _LONG else None,
        )
    for row in rows:
        table.add_row(*(row[name] for name in columns))
    return table


def _cells(status: RunStatus, run_id: str) -> dict[str, Text]:
    run = status.summary
    limit = status.nearest_limit
    return {
        "run": Text(output.printable(run_id)),
        "name": Text(output.printable(run.name)),
        "tenant": Text(output.printable(run.tenant)),
        "state": state_text(run.state),
        "steps": Text(f"{run.steps:,}"),
        "usd": Text(output.money(run.usage.usd) if run.usage.usd else "-"),
        "$/min": Text(output.money(round(status.usd_per_minute, 4)) if status.usd_per_minute else "-"),
        "limit": Text("-" if limit is None else f"{limit.share:.0%} {limit.resource}"),
        "tokens": Text(f"{run.usage.tokens:,}" if run.usage.tokens else "-"),
        "last step": Text(output.one_line(status.last_step or "-")),
        "owner": Text(owner(status)),
        "started": Text(output.when(run.started_at)),
        "duration": Text(output.seconds(run.duration)),
        "ended by": _ending(status),
    }


def _ending(status: RunStatus) -> Text:
    return Text("process gone", style="bold red") if status.alive is False else Text(ended_by(status.summary))


def owner(status: RunStatus) -> str:
    """Return the process that owns a run, and whether it is gone."""
    if status.pid is None:
        return "none"
    gone = " (gone)" if status.alive is False else ""
    return output.one_line(f"pid {status.pid} on {status.host}{gone}")


def advice(runs: Sequence[RunStatus]) -> Iterator[Text]:
    """Return what to do about live runs whose process is gone, a line each."""
    for run in runs:
        if run.alive is False:
            said = f"process gone: agentguard recover {run.summary.run_id} --module pkg.mod:fn"
            yield Text(output.one_line(said), style="yellow")


def state_text(state: RunState) -> Text:
    """A state in its colour."""
    return Text(str(state), style=_STYLES[state])


def ended_by(run: RunSummary) -> str:
    """What ended a run, in a word or two."""
    ended = run.termination
    if ended is None:
        return "-"
    if ended.get("type") == "BudgetExceededError":
        return output.one_line(f"{ended.get('resource')} limit ({ended.get('scope')})")
    if ended.get("type") == "KillSwitchTriggeredError":
        return output.one_line(f"{ended.get('scope')} kill: {ended.get('reason')}")
    return output.one_line(str(ended.get("type")))


def print_summary(console: Console, run: RunSummary, indent: str = "") -> None:
    """Print a run's summary, a fact a line."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _facts(run):
        table.add_row(f"{indent}{name:<8}", value)
    console.print(table)
    # Apart, since a line that the terminal itself wraps can be copied whole.
    head = Text().append(f"{indent}{'head':<8} ", style="bold").append(f"{run.head.seq}:{run.head.hash}")
    console.print(head, soft_wrap=True)


def _facts(run: RunSummary) -> Iterator[tuple[str, str | Text]]:
    yield "run", output.printable(run.run_id)
    yield "name", output.printable(run.name)
    yield "tenant", output.printable(run.tenant)
    if run.account is not None:
        yield "account", output.printable(run.account)
    yield "state", state_text(run.state)
    if run.termination is not None and run.state is not RunState.COMPLETED:
        ended = run.termination
        yield "ended by", output.one_line(f"{ended.get('type')}: {ended.get('message', '')}")
    if run.parent_id is not None:
        yield "inside", output.printable(run.parent_id)
    yield "used", output.amounts(run.usage, steps=True) or "nothing"
    yield (
        "limits",
        output.limits(run.budget) + ("" if run.bounded else " (not bounded: a step had no reserve)"),
    )
    yield "started", output.when(run.started_at)
    yield "ended", output.when(run.ended_at)
    yield "duration", output.seconds(run.duration)
    if run.unreplayable:
        results = "result" if run.unreplayable == 1 else "results"
        yield "replay", f"{run.unreplayable:,} {results} cannot be replayed; marked in `agentguard show`"
    for warning in run.warnings:
        yield "warning", output.one_line(output.warning(warning))
    if run.metadata:
        yield "metadata", output.one_line(", ".join(f"{k}={v!r}" for k, v in run.metadata.items()))


def report_data(report: VerifyReport) -> dict[str, Any]:
    """A verify report as `--json` prints it."""
    return {
        "intact": bool(report),
        "anchored": report.anchored,
        "runs": report.runs,
        "evicted": report.evicted,
        "pruned": report.pruned,
        "events": report.events,
        "left_out": report.left_out,
        "faults": [fault._asdict() for fault in report.faults],
    }


def report_lines(report: VerifyReport) -> Iterator[Text]:
    """A verify report, a fault a line."""
    counts = f"{report.events:,} events of {report.runs:,} {'run' if report.runs == 1 else 'runs'}"
    if report:
        yield Text(f"intact: {counts}{report.limits}", style="green")
        return
    yield Text(f"NOT intact: {len(report.faults)} at fault among {counts}", style="bold red")
    for fault in report.faults:
        yield Text(f"  {output.one_line(str(fault))}", style="red")


def table(columns: Iterable[str]) -> Table:
    """Return an empty table with these columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=not sys.stdout.isatty())
    return table


def add(table: Table, *cells: str) -> None:
    """Add a row, each cell on one line."""
    table.add_row(*(Text(output.one_line(cell)) for cell in cells))
