"""How a difference is shown: the first one of a replay, and two values side by side."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from rich.table import Table
from rich.text import Text

from agentguard.cli import output, timeline
from agentguard.errors import ReplayDivergenceError
from agentguard.events import model as ev
from agentguard.guard import Guard

#: How many events of the log are shown before the place of a divergence.
_CONTEXT = 3


_BEGUN = (ev.STEP_STARTED, ev.STEP_REFUSED, ev.SCOPE_OPENED, ev.VALUE)


#: How many lines of a value are shown to people; `--json` gives all of it.
_LINES = 60


def print_divergence(guard: Guard, run_id: str, error: ReplayDivergenceError) -> None:
    """Show the first difference of a program from its log, and where in the log it is."""
    at = f" at {error.key}" if error.key else ""
    output.print_lines(Text(f"NOT the same as run {run_id}: {error.kind}{at}", style="bold red"))
    output.console().print(side_by_side(("recorded", error.expected), ("now", error.found)))
    around = list(_around(guard, run_id, error.key))
    if around:
        output.print_lines(Text("in the log:", style="dim"), *around)


def _around(guard: Guard, run_id: str, key: str | None) -> Iterator[Text]:
    """The events up to the one that began `key`."""
    lines = timeline.Timeline()
    shown: deque[Text] = deque(maxlen=_CONTEXT + 1)
    for entry in timeline.entries(run_id, guard.components.store.read(run_id)):
        shown.extend(lines.lines([entry]))
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
