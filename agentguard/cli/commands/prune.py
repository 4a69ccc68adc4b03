"""`agentguard prune`: drop old runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from agentguard.audit import erasure
from agentguard.cli import exit_codes, lookup, output, selection
from agentguard.cli.app import app
from agentguard.cli.options import (
    ActorOption,
    HomeOption,
    JsonOption,
    StoreOption,
    YesOption,
)


@app.command(epilog="--json: {before, runs}.")
def prune(
    *,
    older_than: Annotated[
        str,
        typer.Option("--older-than", metavar="AGE", help="90d, 12h, 30m, 45s, 2w, or a date: 2026-01-31."),
    ],
    yes: YesOption = False,
    actor: ActorOption = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drop runs that ended longer ago than that, whole; their heads stay on record."""
    lookup.use(store, home)
    raise typer.Exit(_prune(older_than, actor, sure=yes, as_json=as_json))


def _prune(older_than: str, actor: str | None, *, sure: bool, as_json: bool) -> int:
    """Drop old runs, and give the exit code."""
    age = selection.past(older_than, "--older-than")
    if not lookup.store_is_there():
        return _say_pruned([], age, as_json=as_json)
    with lookup.acting() as guard:
        # One moment for the question and the act.
        cut_ns = erasure.cut_off(age, guard.components.clock.wall())
        before = datetime.fromtimestamp(cut_ns / 1e9, UTC)
        question = f"This drops every run that ended before {before:%Y-%m-%d %H:%M:%S} UTC, for good."
        if not output.confirmed(question, "prune", sure=sure):
            return exit_codes.FAULT
        pruned = guard.prune(before, actor=actor)
    return _say_pruned(pruned, before, as_json=as_json)


def _say_pruned(pruned: list[str], before: datetime | timedelta, *, as_json: bool) -> int:
    if as_json:
        said = before.isoformat() if isinstance(before, datetime) else None
        output.print_json({"before": said, "runs": pruned})
    else:
        print(f"pruned {len(pruned):,} {'run' if len(pruned) == 1 else 'runs'}")
    return exit_codes.OK
