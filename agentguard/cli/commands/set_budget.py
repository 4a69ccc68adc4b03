"""`agentguard set-budget`: another budget for a live run."""

from __future__ import annotations

from typing import Annotated

import typer

from agentguard.cli import exit_codes, lookup, output
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
    ActorOption,
    HomeOption,
    JsonOption,
    ReasonOption,
    RunArgument,
    StoreOption,
)


@app.command("set-budget", epilog="--json: {run_id, state}.")
def set_budget(
    *,
    run_id: RunArgument,
    usd: UsdOption = None,
    tokens: TokensOption = None,
    steps: StepsOption = None,
    seconds: SecondsOption = None,
    counter: CounterOption = None,
    asked: Annotated[
        str | None,
        typer.Option("--asked", metavar="KEY", help="Only while this step, or event, asks for more."),
    ] = None,
    reason: ReasonOption = None,
    actor: ActorOption = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change limits of a live run from now on; those that are not named stay as they are."""
    lookup.use(store, home)
    limits = limits_of(usd, tokens, steps, seconds, counter or [])
    if not limits:
        raise exit_codes.UsageError("name a limit: --usd, --tokens, --steps, --seconds or --counter NAME=N")
    with lookup.acting() as guard:
        found = lookup.find_run(guard, run_id)
        question = int(asked) if asked is not None and asked.isdecimal() else asked
        guard.set_budget(found, limits, asked=question, reason=reason or "", actor=actor)
        budget = guard.summary(found).budget
        output.say_state(guard, found, f"has the budget {budget}", as_json=as_json)
