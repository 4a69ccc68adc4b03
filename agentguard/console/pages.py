"""The pages: each handler reads or acts, and renders one template.  All work without JavaScript."""

from __future__ import annotations

import csv
import io
from datetime import date, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import quote, urlencode

from starlette.responses import RedirectResponse, Response

from agentguard.audit.cost_book import BOOK_KEYS
from agentguard.audit.costs import CostLine, csv_cell
from agentguard.audit.verify import parse_anchor
from agentguard.budget.model import Budget
from agentguard.console import charts
from agentguard.console.auth import ConsoleError
from agentguard.console.calls import Call, parse_limits, parse_number
from agentguard.console.confirming import check_scope
from agentguard.console.data import CALLS, LIVE_SHOWN, Hit
from agentguard.console.rendering import page
from agentguard.console.run_list import LOOKED_THROUGH, SORTS, RunFilter
from agentguard.console.tokens import Role
from agentguard.events.model import CONTROL_RUN_ID, Head
from agentguard.protocols import RunRow
from agentguard.runs.state import RunState

#: How many lines a table of costs has, how many of them a picture, and of how many days.
MOST_LINES, PICTURED, _DAYS = 1000, 8, 60


def overview(call: Call) -> Response:
    """The present: kills, approvals, live runs, tenants."""
    return page("overview.html", call.who, now=call.console.now(call.who), shown=LIVE_SHOWN)


def runs(call: Call) -> Response:
    """Runs by filters, the newest first or sorted."""
    wanted = RunFilter(*map(call.query, RunFilter._fields))
    found = call.console.runs(call.who, wanted, call.query("after"))
    named = {name: value for name, value in wanted._asdict().items() if value}
    more = None if found.after is None else "/runs?" + urlencode({**named, "after": found.after})
    states = [str(state) for state in RunState]
    return page(
        "runs.html",
        call.who,
        found=found,
        more=more,
        states=states,
        sorts=SORTS,
        wanted=wanted,
        looked_through=LOOKED_THROUGH,
    )


def run(call: Call) -> Response:
    """One run: how it stands, what can be done, its events."""
    console, who = call.console, call.who
    row = console.row(who, call.path("run_id"))
    if other := call.query("beside"):
        return _beside(call, row, other)
    anchor = _anchor(row, call.query("anchor"))
    verified = None
    if call.query("verify"):
        anchors = None if anchor is None else {row.run_id: anchor}
        verified = console.guard.verify(row.run_id, anchors=anchors)
    whatif = Budget(**parse_limits(call.query)) if call.query("whatif") else None
    after = parse_number(call.query("after") or "0")
    entries, more = console.timeline(who, row, after)
    status = console.status(row)
    return page(
        "run.html",
        who,
        run=status,
        curves=console.curves(status),
        entries=entries,
        traces=console.traces,
        bars=charts.spans([(entry.event.at_ns, entry.event.duration_ns) for entry in entries]),
        more=more,
        live=more is None and row.ended_ns is None,
        last=entries[-1].event.seq if entries else after,
        verified=verified,
        anchor=anchor,
        typed_anchor=call.query("anchor"),
        whatif=whatif,
        judged=None if whatif is None else console.guard.what_if(row.run_id, whatif),
        forks=console.forks(who, row),
        waiting=[w for w in console.now(who).waiting if w.approval.run_id == row.run_id],
        downloads=console.shows_payloads(who),
    )


def _anchor(row: RunRow, text: str) -> Head | None:
    """Return a head that was typed as an anchor of a run.

    Raises:
        ValueError: it is none, or of another run.
    """
    if not text.strip():
        return None
    run_id, head = parse_anchor(text)
    if run_id not in (None, row.run_id):
        raise ValueError(f"this is an anchor of run {run_id}, not of {row.run_id}")
    return head


def _beside(call: Call, row: RunRow, other: str) -> Response:
    """Two runs side by side, call by call, as `agentguard diff` compares them."""
    beside, diff = call.console.compared(call.who, row, other)
    start = parse_number(call.query("from") or "0")
    return page(
        "beside.html",
        call.who,
        a=call.console.live_status(call.who, row),
        b=call.console.live_status(call.who, beside),
        diff=diff,
        calls=diff.calls[start : start + CALLS],
        more=start + CALLS if len(diff.calls) > start + CALLS else None,
        shown=call.console.shows_payloads(call.who),
    )


