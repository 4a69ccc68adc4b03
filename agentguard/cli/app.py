"""The program `agentguard`: its commands by name, and how errors become exit codes.

Only the module of the command that was typed is imported; all of them for help and completion.
"""

from __future__ import annotations

import importlib
import platform
from typing import Annotated, Any

import typer

from agentguard.cli import exit_codes, output

#: The commands in the order of the help, each in a module of its name.
COMMANDS = (
    "demo",
    "show",
    "summary",
    "verify",
    "tail",
    "top",
    "pause",
    "resume",
    "end",
    "approvals",
    "approve",
    "deny",
    "tenants",
    "costs",
    "replay",
    "recover",
    "fork",
    "resolve",
    "diff",
    "set_budget",
    "what_if",
    "export",
    "erase",
    "prune",
    "migrate",
    "relay",
    "worker",
    "queue",
    "serve",
    "token",
    "alerts",
    "doctor",
)

_EXIT_CODES = "Exit codes:\n\n" + "\n".join(f"- {code}: {said}" for code, said in exit_codes.MEANING.items())

app = typer.Typer(
    name="agentguard",
    help="Look at guarded runs, stop them, and check that their logs are what was written.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; our own errors become a message."""
    register(arguments)
    return output.ended(lambda: app(args=arguments, prog_name="agentguard"))


def register(arguments: list[str] | None = None) -> None:
    """Import the module of the command that is called, or every one; each adds itself to `app`."""
    called = arguments[0].replace("-", "_") if arguments else ""
    names = (called,) if called in COMMANDS and not set(arguments or ()) & {"-h", "--help"} else COMMANDS
    for name in names:
        importlib.import_module(f"agentguard.cli.commands.{name}")


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


def _passed_on(ctx: typer.Context) -> None:
    # Only for --help, completion and after a global option: they are answered before Typer is imported.
    from agentguard import cli

    raise typer.Exit(cli.main([str(ctx.info_name), *ctx.args]))


def _runs(incomplete: str) -> list[tuple[str, str]]:
    from agentguard.cli import lookup

    return lookup.complete_run(incomplete)


def _passed_on_with_runs(
    ctx: typer.Context,
    named: Annotated[list[str] | None, typer.Argument(autocompletion=_runs)] = None,
) -> None:
    from agentguard import cli

    raise typer.Exit(cli.main([str(ctx.info_name), *(named or []), *ctx.args]))


_UNTOUCHED: dict[str, Any] = {
    "add_help_option": False,
    "context_settings": {"ignore_unknown_options": True, "allow_extra_args": True},
}
app.command("kill", help="Stop a run, a tenant's runs, or everything.", **_UNTOUCHED)(_passed_on_with_runs)
app.command("revive", help="Clear a kill, so that later runs may start.", **_UNTOUCHED)(_passed_on_with_runs)
app.command("runs", help="List runs, the newest first, or by what they spend.", **_UNTOUCHED)(_passed_on)
