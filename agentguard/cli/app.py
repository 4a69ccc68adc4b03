"""The commands, their options and their help; what they do lies in the modules beside this one."""

from __future__ import annotations

import platform
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from agentguard.cli import exits, lookup, output
from agentguard.errors import AgentGuardError

_EXIT_CODES = "Exit codes:\n\n" + "\n".join(f"- {code}: {said}" for code, said in exits.MEANING.items())

#: More than anybody lists, and less than a store's integers hold.
_MOST = 1_000_000_000

app = typer.Typer(
    name="agentguard",
    help="Look at guarded runs, stop them, and check that their logs are what was written.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

StoreOption = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help="The event store, as sqlite:///runs.db [AGENTGUARD_STORE]."),
]
HomeOption = Annotated[
    Path | None,
    typer.Option("--home", metavar="DIR", help="The state directory [AGENTGUARD_HOME]."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="The run's id, or a beginning of it that no other has.",
        autocompletion=lookup.complete_run,
        show_default=False,
    ),
]
TenantOption = Annotated[str | None, typer.Option("--tenant", metavar="T", help="Runs of this tenant alone.")]


class State(StrEnum):
    """The states to choose from, in small letters for the keyboard."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    KILLED = "killed"
    FAILED = "failed"


def run(arguments: list[str]) -> int:
    """Run one command and give its exit code; our own errors become a message."""
    output.tolerate_every_character()
    try:
        app(args=arguments, prog_name="agentguard")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else exits.FAULT
    except AgentGuardError as error:
        output.complain(str(error))
        return exits.code_of(error)
    except OSError as error:
        output.complain(str(error))
        return exits.UNAVAILABLE
    return exits.OK


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        print(f"agentguard {metadata.version('agentguard')}, Python {platform.python_version()}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Look at guarded runs, stop them, and check that their logs are what was written."""


@app.command(epilog="--json: {ok, home, runs, expectations, kill_latency_ms}.")
def demo(
    path: Annotated[
        Path | None,
        typer.Option(
            "--path",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="The folder that the agents work on; by default the installed agentguard.",
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep what was written, to look at it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Watch four agents: one finishes, one meets its budget, one is killed, one is refused.

    No model and no network: the agents follow rules, and their tools read the files of a real
    folder.  Ends with 0 only if everything was as expected.
    """
    from agentguard.cli import showing

    raise typer.Exit(showing.run_demo(path, keep=keep, as_json=as_json))


@app.command(epilog="--json: an array of run summaries, the newest first.")
def runs(
    *,
    tenant: TenantOption = None,
    state: Annotated[
        State | None, typer.Option("--state", case_sensitive=False, help="Runs in this state alone.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=_MOST, help="How many at most.")] = 50,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the newest runs."""
    from agentguard.cli import views

    lookup.use(store, home)
    views.runs(tenant, state.name if state else None, limit, as_json=as_json)


@app.command(
    epilog="--json: {run, events}; with --payloads, each event has a `payload`; with --at, {run_id, seq, "
    "type, state, termination, spent, reserved, open_steps, open_scopes, waiting}."
)
def show(
    *,
    run_id: RunArgument,
    payloads: Annotated[
        bool, typer.Option("--payloads", help="Show the captured arguments and results too.")
    ] = False,
    at: Annotated[
        int | None,
        typer.Option(
            "--at", metavar="SEQ", min=1, help="Instead, state, spending and open steps as of that event."
        ),
    ] = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the log of a run as a timeline; `control` shows kills and revives."""
    from agentguard.cli import moment, views

    lookup.use(store, home)
    if at is not None:
        moment.show(run_id, at, as_json=as_json)
        return
    views.show(run_id, payloads=payloads, as_json=as_json)


@app.command(epilog="--json: the run's summary.")
def summary(
    run_id: RunArgument, store: StoreOption = None, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Say in a few lines what a run came to."""
    from agentguard.cli import views

    lookup.use(store, home)
    views.summary(run_id, as_json=as_json)


@app.command(
    epilog="--json: {intact, anchored, runs, evicted, pruned, events, faults: [{run_id, seq, problem}]}."
)
def verify(
    run_id: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="The run; by default all, and the control log.",
            show_default=False,
            autocompletion=lookup.complete_run,
        ),
    ] = None,
    anchor: Annotated[
        list[str] | None,
        typer.Option(
            "--anchor", metavar="RUN=SEQ:HASH", help="The head of a run, kept elsewhere; may be repeated."
        ),
    ] = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that logs are what was written; ends with 1 if one is not.

    An edit, a deletion, an insertion and a reordering are found.  That the end was cut off, that
    all was rewritten, or that a run is gone is found against an anchor: the `head` of a summary.
    """
    from agentguard.cli import checking

    lookup.use(store, home)
    raise typer.Exit(checking.verify(run_id, anchor or [], as_json=as_json))


@app.command(epilog="--json: an event a line.")
def tail(
    *,
    run_id: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="The run; by default all.",
            show_default=False,
            autocompletion=lookup.complete_run,
        ),
    ] = None,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, max=_MOST, help="How many of the newest events.")
    ] = 10,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as events come, until the named run has ended.")
    ] = False,
    tenant: TenantOption = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the newest events, and with -f those that follow."""
    from agentguard.cli import views

    lookup.use(store, home)
    views.tail(run_id, tenant, lines, follow=follow, as_json=as_json)


@app.command(epilog="--json: {run_id, state}.")
def pause(
    run_id: RunArgument,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is recorded.")] = "",
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a run begin no further step until it is resumed; steps in flight finish."""
    from agentguard.cli import views

    lookup.use(store, home)
    views.pause(run_id, reason, as_json=as_json)


@app.command(epilog="--json: {run_id, state}.")
def resume(
    run_id: RunArgument, store: StoreOption = None, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Lift the pause of a run."""
    from agentguard.cli import views

    lookup.use(store, home)
    views.resume(run_id, as_json=as_json)


@app.command(epilog="--json: {ok, checks: [{check, status, detail}]}; status is ok, note or FAULT.")
def doctor(  # noqa: PLR0917 - Typer's options
    repair: Annotated[
        bool, typer.Option("--repair", help="Rebuild the kill page from the control log.")
    ] = False,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="With --repair: even where control records were lost.")
    ] = False,
    rebuild_ledger: Annotated[
        bool, typer.Option("--rebuild-ledger", help="Make the books of AGENTGUARD_LEDGER anew from the log.")
    ] = False,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check this installation, its state directory, store, ledger and kill switch; ends with 1 at a fault."""
    from agentguard.cli import checking

    lookup.use(store, home)
    code = checking.doctor(
        repair=repair, accept_loss=accept_loss, rebuild_ledger=rebuild_ledger, as_json=as_json
    )
    raise typer.Exit(code)


def _passed_on(ctx: typer.Context) -> None:
    # Only for --help and completion: `main` answers these two before Typer is imported.
    from agentguard.cli import kill

    raise typer.Exit(kill.main([str(ctx.info_name), *ctx.args]))


_UNTOUCHED: dict[str, Any] = {
    "add_help_option": False,
    "context_settings": {"ignore_unknown_options": True, "allow_extra_args": True},
}
app.command("kill", help="Stop a run, a tenant's runs, or everything.", **_UNTOUCHED)(_passed_on)
app.command("revive", help="Clear a kill, so that later runs may start.", **_UNTOUCHED)(_passed_on)
