"""`agentguard resume`."""

from __future__ import annotations

from agentguard.cli import lookup, output
from agentguard.cli.app import app
from agentguard.cli.options import (
    HomeOption,
    JsonOption,
    RunArgument,
    StoreOption,
)


@app.command(epilog="--json: {run_id, state}.")
def resume(
    run_id: RunArgument, store: StoreOption = None, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Lift the pause of a run."""
    lookup.use(store, home)
    _resume(run_id, as_json=as_json)


def _resume(typed: str, *, as_json: bool) -> None:
    """Lift a run's pause."""
    with lookup.acting() as guard:
        run_id = lookup.find_run(guard, typed)
        guard.resume(run_id)
        output.say_state(guard, run_id, "resumed", as_json=as_json)
