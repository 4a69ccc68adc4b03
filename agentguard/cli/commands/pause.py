"""`agentguard pause`."""

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
def pause(
    *,
    run_id: RunArgument,
    reason: ReasonOption = None,
    actor: ActorOption = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a run begin no further step until it is resumed; steps in flight finish."""
    lookup.use(store, home)
    with lookup.acting() as guard:
        found = lookup.find_run(guard, run_id)
        guard.pause(found, reason=reason or "", actor=actor)
        output.say_state(guard, found, "paused; steps in flight finish, no other begins", as_json=as_json)
