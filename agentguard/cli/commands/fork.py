"""`agentguard fork`: a new run that begins with the first events of another."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import typer

from agentguard.budget.model import Budget
from agentguard.cli import execution, exit_codes, lookup, output
from agentguard.cli.app import app
from agentguard.cli.limits import (
    CounterOption,
    SecondsOption,
    StepsOption,
    TokensOption,
    UsdOption,
    limits_of,
)
from agentguard.cli.options import (
    HomeOption,
    JsonOption,
    RunArgument,
    StoreOption,
)
from agentguard.cli.program import ModuleOption, load_program, own_guard
from agentguard.sessions.resumed import ResumedSession


class Forked(NamedTuple):
    """What a fork is to be: `limits` are those that change."""

    at: int
    limits: dict[str, Any]
    name: str | None
    new_id: str | None


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
    lookup.use(store, home)
    limits = limits_of(usd, tokens, steps, seconds, counter or [])
    raise typer.Exit(_fork(run_id, Forked(at, limits, name, new_id), module, as_json=as_json))


def _fork(typed: str, wanted: Forked, target: str | None, *, as_json: bool) -> int:
    """Fork a run: with a program, carry it on; without, leave it for one to recover."""
    program = None if target is None else load_program(target)
    with lookup.acting() as plain:
        run_id = lookup.find_run(plain, typed)
        guard = plain if program is None else own_guard(program, plain.components.store.url) or plain
        budget = _changed(guard.reconstruct(run_id).budget, wanted.limits)
        try:
            run = guard.fork(run_id, wanted.at, budget=budget, name=wanted.name, new_run_id=wanted.new_id)
        except ValueError as error:
            raise exit_codes.UsageError(str(error)) from error
        if program is not None:
            ending = execution.execute(guard, program, run, as_json=as_json)
            return execution.say_carried_on("forked", guard, run, ending, 0, as_json=as_json)
        session = run.session
        assert isinstance(session, ResumedSession)  # noqa: S101 - `fork` gives nothing else
        session.give_back(session.open())
        if as_json:
            execution.print_carried_on(guard, run.id, execution.Ending())
        else:
            print(
                output.one_line(
                    f"run {run.id} shares events 1 to {wanted.at} of run {run_id}; carry it on with"
                )
            )
            print(f"  agentguard recover {run.id} --module pkg.mod:fn")
        return exit_codes.OK


def _changed(budget: Budget, limits: dict[str, Any]) -> Budget | None:
    """The origin's budget with some limits changed."""
    return Budget.from_fields(budget.to_fields() | Budget(**limits).to_fields()) if limits else None
