"""`agentguard worker`: carry out submitted runs."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from agentguard import _optional
from agentguard.cli import lookup, output
from agentguard.cli.app import app
from agentguard.cli.exit_codes import UsageError
from agentguard.cli.options import HomeOption, JsonOption, StoreOption
from agentguard.guard import Guard
from agentguard.program import load


@app.command(
    epilog="It runs until SIGTERM or Ctrl-C; the second ends it at once.  --json: its log, an object a line."
)
def worker(
    *,
    target: Annotated[
        str,
        typer.Option(
            "--app", "-a", metavar="MOD:GUARD", help="The guard, as pkg.mod:guard or file.py:guard."
        ),
    ],
    queue: Annotated[
        list[str] | None,
        typer.Option("--queue", "-q", metavar="Q", help="Runs of this queue alone; may be repeated [all]."),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", metavar="N", help="How many runs at a time.")
    ] = 4,
    heartbeat: Annotated[
        float, typer.Option("--heartbeat", metavar="S", help="Seconds between two signs of life.")
    ] = 5.0,
    stalled_after: Annotated[
        float,
        typer.Option(
            "--stalled-after",
            metavar="S",
            help="Seconds of silence after which a worker's runs are taken over.",
        ),
    ] = 15.0,
    drain_timeout: Annotated[
        float,
        typer.Option("--drain-timeout", metavar="S", help="Seconds that steps in flight have on SIGTERM."),
    ] = 25.0,
    most_deaths: Annotated[
        int,
        typer.Option("--most-deaths", metavar="N", help="End a run in which so many workers have died."),
    ] = 5,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow", metavar="MOD", help="Call functions of this module, or package, alone [all]."
        ),
    ] = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take submitted runs out of the queue and carry them out, those of workers that died included."""
    _optional.check("procrastinate", extra="workers", feature="agentguard worker")
    from agentguard.workers.worker import Worker, WorkerOptions

    lookup.use(store, home)  # before the guard of the app looks
    output.log(as_json=as_json)
    logging.getLogger("procrastinate").setLevel(logging.CRITICAL)  # what it says, ours say of runs
    try:
        options = WorkerOptions(
            queues=tuple(queue or ()),
            concurrency=concurrency,
            heartbeat=heartbeat,
            stalled_after=stalled_after,
            drain_timeout=drain_timeout,
            most_deaths=most_deaths,
            allowed=tuple(allow or ()),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    guard, _ = load(target)
    if not isinstance(guard, Guard):
        raise UsageError(f"--app {target} is no Guard but a {type(guard).__name__}")
    all_returned = Worker(guard.runtime, options).run()
    if not all_returned:  # a function that heeds nothing; its run is let go, and it can write nothing more
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    guard.close()
