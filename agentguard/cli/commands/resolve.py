"""`agentguard resolve`: what became of a step without an outcome."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

import typer

from agentguard.budget.model import Usage
from agentguard.cli import exit_codes, lookup, output
from agentguard.cli.app import app
from agentguard.cli.options import (
    HomeOption,
    JsonOption,
    RunArgument,
    StoreOption,
)
from agentguard.replay.resolving import Resolution


class Outcome(StrEnum):
    """What an operator may say of a step."""

    RETRY = "retry"
    COMPLETED = "completed"
    FAILED = "failed"


@app.command(epilog="--json: {run_id, key, outcome, state}.")
def resolve(
    *,
    run_id: RunArgument,
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="The step's key, as `show` prints it.", show_default=False)
    ],
    outcome: Annotated[
        Outcome,
        typer.Argument(
            help="retry: it did not happen; completed: it did, with --result; failed: it did not work.",
            show_default=False,
        ),
    ],
    result: Annotated[
        str | None,
        typer.Option("--result", metavar="JSON", help="What it gave; of a failed step, a message."),
    ] = None,
    free: Annotated[
        bool, typer.Option("--free", help="It cost nothing; else it is charged what it had reserved.")
    ] = False,
    actor: Annotated[
        str | None, typer.Option("--actor", metavar="A", help="Who says so; by default user@host.")
    ] = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what became of a step that started and left no outcome, or whose result cannot be read back."""
    lookup.use(store, home)
    _resolve(run_id, key, outcome.value, result, actor, free=free, as_json=as_json)


def _resolve(
    typed: str,
    key: str,
    outcome: Resolution,
    result: str | None,
    actor: str | None,
    *,
    free: bool,
    as_json: bool,
) -> None:
    """Put on record what became of a step."""
    given = _result(outcome, result)
    with lookup.acting() as guard:
        run_id = lookup.find_run(guard, typed)
        guard.resolve(run_id, key, outcome, result=given, usage=Usage() if free else None, actor=actor)
        state = guard.reconstruct(run_id).state
    if as_json:
        output.print_json({"run_id": run_id, "key": key, "outcome": outcome, "state": str(state)})
    else:
        print(
            output.one_line(f"on record: {key} of run {run_id} is to count as {outcome}; the run is {state}")
        )
        if not state.final:
            print(output.one_line(f"  carry it on with: agentguard recover {run_id} --module pkg.mod:fn"))


def _result(outcome: str, text: str | None) -> Any:
    if text is None:
        return None
    if outcome == "retry":
        raise exit_codes.UsageError("--result goes with completed or failed")
    try:
        return json.loads(text)
    except ValueError as error:
        if outcome == "failed":
            return text
        raise exit_codes.UsageError(
            f"--result is no JSON ({error}); text is quoted twice, as in '\"text\"'"
        ) from error
