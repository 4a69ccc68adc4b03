"""What `diff` and `what-if` do, and how a divergence is shown: the first difference, side by side."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import msgspec
from rich.table import Table
from rich.text import Text

from agentguard.audit.compare import Difference
from agentguard.budget.model import Budget
from agentguard.cli import exits, lookup, output, views
from agentguard.cli.timeline import Timeline
from agentguard.errors import ReplayDivergenceError
from agentguard.events import model as ev
from agentguard.guard import Guard

#: How many events of the log are shown before the place of a divergence.
_CONTEXT = 3
_BEGUN = (ev.STEP_STARTED, ev.STEP_REFUSED, ev.SCOPE_OPENED, ev.VALUE)
#: How many lines of a value are shown to people; `--json` gives all of it.
_LINES = 60


# --- a replay that differs -----------------------------------------------------------------------


def print_divergence(guard: Guard, run_id: str, error: ReplayDivergenceError) -> None:
    """Show the first difference of a program from its log, and where in the log it is."""
    at = f" at {error.key}" if error.key else ""
    views.print_lines(Text(f"NOT the same as run {run_id}: {error.kind}{at}", style="bold red"))
    output.console().print(side_by_side(("recorded", error.expected), ("now", error.found)))
    around = list(_around(guard, run_id, error.key))
    if around:
        views.print_lines(Text("in the log:", style="dim"), *around)


def _around(guard: Guard, run_id: str, key: str | None) -> Iterator[Text]:
    """The events up to the one that began `key`."""
    timeline = Timeline()
    shown: deque[Text] = deque(maxlen=_CONTEXT + 1)
    for entry in views.entries(run_id, guard.parts.store.read(run_id)):
        shown.extend(timeline.lines([entry]))
        if entry.event.key == key and entry.event.type in _BEGUN:
            yield from shown
            return


def side_by_side(left: tuple[str, Any], right: tuple[str, Any]) -> Table:
    """Two values in two columns, those lines marked that differ."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for title, _ in (left, right):
        table.add_column(title, overflow="fold", ratio=1)
    lines = list(zip_longest(_lines(left[1]), _lines(right[1]), fillvalue=""))
    for one, other in lines[:_LINES]:
        mark, style = ("", "") if one == other else ("≠", "red")
        table.add_row(*(Text(cell, style=style) for cell in (mark, one, other)))
    if len(lines) > _LINES:
        table.add_row("", f"… {len(lines) - _LINES} more lines; --json shows all", "")
    return table


def _lines(value: Any) -> list[str]:
    if not isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False, default=str)
        value = text if len(text) <= 60 else json.dumps(value, ensure_ascii=False, default=str, indent=2)
    return output.printable(value).splitlines() or [""]


# --- diff ----------------------------------------------------------------------------------------


def diff(typed_a: str, typed_b: str, *, as_json: bool) -> int:
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
        return exits.FAULT if found else exits.OK
    if not found:
        views.print_lines(Text(f"the same: {a} and {b}", style="green"))
    for one in found.differences:
        _print_difference(one, (a, b))
    if found.timing:
        count = len(found.timing)
        calls = "call" if count == 1 else "calls"
        said = f"{count} {calls} that only one of them still made before its stop: timing, no difference"
        views.print_lines(Text(said, style="dim"))
    return exits.FAULT if found else exits.OK


def _difference(found: Difference) -> dict[str, Any]:
    return {name: _text(getattr(found, name)) for name in found.__struct_fields__}


def _text(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def _print_difference(found: Difference, runs: Sequence[str]) -> None:
    where = f" at {found.key or '?'} (call {found.pos} of branch {found.branch})" if found.branch else ""
    views.print_lines(Text(output.one_line(f"{found.kind}{where}"), style="bold red"))
    a, b = (value if value is not None else "(nothing)" for value in (_text(found.a), _text(found.b)))
    output.console().print(side_by_side((runs[0], a), (runs[1], b)))


# --- what-if -------------------------------------------------------------------------------------


def what_if(typed: str, limits: dict[str, Any], *, as_json: bool) -> int:
    """Fold a run under another budget; gives the exit code."""
    if not limits:
        raise exits.UsageError("name a limit: --usd, --tokens, --steps, --seconds or --counter NAME=N")
    with lookup.reading() as guard:
        run_id = lookup.find_run(guard, typed)
        found = guard.what_if(run_id, Budget(**limits))
    if as_json:
        output.print_json({"run_id": run_id, **msgspec.structs.asdict(found)})
    else:
        style = "red" if found else "green" if found.unknown_beyond is None else "yellow"
        views.print_lines(Text(f"run {run_id} {found}", style=style))
    return exits.FAULT if found else exits.OK


def limits_of(
    usd: str | None, tokens: int | None, steps: int | None, seconds: float | None, counters: Sequence[str]
) -> dict[str, Any]:
    """The limits that were typed, as the fields of a Budget.

    Raises:
        UsageError: one of them cannot be a limit.
    """
    named = {"usd": usd, "tokens": tokens, "steps": steps, "seconds": seconds}
    limits: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    for counter in counters:
        name, _, number = counter.partition("=")
        if not name or not number.isdigit():
            raise exits.UsageError(f"--counter {counter!r} is not NAME=N, as in emails=3")
        limits[name] = int(number)
    try:
        Budget(**limits)
    except (TypeError, ValueError) as error:
        raise exits.UsageError(str(error)) from error
    return limits
