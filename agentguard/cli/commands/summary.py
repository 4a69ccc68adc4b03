"""`agentguard summary`: a run in a few lines."""

from __future__ import annotations

from agentguard.cli import lookup, output, tables
from agentguard.cli.app import app
from agentguard.cli.options import (
    HomeOption,
    JsonOption,
    RunArgument,
    StoreOption,
    UtcOption,
)


@app.command(epilog="--json: the run's summary.")
def summary(
    *,
    run_id: RunArgument,
    utc: UtcOption = False,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say in a few lines what a run came to."""
    lookup.use(store, home)
    _summarize(run_id, as_json=as_json)


def _summarize(typed: str, *, as_json: bool) -> None:
    """Say what a run came to."""
    with lookup.looking() as guard:
        found = guard.summary(lookup.find_run(guard, typed))
    if as_json:
        output.print_json(found.to_data())
    else:
        tables.print_summary(output.console(), found)
