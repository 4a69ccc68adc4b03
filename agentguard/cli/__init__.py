"""The command `agentguard`.

`kill` and `revive` are answered before anything else is imported, so that they start fast and work
without the `cli` extra.  `runs` is answered before Typer is, which loads longer than all that it needs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Example:
        >>> main(["--version"])  # doctest: +ELLIPSIS
        agentguard ...
        0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, stream) is None:  # closed by who called; no file of ours must take its number
            setattr(sys, stream, open(os.devnull, mode))  # noqa: SIM115, PTH123
    if arguments and arguments[0] in ("kill", "revive"):
        from agentguard.cli.commands import kill

        return kill.main(arguments)

    from agentguard._optional import MissingExtraError, check

    try:
        for package in ("typer", "rich"):
            check(package, extra="cli", feature="the command line")
    except MissingExtraError as error:
        print(f"agentguard: {error} (only kill and revive work without)", file=sys.stderr)
        return 1
    if arguments and arguments[0] == "runs":
        from agentguard.cli.commands import runs

        return runs.main(arguments[1:])

    from agentguard.cli import app

    return app.run(arguments)
