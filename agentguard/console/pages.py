"""The pages: each handler reads or acts, and renders one template.  All work without JavaScript."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import quote, urlencode

from starlette.responses import RedirectResponse, Response

from agentguard.audit.costs import COST_KEYS, CostKey
from agentguard.audit.costs import since_ns as check_since
from agentguard.console import actions
from agentguard.console.auth import ConsoleError, Identity
from agentguard.console.data import Console
from agentguard.console.rendering import page
from agentguard.console.tokens import Role
from agentguard.events.model import CONTROL_RUN_ID
from agentguard.runs.state import RunState

if TYPE_CHECKING:
    from starlette.requests import Request


class Call(NamedTuple):
    """A request of somebody who is known; `form` is empty for what only reads."""

    console: Console
    who: Identity
    request: Request
    form: dict[str, str]

    def query(self, name: str) -> str:
        """Return a parameter of the address, empty where it is not there."""
        return self.request.query_params.get(name, "")

    def field(self, name: str) -> str:
        """Return a field of the form, empty where it is not there."""
        return self.form.get(name, "")

    def path(self, name: str) -> str:
        """Return a part of the path."""
        return str(self.request.path_params[name])


Handler = Callable[[Call], Response]


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
    actions.check_scope(call.console, call.who, scope, target)
    covered = call.console.covered(call.who, scope, target)
    return page("kill.html", call.who, scope=scope, target=target, covered=covered)


def kill(call: Call) -> Response:
    """Kill, and lead to the page of whom it has reached."""
    fields = {name: call.field(name) for name in ("scope", "target", "reason", "confirm")}
    hit = actions.kill(call.console, call.who, **fields)
    return RedirectResponse(f"/kills/{hit.kill.generation}", 303)


def killed(call: Call) -> Response:
    """Whom a kill has reached so far; the page loads itself again until all have acted."""
    return page(
        "killed.html",
        call.who,
        hit=call.console.hit(call.who, parse_number(call.path("generation")), wait=0.2),
    )


def revive(call: Call) -> Response:
    """Clear kills."""
    fields = {name: call.field(name) for name in ("scope", "target", "reason")}
    actions.revive(call.console, call.who, **fields)
    return RedirectResponse("/", 303)


def decide(call: Call) -> Response:
    """Approve or deny."""
    run_id, granted = call.path("run_id"), _granted(call.field("decision"))
    actions.decide(
        call.console, call.who, run_id, call.field("key"), granted=granted, reason=call.field("reason")
    )
    return RedirectResponse("/", 303)


def pause(call: Call) -> Response:
    """Pause a run."""
    actions.pause(call.console, call.who, call.path("run_id"), reason=call.field("reason"))
    return _to_run(call)


def resume(call: Call) -> Response:
    """Lift the pause of a run."""
    actions.resume(call.console, call.who, call.path("run_id"))
    return _to_run(call)


def set_limit(call: Call) -> Response:
    """Give a live run another limit of money."""
    actions.set_limit(call.console, call.who, call.path("run_id"), usd=call.field("usd"))
    return _to_run(call)


def _to_run(call: Call) -> Response:
    return RedirectResponse(f"/runs/{quote(call.path('run_id'))}", 303)


def _granted(decision: str) -> bool:
    if decision not in ("approve", "deny"):
        raise ConsoleError(400, f"decision must be approve or deny, not {decision!r}")
    return decision == "approve"


def parse_number(text: str) -> int:
    """Return a number of an event, as an address names it.

    Raises:
        ConsoleError: it is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise ConsoleError(400, f"a number of an event is meant, not {text!r}")
    return int(text)


def _csv(rows: list[Any]) -> Response:
    target = io.StringIO()
    csv.writer(target).writerows([[_cell(value) for value in row] for row in rows])
    headers = {"content-disposition": 'attachment; filename="costs.csv"'}
    return Response(target.getvalue(), media_type="text/csv", headers=headers)


def _cell(value: object) -> str:
    text = str(value)
    # A spreadsheet would run what begins like a formula.
    return f"'{text}" if isinstance(value, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
