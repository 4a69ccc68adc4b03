"""`agentguard diff`: two runs, branch by branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.text import Text

from agentguard.audit.compare import Difference
from agentguard.cli import exit_codes, lookup, output
from agentguard.cli.app import app
from agentguard.cli.differences import side_by_side
from agentguard.cli.options import (
    HomeOption,
    JsonOption,
    StoreOption,
)


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
    lookup.use(store, home)
    raise typer.Exit(_diff(run_a, run_b, as_json=as_json))


def _diff(typed_a: str, typed_b: str, *, as_json: bool) -> int:
    """Compare two runs; gives the exit code."""
    with lookup.reading() as guard:
        a, b = (lookup.find_run(guard, typed) for typed in (typed_a, typed_b))
        found = guard.diff(a, b)
    if as_json:
        output.print_json(
            {
                "a": a,
                "b": b,
                "same": not found,
                "differences": [_difference(one) for one in found.differences],
                "timing": [_difference(one) for one in found.timing],
            }
        )
        return exit_codes.FAULT if found else exit_codes.OK
    if not found:
        output.print_lines(Text(f"the same: {a} and {b}", style="green"))
    for one in found.differences:
        _print_difference(one, (a, b))
    if found.timing:
        count = len(found.timing)
        calls = "call" if count == 1 else "calls"
        said = f"{count} {calls} that only one of them still made before its stop: timing, no difference"
        output.print_lines(Text(said, style="dim"))
    return exit_codes.FAULT if found else exit_codes.OK


def _difference(found: Difference) -> dict[str, Any]:
    return {name: _text(getattr(found, name)) for name in found.__struct_fields__}


def _text(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def _print_difference(found: Difference, runs: Sequence[str]) -> None:
    where = f" at {found.key or '?'} (call {found.pos} of branch {found.branch})" if found.branch else ""
    output.print_lines(Text(output.one_line(f"{found.kind}{where}"), style="bold red"))
    a, b = (value if value is not None else "(nothing)" for value in (_text(found.a), _text(found.b)))
    output.console().print(side_by_side((runs[0], a), (runs[1], b)))
