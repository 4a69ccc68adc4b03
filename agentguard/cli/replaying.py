"""The commands that run again: replay, recover, fork, resolve, diff, what-if."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from agentguard.cli import lookup
from agentguard.cli.app import HomeOption, JsonOption, RunArgument, StoreOption, app
from agentguard.cli.operating import run

__all__ = ["run"]

_HOW = "pkg.mod:fn or file.py:fn; called as its run was: with its arguments if @guard.run made it a run, "
_HOW += "else as fn(run, inputs), fn(run) or fn()."
ModuleOption = Annotated[
    str | None, typer.Option("--module", "-m", metavar="MOD:FN", help=f"The program: {_HOW}")
]
UsdOption = Annotated[str | None, typer.Option("--usd", metavar="USD", help="At most so much money.")]
TokensOption = Annotated[int | None, typer.Option("--tokens", metavar="N", help="At most so many tokens.")]
StepsOption = Annotated[int | None, typer.Option("--steps", metavar="N", help="At most so many steps.")]
SecondsOption = Annotated[float | None, typer.Option("--seconds", metavar="S", help="At most so long.")]
CounterOption = Annotated[
    list[str] | None,
    typer.Option("--counter", metavar="NAME=N", help="At most so many, as emails=3; may be repeated."),
]


class Outcome(StrEnum):
    """What an operator may say of a step."""

    RETRY = "retry"
    COMPLETED = "completed"
    FAILED = "failed"


@app.command(
    epilog="--json: {run_id, intact, faults, state, replayed, steps, result, error, divergence: null or "
    "{kind, key, expected, found}}; what the program prints goes to standard error then."
)
def replay(
    *,
    run_id: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="The run; not needed for an export of one.",
            show_default=False,
            autocompletion=lookup.complete_run,
        ),
    ] = None,
    module: ModuleOption = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Read an export instead of the store.",
        ),
    ] = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run an agent again on its log, with no side effects; ends with 1 at the first difference.

    No step body runs: what is on record comes back.  Without --module, the log is checked, added up and
    shown.  With --export, this works on another machine, without keys or network.
    """
    from agentguard.cli import rerunning

    lookup.use(store, home)
    raise typer.Exit(rerunning.replay(run_id, module, export, as_json=as_json))


@app.command(epilog="--json: {run, result, error, divergence}; `run` is its summary.")
def recover(
    *,
    run_id: RunArgument,
    module: Annotated[str, typer.Option("--module", "-m", metavar="MOD:FN", help=f"The program: {_HOW}")],
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
    from agentguard.cli import rerunning

    lookup.use(store, home)
    raise typer.Exit(rerunning.recover(run_id, module, take_over=take_over, as_json=as_json))


@app.command(epilog="--json: {run, result, error, divergence}; `run` is the fork's summary.")
def fork(
    *,
    run_id: RunArgument,
    at: Annotated[int, typer.Option("--at", metavar="SEQ", min=1, help="The last event that is shared.")],
    module: ModuleOption = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="What the fork is called.")
    ] = None,
    new_id: Annotated[str | None, typer.Option("--id", metavar="ID", help="The fork's id.")] = None,
    usd: UsdOption = None,
    tokens: TokensOption = None,
    steps: StepsOption = None,
    seconds: SecondsOption = None,
    counter: CounterOption = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Begin a new run with the first events of another one, under its budget or a changed one.

    Without --module, it is put on record for a program to recover.
    """
    from agentguard.cli import differing, rerunning

    lookup.use(store, home)
    limits = differing.limits_of(usd, tokens, steps, seconds, counter or [])
    raise typer.Exit(
        rerunning.fork(run_id, rerunning.Forked(at, limits, name, new_id), module, as_json=as_json)
    )


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
    actor: Annotated[
        str | None, typer.Option("--actor", metavar="A", help="Who says so; by default user@host.")
    ] = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what became of a step that started and left no outcome, or whose result cannot be read back."""
    from agentguard.cli import resolving

    lookup.use(store, home)
    resolving.resolve(run_id, key, outcome.value, result, actor, as_json=as_json)


@app.command(epilog="--json: {a, b, same, differences: [{kind, branch, pos, key, a, b}], timing}.")
def diff(
    run_a: Annotated[
        str,
        typer.Argument(metavar="A", help="A run.", autocompletion=lookup.complete_run, show_default=False),
    ],
    run_b: Annotated[
        str,
        typer.Argument(
            metavar="B", help="Another one.", autocompletion=lookup.complete_run, show_default=False
        ),
    ],
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two runs, branch by branch in the order of calls; ends with 1 if they differ.

    Calls, arguments, effects, outcomes and the end are compared; not times, costs or the order over branches.
    """
    from agentguard.cli import differing

    lookup.use(store, home)
    raise typer.Exit(differing.diff(run_a, run_b, as_json=as_json))


@app.command(
    "what-if",
    epilog="--json: {run_id, would_stop, seq, key, resource, limit, spent, requested, unknown_beyond}.",
)
def what_if(
    *,
    run_id: RunArgument,
    usd: UsdOption = None,
    tokens: TokensOption = None,
    steps: StepsOption = None,
    seconds: SecondsOption = None,
    counter: CounterOption = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether and where another budget would have stopped a run; ends with 1 if it would.

    Nothing is run.  Beyond the place where the run itself was stopped, nobody can tell.
    """
    from agentguard.cli import differing

    lookup.use(store, home)
    limits = differing.limits_of(usd, tokens, steps, seconds, counter or [])
    raise typer.Exit(differing.what_if(run_id, limits, as_json=as_json))
