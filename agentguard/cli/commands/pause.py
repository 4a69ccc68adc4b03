"""`agentguard pause`."""

from __future__ import annotations

from typing import Annotated

import typer

from agentguard.cli import lookup, output
from agentguard.cli.app import app
from agentguard.cli.options import (
    HomeOption,
    JsonOption,
    RunArgument,
    StoreOption,
)


@app.command(epilog="--json: {run_id, state}.")
def pause(
    run_id: RunArgument,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is recorded.")] = "",
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a run begin no further step until it is resumed; steps in flight finish."""
    lookup.use(store, home)
    _pause(run_id, reason, as_json=as_json)


def _pause(typed: str, reason: str, *, as_json: bool) -> None:
    """Pause a run."""
    with lookup.acting() as guard:
        run_id = lookup.find_run(guard, typed)
        guard.pause(run_id, reason=output.printable(reason))
        output.say_state(guard, run_id, "paused; steps in flight finish, no other begins", as_json=as_json)
