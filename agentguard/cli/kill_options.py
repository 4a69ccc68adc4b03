"""The options of `agentguard kill` and `agentguard revive`, by the standard library alone."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from agentguard.tenancy import UNSET


def parser() -> argparse.ArgumentParser:
    """Return the parser of both commands."""
    both = argparse.ArgumentParser(prog="agentguard", allow_abbrev=False)
    commands = both.add_subparsers(dest="command", required=True)
    kill = commands.add_parser(
        "kill",
        allow_abbrev=False,
        help="stop a run, a tenant's runs, or everything",
        description="Stop a run, a tenant's runs, or, with neither named, everything under the "
        "home directory.",
    )
    kill.add_argument(
        "--yes", action="store_true", help="do not ask before stopping everything, or before --hard"
    )
    kill.add_argument(
        "--hard",
        action="store_true",
        help="end the processes that own such runs and do not stop: SIGTERM, then SIGKILL",
    )
    kill.add_argument(
        "--wait",
        action="store_true",
        help="wait, as long as --timeout says, until nothing goes on in the runs that were hit",
    )
    kill.add_argument(
        "--grace",
        type=_seconds,
        default=5.0,
        metavar="S",
        help="with --hard: seconds to stop in, before each signal (default: 5)",
    )
    kill.add_argument(
        "--timeout",
        type=_seconds,
        default=5.0,
        metavar="S",
        help="seconds to wait for acknowledgements (default: 5)",
    )
    revive = commands.add_parser(
        "revive",
        allow_abbrev=False,
        help="clear a kill",
        description="Clear the kills of a run, a tenant, or, with neither named, the global ones. "
        "Runs that were stopped stay stopped; later ones may start.",
    )
    for command in (kill, revive):
        _add_common(command)
    return both


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "runs", nargs="*", metavar="RUN", help="these runs: an id, 8 characters of it or more, or a name"
    )
    target = command.add_mutually_exclusive_group()
    target.add_argument(
        "--run", default=UNSET, metavar="ID", help="this run alone: its id, or 8 characters of it or more"
    )
    target.add_argument("--tenant", default=UNSET, metavar="T", help="all runs of this tenant")
    command.add_argument(
        "--reason", metavar="TEXT", help="why; it is recorded and shown (revive does not need one)"
    )
    command.add_argument("--actor", metavar="A", help="who (default: user@host)")
    command.add_argument(
        "--home", type=_folder, metavar="DIR", help="where the kill page lies (AGENTGUARD_HOME)"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")


def _folder(text: str) -> Path:
    if not text:  # as a variable of a shell that is not set
        raise argparse.ArgumentTypeError("must not be empty; leave it out for the default")
    return Path(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0 up")
    return seconds
