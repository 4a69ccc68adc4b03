"""The commands that operate: export, erase, prune, tenants, top, approvals, approve, deny."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentguard.cli import lookup
from agentguard.cli.app import HomeOption, JsonOption, RunArgument, StoreOption, TenantOption, app, run

__all__ = ["run"]

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
ActorOption = Annotated[
    str | None, typer.Option("--actor", metavar="A", help="Who decides; by default user@host.")
]
KeyArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="KEY", help="The step's key; not needed where one alone waits.", show_default=False
    ),
]
ReasonOption = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="Why; it is recorded and shown.")
]


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
    from agentguard.cli import keeping

    lookup.use(store, home)
    keeping.export(run_id, to, everything=everything, as_json=as_json)


@app.command(epilog="--json: {run_id, payloads}.")
def erase(
    *,
    run_id: RunArgument,
    yes: YesOption = False,
    actor: ActorOption = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drop the captured arguments and results of an ended run for good; its log still verifies."""
    from agentguard.cli import keeping

    lookup.use(store, home)
    raise typer.Exit(keeping.erase(run_id, actor, sure=yes, as_json=as_json))


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
    from agentguard.cli import keeping

    lookup.use(store, home)
    raise typer.Exit(keeping.prune(older_than, actor, sure=yes, as_json=as_json))


@app.command(epilog="--json: an array of {tenant, per, budget, spent}.")
def tenants(store: StoreOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the tenants with a budget, and what they have spent of it in the present window."""
    from agentguard.cli import watching

    lookup.use(store, home)
    watching.tenants(as_json=as_json)


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
    from agentguard.cli import watching

    lookup.use(store, home)
    watching.top(tenant, limit, interval, once=once, as_json=as_json)


@app.command(epilog="--json: an array of {run_id, key, name, arguments}.")
def approvals(store: StoreOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the steps that wait for an approval."""
    from agentguard.cli import watching

    lookup.use(store, home)
    watching.approvals(as_json=as_json)


@app.command(epilog="--json: {run_id, key, decision}.")
def approve(
    *,
    run_id: RunArgument,
    key: KeyArgument = None,
    reason: ReasonOption = None,
    actor: ActorOption = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a step that waits run."""
    from agentguard.cli import watching

    lookup.use(store, home)
    watching.decide(run_id, key, reason, actor, granted=True, as_json=as_json)


@app.command(epilog="--json: {run_id, key, decision}.")
def deny(
    *,
    run_id: RunArgument,
    key: KeyArgument = None,
    reason: ReasonOption = None,
    actor: ActorOption = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse a step that waits; its run goes on."""
    from agentguard.cli import watching

    lookup.use(store, home)
    watching.decide(run_id, key, reason, actor, granted=False, as_json=as_json)
