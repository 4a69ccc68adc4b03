"""`agentguard recover`: carry on a crashed run."""

from __future__ import annotations

from typing import Annotated

import typer

from agentguard.cli import execution, lookup
from agentguard.cli.app import app
from agentguard.cli.options import (
    HomeOption,
    JsonOption,
    RunArgument,
    StoreOption,
)
from agentguard.cli.program import HOW, load_program, own_guard


@app.command(epilog="--json: {run, result, error, divergence}; `run` is its summary.")
def recover(
    *,
    run_id: RunArgument,
    module: Annotated[str, typer.Option("--module", "-m", metavar="MOD:FN", help=f"The program: {HOW}")],
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Even if its process lives, or cannot be told to be dead.")
    ] = False,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Carry on a crashed run: what is on record is not run again, the rest is.

    Ends with 6 where a step may have happened and `agentguard resolve` has to say so; with 1 where the
    run's process lives, the program is another one, or the run fails.
    """
    lookup.use(store, home)
    raise typer.Exit(_recover(run_id, module, take_over=take_over, as_json=as_json))


def _recover(typed: str, target: str, *, take_over: bool, as_json: bool) -> int:
    """Carry on a crashed run with a program; gives the exit code."""
    program = load_program(target)
    with lookup.acting() as plain:
        run_id = lookup.find_run(plain, typed)
        guard = own_guard(program, plain.components.store.url) or plain
        before = guard.reconstruct(run_id).steps
        run = guard.recover(run_id, take_over=take_over)
        ending = execution.execute(guard, program, run, as_json=as_json)
        return execution.say_carried_on("recovered", guard, run, ending, before, as_json=as_json)