def download(call: Call) -> Response:
    """A run as JSON Lines, as `agentguard export` writes it."""
    row = call.console.row(call.who, call.path("run_id"))
    if not call.console.shows_payloads(call.who):
        raise ConsoleError(403, "a download has arguments and results, which are hidden from viewers here")
    target = io.BytesIO()
    call.console.guard.export(row.run_id, target)
    headers = {"content-disposition": 'attachment; filename="run.jsonl"'}
    return Response(target.getvalue(), media_type="application/x-ndjson", headers=headers)


def costs(call: Call) -> Response:
    """Where the money went; as CSV with `format=csv`."""
    by, since = call.query("by") or "model", call.query("since")
    if by not in BOOK_KEYS:
        raise ConsoleError(400, f"by must be one of {', '.join(BOOK_KEYS)}, not {by!r}")
    try:
        first = date.fromisoformat(since) if since else None
    except ValueError:
        raise ConsoleError(400, f"since must be a date as 2026-01-31, not {since!r}") from None
    pictures = ("day", "model") if call.who.tenant is not None else ("day", "model", "tenant")
    found, whole = call.console.costs(call.who, {by, *pictures}, "" if first is None else first.isoformat())
    if call.query("format") == "csv":
        if not whole:
            raise ConsoleError(503, "the runs are still being added up: open the page, and try again")
        rows = ((x.key, x.usd, x.steps, x.unpriced, x.usage.tokens) for x in found[by])
        return _csv([(by, "usd", "steps", "unpriced", "tokens"), *rows])
    return page(
        "costs.html",
        call.who,
        by=by,
        keys=BOOK_KEYS,
        since=since,
        lines=found[by][:MOST_LINES],
        left_out=max(len(found[by]) - MOST_LINES, 0),
        pictures={name: found[name][:PICTURED] for name in pictures[1:]},
        days=charts.columns(_days(found["day"])),
        whole=whole,
    )


def _days(lines: list[CostLine]) -> list[tuple[str, Decimal]]:
    """The newest days up to the last that cost something, with those that cost nothing; a week at least."""
    spent = {date.fromisoformat(line.key): line.usd for line in lines}
    if not spent:
        return []
    last = max(spent)
    first = max(min(*spent, last - timedelta(days=6)), last - timedelta(days=_DAYS - 1))
    days = (first + timedelta(days=number) for number in range((last - first).days + 1))
    return [(day.isoformat(), spent.get(day, Decimal(0))) for day in days]


def control(call: Call) -> Response:
    """The control log: who ordered what, and why."""
    if call.who.tenant is not None:
        raise ConsoleError(
            403, f"the control log is of all tenants; this token is bound to {call.who.tenant}"
        )
    events = call.console.guard.history(CONTROL_RUN_ID)[-500:]
    return page("control.html", call.who, events=events[::-1])


def ask_kill(call: Call) -> Response:
    """Ask before a kill: whom it will hit, why, and a confirmation that is typed."""
    call.who.require(Role.OPERATOR)
    scope, target = call.query("scope") or "global", call.query("target")
    check_scope(call.console, call.who, scope, target)
    covered = call.console.covered(call.who, scope, target)
    trouble = call.console.now(call.who).trouble
    return page("kill.html", call.who, scope=scope, target=target, covered=covered, trouble=trouble)


def after(done: Hit | RunRow | None) -> Response:
    """Lead from an action to the page of what it was about."""
    match done:
        case RunRow():
            return RedirectResponse(f"/runs/{quote(done.run_id)}", 303)
        case Hit():
            return RedirectResponse(f"/kills/{done.kill.generation}", 303)
        case None:
            return RedirectResponse("/", 303)


def killed(call: Call) -> Response:
    """Whom a kill has reached so far; the page loads itself again until all have acted."""
    return page(
        "killed.html",
        call.who,
        hit=call.console.hit(call.who, parse_number(call.path("generation")), wait=0.2),
    )


def _csv(rows: list[Any]) -> Response:
    target = io.StringIO()
    csv.writer(target).writerows(
        [[csv_cell(value) if isinstance(value, str) else value for value in row] for row in rows]
    )
    headers = {"content-disposition": 'attachment; filename="costs.csv"'}
    return Response(target.getvalue(), media_type="text/csv", headers=headers)
