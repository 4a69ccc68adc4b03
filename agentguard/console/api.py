"""The same as the pages, as JSON for programs: `Authorization: Bearer TOKEN`, and bodies in JSON."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from agentguard.console import actions, metrics, pages
from agentguard.console.data import Hit, entry_data, row_data
from agentguard.console.pages import Call


def present(call: Call) -> Response:
    """Return live runs, steps that wait, kills in force, and tenants' budgets."""
    now = call.console.now(call.who)
    return JSONResponse(
        {
            "live": [status.to_data() for status in now.live],
            "approvals": [
                {**w.approval._asdict(), "tenant": w.tenant, "arguments": w.arguments} for w in now.waiting
            ],
            "kills": [kill._asdict() for kill in now.kills],
            "tenants": [
                {"tenant": a.tenant, "per": a.per, "budget": a.budget.to_fields(), "usd": str(a.spent.usd)}
                for a in now.tenants
            ],
        }
    )


def runs(call: Call) -> Response:
    """Return a page of runs; `after` of the answer begins the next one."""
    filters = {name: call.query(name) for name in ("tenant", "state", "name", "after")}
    found = call.console.runs(call.who, **filters)
    return JSONResponse({"runs": [row_data(row) for row in found.rows], "after": found.after})


def run(call: Call) -> Response:
    """Return how a run stands."""
    row = call.console.row(call.who, call.path("run_id"))
    return JSONResponse(call.console.status(row).to_data())


def events(call: Call) -> Response:
    """Return a page of a run's events; `after` of the answer begins the next one."""
    row = call.console.row(call.who, call.path("run_id"))
    found, after = call.console.timeline(call.who, row, pages.parse_number(call.query("after") or "0"))
    return JSONResponse({"events": [entry_data(entry) for entry in found], "after": after})


def verify(call: Call) -> Response:
    """Return whether a run's log is what was written."""
    row = call.console.row(call.who, call.path("run_id"))
    report = call.console.guard.verify(row.run_id)
    return JSONResponse({"intact": bool(report), "report": str(report)})


def kill(call: Call) -> Response:
    """Kill, and return whom it has reached."""
    fields = {name: call.field(name) for name in ("scope", "target", "reason", "confirm")}
    return JSONResponse(_hit_data(actions.kill(call.console, call.who, **fields)))


def killed(call: Call) -> Response:
    """Return whom a kill has reached so far."""
    return JSONResponse(_hit_data(call.console.hit(call.who, pages.parse_number(call.path("generation")))))


def revive(call: Call) -> Response:
    """Clear kills."""
    pages.revive(call)
    return JSONResponse({})


def decide(call: Call) -> Response:
    """Approve or deny a step that waits."""
    pages.decide(call)
    return JSONResponse({})


def pause(call: Call) -> Response:
    """Let a run begin no further step."""
    actions.pause(call.console, call.who, call.path("run_id"), reason=call.field("reason"))
    return run(call)


def resume(call: Call) -> Response:
    """Lift a pause."""
    actions.resume(call.console, call.who, call.path("run_id"))
    return run(call)


def set_limit(call: Call) -> Response:
    """Give a live run another limit of money, in USD."""
    actions.set_limit(call.console, call.who, call.path("run_id"), usd=call.field("usd"))
    return run(call)


def read_metrics(call: Call) -> Response:
    """Return the metrics for Prometheus."""
    return Response(metrics.text(call.console.now(call.who)), media_type=metrics.CONTENT_TYPE)


def _hit_data(hit: Hit) -> dict[str, Any]:
    return {
        **hit.kill._asdict(),
        **hit.reached._asdict(),
        "late_pids": hit.late_pids,
        "complete": hit.complete,
        "runs": {run.summary.run_id: str(run.summary.state) for run in hit.runs},
    }


#: Method, path, handler, and the fields of the body or the parameters of the query.
OPERATIONS = (
    ("GET", "/api/now", present, ()),
    ("GET", "/api/runs", runs, ("tenant", "state", "name", "after")),
    ("GET", "/api/runs/{run_id}/events", events, ("after",)),
    ("GET", "/api/runs/{run_id}/verify", verify, ()),
    ("POST", "/api/runs/{run_id}/pause", pause, ("reason",)),
    ("POST", "/api/runs/{run_id}/resume", resume, ()),
    ("POST", "/api/runs/{run_id}/decide", decide, ("key", "decision", "reason")),
    ("POST", "/api/runs/{run_id}/limit", set_limit, ("usd",)),
    ("GET", "/api/runs/{run_id}", run, ()),  # after those that have more behind it: an id may have slashes
    ("POST", "/api/kill", kill, ("scope", "target", "reason", "confirm")),
    ("GET", "/api/kills/{generation}", killed, ()),
    ("POST", "/api/revive", revive, ("scope", "target", "reason")),
    ("GET", "/metrics", read_metrics, ()),
)


def openapi(call: Call) -> Response:
    """Return the OpenAPI document of the operations."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, handler, fields in OPERATIONS:
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, handler.__doc__ or "", fields)
    document = {
        "openapi": "3.1.0",
        "info": {"title": "agentguard console", "version": "1"},
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
    }
    return JSONResponse(document)


def _operation(method: str, path: str, said: str, fields: tuple[str, ...]) -> dict[str, Any]:
    text = {"type": "string"}
    found: dict[str, Any] = {
        "summary": said.splitlines()[0],
        "parameters": [
            {"name": part[1:-1], "in": "path", "required": True, "schema": text}
            for part in path.split("/")
            if part.startswith("{")
        ],
        "responses": {
            "200": {"description": "done"},
            "4XX": {"description": "refused; `error` of the JSON body says why"},
        },
    }
    if method == "GET":
        found["parameters"] += [{"name": name, "in": "query", "schema": text} for name in fields]
    elif fields:
        schema = {"type": "object", "properties": dict.fromkeys(fields, text), "additionalProperties": False}
        found["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    return found
