"""`agentguard queue`: how long the queues of submitted runs are."""

from __future__ import annotations

from typing import Annotated

import typer

from agentguard.cli import lookup, output, tables
from agentguard.cli.app import app
from agentguard.cli.options import JsonOption, StoreOption
from agentguard.protocols import QueueDepth


@app.command(epilog="--json: an array of {queue, waiting, delayed, running, oldest_seconds}.")
def queue(
    name: Annotated[
        str | None, typer.Argument(metavar="[QUEUE]", help="This queue alone.", show_default=False)
    ] = None,
    *,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how many submitted runs wait, come again later and are running: for people and autoscalers."""
    lookup.use(store, None)
    with lookup.reading() as guard:
        found = [depth for depth in guard.queue() if name in (None, depth.queue)]
    if name is not None and not found:
        found = [QueueDepth(name, 0, 0, 0, 0.0)]
    if as_json:
        output.print_json([depth._asdict() for depth in found])
        return
    console = output.console()
    if not found:
        console.print("no submitted run waits, and none is running")
        return
    table = tables.table(("queue", "waiting", "delayed", "running", "oldest"))
    for depth in found:
        oldest = f"{depth.oldest_seconds:.0f} s" if depth.waiting else ""
        tables.add(table, depth.queue, str(depth.waiting), str(depth.delayed), str(depth.running), oldest)
    console.print(table)
