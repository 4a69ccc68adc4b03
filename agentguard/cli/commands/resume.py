"""`agentguard resume`."""

from __future__ import annotations

from agentguard.cli import lookup, output
from agentguard.cli.app import app
from agentguard.cli.options import (
    ActorOption,
    HomeOption,
    JsonOption,
    ReasonOption,
    RunArgument,
    StoreOption,
)


@app.command(epilog="--json: {run_id, state}.")
def resume(
    *,
    run_id: RunArgument,
    reason: ReasonOption = None,
    actor: ActorOption = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Lift the pause of a run."""
    lookup.use(store, home)
    with lookup.acting() as guard:
        found = lookup.find_run(guard, run_id)
        guard.resume(found, reason=reason or "", actor=actor)
        output.say_state(guard, found, "resumed", as_json=as_json)
