"""`agentguard erase`: drop what was captured of a run."""

from __future__ import annotations

import typer

from agentguard.cli import exit_codes, lookup, output
from agentguard.cli.app import app
from agentguard.cli.options import (
    ActorOption,
    HomeOption,
    JsonOption,
    RunArgument,
    StoreOption,
    YesOption,
)


@app.command(epilog="--json: {run_id, payloads}.")
def erase(
    *,
    run_id: RunArgument,
    yes: YesOption = False,
    actor: ActorOption = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drop the captured arguments and results of an ended run for good; its log still verifies."""
    lookup.use(store, home)
    raise typer.Exit(_erase(run_id, actor, sure=yes, as_json=as_json))


def _erase(typed: str, actor: str | None, *, sure: bool, as_json: bool) -> int:
    """Erase the payloads of a run, and give the exit code."""
    with lookup.acting() as guard:
        run_id = lookup.find_run(guard, typed)
        summary = guard.summary(run_id)
        question = f"This erases all that was captured of run {run_id} ({summary.name}), for good."
        if not output.confirmed(question, "erase", sure=sure):
            return exit_codes.FAULT
        dropped = guard.erase(run_id, actor=actor)
    if as_json:
        output.print_json({"run_id": run_id, "payloads": dropped})
    else:
        print(output.one_line(f"erased {dropped:,} payloads of run {run_id}; its log still verifies"))
    return exit_codes.OK
