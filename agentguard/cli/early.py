"""The commands that are answered before Typer is loaded, as its help and the shell's completion know them.

`cli.main` takes them first, so they come here only for help and completion, or after a `--`.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from agentguard import cli
from agentguard.cli import lookup
from agentguard.cli.app import app
from agentguard.cli.options import (
    ActorOption,
    ColumnsOption,
    HomeOption,
    JsonOption,
    NameOption,
    ReasonOption,
    SinceOption,
    StateOption,
    StoreOption,
    TenantOption,
    UtcOption,
    YesOption,
)
from agentguard.cli.selection import Sort

_UNTOUCHED: dict[str, Any] = {
    "add_help_option": False,
    "context_settings": {"ignore_unknown_options": True, "allow_extra_args": True},
}
_Runs = Annotated[list[str] | None, typer.Argument(autocompletion=lookup.complete_run)]
_Run = Annotated[
    str | None, typer.Option("--run", autocompletion=lookup.complete_run, help="This run alone.")
]
_Help = Annotated[bool, typer.Option("--help", "-h", help="Show the options.")]


def _pass_on(ctx: typer.Context) -> None:
    arguments: list[str] = ctx.obj
    raise typer.Exit(cli.main(arguments[arguments.index(str(ctx.info_name)) :]))


@app.command("kill", help="Stop a run, a tenant's runs, or everything.", **_UNTOUCHED)
def _kill(
    ctx: typer.Context,
    runs: _Runs = None,
    *,
    run: _Run = None,
    tenant: TenantOption = None,
    reason: ReasonOption = None,
    actor: ActorOption = None,
    yes: YesOption = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until nothing goes on.")] = False,
    timeout: Annotated[str, typer.Option("--timeout", help="Seconds to wait.")] = "",
    hard: Annotated[bool, typer.Option("--hard", help="End the processes.")] = False,
    grace: Annotated[str, typer.Option("--grace", help="With --hard: seconds to stop in.")] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
    show_help: _Help = False,
) -> None:
    _pass_on(ctx)


@app.command("revive", help="Clear a kill, so that later runs may start.", **_UNTOUCHED)
def _revive(
    ctx: typer.Context,
    runs: _Runs = None,
    *,
    run: _Run = None,
    tenant: TenantOption = None,
    reason: ReasonOption = None,
    actor: ActorOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
    show_help: _Help = False,
) -> None:
    _pass_on(ctx)


@app.command("runs", help="List runs, the newest first, or by what they spend.", **_UNTOUCHED)
def _list(
    ctx: typer.Context,
    *,
    tenant: TenantOption = None,
    state: StateOption = None,
    name: NameOption = None,
    since: SinceOption = None,
    sort: Annotated[Sort | None, typer.Option("--sort", help="The largest first.")] = None,
    limit: Annotated[str, typer.Option("--limit", "-n", help="How many at most.")] = "",
    columns: ColumnsOption = None,
    utc: UtcOption = False,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
    show_help: _Help = False,
) -> None:
    _pass_on(ctx)
