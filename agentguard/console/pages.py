"""The pages: each handler reads or acts, and renders one template.  All work without JavaScript."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import quote, urlencode

from starlette.responses import RedirectResponse, Response

from agentguard.audit.costs import COST_KEYS, CostKey
from agentguard.audit.costs import since_ns as check_since
from agentguard.console.auth import ConsoleError
from agentguard.console.calls import Call, parse_number
from agentguard.console.confirming import check_scope
from agentguard.console.data import Hit
from agentguard.console.rendering import page
from agentguard.console.tokens import Role
from agentguard.events.model import CONTROL_RUN_ID
from agentguard.protocols import RunRow
from agentguard.runs.state import RunState


def overview(call: Call) -> Response:
    """The present: kills, approvals, live runs, tenants."""
    return page("overview.html", call.who, now=call.console.now(call.who))


def runs(call: Call) -> Response:
    """Runs, newest first, by filters."""
    filters = {name: call.query(name) for name in ("tenant", "state", "name")}
    found = call.console.runs(call.who, **filters, after=call.query("after"))
    more = None if found.after is None else "/runs?" + urlencode({**filters, "after": found.after})
    states = [str(state) for state in RunState]
    return page("runs.html", call.who, rows=found.rows, more=more, states=states, filters=filters)


def run(call: Call) -> Response:
    """One run: how it stands, what can be done, its events."""
    row = call.console.row(call.who, call.path("run_id"))
    verified = call.console.guard.verify(row.run_id) if call.query("verify") else None
    entries, more = call.console.timeline(call.who, row, parse_number(call.query("after") or "0"))
    waiting = [w for w in call.console.now(call.who).waiting if w.approval.run_id == row.run_id]
    return page(
        "run.html",
        call.who,
        run=call.console.status(row),
        entries=entries,
        more=more,
        verified=verified,
        waiting=waiting,
        downloads=call.console.shows_payloads(call.who),
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
    if by not in COST_KEYS:
        raise ConsoleError(400, f"by must be one of {', '.join(COST_KEYS)}, not {by!r}")
    try:
        start = datetime.fromisoformat(since).replace(tzinfo=UTC) if since else None
        check_since(start, 0)
    except (OverflowError, ValueError):
        raise ConsoleError(400, f"since must be a date as 2026-01-31, not {since!r}") from None
    lines = call.console.guard.costs(cast("CostKey", by), since=start, tenant=call.who.tenant)
    if call.query("format") == "csv":
        return _csv([(by, "usd", "steps", "unpriced"), *((x.key, x.usd, x.steps, x.unpriced) for x in lines)])
    most = max((line.usd for line in lines), default=0)
    return page("costs.html", call.who, by=by, keys=COST_KEYS, since=since, lines=lines, most=most)


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
    return page("kill.html", call.who, scope=scope, target=target, covered=covered)


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
    csv.writer(target).writerows([[_cell(value) for value in row] for row in rows])
    headers = {"content-disposition": 'attachment; filename="costs.csv"'}
    return Response(target.getvalue(), media_type="text/csv", headers=headers)


def _cell(value: object) -> str:
    text = str(value)
    # A spreadsheet would run what begins like a formula.
    return f"'{text}" if isinstance(value, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
