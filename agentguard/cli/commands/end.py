"""`agentguard end`: end a run that nobody will end."""

from __future__ import annotations

from typing import Annotated

import typer

from agentguard.cli import exit_codes, lookup, output
from agentguard.cli.app import app
from agentguard.cli.options import ActorOption, HomeOption, JsonOption, ReasonOption, RunArgument, StoreOption
from agentguard.errors import RunGivenUpError
from agentguard.killswitch.kill_requests import default_actor
from agentguard.runs.state import RunState


@app.command(epilog="--json: {run_id, state}.")
def end(
    *,
    run_id: RunArgument,
    failed: Annotated[
        str | None,
        typer.Option("--failed", metavar="TEXT", help="End it as FAILED, with this message; else COMPLETED."),
    ] = None,
    reason: ReasonOption = None,
    actor: ActorOption = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a run that nobody owns: one that was joined, or one whose process is gone."""
    lookup.use(store, home)
    if failed == "":
        raise exit_codes.UsageError(
            "--failed is ''; say what went wrong, or leave it out to end it as COMPLETED"
        )
    error = None if failed is None else RunGivenUpError(failed)
    with lookup.acting() as guard:
        found = lookup.find_run(guard, run_id)
        before = guard.summary(found).state
        state = guard.end(found, error=error, reason=reason or "", actor=actor or default_actor())
        said = f"had ended before: {state}" if before.final else f"ended: {state}"
        output.say_state(guard, found, said, as_json=as_json)
    if state is not (RunState.COMPLETED if error is None else RunState.FAILED):
        raise typer.Exit(exit_codes.FAULT)
