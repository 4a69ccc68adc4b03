"""The program `agentguard`: its commands by name, and how errors become exit codes.

Only the module of the command that was typed is imported; all of them for help and completion.
"""

from __future__ import annotations

import importlib
import platform
from typing import Annotated

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
    return output.ended(lambda: app(args=arguments, prog_name="agentguard", obj=arguments))


def register(arguments: list[str] | None = None) -> None:
    """Import the module of the command that is called, or every one; each adds itself to `app`."""
    called = arguments[0].replace("-", "_") if arguments else ""
    if called in COMMANDS and not set(arguments or ()) & {"-h", "--help"}:
        importlib.import_module(f"agentguard.cli.commands.{called}")
        return
    for name in COMMANDS:
        importlib.import_module(f"agentguard.cli.commands.{name}")
    importlib.import_module("agentguard.cli.early")


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
