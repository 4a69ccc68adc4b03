"""`agentguard deny`: refuse a step that waits."""

from __future__ import annotations

from agentguard.cli import lookup
from agentguard.cli.app import app
from agentguard.cli.commands.approve import decide
from agentguard.cli.options import (
    ActorOption,
    AskedOption,
    HomeOption,
    JsonOption,
    KeyArgument,
    ReasonOption,
    RunArgument,
    StoreOption,
)


@app.command(epilog="--json: {run_id, key, decision}.")
def deny(
    *,
    run_id: RunArgument,
    key: KeyArgument = None,
    asked: AskedOption = None,
    reason: ReasonOption = None,
    actor: ActorOption = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse a step that waits; its run goes on."""
    lookup.use(store, home)
    decide(run_id, key, reason, actor, granted=False, asked=asked, as_json=as_json)
