"""`agentguard what-if`: where another budget would have stopped a run."""

from __future__ import annotations

from typing import Any

import msgspec
import typer
from rich.text import Text

from agentguard.budget.model import Budget
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
    HomeOption,
    JsonOption,
    RunArgument,
    StoreOption,
)


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
    lookup.use(store, home)
    limits = limits_of(usd, tokens, steps, seconds, counter or [])
    raise typer.Exit(_what_if(run_id, limits, as_json=as_json))


def _what_if(typed: str, limits: dict[str, Any], *, as_json: bool) -> int:
    """Fold a run under another budget; gives the exit code."""
    if not limits:
        raise exit_codes.UsageError("name a limit: --usd, --tokens, --steps, --seconds or --counter NAME=N")
    with lookup.reading() as guard:
        run_id = lookup.find_run(guard, typed)
        found = guard.what_if(run_id, Budget(**limits))
    if as_json:
        output.print_json({"run_id": run_id, **msgspec.structs.asdict(found)})
    else:
        style = "red" if found else "green" if found.unknown_beyond is None else "yellow"
        output.print_lines(Text(f"run {run_id} {found}", style=style))
    return exit_codes.FAULT if found else exit_codes.OK
