"""`agentguard runs`: the newest runs as a table.

Answered before Typer is loaded, like `kill`: Typer takes longer to load than the runs take to list.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from agentguard._clock import SYSTEM_CLOCK
from agentguard._home import store_url
from agentguard._secrets.urls import public_url
from agentguard.cli import exit_codes, lookup, output, selection, tables
from agentguard.errors import LogIntegrityError
from agentguard.monitoring import RunStatus, status_of
from agentguard.protocols import EventStore, RunRow
from agentguard.runs.state import RunState

#: How many rows are read first; the newest are asked for most.
_FIRST_PIECE = 256


def main(arguments: Sequence[str]) -> int:
    """Run `runs ...`, and return the exit code."""
    return output.ended(lambda: _runs(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="agentguard runs",
        allow_abbrev=False,
        description="List runs, the newest first, or ordered by what they spend.",
        epilog="--json: an array of runs, the newest first: the summary, with rate, limit and owner.",
    )
    say = parser.add_argument
    say("--tenant", metavar="T", help="runs of this tenant alone")
    say(
        "--state",
        type=str.lower,
        choices=[state.lower() for state in RunState],
        help="runs in this state alone",
    )
    say("--name", metavar="PATTERN", help="runs of this name alone; * and ? stand for others")
    say("--since", metavar="WHEN", help="not before: an age like 2h or 7d, or a date or time")
    say(
        "--sort",
        choices=[sort.value for sort in selection.Sort],
        help="the largest first; by default the newest",
    )
    say("--limit", "-n", type=_count, default=50, metavar="N", help="how many at most (default: 50)")
    say("--columns", metavar="A,B", help="these columns alone, as run,name,usd,$/min,owner")
    say("--utc", action="store_true", help="print times in UTC; by default, in local time")
    say("--store", metavar="URL", help="the event store, as sqlite:///runs.db [AGENTGUARD_STORE]")
    say("--home", metavar="DIR", help="the state directory [AGENTGUARD_HOME]")
    say("--json", action="store_true", help="print JSON, for programs")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:20]) <= lookup.MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {lookup.MOST}")
    return int(text)


def _runs(options: argparse.Namespace) -> None:
    output.use_utc(options.utc)
    lookup.use(options.store, options.home)
    tenant, state, name, since = options.tenant, options.state, options.name, options.since
    if tenant is not None:
        lookup.checked_id(tenant, "--tenant")
    wanted = selection.columns(options.columns)
    selection.since_ns(since, 0)
    found: list[RunStatus] = []
    damaged: list[str] = []
    if lookup.store_is_there():
        with lookup.opened_store() as store:
            rows = _rows(store, tenant, state and state.upper(), name, since)
            found, damaged = _statuses(store, rows if options.sort else islice(rows, options.limit))
            if options.sort:
                found = selection.in_order(found, selection.Sort(options.sort))[: options.limit]
            if found and not options.json:
                console = output.console()
                console.print(tables.runs_table(found, console, store, wanted))
                output.print_lines(*tables.advice(found))
    if options.json:
        output.print_json([run.to_data() for run in found])
    elif not found:
        chosen = any(said is not None for said in (tenant, state, name, since))
        like_this = " like this" if chosen else ""
        output.console().print(f"no runs{like_this} in {public_url(store_url())}")
    for problem in damaged:
        output.complain(f"{problem}; shown as of its last change of state, `agentguard verify` says more")
    if damaged:
        raise SystemExit(exit_codes.FAULT)


def _rows(
    store: EventStore, tenant: str | None, state: str | None, name: str | None, since: str | None
) -> Iterator[RunRow]:
    """Return the rows that are asked for, the newest first, read in larger and larger pieces."""
    begin = selection.since_ns(since, SYSTEM_CLOCK.wall())
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


def _statuses(store: EventStore, rows: Iterable[RunRow]) -> tuple[list[RunStatus], list[str]]:
    """Return how the runs stand; one whose log is damaged must not hide the others."""
    found, damaged = [], []
    for row in rows:
        try:
            status = status_of(store, row, SYSTEM_CLOCK)
        except LogIntegrityError as error:
            damaged.append(str(error))
            continue
        found.append(status)
        if status.summary.damaged:
            damaged.append(status.summary.damaged)
    return found, damaged
